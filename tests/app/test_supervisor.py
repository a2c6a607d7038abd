"""A supervised process is started again whenever it ends, is heard, and stops in bounded time."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from trenza.app.process import ABANDONED
from trenza.app.supervisor import Lifeline, Supervised, how_it_ended

WITHIN_S = 30


def run(story):
    async def bounded():
        async with asyncio.timeout(WITHIN_S):
            await story()

    asyncio.run(bounded())


class Watched:
    """A process of some lines of Python, and what its supervisor was told."""

    def __init__(self, code: str, *words: object) -> None:
        self.lines: list[str] = []
        self.restarts: list[str] = []
        self.heard = asyncio.Condition()
        self.lifeline = Lifeline()
        command = (sys.executable, "-c", code, *map(str, words))
        self.process = Supervised(
            "it", command, self.lifeline, said=self._note(self.lines), restarted=self._note(self.restarts)
        )

    def _note(self, kept):
        def note(line):
            kept.append(line)
            asyncio.get_running_loop().create_task(self._tell())

        return note

    async def _tell(self):
        async with self.heard:
            self.heard.notify_all()

    async def until(self, condition):
        async with self.heard:
            await self.heard.wait_for(condition)


@asynccontextmanager
async def watched(code, *words, kept=False):
    one = Watched(code, *words)
    await one.process.start()
    keeping = asyncio.create_task(one.process.keep()) if kept else None
    try:
        yield one
    finally:
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait([keeping])
        await one.process.stop(within=1.0)
        one.lifeline.close()


FOREVER = "import time, signal\nprint('here', flush=True)\ntime.sleep(3600)"
DEAF = (
    "import time, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('here', flush=True)\ntime.sleep(3600)"
)


def test_what_it_says_is_handed_on_line_by_line():
    async def story():
        async with watched("print('one\\n\\ntwo'); print('x' * 9000); print('last', end='')") as it:
            assert await it.process.ended() == "ended with status 0"
            assert it.lines == ["one", "two", "x" * 4096, "last"]
            assert it.process.last_words() == "last"

    run(story)


def test_its_last_words_are_its_error_in_one_line():
    async def story():
        async with watched("print('before'); print('Error: the file x:'); print('  it is empty')") as it:
            await it.process.ended()
            assert it.process.last_words() == "the file x: it is empty"

    run(story)


def test_who_is_killed_is_started_again_at_once_as_another_process():
    async def story():
        async with watched(FOREVER, kept=True) as it:
            await it.until(lambda: it.lines == ["here"])
            before = it.process.pid
            os.kill(before, signal.SIGKILL)
            await it.until(lambda: it.lines == ["here", "here"])
            assert it.process.pid != before
            (told,) = it.restarts
            assert told == f"was ended by SIGKILL; started again as process {it.process.pid} (restart 1)"

    run(story)


def test_who_keeps_ending_is_started_after_pauses_that_grow():
    async def story():
        async with watched("raise SystemExit(3)", kept=True) as it:
            await it.until(lambda: len(it.restarts) == 3)
            assert [one.partition(" as ")[0] for one in it.restarts] == [
                "ended with status 3; started again",
                "ended with status 3; started again after 0.1 s",
                "ended with status 3; started again after 0.2 s",
            ]
            assert it.process.restarts == 3

    run(story)


def test_who_is_asked_to_stop_stops_and_who_does_not_is_killed():
    async def story():
        async with watched(FOREVER) as willing, watched(DEAF) as deaf:
            await willing.until(lambda: willing.lines == ["here"])
            await deaf.until(lambda: deaf.lines == ["here"])
            assert await willing.process.stop(within=20.0)
            assert not await deaf.process.stop(within=0.05)
            assert not deaf.process.is_running
            assert await willing.process.stop(within=20.0), "twice does no harm"

    run(story)


def test_what_cannot_be_started_says_so():
    async def story():
        lifeline = Lifeline()
        nobody = Supervised("it", ["/nowhere/trenza"], lifeline, said=print, restarted=print)
        with pytest.raises(FileNotFoundError):
            await nobody.start()
        assert await nobody.stop(within=1.0)
        lifeline.close()

    run(story)


CHILD = """
import time
from trenza.app.process import end_with_input
end_with_input()
print("up", flush=True)
time.sleep(3600)
"""
SUPERVISOR = """
import asyncio, sys
from trenza.app.supervisor import Lifeline, Supervised
async def main():
    tell = lambda _: print(it.pid, flush=True)
    it = Supervised("it", [sys.executable, "-c", sys.argv[1]], Lifeline(), said=tell, restarted=tell)
    await it.start()
    await asyncio.sleep(3600)
asyncio.run(main())
"""


def test_nobody_outlives_a_supervisor_that_is_killed():
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, CHILD], stdout=subprocess.PIPE, text=True)
    with supervisor:
        orphan = int(supervisor.stdout.readline())
        supervisor.kill()
    deadline = time.monotonic() + WITHIN_S
    while is_alive(orphan):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_who_ends_with_its_input_has_a_status_of_its_own():
    done = subprocess.run([sys.executable, "-c", CHILD], stdin=subprocess.DEVNULL, check=False, timeout=WITHIN_S)
    assert done.returncode == ABANDONED


@pytest.mark.parametrize(
    ("status", "words"), [(0, "ended with status 0"), (-9, "was ended by SIGKILL"), (-200, "was ended by signal 200")]
)
def test_how_it_ended_is_said_in_words(status, words):
    assert how_it_ended(status) == words
