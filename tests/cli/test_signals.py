"""Ctrl-C once, and twice."""

import signal
import subprocess
import sys

SCRIPT = """
import asyncio
from trenza.cli.signals import stop_on_signals

async def story():
    stop = asyncio.Event()
    stop_on_signals(stop)
    print("running", flush=True)
    await stop.wait()
    print("stopping", flush=True)
    await asyncio.Event().wait()  # a stop that hangs

asyncio.run(story())
"""


def test_the_first_signal_stops_and_the_second_ends_what_hangs():
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM
