"""On which line of a TOML text each table and key stands: `tomllib` tells only for errors of syntax.

For texts that `tomllib` has read: statements are found, nothing is judged. Keys inside inline tables and arrays
have the line of the statement they are in. Source: TOML v1.0.0.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

Place = tuple[str | int, ...]
"""Where a value is: keys and, in arrays, indices; ("links", 3, "loss_db")."""

_PIECE = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'  # strings first: what looks like a table or a comment inside them is neither
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*"
    r"|[^\"'#\[\]{}=\n]+"
    r"|.",
    re.DOTALL,
)


class Lines:
    """The lines of one text."""

    def __init__(self, text: str) -> None:
        self._line_of: dict[Place, int] = {}
        self._tables_in: dict[Place, int] = {}
        table: Place = ()
        for line, statement, is_header in _statements(text):
            if is_header:
                table = self._enter(statement)
                for depth in range(1, len(table) + 1):
                    self._line_of.setdefault(table[:depth], line)
                continue
            place = table
            for key in _keys(statement):
                place = (*place, key)
                self._line_of.setdefault(place, line)

    def line_of(self, place: Place) -> int:
        """Return the line of `place`, or of the nearest thing around it that has one."""
        while place and place not in self._line_of:
            place = place[:-1]
        return self._line_of.get(place, 1)

    def _enter(self, header: str) -> Place:
        is_array = header.startswith("[[")
        *around, last = _keys(header.strip("[]"))
        place: Place = ()
        for key in around:
            place = (*place, key)
            if place in self._tables_in:
                place = (*place, self._tables_in[place] - 1)
        place = (*place, last)
        if not is_array:
            return place
        index = self._tables_in.get(place, 0)
        self._tables_in[place] = index + 1
        return (*place, index)


def _statements(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield (line it begins on, header or key as written, whether it is a header)."""
    line, depth, begun_on, statement, past_key = 1, 0, 1, "", False
    for piece in _PIECE.findall(text + "\n"):
        if piece == "\n" and depth == 0:
            if statement.strip():
                yield begun_on, statement.strip(), not past_key
            statement, past_key = "", False
        elif piece == "=" and depth == 0:
            past_key = True
        elif not piece.startswith("#"):
            if not statement.strip():
                begun_on = line
            depth += (piece in {"[", "{"}) - (piece in {"]", "}"})
            statement += "" if past_key else piece
        line += piece.count("\n")


def _keys(dotted: str) -> list[str]:
    """Return the parts of a dotted key, unquoted as TOML has it."""
    table: Any = tomllib.loads(f"{dotted} = 0")
    keys = []
    while isinstance(table, dict):
        ((key, table),) = table.items()
        keys.append(key)
    return keys
