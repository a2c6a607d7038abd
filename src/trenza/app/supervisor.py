"""A process that is kept alive: started, started again whenever it ends, and stopped in good order.

Does what systemd does with `Restart=always`: the first restart comes at once, those of a process that keeps ending
after pauses that grow. What the process says is handed on line by line. It gets a session of its own, so that the
Ctrl-C of a terminal reaches the supervisor alone, and as standard input a pipe that nobody writes into: when the
supervisor has gone, however it went, the pipe ends, and with `--until-input-ends` so does the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
STEADY_S: Final = 3.0
"""A process that lived so long has not failed at its start: its restart comes at once."""

_LONGEST_LINE: Final = 4_096
_LINES_KEPT: Final = 16
_ERROR: Final = "Error: "

Lines = Callable[[str], None]


class Lifeline:
    """The pipe that ends when this process does. Close it last."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe()

    def close(self) -> None:
        """Let go: whoever still holds on to the other end hears of it. May be called twice."""
        for end in (self.read_end, self._write_end):
            with contextlib.suppress(OSError):
                os.close(end)
        self.read_end = self._write_end = -1


class Supervised:
    """One process under supervision."""

    def __init__(
        self, name: str, command: Sequence[str], lifeline: Lifeline, *, said: Lines, restarted: Lines
    ) -> None:
        """Start nothing yet.

        Args:
            name: what people call it.
            command: program and arguments.
            lifeline: its standard input.
            said: told each line that it prints.
            restarted: told, in a sentence, whenever it was started again; `pid` is the new one by then.
        """
        self.name = name
        self.restarts = 0
        self._command = tuple(command)
        self._lifeline = lifeline
        self._said = said
        self._restarted = restarted
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._began = 0.0
        self._last_lines: deque[str] = deque(maxlen=_LINES_KEPT)

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() comes first"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def has_ended(self) -> bool:
        return self._process is not None and self._process.returncode is not None

    async def start(self) -> None:
        """Start the process.

        Raises:
            OSError: the system has no room for another one, or there is no such program.
        """
        self._began = asyncio.get_running_loop().time()
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=self._lifeline.read_end,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reading = asyncio.create_task(self._hand_on(self._process.stdout), name=f"what {self.name} says")

    async def keep(self) -> None:
        """Start the process again whenever it ends; never returns."""
        pause = 0.0
        while True:
            how = await self.ended()
            if asyncio.get_running_loop().time() - self._began >= STEADY_S:
                pause = 0.0
            await asyncio.sleep(pause)
            waited = f" after {pause:g} s" if pause else ""
            pause = min(max(2 * pause, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            try:
                await self.start()
            except OSError as error:
                self._said(f"could not be started again: {error}")
                continue
            self.restarts += 1
            self._restarted(f"{how}; started again{waited} as process {self.pid} (restart {self.restarts})")

    async def ended(self) -> str:
        """Wait until the process has ended and all it said was handed on; return how it ended."""
        assert self._process is not None
        assert self._reading is not None
        status = await self._process.wait()
        await asyncio.wait([self._reading])
        return how_it_ended(status)

    def last_words(self) -> str:
        """Return what it said last is wrong, in one line: its error if it told one, else its last line."""
        lines = list(self._last_lines)
        errors = [at for at, line in enumerate(lines) if line.startswith(_ERROR)]
        if errors:
            return " ".join(line.removeprefix(_ERROR).strip() for line in lines[errors[-1] :])
        return lines[-1] if lines else "it said nothing"

    async def stop(self, *, within: float) -> bool:
        """Ask it to end in good order, and end it when it has not `within` so many seconds; may be called twice.

        Returns:
            Whether it ended in good order.
        """
        if self._process is None:
            return True
        in_time = True
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(within):
                await self._process.wait()
        except TimeoutError:
            in_time = False
            self._signal(signal.SIGKILL)
        await self.ended()
        return in_time

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _hand_on(self, out: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await out.read(65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._tell(line)
            rest = rest[:_LONGEST_LINE]
        if rest:
            self._tell(rest)

    def _tell(self, line: bytes) -> None:
        text = line[:_LONGEST_LINE].decode("utf-8", errors="replace").rstrip()
        if text:
            self._last_lines.append(text)
            self._said(text)


def how_it_ended(status: int) -> str:
    """Say in words what a process's exit status means."""
    if status < 0:
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"
    return f"ended with status {status}"
