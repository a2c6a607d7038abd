"""What people read: tables and sentences for a terminal, one JSON document for a program.

Prints what it is given and decides nothing. Names come from other people's books, so nothing of them is taken for
markup or for a terminal's control sequence.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # importing rich takes longer than answering --help
    from rich.console import Console
    from rich.table import Table

PIPED_WIDTH = 240  # of a line where no terminal limits it: a pipe's reader wants whole rows


def console(*, error: bool = False) -> Console:
    """Return where to print to: the terminal, or the pipe that stands in its place."""
    from rich.console import Console

    class PlainConsole(Console):
        """Prints strings as they are, but nothing that a terminal would obey."""

        def print(self, *objects: Any, **options: Any) -> None:
            super().print(*(plain(one) if isinstance(one, str) else one for one in objects), **options)

    stream = sys.stderr if error else sys.stdout
    return PlainConsole(
        stderr=error,
        markup=False,
        emoji=False,
        highlight=False,
        width=None if stream.isatty() else PIPED_WIDTH,
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table; a column whose name ends in a space is aligned to the right."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        shown.add_column(column.strip(), justify="right" if column.endswith(" ") else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(plain(str(cell)) for cell in row))
    return shown


def show_json(document: object) -> None:
    """Print one JSON document."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def show_error(code: str, message: str, *, as_json: bool, **more: object) -> None:
    """Say on the error stream what went wrong; `more` is for programs."""
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"error": code, "message": message, **more}).decode(), err=True)
    else:
        click.echo(click.style("Error: ", fg="red") + plain(message), err=True)


def plain(text: str) -> str:
    """Return `text` without control characters."""
    return "".join(character for character in text if character.isprintable() or character == "\n")


def counted(number: int, what: str) -> str:
    """Return how many there are of something, as people say it."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def amount(value: float, unit: str) -> str:
    """Return a quantity with a prefix that people read at a glance: 25.6 Mbit."""
    for prefix in ("", "k", "M", "G"):
        if abs(value) < 1000:
            digits = 0 if value == int(value) or abs(value) >= 100 else 1
            return f"{value:.{digits}f} {prefix}{unit}"
        value /= 1000
    return f"{value:.1f} T{unit}"
