"""What every measurement says of its machine, how it looks at processes, and how it sums up rounds."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

RESULTS = Path(__file__).parent / "results"
BUSY_OTHERS = 0.1
"""Of one CPU: what other processes may use before a result says that the machine was not quiet."""

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_IDLE_FIELDS = (3, 4)  # of the first line of /proc/stat: idle and waiting for a disk


class Machine(msgspec.Struct):
    """Where and when."""

    when: str
    processor: str
    cpus: int
    system: str
    kernel: str
    python: str
    load_average: float
    fdatasync_p50_ms: float
    fdatasync_p99_ms: float

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.cpus} CPUs, {self.system}, Linux {self.kernel}, Python {self.python}; "
            f"fdatasync p50 {self.fdatasync_p50_ms:.2f} ms, p99 {self.fdatasync_p99_ms:.2f} ms; "
            f"load average {self.load_average:.2f} before; {self.when}"
        )


def machine(folder: Path) -> Machine:
    """Describe this machine; the disk is the one that `folder` is on."""
    model = [line.partition(":")[2] for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    pretty = [line.partition("=")[2] for line in _lines("/etc/os-release") if line.startswith("PRETTY_NAME")]
    syncs = sorted(fdatasync_ms(folder))
    return Machine(
        when=time.strftime("%Y-%m-%d %H:%M"),
        processor=model[0].strip() if model else platform.machine(),
        cpus=os.cpu_count() or 1,
        system=pretty[0].strip('"') if pretty else platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
        load_average=os.getloadavg()[0],
        fdatasync_p50_ms=statistics.median(syncs),
        fdatasync_p99_ms=syncs[int(0.99 * len(syncs))],
    )


def fdatasync_ms(folder: Path, times: int = 200) -> list[float]:
    """Append one page and sync it, again and again: what a commit waits for."""
    file = folder / "fdatasync.probe"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        waited: list[float] = []
        for _ in range(times):
            os.write(descriptor, bytes(4096))
            began = time.perf_counter()
            os.fdatasync(descriptor)
            waited.append(1e3 * (time.perf_counter() - began))
        return waited
    finally:
        os.close(descriptor)
        file.unlink()


# --- processes


def cpu_s(pid: int) -> float:
    """Return the CPU time, user and system, that a process with all its threads has used."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) * _TICK_S


def cpus_s(pids: Mapping[str, int]) -> dict[str, float]:
    return {name: cpu_s(pid) for name, pid in pids.items()}


def machine_busy_s() -> float:
    """Return the CPU time that all processes of this machine, and those that it shares its CPUs with, have used."""
    ticks = [int(word) for word in _lines("/proc/stat")[0].split()[1:9]]
    return sum(spent for field, spent in enumerate(ticks) if field not in _IDLE_FIELDS) * _TICK_S


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES / 2**20


def peak_mib(pid: int) -> float:
    """Return the largest resident memory a process ever had."""
    (line,) = [line for line in _lines(f"/proc/{pid}/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def files_mib(folder: Path) -> float:
    """Return how much the files under `folder` take."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()) / 2**20


# --- rounds


class Spread(msgspec.Struct, frozen=True):
    """One quantity over several rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Sum up at least one value."""
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])

    def __str__(self) -> str:
        shown = [_shown(value) for value in (self.median, self.least, self.most)]
        return shown[0] if len(set(shown)) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _shown(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Sum up a ratio round by round: what disturbs one round disturbs both halves of it."""
    return Spread.of(one / other for one, other in zip(ours, theirs, strict=True))


def caveats(before: Machine, others: Spread) -> list[str]:
    """Say what makes a result of this run less than a figure to keep.

    Args:
        before: the machine as the run found it.
        others: CPUs that no process of the run used while the clock ran.
    """
    found = []
    if others.most > BUSY_OTHERS:
        found.append(f"NOT QUIET: others used {others} CPUs while the clock ran; trust the ratios before the rates")
    if before.fdatasync_p50_ms > 1:
        found.append(f"SLOW DISK: fdatasync took {before.fdatasync_p50_ms:.1f} ms before the run")
    return found


def save(name: str, result: msgspec.Struct) -> Path:
    """Write a result to bench/results and return its path."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    return file


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _lines(file: str) -> list[str]:
    path = Path(file)
    return path.read_text().splitlines() if path.exists() else []
