"""One process, one job, from its configuration until it is told to stop: a node, or a host of emulated devices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from trenza.app.build import build_node
from trenza.app.config import load_device_host_config, load_node_config
from trenza.app.devices import build_devices
from trenza.app.process import forbid_core_dumps

Told = Callable[[str], None]


def _say_nothing(_what: str) -> None:
    """Tell nobody."""


async def serve_node(config: Path, stop: asyncio.Event, *, ready: Told = _say_nothing) -> None:
    """Run one node until `stop` is set; what ends it before is raised.

    Args:
        config: its configuration file, which a reload reads again.
        stop: set by whoever wants it to end in good order.
        ready: told once everybody is let in.

    Raises:
        TrenzaError, OSError: it cannot be opened.
    """
    forbid_core_dumps()
    running = await build_node(load_node_config(config), source=config)
    try:
        await running.start()
        ready(f"node {running.name} is ready")
        living = asyncio.create_task(running.serve_forever())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({living, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if living.done():
                living.result()
        finally:
            for task in (living, stopping):
                task.cancel()
            await asyncio.wait({living, stopping})
    finally:
        await running.stop()


async def serve_devices(config: Path, stop: asyncio.Event, *, ready: Told = _say_nothing) -> None:
    """Run a host of emulated devices until `stop` is set.

    Raises:
        TrenzaError, OSError: it cannot be opened.
    """
    forbid_core_dumps()
    host = await build_devices(load_device_host_config(config))
    try:
        ready(f"{2 * len(host.pairs)} emulated devices are ready")
        await stop.wait()
    finally:
        await host.stop()
