"""Where a process spends its time, by samples from outside: py-spy, where it is installed.

Writes two files to bench/results: the collapsed stacks, which flame graph tools read, and a summary of functions by
the share of samples in which they ran themselves, and in which they or what they called did. Only threads that hold
Python's lock are sampled. In a separate round: to sample costs the sampled.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import measure

SAMPLES_PER_S = 200
SHOWN = 45


def sampler() -> str | None:
    """Return where py-spy is, if it is."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


@contextmanager
def sampled(name: str, pids: Mapping[str, int], seconds: float) -> Iterator[None]:
    """Sample processes for `seconds`, while the body lasts longer; write what was found."""
    program = sampler()
    if program is None:
        print("no profile: py-spy is not installed (pip install py-spy)", file=sys.stderr)
        yield
        return
    measure.RESULTS.mkdir(exist_ok=True)
    stacks = {process: measure.RESULTS / f"profile-{name}-{process}.stacks" for process in pids}
    started = []
    for process, pid in pids.items():
        words = [program, "record", "--pid", str(pid), "--duration", str(max(1, round(seconds)))]
        words += ["--rate", str(SAMPLES_PER_S), "--format", "raw", "--output", str(stacks[process])]
        words += ["--gil", "--threads"]  # only who runs Python: waiting for a disk is no cost
        started.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    yield
    for one in started:
        one.wait()
    for file in stacks.values():
        if file.exists():
            told = summary(file.read_text())
            file.with_suffix(".txt").write_text(told + "\n")
            print(f"{file.with_suffix('.txt')}", file=sys.stderr)


def summary(collapsed: str) -> str:
    """Return the functions of collapsed stacks thread by thread, most of their own time first."""
    threads: dict[str, list[tuple[list[str], int]]] = {}
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        threads.setdefault(thread, []).append(([_function(frame) for frame in frames] or [thread], int(count)))
    busiest = sorted(threads.items(), key=lambda item: -sum(count for _, count in item[1]))
    return "\n\n".join(f"## {thread}: {_of_thread(stacks)}" for thread, stacks in busiest)


def _of_thread(stacks: list[tuple[list[str], int]]) -> str:
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for frames, count in stacks:
        own[frames[-1]] += count
        for frame in set(frames):
            whole[frame] += count
    head = ["function", "itself %", "with what it calls %"]
    tables = [
        measure.table(head, [_row(name, own, whole) for name, _ in most.most_common(SHOWN)]) for most in (own, whole)
    ]
    return "\n\n".join([f"{own.total()} samples", *tables])


def _row(name: str, own: Counter[str], whole: Counter[str]) -> list[str]:
    return [name, *(f"{100 * spent[name] / own.total():.1f}" for spent in (own, whole))]


def _function(frame: str) -> str:
    """Return a frame without its line number, so that one function is one row."""
    return frame.rpartition(":")[0] + ")" if frame.endswith(")") and ":" in frame else frame
