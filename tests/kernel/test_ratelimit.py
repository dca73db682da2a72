"""Rate limits: per user and per address, shared by processes, going on alone while Redis is away."""

import time

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis.exceptions import ConnectionError as RedisConnectionError

from app.kernel import ratelimit
from app.kernel.context import ops
from app.kernel.ratelimit import LocalCounters, Usage, count, neighbourhood
from tests.factories import Api, api_as, make_user
from tests.variants import MakeApp

LIMITS = {
    "OPS_SERVER__RATE_LIMIT__ANONYMOUS": "10",
    "OPS_SERVER__RATE_LIMIT__PER_USER": "12",
    "OPS_SERVER__RATE_LIMIT__PER_ADDRESS": "20",
}


@pytest.fixture
def limited(make_app: MakeApp) -> Flask:
    app = make_app(**LIMITS)
    with app.app_context():
        for name in ("ada", "ben"):
            make_user(name)
    return app


def allowed(api: Api, most: int = 40) -> int:
    """How many requests pass before one is refused."""
    for number in range(most):
        if api.get("/auth/me").status_code == 429:
            return number
    return most


def test_strangers_of_one_address_have_a_limit_of_their_own(limited: Flask) -> None:
    client = limited.test_client()
    answers = [client.get("/api/v1/health", environ_overrides={"REMOTE_ADDR": "192.0.2.1"}) for _time in range(11)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429]
    refused = answers[-1]
    assert refused.json["code"] == 1005
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    other = client.get("/api/v1/health", environ_overrides={"REMOTE_ADDR": "192.0.2.2"})
    assert other.status_code == 200


def test_all_addresses_of_one_ipv6_network_count_as_one(limited: Flask) -> None:
    client = limited.test_client()
    codes = [
        client.get("/api/v1/health", environ_overrides={"REMOTE_ADDR": f"2001:db8:1:2::{number:x}"}).status_code
        for number in range(11)
    ]
    assert codes == [200] * 10 + [429]
    other = client.get("/api/v1/health", environ_overrides={"REMOTE_ADDR": "2001:db8:1:3::1"})
    assert other.status_code == 200


def test_an_address_counts_as_its_neighbourhood() -> None:
    addresses = ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:DB8:0:0:ffff::", "local", "")
    assert [neighbourhood(address) for address in addresses] == [
        "192.0.2.1",
        "192.0.2.1",
        "2001:db8::/64",
        "2001:db8::/64",
        "local",
        "",
    ]


def test_a_user_has_a_limit_wherever_he_comes_from_and_others_are_not_touched(limited: Flask) -> None:
    ada, ben = api_as(limited, "ada"), api_as(limited, "ben")
    assert allowed(ada) == 12
    again = api_as(limited, "ada")
    assert allowed(again) == 0
    assert ben.get("/auth/me").status_code == 200


def test_an_address_has_a_limit_whoever_comes_from_it(limited: Flask) -> None:
    ada, ben = api_as(limited, "ada"), api_as(limited, "ben")
    passed = [allowed(ada, 11), allowed(ben, 11)]
    assert passed == [11, 9]


def test_addresses_beyond_the_limit_do_not_lock_out_those_who_are_signed_in(limited: Flask) -> None:
    ada = api_as(limited, "ada")
    assert [Api(limited).get("/auth/me").status_code for _time in range(12)][-1] == 429
    assert ada.get("/auth/me").status_code == 200


def test_pages_and_files_are_not_counted(limited: Flask) -> None:
    client = limited.test_client()
    assert {client.get("/login").status_code for _time in range(15)} == {200}
    assert {client.get("/health/live").status_code for _time in range(15)} == {200}


def test_processes_count_together(make_app: MakeApp) -> None:
    one, two = make_app(**LIMITS), make_app(**LIMITS)
    codes = [app.test_client().get("/api/v1/health").status_code for _time in range(6) for app in (one, two)]
    assert codes == [200] * 10 + [429] * 2


def test_a_window_ends(sqlite_app: Flask) -> None:
    with sqlite_app.app_context():
        assert [count("k", 1).count for _time in range(3)] == [1, 2, 3]
        assert count("k", 1, by=0).count == 3
        time.sleep(1.1)
        assert count("k", 1, by=0).count == 0
        assert count("k", 1) == Usage(1, 1)
        ratelimit.forget("k")
        assert count("k", 1, by=0).count == 0


def test_a_counter_that_lost_its_end_gets_a_new_one(sqlite_app: Flask) -> None:
    """The window may end between the two commands that count; such a counter would lock somebody out for ever."""
    with sqlite_app.app_context():
        ops().redis.set("rate:k", 999)
        assert count("k", 30) == Usage(1000, 30)
        assert 0 < ops().redis.ttl("rate:k") <= 30


class HangingRedis:
    """Answers nobody, slowly."""

    def __init__(self) -> None:
        self.asked = 0

    def pipeline(self, transaction: bool) -> "HangingRedis":
        self.asked += 1
        raise RedisConnectionError("time-out")


def test_a_redis_that_hangs_is_not_asked_by_every_request(limited: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = HangingRedis()
    monkeypatch.setattr("app.kernel.ratelimit.ops", lambda: type("Ops", (), {"redis": hanging}))
    with limited.app_context():
        assert [count("k", 60).count for _time in range(5)] == [1, 2, 3, 4, 5]
        assert hanging.asked == 1
        monkeypatch.setattr(ratelimit, "ASK_REDIS_AGAIN_S", 0.0)
        limited.extensions["local_counters"].redis_is_away_until = 0.0
        count("k", 60)
        assert hanging.asked == 2


def test_local_counters_have_windows_and_forget_the_oldest_first() -> None:
    counters = LocalCounters()
    counters.MOST = 100
    for number in range(150):
        assert counters.add(f"k{number}", 60, 1) == Usage(1, 60)
    assert counters.add("k149", 60, 2).count == 3
    assert counters.add("k0", 60, 0).count == 0
    assert counters.add("k0", 60, 0).count == 0, "looking does not count"
    assert len(counters._counts) == 100
    counters.forget("k149")
    assert counters.add("k149", 60, 0).count == 0


def test_limits_may_be_changed_at_run_time(limited: Flask, client: FlaskClient) -> None:
    with limited.app_context():
        make_user("alice", "admin")
    alice = api_as(limited, "alice")
    changed = alice.put("/system/settings", {"values": {"server.rate_limit.per_user": 15}})
    assert changed.status_code == 200
    assert allowed(alice) == 14
