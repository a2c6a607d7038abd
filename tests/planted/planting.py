"""Planted bugs: patches to the code of production, each of which the lab must find, and what applies and hunts them.

A patch is a unified diff under a header that says what it breaks and what must go wrong for it to show:

    Bug:       what was planted
    Breaks:    the promise that does not hold any more
    Needs:     the faults without which it does no harm
    Plan:      only where it is not the usual one: the plan of the stories in which it is hunted
    Apart:     only where two must come together: kinds that bring the one | kinds that bring the other, or those
               alone that bring both at once
    Found-by:  a regular expression for the sentence of the rule that must find it

From the command line: `python tests/planted/planting.py` hunts all of them and prints after how many stories each was
found; with names, these; with `--apart`, those with two faults, each fault left out in its turn.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
PROJECT: Final = HERE.parents[1]
SCENARIO: Final = "lab-ring"
SEEDS: Final = range(300)

_HEADING = re.compile(r"(Bug|Breaks|Needs|Plan|Apart|Found-by): +(\S.*)")
_SENTENCE = re.compile(r"  (?!File |to see it again)(\S.*)")  # and not a line of a traceback
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_PROGRAM = (
    "import sys, trenza; assert trenza.__file__.startswith(sys.argv.pop(1)); import trenza.cli.main as m; m.main()"
)


class DoesNotApplyError(Exception):
    """The code that a patch alters has changed: plant the bug anew."""


@dataclass(frozen=True)
class Planted:
    """One planted bug."""

    name: str
    bug: str
    breaks: str
    needs: str
    found_by: str
    apart: tuple[tuple[str, ...], ...]  # each a set of kinds of trouble without which it must not be found
    diff: str
    plan: str = "rough"

    @staticmethod
    def read(path: Path) -> Planted:
        text = path.read_text(encoding="utf-8")
        header, _, diff = text.partition("\n--- ")
        said = {match[1]: match[2] for match in map(_HEADING.fullmatch, header.splitlines()) if match}
        apart = tuple(
            tuple(kind.strip() for kind in kinds.split(","))
            for kinds in said.get("Apart", "").split("|")
            if kinds.strip()
        )
        return Planted(
            name=path.stem,
            bug=said["Bug"],
            breaks=said["Breaks"],
            needs=said["Needs"],
            found_by=said["Found-by"],
            apart=apart,
            diff=f"--- {diff}",
            plan=said.get("Plan", "rough"),
        )


def all_planted() -> list[Planted]:
    """Return every planted bug."""
    return [Planted.read(path) for path in sorted(HERE.glob("*.patch"))]


# --- applying


def patched(diff: str, root: Path) -> dict[Path, str]:
    """Return the files under `root` that a diff alters, as they are with it.

    Raises:
        DoesNotApplyError: what it takes away is not there, or is there more than once.
    """
    files: dict[Path, str] = {}
    for path, hunks in _by_file(diff.splitlines(keepends=True)):
        text = (root / path).read_text(encoding="utf-8")
        for old, new in hunks:
            if text.count(old) != 1:
                raise DoesNotApplyError(f"{path} has this {text.count(old)} times and not once:\n{old}")
            text = text.replace(old, new)
        files[root / path] = text
    return files


def _by_file(lines: Sequence[str]) -> Iterator[tuple[Path, list[tuple[str, str]]]]:
    """Yield each file of a diff with its hunks: what is there, and what takes its place."""
    starts = [at for at, line in enumerate(lines) if line.startswith("--- a/")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        named = lines[start + 1].rstrip("\n")
        if named != f"+++ b/{lines[start][6:].rstrip()}":
            raise DoesNotApplyError(f"not the name of a file: {named}")
        yield Path(named[6:]), [_hunk(lines[at:end]) for at in range(start, end) if lines[at].startswith("@@")]


def _hunk(lines: Sequence[str]) -> tuple[str, str]:
    said = _HUNK.match(lines[0])
    if said is None:
        raise DoesNotApplyError(f"not a hunk: {lines[0]}")
    olds, news = int(said[2] or 1), int(said[4] or 1)
    old: list[str] = []
    new: list[str] = []
    for line in lines[1:]:
        if len(old) == olds and len(new) == news:
            break
        kind, content = line[:1], line[1:]
        if kind not in {" ", "-", "+"}:
            raise DoesNotApplyError(f"not a line of a hunk: {line}")
        if kind != "+":
            old.append(content)
        if kind != "-":
            new.append(content)
    if (len(old), len(new)) != (olds, news):
        raise DoesNotApplyError(f"a hunk ends before its time: {lines[0]}")
    return "".join(old), "".join(new)


def plant(one: Planted, directory: Path) -> Path:
    """Copy the code into a directory, alter it, and return the root that Python is to import it from."""
    shutil.copytree(PROJECT / "src", directory / "src")
    shutil.copytree(PROJECT / "scenarios", directory / "scenarios")
    for path, text in patched(one.diff, directory).items():
        path.write_text(text, encoding="utf-8")
    return directory / "src"


# --- hunting


@dataclass(frozen=True)
class Hunt:
    """What the lab said of a planted bug."""

    status: int
    stories: int  # until it was found, with the one that found it; all, where it was not
    sentences: tuple[str, ...]  # of the rules that were broken
    said: str  # all of it, for people
    seconds: float  # of processor time


def hunt(one: Planted, *, seeds: range = SEEDS, without: Sequence[str] = ()) -> Hunt:
    """Live through stories with a planted bug, until one finds it."""
    with tempfile.TemporaryDirectory(prefix="planted-") as directory:
        root = plant(one, Path(directory).resolve())
        command = [sys.executable, "-c", _PROGRAM, str(root), "lab", "run", SCENARIO, "--stop-at-first"]
        command += ["--plan", one.plan]
        command += ["--seeds", f"{seeds.start}-{seeds.stop - 1}", "--jobs", "1"]
        command += [word for kind in without for word in ("--without", kind)]
        done = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode not in {0, 1} or not done.stdout:
        return Hunt(done.returncode, 0, (), done.stderr, 0.0)
    document = json.loads(done.stdout)
    sentences = tuple(found[1] for found in map(_SENTENCE.fullmatch, done.stderr.splitlines()) if found)
    return Hunt(done.returncode, document["seeds"], sentences, done.stderr, document["cpu_seconds"])


def is_found(one: Planted, result: Hunt) -> bool:
    """Tell whether the rule that should find a bug has found it; a lab that falls over has found nothing."""
    return result.status == 1 and any(re.search(one.found_by, sentence) for sentence in result.sentences)


def _report(one: Planted, without: Sequence[str] = ()) -> None:
    result = hunt(one, without=without)
    how = "found" if is_found(one, result) else f"NOT FOUND (status {result.status})"
    less = f" without {', '.join(without)}" if without else ""
    sentence = result.sentences[0] if result.sentences else result.said[-300:].strip()
    sys.stdout.write(f"{one.name}{less}: {how} after {result.stories} stories, {result.seconds:.0f} s: {sentence}\n")
    sys.stdout.flush()


def _main(words: Sequence[str]) -> None:
    names = [word for word in words if not word.startswith("--")]
    chosen = [one for one in all_planted() if not names or one.name in names]
    if "--apart" in words:
        deeds = [partial(_report, one, kinds) for one in chosen for kinds in one.apart]
    else:
        deeds = [partial(_report, one) for one in chosen]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done in [pool.submit(deed) for deed in deeds]:
            done.result()


if __name__ == "__main__":
    _main(sys.argv[1:])
