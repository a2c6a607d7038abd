"""Nodes that are killed under load come back by themselves, and no key is lost, repeated or different.

That nobody is away for longer than three seconds after any kill is asked for by `make soak`, on a machine that does
nothing else; here, where others may want the processors too, of the kill in the middle.
"""

import statistics

import pytest
from tests.e2e.kill_soak import AWAY_S, KINDS, Soak, missing

pytestmark = pytest.mark.slow

SECONDS = {"sqlite": 60.0, "postgres": 60.0, "instances": 60.0}
FEWEST_KILLS = 5


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_killed_under_load_lose_and_repeat_nothing(kind, tmp_path, figure):
    if (why := missing(kind)) is not None:
        pytest.skip(why)
    with KINDS[kind](tmp_path) as victims:
        soak = Soak(victims, seed=1)
        soak.run(SECONDS[kind])
        for line in soak.summary():
            figure(f"kills ({kind}): {line}")
        assert soak.broken() == []
        assert len(soak.kills) >= FEWEST_KILLS
        assert statistics.median(kill.away_s for kill in soak.kills) <= AWAY_S
