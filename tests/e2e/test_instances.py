"""Two instances of one node on one PostgreSQL: keys flow through both, whichever of them dies, freezes or stops.

Every test judges all keys that were given to anybody: none differs, none comes twice, and none is lost but those
whose fetch was under way where somebody died or was frozen.
"""

import contextlib
import time

import pytest
from tests import postgres as servers
from tests.e2e.instances import PAIRS, SHARED, in_stock
from tests.e2e.product import until
from tests.e2e.traffic import History, Traffic, fetch_what_waits

pytestmark = [pytest.mark.slow, pytest.mark.skipif(servers.missing() is not None, reason=str(servers.missing()))]
pytest.importorskip("asyncpg", reason="the extra `postgres` is not installed")

CLIENTS = 2
MANY = 100
LONGEST_GAP_S = 5.0  # measured on a busy machine: under one second for a kill


@pytest.fixture
def two(tmp_path):
    """Both instances, in stock; who leads is "one"."""
    with in_stock(tmp_path, "one", "two") as made:
        yield made


@contextlib.contextmanager
def under_load(made):
    """Let applications fetch keys at both ends meanwhile; then judge all they were given."""
    history = History()
    with Traffic(made.sites.network, history, *PAIRS, clients=CLIENTS):
        flows(history)
        yield history
        flows(history)
    fetch_what_waits(made.sites.network, history)
    assert history.wrong == []
    assert history.lost == []
    assert len(history.doubtful) <= 4 * CLIENTS * len(PAIRS)


def flows(history) -> None:
    """Wait until a good many keys of each direction have come through."""
    moment = time.monotonic()
    until(
        f"pairs ({history.counts})",
        lambda: all(history.count_since(moment, pair) >= MANY for pair in PAIRS),
        within_s=40,
    )


def gap_since(history, moment: float) -> float:
    """Return the longest time in which nothing came through of some direction, until many keys do again."""
    flows(history)
    return history.longest_gap(PAIRS, moment, time.monotonic())


def served(made, name: str) -> int:
    """Return how many keys an instance has given to anybody."""
    counters = made.status(name)["counters"]
    return counters.get("keys_issued", 0) + counters.get("keys_delivered", 0)


def test_pairs_flow_through_both_and_go_on_when_the_lead_and_then_the_second_is_killed(two, figure) -> None:
    with under_load(two) as history:
        until("keys through both", lambda: all(served(two, name) for name in two.configs))
        moment = time.monotonic()
        two.kill("one")
        until("another lead", lambda: two.leads("two"))
        gap = gap_since(history, moment)
        figure(f"instances: the lead was killed: longest gap {gap:.2f} s")
        assert gap < LONGEST_GAP_S
        two.start("one")
        until("two instances", lambda: two.is_open("one"))
        with Traffic(two.sites.network, history, *PAIRS, clients=CLIENTS):  # over connections to both
            until("keys through both", lambda: served(two, "one"))
            moment = time.monotonic()
            two.kill("one")
            gap = gap_since(history, moment)
        figure(f"instances: the second was killed: longest gap {gap:.2f} s")
        assert gap < LONGEST_GAP_S
        assert two.leads("two")


def test_a_lead_that_was_frozen_writes_and_issues_nothing_under_its_old_token(two, figure) -> None:
    with under_load(two) as history:
        moment = time.monotonic()
        two.freeze("one")
        until("another lead", lambda: two.leads("two"))
        frozen = time.monotonic() - moment
        two.thaw("one")
        until("it to be a second", lambda: "beside" in two.processes["one"].said().splitlines()[-1])
        assert two.leads("two")
        gap = gap_since(history, moment)
        figure(f"instances: the lead was frozen for {frozen:.1f} s: longest gap {gap:.2f} s")
    assert "leads no more" in two.processes["one"].said()
    assert "Traceback" not in two.processes["one"].said()


def test_a_lead_that_stops_in_good_order_is_followed_without_a_gap(two, figure) -> None:
    with under_load(two) as history:
        moment = time.monotonic()
        assert two.processes["one"].interrupt() == 0
        until("another lead", lambda: two.leads("two"))
        gap = gap_since(history, moment)
        figure(f"instances: the lead stopped: longest gap {gap:.2f} s")
        assert gap < LONGEST_GAP_S


def test_a_database_that_was_away_costs_answers_of_503_and_nothing_else(two) -> None:
    with under_load(two):
        two.cluster.stop("fast")
        alice = two.sites.network.application("sae-alice")

        def refused():
            code, answer = alice.enc("sae-bob")
            return code == 503 and answer["message"]

        assert until("a refusal in the standard's words", refused)
        two.cluster.start()
    for name in two.configs:
        assert not two.processes[name].ended
        assert two.status(name)["node"] == SHARED


def test_keys_between_applications_of_one_node_are_drawn_and_fetched_at_any_instance(two) -> None:
    near, far = "sae-alice", "sae-alice-2"
    assert two.status("one")["instance"]["role"] == "lead"
    assert two.status("two")["instance"] == {"name": "two", "role": "second"}
    ends = [(two.sites.network.application(near), two.sites.network.application(far)) for _ in range(2)]
    for initiator, _ in ends:  # two connections each: one at each instance
        for _, target in ends:
            for number in (1, 3):
                keys = initiator.keys(far, number=number)
                assert target.fetch(near, *keys) == keys
                for _, other in ends:
                    assert other.dec(near, *keys)[0] == 400
