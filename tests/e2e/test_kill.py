"""Nodes that are killed under load come back by themselves, and no key is lost, repeated or different."""

import pytest
from tests.e2e import kill_soak
from tests.e2e.kill_soak import STORES, Soak, missing

pytestmark = pytest.mark.slow

SECONDS = {"sqlite": 60.0, "postgres": 12.0}
FEWEST_KILLS = {"sqlite": 3, "postgres": 2}


@pytest.mark.parametrize("store", STORES)
def test_nodes_killed_under_load_lose_and_repeat_nothing(store, tmp_path, figure):
    if (why := missing(store)) is not None:
        pytest.skip(why)
    with STORES[store](tmp_path) as (network, victims):
        soak = Soak(network, victims, seed=1)
        soak.run(SECONDS[store])
        for line in soak.summary():
            figure(f"kills ({store}): {line}")
        assert soak.broken() == []
        assert len(soak.kills) >= FEWEST_KILLS[store], f"each is back within {kill_soak.BACK_WITHIN_S:g} s"
        assert "Traceback" not in network.process.said()
