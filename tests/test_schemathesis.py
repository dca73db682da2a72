"""What the OpenAPI document promises, tried with thousands of right and wrong requests: no 500, nothing undocumented.

`OPS_SCHEMATHESIS_EXAMPLES` says how many random requests each operation gets of each kind, on top of those at the
edges of its schema; `OPS_SCHEMATHESIS_SECONDS` how much of a processor each run may take (0: until it is done).
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR
from sqlalchemy import delete

from app.kernel.db import db, in_transaction
from app.kernel.live_settings import ChangedSetting
from app.people import actions
from app.people.models import User
from app.people.schemas import TokenCreate
from tests.conftest import DATABASES, Applications
from tests.factories import SYSTEM, make_user
from tests.variants import build, dispose, existing_id

EXAMPLES = int(os.environ.get("OPS_SCHEMATHESIS_EXAMPLES", "3"))
BUDGET_S = float(os.environ.get("OPS_SCHEMATHESIS_SECONDS", "8"))
DOCUMENT = "/api/v1/openapi.json"
OWN_SIGN_IN = {"people_logout", "people_change_password"}
"""What would end the run's own sign-in."""

LEFT_OUT = {
    # Rules beyond a schema: names that are taken, dates that lie in the past, columns that can be sorted by.
    "positive_data_acceptance",
    # They follow one resource through several requests.
    "use_after_free",
    "ensure_resource_availability",
    "object_level_authorization",
    "max_response_time",
}


class Run:
    """All operations of one application, as one caller sees them."""

    def __init__(self, app: Flask, token: str = "", protected: Callable[[Any], bool] = lambda _case: False) -> None:
        self.app = app
        self.schema = schemathesis.openapi.from_wsgi(DOCUMENT, app, config=SchemathesisConfig())
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.failures: dict[str, str] = {}
        self.calls: dict[str, int] = {}
        self._protected = protected
        load_all_checks()
        self._checks = [check for check in CHECKS.get_all() if check.__name__ not in LEFT_OUT]

    def operations(self) -> list[Any]:
        return [result.ok() for result in self.schema.get_all_operations()]

    def all(self, left_out: Set[str] = frozenset(), budget_s: float = BUDGET_S) -> None:
        """Each operation gets its share of the time; what one does not need is left to those after it."""
        chosen = [item for item in self.operations() if item.definition.raw["operationId"] not in left_out]
        deadline = time.process_time() + (budget_s or 86400)
        for number, operation in enumerate(chosen):
            share = (deadline - time.process_time()) / (len(chosen) - number)
            self.one(operation, time.process_time() + max(share, 0.05))
        assert self.failures == {}
        assert sorted(self.calls) == sorted(operation.label for operation in chosen)

    def one(self, operation: Any, deadline: float) -> None:
        for case in self._cases(operation):
            is_late = time.process_time() > deadline and operation.label in self.calls
            if is_late or operation.label in self.failures:
                return
            self._try(case)

    def _cases(self, operation: Any) -> Iterator[Any]:
        """First some at random: of things that are there, of any things, of both kinds. Then those at the edges."""
        if there := self._there(operation):
            yield from self._random(operation, GenerationMode.POSITIVE, path_parameters=there)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            yield from self._random(operation, mode)
        modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
        yield from self.schema.iter_coverage_cases(
            operation, generation_modes=modes, generation_config=self.schema.config.generation
        )

    def _there(self, operation: Any) -> dict[str, int]:
        """Numbers of rows that exist, for `{user_id}` and the like: made-up ones are hardly ever found."""
        names = [parameter["name"] for parameter in operation.definition.raw["parameters"] if parameter["in"] == "path"]
        with self.app.app_context():
            found = {name: existing_id(name) for name in names}
        return {name: number for name, number in found.items() if number is not None}

    @staticmethod
    def _random(operation: Any, mode: GenerationMode, **fixed: Any) -> list[Any]:
        found: list[Any] = []

        @seed(len(operation.label))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode, **fixed))
        def collect(case: Any) -> None:
            found.append(case)

        with suppress(Unsatisfiable):  # an operation without parameters cannot be called wrongly
            collect()
        return found

    def _try(self, case: Any) -> None:
        if self._protected(case):
            return
        label = case.operation.label
        self.calls[label] = self.calls.get(label, 0) + 1
        try:
            case.call_and_validate(headers=self.headers, checks=self._checks)
        except Exception as error:  # noqa: BLE001  everything that went wrong is to be told, for each operation
            self.failures[label] = "\n".join(str(part) for part in getattr(error, "exceptions", [error]))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def generous(request: pytest.FixtureRequest, applications: Applications) -> Iterator[Flask]:
    """An application whose limits the run does not reach."""
    most = "10000000"
    names = ("PER_USER", "PER_ADDRESS", "ANONYMOUS")
    limits = {f"OPS_SERVER__RATE_LIMIT__{name}": most for name in names}
    attempts = {"OPS_AUTH__ATTEMPTS_PER_ADDRESS": "100000", "OPS_AUTH__ATTEMPTS_PER_ACCOUNT": "1000"}
    app = build(applications, kind=getattr(request, "param", "sqlite"), **limits, **attempts)
    yield app
    dispose(app)


def test_the_document_is_valid_openapi(sqlite_app: Flask) -> None:
    document = sqlite_app.test_client().get(DOCUMENT).json
    assert document["openapi"] == "3.1.0"
    errors = [f"{error.instance_path}: {error.message}" for error in OPENAPI_31_VALIDATOR.iter_errors(document)]
    assert errors == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("generous", DATABASES, indirect=True)
def test_an_administrator_finds_no_500_and_nothing_undocumented(generous: Flask) -> None:
    with generous.app_context():
        user = make_user("schemathesis", "admin")
        own_id, mine = user.id, actions.as_user(SYSTEM, user)
        token, secret = in_transaction(
            db.session(), lambda: actions.create_token(db.session(), mine, TokenCreate(name="own"))
        )
        own_token = token.id
        make_user("somebody-else")

    def would_end_the_run(case: Any) -> bool:
        """The run's own user and token, and settings that would slow it down, are not to be touched."""
        with generous.app_context():
            in_transaction(db.session(), lambda: db.session.execute(delete(ChangedSetting)))
        given = case.path_parameters or {}
        is_own_token = case.method == "DELETE" and str(given.get("token_id")) == str(own_token)
        return is_own_token or (case.method in ("PUT", "DELETE") and str(given.get("user_id")) == str(own_id))

    Run(generous, secret, would_end_the_run).all(OWN_SIGN_IN)
    with generous.app_context():
        assert db.session.get(User, own_id) is not None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stranger_finds_no_500_and_nothing_undocumented(generous: Flask) -> None:
    Run(generous).all(budget_s=BUDGET_S / 2)
