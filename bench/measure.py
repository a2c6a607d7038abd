"""What every measurement says of the machine it ran on, and how it looks at another process from outside."""

from __future__ import annotations

import os
import platform
import statistics
import time
from pathlib import Path

import msgspec

RESULTS = Path(__file__).parent / "results"
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


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


def cpu_s(pid: int) -> float:
    """Return the CPU time, user and system, that a process with all its threads has used."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) * _TICK_S


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES / 2**20


def peak_mib(pid: int) -> float:
    """Return the largest resident memory a process ever had."""
    (line,) = [line for line in _lines(f"/proc/{pid}/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


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
