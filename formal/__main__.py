"""Explore the model and print what was found: `python -m formal`, or `python -m formal --large`."""

from __future__ import annotations

import argparse
import sys

from formal.worlds import FLAWED, LARGE, QUICK, explored


def main() -> int:
    """Return 0 when no world has a violation and every flaw has one."""
    parser = argparse.ArgumentParser(prog="python -m formal", description=__doc__)
    parser.add_argument("--large", action="store_true", help="larger worlds: about a minute")
    parser.add_argument("--traces", action="store_true", help="print how each flaw shows")
    chosen = parser.parse_args()
    say = sys.stdout.write
    failed = False
    for world in LARGE if chosen.large else QUICK:
        found = explored(world.bounds)
        end = "all" if found.whole else "NOT ALL"
        say(
            f"{world.name:32} {found.states:9,} states ({end}) {found.steps:10,} steps"
            f"  depth {found.depth:3}  {found.seconds:6.1f} s\n"
        )
        say(f"    {world.bounds.slots} slots, {world.bounds.budget}\n")
        if found.wrong is not None or not found.whole:
            failed = True
            say(found.told() + "\n")
    say("\nWith one rule taken away:\n")
    for flaw, bounds in FLAWED.items():
        found = explored(bounds.with_flaw(flaw))
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
