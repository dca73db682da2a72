"""What people send about users, sign-ins and tokens, and what they are shown."""

from datetime import datetime, timedelta
from typing import Annotated, Literal

from flask_babel import lazy_gettext as _l
from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints

from app.kernel.access import MATRIX, SIGNED_IN
from app.kernel.api import In, Out
from app.kernel.clock import now
from app.kernel.paging import ListQuery
from config import check_time_zone

USERNAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]*$"
"""Plain ASCII, so that no letter of another script looks like one of these. `Ada` and `ada` are two names."""
RESERVED = frozenset({"system", "nobody", "anonymous"})
"""What pages and the audit log say where no person did something."""
LONGEST_LIFE = timedelta(days=3650)


def check_name(name: str) -> str:
    if name.lower() in RESERVED:
        raise ValueError(_l("This name is kept for what no person does."))
    return name


Username = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=USERNAME), AfterValidator(check_name)]
Email = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")]
Phone = Annotated[str, StringConstraints(max_length=20, pattern=r"^[0-9+() -]{3,20}$")]
Password = Annotated[str, StringConstraints(strip_whitespace=False, min_length=1, max_length=256)]
RoleName = Literal["admin", "operator", "viewer"]
Status = Literal["enabled", "disabled"]
Scope = Annotated[str, StringConstraints(max_length=64, pattern=r"^(\*|[a-z_]+\.(\*|[a-z_]+)|\*\.read)$")]


def check_scopes(scopes: list[str]) -> list[str]:
    """Only what exists: a scope that means nothing would look like a right."""
    rooms = {permission.partition(".")[0] for permission in MATRIX}
    for scope in scopes:
        if scope not in ("*", "*.read") and scope not in MATRIX and not (scope.endswith(".*") and scope[:-2] in rooms):
            raise ValueError(f"{scope}: there is no such permission")
    return scopes


def check_end(moment: datetime) -> datetime:
    """Ten years is for ever, and further away lie dates that not every database knows."""
    if moment > now() + LONGEST_LIFE:
        raise ValueError(_l("At most ten years ahead."))
    return moment


def grantable_scopes() -> list[str]:
    return ["*", "*.read", *sorted(set(MATRIX) - {SIGNED_IN})]


class SignIn(In):
    username: str = Field(min_length=1, max_length=64)
    password: Password
    totp: str | None = Field(None, max_length=16)


class Refresh(In):
    refresh_token: str = Field(min_length=1, max_length=4096)


class PasswordChange(In):
    current_password: Password
    new_password: Password


class UserQuery(ListQuery):
    keyword: str | None = Field(None, max_length=100, description="In user name or e-mail.")
    role: RoleName | None = None
    status: Status | None = None


class UserCreate(In):
    username: Username
    password: Password
    email: Email | None = None
    phone: Phone | None = None
    role: RoleName = "viewer"
    status: Status = "enabled"
    must_change_password: bool = False


class UserUpdate(In):
    """What is left out stays as it is."""

    email: Email | None = None
    phone: Phone | None = None
    role: RoleName | None = None
    status: Status | None = None
    password: Password | None = None
    must_change_password: bool | None = None


class UserForm(In):
    """The edit page sends every field, so an empty one there means: none."""

    email: Email | None = None
    phone: Phone | None = None
    role: RoleName = "viewer"
    status: Status = "enabled"


class UsersForm(In):
    """The ticked ones of a list, and what is to happen to all of them."""

    action: Literal["enable", "disable"]
    ids: list[Annotated[int, Field(ge=1, le=2**63 - 1)]] = Field(min_length=1, max_length=1000)


class ProfileUpdate(In):
    """What is left out stays as it is."""

    email: Email | None = None
    phone: Phone | None = None
    locale: Literal["en", "zh"] | None = None
    timezone: Annotated[str, AfterValidator(check_time_zone)] | None = None


class UserOut(Out):
    id: int
    username: str
    email: str | None
    phone: str | None
    role: str
    status: str
    must_change_password: bool
    last_login_at: AwareDatetime | None
    last_login_ip: str | None
    created_at: AwareDatetime
    updated_at: AwareDatetime


class MeOut(UserOut):
    locale: str | None
    timezone: str | None
    permissions: list[str]


class TokensOut(Out):
    access_token: str
    refresh_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105
    expires_in: int
    user: UserOut


class SessionQuery(ListQuery):
    user_id: int | None = Field(None, ge=1, le=2**63 - 1, description="Another user's; administrators only.")


class SessionOut(Out):
    id: int
    user_id: int
    kind: Literal["web", "api"]
    ip: str
    user_agent: str
    created_at: AwareDatetime
    last_seen_at: AwareDatetime
    expires_at: AwareDatetime


class TokenQuery(ListQuery):
    user_id: int | None = Field(None, ge=1, le=2**63 - 1, description="Another user's; administrators only.")


class TokenCreate(In):
    name: str = Field(min_length=1, max_length=64)
    scopes: Annotated[list[Scope], AfterValidator(check_scopes)] = Field(
        default_factory=lambda: ["*"], min_length=1, max_length=50
    )
    expires_at: Annotated[AwareDatetime, AfterValidator(check_end)] | None = None


class TokenForm(In):
    name: str = Field(min_length=1, max_length=64)
    scopes: Annotated[list[Scope], AfterValidator(check_scopes)] = Field(min_length=1, max_length=50)
    days: int | None = Field(90, ge=1, le=LONGEST_LIFE.days)


class TokenOut(Out):
    id: int
    user_id: int
    name: str
    prefix: str
    scopes: list[str]
    expires_at: AwareDatetime | None
    last_used_at: AwareDatetime | None
    last_used_ip: str | None
    created_at: AwareDatetime


class NewTokenOut(TokenOut):
    """The only answer that ever holds the token itself."""

    token: str
