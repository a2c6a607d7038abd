"""Real PostgreSQL servers for tests: made in a temporary directory, on a Unix socket, thrown away afterwards.

`tests/conftest.py` makes one per session for whoever asks for `postgres`; a test that stops, promotes or misleads a
server makes its own with `cluster`. Settings are small, but never such that a commit could be lost.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

USER = "trenza"
_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "listen_addresses": "",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "max_wal_senders": "4",
    "wal_keep_size": "64MB",
    "autovacuum": "off",
}


def programs() -> Path | None:
    """Return the directory of the newest PostgreSQL here, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def missing() -> str | None:
    """Say why no server can be made here, or None."""
    if programs() is None:
        return "no PostgreSQL is installed (initdb was not found)"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "PostgreSQL does not run as root, and setpriv was not found"
    return None


@dataclass(frozen=True)
class Cluster:
    """One server: its data, its socket, and how to reach a database in it."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def dsn(self, *, user: str = USER) -> str:
        return f"postgresql://{user}@/postgres?host={self.folder}"

    def start(self, **settings: str) -> None:
        """Start, or start again; `settings` are for this run."""
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self.run(
            "pg_ctl", "-D", self.data, "-o", f"-k {self.folder} {options}", "-l", self.folder / "log", "-w", "start"
        )

    def stop(self, mode: str = "immediate") -> None:
        self.run("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def promote(self) -> None:
        self.run("pg_ctl", "-D", self.data, "-w", "promote")

    def standby(self, other: "Cluster") -> None:
        """Make `other` a copy of this one that follows it."""
        self.run("pg_basebackup", "-h", self.folder, "-U", USER, "-D", other.data, "-R", "-c", "fast", "-X", "stream")

    def run(self, program: str, *arguments: str | Path) -> None:
        found = programs()
        assert found is not None
        done = subprocess.run(
            [*_as_postgres(), str(found / program), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE
            if program != "pg_ctl"
            else subprocess.DEVNULL,  # a server would hold the pipe open
            cwd=self.folder,
            check=False,
        )
        if done.returncode:
            log = self.folder / "log"
            told = (done.stderr or b"").decode() + (log.read_text()[-2000:] if log.exists() else "")
            raise RuntimeError(f"{program} failed: {told}")


@contextmanager
def cluster(*, run: bool = True) -> Iterator[Cluster]:
    """Make a server, running unless told otherwise, and remove it afterwards."""
    with empty_cluster() as made:
        made.run("initdb", "-D", made.data, "-A", "trust", "-U", USER, "--no-sync", "-E", "UTF8", "--locale", "C")
        with (made.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in _SETTINGS.items())
        if run:
            made.start()
        yield made


@contextmanager
def empty_cluster() -> Iterator[Cluster]:
    """Make the place of a server without its data; whatever runs there at the end is stopped."""
    folder = Path(tempfile.mkdtemp(prefix="trenza-pg-", dir="/tmp"))  # a socket's path has at most 107 bytes
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    made = Cluster(folder)
    try:
        yield made
    finally:
        if (made.data / "postmaster.pid").exists():
            made.stop()
        shutil.rmtree(folder)


def _as_postgres() -> Sequence[str]:
    if os.geteuid() != 0:
        return ()
    return ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--reset-env")
