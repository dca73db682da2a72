"""Wiring, nothing else: settings, keys, database, Redis, rooms. One application for each plane and process."""

from flask import Flask
from flask_migrate import Migrate
from flask_wtf.csrf import CSRFProtect
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import IntegerConverter

from app import cli, shell
from app.agents.api import api as agents_api
from app.agents.pages import pages as agents_pages
from app.agents.pages_agent import pages as agent_pages
from app.agents.pages_config import pages as agent_config_pages
from app.agents.pages_new import pages as agent_new_pages
from app.audit import actions as audit_actions
from app.audit.api import api as audit_api
from app.audit.pages import pages as audit_pages
from app.commands.api import api as commands_api
from app.commands.hooks import attach as attach_hooks
from app.events.api import api as events_api
from app.events.pages import pages as events_pages
from app.kernel import edges, i18n
from app.kernel.broker import connect_redis
from app.kernel.context import Ops, Plane, attach
from app.kernel.db import db, engine_options, prepare_engine
from app.kernel.secrets import Keys, create_missing_keys, load_keys
from app.link import edges as link_edges
from app.link.edges import Rates
from app.link.files import files_gateway
from app.link.gateway import gateway
from app.link.takers import HOOKS
from app.link.waiting import Waiters, Watch
from app.metrics.api import api as metrics_api
from app.metrics.pages import pages as metrics_pages
from app.nodes.api import api as nodes_api
from app.nodes.pages import pages as nodes_pages
from app.nodes.pages_enrolment import pages as enrolment_pages
from app.nodes.pages_groups import pages as groups_pages
from app.nodes.pages_node import pages as node_pages
from app.nodes.queries import waiting_nodes
from app.overview.api import api as overview_api
from app.overview.pages import pages as overview_pages
from app.overview.pages_live import pages as live_pages
from app.people.api import api as people_api
from app.people.identity import identify
from app.people.pages import pages as people_pages
from app.settings.api import api as settings_api
from app.settings.pages import pages as settings_pages
from app.system.api import api as system_api
from app.system.pages import pages as system_pages
from app.system.pages import styleguide_pages
from app.tasks.api import api as tasks_api
from app.tasks.api_files import api as files_api
from app.tasks.pages import pages as tasks_pages
from app.tasks.pages_compare import pages as compare_pages
from app.tasks.pages_edit import pages as task_form_pages
from app.tasks.pages_files import pages as task_files_pages
from app.tasks.pages_records import pages as records_pages
from app.tasks.pages_runs import pages as runs_pages
from app.tasks.pages_templates import pages as task_templates_pages
from config import Settings
from protocol import limits

PAGES = (
    overview_pages,
    live_pages,
    nodes_pages,
    node_pages,
    groups_pages,
    enrolment_pages,
    agents_pages,
    agent_pages,
    agent_config_pages,
    agent_new_pages,
    tasks_pages,
    task_files_pages,
    task_form_pages,
    task_templates_pages,
    runs_pages,
    records_pages,
    compare_pages,
    metrics_pages,
    events_pages,
    people_pages,
    audit_pages,
    settings_pages,
    system_pages,
)
API_ROOMS = (
    nodes_api,
    commands_api,
    agents_api,
    tasks_api,
    files_api,
    metrics_api,
    events_api,
    overview_api,
    people_api,
    audit_api,
    settings_api,
    system_api,
)


class IdConverter(IntegerConverter):
    """A row's number. What no database could hold is simply not found."""

    regex = r"[1-9]\d{0,18}"

    def to_python(self, value: str) -> int:
        return min(int(value), 2**63 - 1)


def create_app(settings: Settings, plane: Plane = "web", keys: Keys | None = None) -> Flask:
    """An application with everything attached and nothing opened: connections are made when they are needed."""
    app = Flask("app", root_path=str(settings.root_path), static_folder="static", template_folder="templates")
    app.url_map.converters["id"] = IdConverter
    redis = connect_redis(settings.redis_url)
    if keys is None:
        create_missing_keys(settings)
    attach(app, Ops(settings, keys or load_keys(settings), redis, plane))
    attach_hooks(app, HOOKS)
    _configure(app, settings)
    _install_database(app, settings)
    i18n.install(app)
    if plane == "web":
        _install_web(app, settings)
    else:
        _install_gateway(app)
    cli.install(app)
    return app


def _configure(app: Flask, settings: Settings) -> None:
    app.config.update(
        SECRET_KEY=app.extensions["ops"].keys.form,
        SESSION_COOKIE_NAME="ops_form",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=settings.public_url.startswith("https:"),
        MAX_CONTENT_LENGTH=settings.server.http.max_body,
        MAX_FORM_MEMORY_SIZE=settings.server.http.max_body,
        WTF_CSRF_TIME_LIMIT=None,
        WTF_CSRF_CHECK_DEFAULT=True,
        BABEL_TRANSLATION_DIRECTORIES=str(settings.root_path / "app" / "translations"),
        SQLALCHEMY_DATABASE_URI=settings.database_url,
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(settings),
        SEND_FILE_MAX_AGE_DEFAULT=31536000,
        JSON_SORT_KEYS=False,
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    if settings.server.http.trusted_proxies:
        app.wsgi_app = TrustedProxies(app.wsgi_app, settings.server.http.trusted_proxies)  # type: ignore[method-assign]


class TrustedProxies:
    """Believes X-Forwarded-For and -Proto from the proxies we were told of, and from nobody else."""

    def __init__(self, inner, networks: list[str]) -> None:  # type: ignore[no-untyped-def]
        self._inner, self._networks = inner, networks
        self._fixed = ProxyFix(inner, x_for=1, x_proto=1, x_host=1)

    def __call__(self, environ, start_response):  # type: ignore[no-untyped-def]
        peer = environ.get("REMOTE_ADDR") or edges.LOCAL
        is_trusted = edges.is_within(peer, self._networks)
        return (self._fixed if is_trusted else self._inner)(environ, start_response)


def _install_database(app: Flask, settings: Settings) -> None:
    db.init_app(app)
    Migrate(app, db, directory=str(settings.root_path / "migrations"), render_as_batch=True, compare_type=True)
    audit_actions.listen_for_commits()
    with app.app_context():
        prepare_engine(db.engine)


def _install_web(app: Flask, settings: Settings) -> None:
    edges.install_before(app, identify)
    csrf = CSRFProtect(app)
    csrf.exempt("app.tasks.pages_files.upload_file")  # it asks for the token itself, once the file has come
    shell.install(app, {"enrolment.list_tokens": waiting_nodes})
    for blueprint in PAGES:
        app.register_blueprint(blueprint)
    for room in API_ROOMS:
        csrf.exempt(room.blueprint)
        app.register_blueprint(room.blueprint)
    if settings.server.development:
        app.register_blueprint(styleguide_pages)
    app.extensions["api_rooms"] = API_ROOMS
    edges.install_after(app, audit_actions.record_refusal)


def _install_gateway(app: Flask) -> None:
    waiters = Waiters()
    app.extensions |= {"waiters": waiters, "rates": Rates()}
    app.config["MAX_CONTENT_LENGTH"] = limits.ANSWER_BYTES
    if app.extensions["ops"].settings.server.gateway.behind_proxy:
        # Only the proxy can reach the socket, so what it says about addresses is true.
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1)  # type: ignore[method-assign]
    link_edges.install(app)
    app.register_blueprint(gateway)
    app.register_blueprint(files_gateway)
    app.add_url_rule("/health/live", "live", lambda: {"status": "ok"})
    Watch(app, waiters, app.extensions["ops"].redis).start()
