"""The directory of one emulated network: where its files are, and that only one process at a time has it.

network.pid      who runs it (locked while it does)     ready.json    where everything is, once it is ready
.ready.lock      held by whoever changes ready.json
network.id       its name in databases; it outlives every run
book.json        the signed policy book                 officer.pem, officer.key
devices.toml     the emulated devices                   pki/          certificates and private keys
nodes/NODE/      config.toml, node.key, anchor, data/
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec

from trenza.base.errors import ConflictError, UnavailableError
from trenza.base.names import NodeId

_OWNED: Final = ("ready.json", "book.json", "officer.pem", "officer.key", "devices.toml", "pki", "nodes")


class StateDirectory:
    """A state directory held by this process until `release`."""

    def __init__(self, path: Path) -> None:
        """Take hold of it, making it if absent.

        Raises:
            UnavailableError: a network runs in it, or it holds something else.
        """
        self.path = path
        self._released = False
        pid_file = path / "network.pid"
        try:
            if path.is_dir() and any(path.iterdir()) and not pid_file.exists():
                raise UnavailableError(f"{path} holds something that is no network: choose another state directory")
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(pid_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UnavailableError(f"the state directory {path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            raise UnavailableError(
                f"a network runs in {path} already (process {holder}): stop it with `trenza down`, "
                "or choose another state directory"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        self.ready_file.unlink(missing_ok=True)

    def may_go_on(self, names: Iterable[NodeId]) -> bool:
        """Tell whether a network of these nodes ran here before; False where none did.

        Raises:
            ConflictError: another one did, and making everything new would destroy what its nodes remember.
        """
        wanted = {file_name(name) for name in names}
        held = {config.parent.name for config in self.path.glob("nodes/*/config.toml")}
        if held and held != wanted:
            nodes = ", ".join(unquote(name) for name in sorted(held))
            raise ConflictError(
                f"{self.path} holds another network, of the nodes {nodes}: choose another state directory, "
                "or start without --resume, which removes it"
            )
        return bool(held)

    def clear(self) -> None:
        """Remove what an earlier network left; what is not a network's stays."""
        for name in _OWNED:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def tell_ready(self, document: bytes) -> None:
        """Write ready.json so that whoever finds it finds all of it."""
        with _ready_lock(self.ready_file):
            _replace(self.ready_file, document)

    def release(self) -> None:
        """Let go; nobody runs it from now on. May be called twice."""
        if self._released:
            return
        self._released = True
        with _ready_lock(self.ready_file):
            self.ready_file.unlink(missing_ok=True)
        os.ftruncate(self._lock, 0)
        os.close(self._lock)

    @property
    def ready_file(self) -> Path:
        return self.path / "ready.json"

    @property
    def identity(self) -> Path:
        return self.path / "network.id"

    @property
    def book(self) -> Path:
        return self.path / "book.json"

    @property
    def officer(self) -> Path:
        return self.path / "officer.pem"

    @property
    def officer_key(self) -> Path:
        return self.path / "officer.key"

    @property
    def devices(self) -> Path:
        return self.path / "devices.toml"

    @property
    def pki(self) -> Path:
        return self.path / "pki"

    def node(self, name: NodeId) -> Path:
        """Return the directory of one node; a name is never a path."""
        return self.path / "nodes" / file_name(name)

    def node_config(self, name: NodeId) -> Path:
        return self.node(name) / "config.toml"


def change_ready(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a network's ready.json: what others changed meanwhile stays, and whoever reads it reads all of it.

    Does nothing where there is none: the network is not ready, or stops.
    """
    with _ready_lock(file):
        try:
            document = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        except FileNotFoundError:
            return
        change(document)
        _replace(file, msgspec.json.format(msgspec.json.encode(document), indent=2))


@contextmanager
def _ready_lock(file: Path) -> Iterator[None]:
    lock = os.open(file.with_name(".ready.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _replace(file: Path, document: bytes) -> None:
    draft = file.with_name(f".{file.name}")
    draft.write_bytes(document)
    draft.replace(file)


def file_name(name: str) -> str:
    """Return `name` as the name of a file: itself, unless it has a slash or is all dots."""
    quoted = quote(name, safe="")
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")
