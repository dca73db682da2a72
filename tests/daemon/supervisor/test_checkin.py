"""Agents in the check-in: sent when they changed or are wanted, else only their hash."""

from protocol.checkin import AgentStatus, CheckInAnswer
from tests.daemon.host import Host

AGENT = AgentStatus(
    "one",
    "custom",
    None,
    "running",
    "running",
    7,
    1.5,
    1000,
    "2026-01-31T08:15:00Z",
    0,
    None,
    (),
    None,
    False,
    "manager",
)


def answer(want_agents: bool = False) -> CheckInAnswer:
    return CheckInAnswer((), (), None, False, want_agents, None, None, False, False, None, "2026-01-31T08:15:00Z")


def test_what_is_known_is_not_sent_again(host: Host) -> None:
    now = [AGENT]
    host.checkins._read_agents = lambda: tuple(now)
    first = host.checkins.build()
    assert first.message.agents == (AGENT,)
    # Until it is taken, it is not known.
    assert host.checkins.build().message.agents == (AGENT,)
    host.checkins.take(first, answer(), 0.1)
    second = host.checkins.build()
    assert second.message.agents is None
    assert second.message.agents_hash == first.message.agents_hash
    now[0] = AGENT._replace(status="error")
    third = host.checkins.build()
    assert third.message.agents == (now[0],)
    assert third.message.agents_hash != first.message.agents_hash
    host.checkins.take(third, answer(want_agents=True), 0.1)
    assert host.checkins.build().message.agents == (now[0],)
    host.close()


def test_after_a_new_enrolment_everything_is_sent(host: Host) -> None:
    host.checkins._read_agents = lambda: (AGENT,)
    host.checkins.take(host.checkins.build(), answer(), 0.1)
    host.checkins.enrolled(host.checkins.settings)
    assert host.checkins.build().message.agents == (AGENT,)
    host.close()
