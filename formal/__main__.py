"""Explore the models and print what was found: `python -m formal`, or `python -m formal --large`."""

from __future__ import annotations

import argparse
import enum
import sys
from collections.abc import Iterator
from typing import Any

from formal.explore import Found
from formal.worlds import (
    FLAWED,
    FLAWED_REMEMBERED,
    LARGE,
    LARGE_REMEMBERED,
    QUICK,
    QUICK_REMEMBERED,
    explored,
    witnessed,
)


def _worlds(*, large: bool) -> Iterator[tuple[str, str, Found[Any]]]:
    for world in LARGE if large else QUICK:
        yield world.name, f"{world.bounds.slots} slots, {world.bounds.budget}", explored(world.bounds)
    for other in LARGE_REMEMBERED if large else QUICK_REMEMBERED:
        yield other.name, f"{other.bounds.units} units of link key, {other.bounds.budget}", witnessed(other.bounds)


def _flawed() -> Iterator[tuple[enum.Enum, Found[Any]]]:
    for flaw, bounds in FLAWED.items():
        yield flaw, explored(bounds.with_flaw(flaw))
    for other, remembered in FLAWED_REMEMBERED.items():
        yield other, witnessed(remembered.with_flaw(other))


def main() -> int:
    """Return 0 when no world has a violation and every flaw has one."""
    parser = argparse.ArgumentParser(prog="python -m formal", description=__doc__)
    parser.add_argument("--large", action="store_true", help="larger worlds: about a minute")
    parser.add_argument("--traces", action="store_true", help="print how each flaw shows")
    chosen = parser.parse_args()
    say = sys.stdout.write
    failed = False
    for name, what, found in _worlds(large=chosen.large):
        end = "all" if found.whole else "NOT ALL"
        say(
            f"{name:32} {found.states:9,} states ({end}) {found.steps:10,} steps"
            f"  depth {found.depth:3}  {found.seconds:6.1f} s\n    {what}\n"
        )
        if found.wrong is not None or not found.whole:
            failed = True
            say(found.told() + "\n")
    say("\nWith one rule taken away:\n")
    for flaw, found in _flawed():
        failed = failed or found.wrong is None
        say(f"  {flaw.value}:\n      {found.wrong or 'NOT FOUND'} (after {len(found.trace) - 1} steps)\n")
        if chosen.traces:
            say(found.told() + "\n")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing is shown of what was not explored")
