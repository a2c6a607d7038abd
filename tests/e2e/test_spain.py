"""The national network of the demo, whole: forty nodes and forty-seven links on real sockets in one process."""

import asyncio
import resource

import pytest
import uvloop

from trenza.app.network import Network
from trenza.app.scenario import load_scenario

pytestmark = pytest.mark.slow
MEMORY_MIB = 1536


def test_spain_gets_ready_on_a_laptop_and_keys_cross_the_country(tmp_path):
    async def story():
        told = []
        async with asyncio.timeout(170):
            network = await Network.start(load_scenario("spain"), state=tmp_path / "spain", progress=told.append)
        try:
            view = network.view()
            assert (len(view.nodes), len(view.links)) == (40, 47)
            assert set(view.handshakes) == {"X25519MLKEM768"}
            assert all(min(pool.stock) > 0 for pool in view.pools)
            assert told[-1].startswith("filling pools")
            peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            assert peak_mib < MEMORY_MIB
        finally:
            await network.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())
