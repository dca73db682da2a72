"""Pages about people: signing in and out, the own profile with sessions and tokens, and the administration of users."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from flask import session as form_state
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from werkzeug.wrappers import Response as AnyResponse

from app.kernel.access import MATRIX, PUBLIC, SIGNED_IN, Role, current_actor, may
from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.db import db
from app.kernel.edges import local_address, page, see_other
from app.kernel.errors import AppError, BadParameter, FieldError, NotAuthenticated, TooManyRequests
from app.kernel.exports import csv_response, json_response
from app.kernel.forms import OVERALL, Form
from app.kernel.htmx import render_part
from app.kernel.i18n import COOKIE as LANGUAGE_COOKIE
from app.kernel.live_settings import live_settings
from app.kernel.paging import Column, Page, lenient_query
from app.people import actions, queries
from app.people.clients import client_name
from app.people.identity import COOKIE
from app.people.models import ENABLED, User, UserSession
from app.people.schemas import (
    PasswordChange,
    ProfileUpdate,
    SessionQuery,
    SignIn,
    Status,
    TokenCreate,
    TokenForm,
    TokenQuery,
    UserCreate,
    UserForm,
    UserOut,
    UserQuery,
    UsersForm,
    UserUpdate,
    grantable_scopes,
)
from app.shell import home_endpoint, tell
from config import known_time_zones

pages = Blueprint("people", __name__)

USER_COLUMNS = (
    Column("username", _l("User"), sortable=True),
    Column("role", _l("Role"), sortable=True),
    Column("status", _l("Status"), sortable=True),
    Column("last_login_at", _l("Last sign-in"), sortable=True),
    Column("created_at", _l("Created"), sortable=True, klass="wide"),
)
STATUS_OF: dict[str, Status] = {"enable": "enabled", "disable": "disabled"}
USER_FIELDS = (
    "id",
    "username",
    "email",
    "phone",
    "role",
    "status",
    "last_login_at",
    "last_login_ip",
    "created_at",
    "updated_at",
)


@page(pages, "/login", permission=PUBLIC)
def sign_in() -> str | AnyResponse:
    if current_actor().is_signed_in:
        return redirect(url_for(home_endpoint()))
    return _sign_in_page(Form())


@page(pages, "/login", permission=PUBLIC, methods=("POST",))
def do_sign_in() -> Any:
    form = Form.received(SignIn, request.form)
    if form.value is None:
        return _sign_in_page(form), 422
    actor, session = current_actor(), db.session()
    try:
        user = actions.verified_user(session, actor, form.value.username, form.value.password)
        secret = actions.open_browser_session(session, actor, user, form.value.password)
    except (NotAuthenticated, TooManyRequests) as error:
        form.values.pop("password", None)
        form.add_errors([FieldError(OVERALL, str(error.message))])
        raise _answered(error, _sign_in_page(form)) from None
    fallback = url_for("people.change_password") if user.must_change_password else "/"
    response = make_response(see_other(local_address(request.form.get("next"), fallback)))
    form_state.clear()
    response.set_cookie(
        COOKIE,
        secret,
        max_age=int(live_settings().auth.session_ttl),
        httponly=True,
        secure=request.is_secure or ops().settings.public_url.startswith("https:"),
        samesite="Lax",
    )
    return response


def _answered(error: AppError, html: str) -> AppError:
    """The error, shown as its form filled again; the refusal it carries goes to the audit log at the edge."""
    is_throttled = isinstance(error, TooManyRequests)
    error.response = Response(html, error.status if is_throttled else 422)
    if error.retry_after_s is not None:
        error.response.headers["Retry-After"] = str(error.retry_after_s)
    return error


def _sign_in_page(form: Form[SignIn]) -> str:
    target = local_address(request.values.get("next"), "")
    return render_template("people/sign_in.html", form=form, target=target)


@page(pages, "/logout", permission=SIGNED_IN, methods=("POST",))
def sign_out() -> Response:
    actions.sign_out(db.session(), current_actor())
    response = make_response(see_other(url_for("people.sign_in")))
    response.delete_cookie(COOKIE)
    form_state.clear()
    return response


@page(pages, "/profile", permission=SIGNED_IN)
def profile() -> str:
    user = _me()
    return _profile_page(Form({name: getattr(user, name) for name in ProfileUpdate.model_fields}))


@page(pages, "/profile", permission="self.manage", methods=("POST",))
def update_profile() -> Any:
    form = Form.received(ProfileUpdate, request.form)
    if form.submit(lambda values: actions.update_profile(db.session(), current_actor(), _whole(values))) is None:
        return _profile_page(form), 422
    tell(_("Your profile was saved."))
    response = see_other(url_for("people.profile"))
    # What was chosen here is newer than what the switch has left in this browser.
    response.delete_cookie(LANGUAGE_COOKIE)
    return response


def _whole(values: ProfileUpdate) -> ProfileUpdate:
    """The page sends every field, so an empty one means: none."""
    return ProfileUpdate(**values.model_dump())


def _profile_page(form: Form[Any]) -> str:
    return render_template("people/profile.html", form=form, user=_me(), time_zones=known_time_zones())


def _me() -> User:
    return queries.user_by_id(db.session(), current_actor().user_id or 0)


@page(pages, "/profile/password", permission=SIGNED_IN)
def change_password() -> str:
    return _password_page(Form())


@page(pages, "/profile/password", permission="self.manage", methods=("POST",))
def do_change_password() -> Any:
    form = Form.received(PasswordChange, request.form)
    if form.value is not None and form.value.new_password != request.form.get("repeat_password"):
        form.add_errors([FieldError("repeat_password", _("This is not the same password."))])
        form.value = None
    if form.value is None:
        return _password_page(form), 422
    given, session, actor = form.value, db.session(), current_actor()
    try:
        user = actions.verified_self(session, actor, given.current_password)
        actions.change_own_password(session, actor, user, given.current_password, given.new_password)
    except (BadParameter, TooManyRequests) as error:
        form.add_errors(error.errors or [FieldError(OVERALL, str(error.message))])
        raise _answered(error, _password_page(form)) from None
    tell(_("Your password was changed. Every other session of yours was ended."))
    return see_other(url_for("people.profile"))


def _password_page(form: Form[Any]) -> str:
    return render_template("people/password.html", form=form)


@page(pages, "/profile/sessions", permission=SIGNED_IN)
def list_sessions() -> str:
    rows = _open_sessions(current_actor().user_id or 0)
    return render_template(
        "people/sessions.html", client_name=client_name, sessions=rows, own_id=current_actor().session_id
    )


def _open_sessions(user_id: int) -> Sequence[UserSession]:
    return queries.open_sessions(db.session(), SessionQuery(page_size=100, sort="-last_seen_at"), user_id).items


@page(pages, "/profile/sessions/<id:session_id>/end", permission="self.manage", methods=("POST",))
def end_session(session_id: int) -> AnyResponse:
    actions.end_session(db.session(), current_actor(), session_id)
    tell(_("The session was ended."))
    return see_other(url_for("people.list_sessions"))


@page(pages, "/profile/tokens", permission="self.manage")
def list_tokens() -> str:
    query = lenient_query(TokenQuery, request.args)
    found = queries.tokens(db.session(), query, current_actor().user_id or 0)
    return render_template("people/tokens.html", page=found, now=now())


@page(pages, "/profile/tokens/new", permission="self.manage")
def new_token() -> str:
    return _token_page(Form({"scopes": ["*.read"], "days": 90}))


@page(pages, "/profile/tokens/new", permission="self.manage", methods=("POST",))
def create_token() -> Any:
    form = Form.received(TokenForm, request.form)
    if "days" not in form.values and form.value is not None:
        form.value = form.value.model_copy(update={"days": None})
    made = form.submit(lambda values: actions.create_token(db.session(), current_actor(), _token_values(values)))
    if made is None:
        return _token_page(form), 422
    return render_template("people/token_made.html", token=made[0], secret=made[1])


def _token_values(values: TokenForm) -> TokenCreate:
    ends = now() + timedelta(days=values.days) if values.days else None
    return TokenCreate(name=values.name, scopes=values.scopes, expires_at=ends)


def _token_page(form: Form[Any]) -> str:
    actor = current_actor()
    allowed = [scope for scope in grantable_scopes() if scope not in MATRIX or may(actor, scope)]
    return render_template("people/token_new.html", form=form, scopes=allowed)


@page(pages, "/profile/tokens/<id:token_id>/revoke", permission="self.manage", methods=("POST",))
def revoke_token(token_id: int) -> AnyResponse:
    actions.revoke_token(db.session(), current_actor(), token_id)
    tell(_("The token was revoked."))
    return see_other(url_for("people.list_tokens"))


@page(pages, "/users", permission="users.read")
def list_users() -> Any:
    query = lenient_query(UserQuery, request.args)
    if request.args.get("format") in ("csv", "json"):
        rows = (UserOut.model_validate(user).model_dump(mode="json") for user in queries.all_users(db.session(), query))
        return (
            csv_response("users", USER_FIELDS, rows)
            if request.args["format"] == "csv"
            else json_response("users", rows)
        )
    found: Page[User] = queries.users(db.session(), query)
    return render_part(
        "users-table", "people/_users_table.html", "people/users.html", page=found, columns=USER_COLUMNS, roles=_roles()
    )


@page(pages, "/users/new", permission="users.manage")
def new_user() -> str:
    return _new_user_page(Form({"role": "viewer", "status": ENABLED, "must_change_password": True}))


@page(pages, "/users/new", permission="users.manage", methods=("POST",))
def create_user() -> Any:
    form = Form.received(UserCreate, request.form)
    user = form.submit(lambda values: actions.create_user(db.session(), current_actor(), values))
    if user is None:
        return _new_user_page(form), 422
    tell(_("User %(name)s was created.", name=user.username))
    return see_other(url_for("people.list_users"))


def _new_user_page(form: Form[Any]) -> str:
    return render_template("people/user_new.html", form=form, roles=_roles())


@page(pages, "/users/<id:user_id>", permission="users.read")
def show_user(user_id: int) -> str:
    user = queries.user_by_id(db.session(), user_id)
    return _user_page(user, Form({name: getattr(user, name) for name in UserForm.model_fields}))


@page(pages, "/users/<id:user_id>", permission="users.manage", methods=("POST",))
def update_user(user_id: int) -> Any:
    form = Form.received(UserForm, request.form)
    changed = form.submit(
        lambda values: actions.update_user(db.session(), current_actor(), user_id, UserUpdate(**values.model_dump()))
    )
    if changed is None:
        return _user_page(queries.user_by_id(db.session(), user_id), form), 422
    tell(_("User %(name)s was saved.", name=changed.username))
    return see_other(url_for("people.show_user", user_id=user_id))


def _user_page(user: User, form: Form[Any]) -> str:
    sessions = _open_sessions(user.id)
    tokens = queries.tokens(db.session(), TokenQuery(page_size=100), user.id)
    return render_template(
        "people/user.html",
        client_name=client_name,
        user=user,
        form=form,
        roles=_roles(),
        sessions=sessions,
        tokens=tokens,
    )


@page(pages, "/users/<id:user_id>/reset-password", permission="users.manage", methods=("POST",))
def reset_password(user_id: int) -> str:
    password = actions.reset_password(db.session(), current_actor(), user_id)
    return render_template(
        "people/password_reset.html", user=queries.user_by_id(db.session(), user_id), password=password
    )


@page(pages, "/users/<id:user_id>/delete", permission="users.manage")
def confirm_delete_user(user_id: int) -> str:
    user = queries.user_by_id(db.session(), user_id)
    return render_template("people/user_delete.html", user=user, form=Form())


@page(pages, "/users/<id:user_id>/delete", permission="users.manage", methods=("POST",))
def delete_user(user_id: int) -> Any:
    user = queries.user_by_id(db.session(), user_id)
    name, form = user.username, Form[Any]()
    if request.form.get("confirm", "").strip() == name:
        form.value = name
    else:
        form.add_errors([FieldError("confirm", _("Please type %(name)s.", name=name))])
    if form.submit(lambda _name: _delete_user(user_id)) is None:
        return render_template("people/user_delete.html", user=user, form=form), 422
    tell(_("User %(name)s was deleted.", name=name))
    return see_other(url_for("people.list_users"))


def _delete_user(user_id: int) -> bool:
    actions.delete_user(db.session(), current_actor(), user_id)
    return True


@page(pages, "/users/<id:user_id>/tokens/<id:token_id>/revoke", permission="tokens.manage", methods=("POST",))
def revoke_users_token(user_id: int, token_id: int) -> AnyResponse:
    actions.revoke_token(db.session(), current_actor(), token_id)
    tell(_("The token was revoked."))
    return see_other(url_for("people.show_user", user_id=user_id))


@page(pages, "/users/bulk", permission="users.manage", methods=("POST",))
def change_users() -> AnyResponse:
    """Enable or disable the ticked ones, all or none."""
    form = Form.received(UsersForm, request.form)
    if form.value is not None:
        ids = sorted(set(form.value.ids))
        actions.set_status(db.session(), current_actor(), ids, STATUS_OF[form.value.action])
        tell(ngettext("%(num)s user was changed.", "%(num)s users were changed.", len(ids)))
    return see_other(url_for("people.list_users"))


def _roles() -> list[tuple[str, str]]:
    names = {Role.ADMIN: _("Administrator"), Role.OPERATOR: _("Operator"), Role.VIEWER: _("Viewer")}
    return [(role.value, name) for role, name in names.items()]
