"""Processes of a measurement: started, waited for, asked, and ended in good order whatever happens."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from load import Plan, Result

HERE = Path(__file__).parent
TRENZA = Path(sys.executable).with_name("trenza")
START_DEADLINE_S = 120.0
STOP_DEADLINE_S = 20.0
LINES_TOLD = 10

Word = str | Path


@contextmanager
def running(command: Sequence[Word], log: Path | None = None, **pipes: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process and stop it in good order; what it says goes to `log`, if there is one."""
    with ExitStack() as stack:
        errors = None if log is None else stack.enter_context(log.open("ab"))
        process = subprocess.Popen([str(word) for word in command], stderr=errors, **pipes)
        try:
            yield process
        finally:
            if process.stdin is not None:
                process.stdin.close()
            process.terminate()
            try:
                process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(ready: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for a ready document.

    Raises:
        SystemExit: the process ended first, or took too long.
    """
    deadline = time.monotonic() + START_DEADLINE_S
    while not ready.exists():
        refuse_dead(process)
        if time.monotonic() > deadline:
            raise SystemExit(f"{process.args!r} was not ready within {START_DEADLINE_S:.0f} s")
        time.sleep(0.02)


def refuse_dead(process: subprocess.Popen[bytes], log: Path | None = None) -> None:
    """Raise SystemExit where a process has ended that should run."""
    if process.poll() is not None:
        said = "" if log is None else "\n" + "\n".join(log.read_text(errors="replace").splitlines()[-LINES_TOLD:])
        raise SystemExit(f"{process.args!r} ended with status {process.returncode}{said}")


class LoadProcess:
    """A load that asks what it is told; its keys are remembered as long as it lives."""

    def __init__(self, stack: ExitStack, ready: Path, initiator: str = "sae-alice", target: str = "sae-bob") -> None:
        asking: list[Word] = [sys.executable, HERE / "load.py", ready, "--rounds"]
        asking += ["--initiator", initiator, "--target", target]
        self._process = stack.enter_context(running(asking, stdin=subprocess.PIPE, stdout=subprocess.PIPE))

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, plan: Plan) -> Result:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(plan) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the load ended before its round did")
        return msgspec.json.decode(line, type=Result)


class Constant:
    """A server of a constant answer: bench/bare.py or bench/floor.py."""

    def __init__(self, stack: ExitStack, name: str, folder: Path) -> None:
        self.name = name
        ready = folder / f"{name}.json"
        command: list[Word] = [sys.executable, HERE / f"{name}.py", folder, "--ready-file", ready]
        process = stack.enter_context(running(command))
        wait_until_ready(ready, process)
        self.pids = {name: process.pid}
        self.load = LoadProcess(stack, ready)
