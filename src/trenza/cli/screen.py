"""What `trenza up` shows: a live picture on a terminal, plain lines elsewhere, nothing where quiet is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Final, Protocol

import click
from rich.live import Live

from trenza.app.view import NetworkView
from trenza.cli.changes import changes_between
from trenza.cli.output import console, plain
from trenza.cli.picture import picture_of

_LIVE_PERIOD_S: Final = 0.5
_LOG_PERIOD_S: Final = 2.0
_ROUTINE: Final = frozenset({"DEBUG", "INFO"})

View = Callable[[], NetworkView]


class Screen(Protocol):
    """Where a network that starts and lives is shown."""

    def starting(self, title: str) -> AbstractContextManager[None]:
        """Show that something is being started, while the context lasts."""
        ...

    def progress(self, what: str) -> None:
        """Tell what the start is doing now."""
        ...

    def say(self, what: str) -> None:
        """Tell one event."""
        ...

    def forward(self, source: str, line: str) -> None:
        """Hand on what a process says."""
        ...

    def paste(self, lines: Sequence[str]) -> None:
        """Show the commands that get a first key."""
        ...

    async def watch(self, view: View, stop: asyncio.Event) -> None:
        """Show the network as it lives, until it stops."""
        ...


def screen_for(*, live: bool | None, quiet: bool) -> Screen:
    """Return the screen that was asked for; a terminal shows the network live unless told otherwise."""
    if quiet:
        return Quiet()
    wanted = sys.stdout.isatty() if live is None else live
    return Picture() if wanted else Log()


class Quiet:
    """Shows nothing but what a process says is wrong."""

    def starting(self, title: str) -> AbstractContextManager[None]:  # noqa: ARG002 - the protocol's
        return contextlib.nullcontext()

    def progress(self, what: str) -> None:
        pass

    def say(self, what: str) -> None:
        pass

    def forward(self, source: str, line: str) -> None:
        if not is_routine(line):
            click.echo(plain(f"{source}: {line}"), err=True)

    def paste(self, lines: Sequence[str]) -> None:
        pass

    async def watch(self, view: View, stop: asyncio.Event) -> None:  # noqa: ARG002
        await stop.wait()


class Log:
    """One line per event, with its time in UTC."""

    def starting(self, title: str) -> AbstractContextManager[None]:
        self.say(f"starting: {title}")
        return contextlib.nullcontext()

    def progress(self, what: str) -> None:
        self.say(what)

    def say(self, what: str) -> None:
        sys.stdout.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {plain(what)}\n")
        sys.stdout.flush()

    def forward(self, source: str, line: str) -> None:
        self.say(f"{source}: {line}")

    def paste(self, lines: Sequence[str]) -> None:
        for line in ("A first key, and the same key at the other end:", *lines):
            self.say(line)

    async def watch(self, view: View, stop: asyncio.Event) -> None:
        before = view()
        while not await _stopped_within(_LOG_PERIOD_S, stop):
            now = view()
            for change in changes_between(before, now):
                self.say(change)
            before = now


class Picture:
    """Links, pools and counts on a terminal, drawn anew twice a second."""

    def __init__(self) -> None:
        self._console = console()
        self._status = self._console.status("")

    def starting(self, title: str) -> AbstractContextManager[None]:
        return self._spinning(title)

    @contextlib.contextmanager
    def _spinning(self, title: str) -> Iterator[None]:
        self._status.update(f"starting {title}")
        with self._status:
            yield

    def progress(self, what: str) -> None:
        self._status.update(what)

    def say(self, what: str) -> None:
        self._console.print(what)

    def forward(self, source: str, line: str) -> None:
        if not is_routine(line):
            self._console.print(f"{source}: {line}")

    def paste(self, lines: Sequence[str]) -> None:
        self._console.print("\nA first key for one application (paste into another terminal):\n")
        click.echo(f"  {lines[0]}\n")  # not wrapped: a line that is pasted must stay one
        self._console.print("The same key for the other; put the key_ID of the answer in place of KEY_ID:\n")
        click.echo(f"  {lines[1]}\n")

    async def watch(self, view: View, stop: asyncio.Event) -> None:
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(picture_of(view(), height=self._console.height), refresh=True)
                if await _stopped_within(_LIVE_PERIOD_S, stop):
                    return


def is_routine(line: str) -> bool:
    """Tell whether a log line (date, time, level, what happened) is of a level that only a log is interested in."""
    return line.split(maxsplit=3)[2:3] in [[level] for level in _ROUTINE]


async def _stopped_within(period_s: float, stop: asyncio.Event) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(period_s):
            await stop.wait()
    return stop.is_set()
