"""Which networks run on this machine, and where their doors and files are.

Reads the state directories that `trenza up` keeps (one per network, with `network.pid` and `ready.json`); the
`nodes` and `saes` of `ready.json` are the public contract by which any program finds its way. A network that keeps
its files elsewhere is found by a symbolic link in `.running`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from trenza.base.errors import InvalidDocumentError, InvalidRequestError, UnavailableError
from trenza.base.names import NodeId, SaeId

PID_FILE = "network.pid"
READY_FILE = "ready.json"
ELSEWHERE = ".running"  # no network's directory begins with a dot


class NodeDoors(msgspec.Struct, frozen=True):
    """Where a node answers."""

    etsi014: str
    management: str
    pid: int | None = None  # where it is a process of its own


class Files(msgspec.Struct, frozen=True):
    """Who somebody is: PEM files."""

    certificate: Path
    private_key: Path
    ca: Path


class SaeFiles(msgspec.Struct, frozen=True):
    """An application: its node and who it is."""

    node: NodeId
    certificate: Path
    private_key: Path
    ca: Path


class Ready(msgspec.Struct, frozen=True):
    """`ready.json`: where everything of a network is, once all of it is ready."""

    nodes: dict[NodeId, NodeDoors]
    operator: Files
    saes: dict[SaeId, SaeFiles] = {}


@dataclass(frozen=True, slots=True)
class Site:
    """A network to talk to: one that `trenza up` started here, or one whose doors a document names."""

    name: str
    ready_file: Path
    state: Path | None = None
    """The files of a network of this machine, which hold what only a demo keeps in one place."""

    def ready(self) -> Ready:
        """Return where its doors are, and the files that open them.

        Raises:
            UnavailableError: it is still starting.
        """
        return read_ready(self.ready_file)

    def own_files(self) -> Path:
        """Return the state directory.

        Raises:
            InvalidRequestError: the network was not started by `trenza up` on this machine.
        """
        if self.state is None:
            raise InvalidRequestError(
                "this needs the files of a network that `trenza up` started here; on real sites the key officer "
                "signs the policy book (trenza book --help)"
            )
        return self.state


@dataclass(frozen=True, slots=True)
class RunningNetwork:
    """A network whose process lives."""

    name: str
    state: Path
    pid: int
    since: datetime

    @property
    def site(self) -> Site:
        return Site(self.name, self.state / READY_FILE, self.state)


def state_home() -> Path:
    """Return the directory of the state directories (XDG Base Directory Specification)."""
    told = os.environ.get("XDG_STATE_HOME", "")
    home = Path(told) if told.startswith("/") else Path.home() / ".local" / "state"
    return home / "trenza"


def places(also: Path | None = None) -> list[Path]:
    """Return the directories where networks of this user may run, other than those in `state_home`."""
    told = [] if also is None else [also.absolute()]
    with contextlib.suppress(OSError):  # nobody has started a network elsewhere
        told += [link.readlink() for link in sorted((state_home() / ELSEWHERE).iterdir()) if link.is_symlink()]
    return list(dict.fromkeys(told))


def running_networks(also: Path | None = None) -> list[RunningNetwork]:
    """Return the networks of this user that run, by name; `also` is a directory to look at beside those known."""
    home = state_home()
    usual = [folder for folder in home.iterdir() if folder.is_dir()] if home.is_dir() else []
    folders = {folder.resolve(): folder for folder in (*places(also), *usual)}
    found = [network for network in map(running_in, folders.values()) if network is not None]
    return sorted(found, key=lambda network: (network.name, network.state))


def none_runs(also: Path | None = None) -> str:
    """Return the sentence that says so, and where we looked."""
    looked = ", ".join(str(place) for place in (state_home(), *places(also)))
    return f"no network of yours runs on this machine (looked in {looked})"


def remember(state: Path) -> None:
    """Let other commands find a network that keeps its files elsewhere than in `state_home`."""
    if state.parent == state_home():
        return
    with contextlib.suppress(OSError):  # then it is found by --state-dir alone
        link = _link_to(state)
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in link.parent.iterdir():
            if other.is_symlink() and not other.exists():
                other.unlink()  # its directory has gone
        link.symlink_to(state)


def forget(state: Path) -> None:
    """Undo `remember`, unless a network runs there."""
    if running_in(state) is None:
        with contextlib.suppress(OSError):
            _link_to(state).unlink()


def _link_to(state: Path) -> Path:
    return state_home() / ELSEWHERE / hashlib.sha256(os.fsencode(state)).hexdigest()[:32]


def running_in(state: Path) -> RunningNetwork | None:
    """Return the network of a state directory, or None where none runs."""
    file = state / PID_FILE
    pid = pid_in(file)
    if pid is None or not is_locked(file):
        return None
    since = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    return RunningNetwork(state.name, state, pid, since)


def pid_in(file: Path) -> int | None:
    """Return the process that a file names; None where there is no file or it names none."""
    try:
        return int(file.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return None


def is_locked(file: Path) -> bool:
    """Tell whether a network holds its file: a number alone may by now be somebody else's process."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no file, or not ours to look at
    return False


def the_network(name: str | None, state: Path | None) -> RunningNetwork:
    """Return the network that is meant: the named one, or the only one.

    Raises:
        UnavailableError: it does not run.
        InvalidRequestError: several run and none was named.
    """
    if state is not None:
        network = running_in(state)
        if network is None:
            raise UnavailableError(
                f"no network runs in {state}: start it with `trenza up SCENARIO --state-dir {state}`"
            )
        return network
    running = running_networks()
    if name is not None:
        named = [network for network in running if network.name == name]
        if len(named) == 1:
            return named[0]
        if named:
            where = ", ".join(str(network.state) for network in named)
            raise InvalidRequestError(f"several networks are called {name} ({where}): say which with --state-dir")
        others = ", ".join(network.name for network in running) or "none"
        raise UnavailableError(f"network {name} does not run (running: {others}): start it with `trenza up {name}`")
    if not running:
        raise UnavailableError(f"{none_runs()}: start one with `trenza up two-nodes`")
    if len(running) > 1:
        names = ", ".join(network.name for network in running)
        raise InvalidRequestError(f"several networks run ({names}): say which with --network NAME")
    return running[0]


def read_ready(file: Path) -> Ready:
    """Read a ready document.

    Raises:
        UnavailableError: there is none yet.
        InvalidDocumentError: it is not one.
    """
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        raise UnavailableError(f"the network is still starting: {file} is written when it is ready") from None
    try:
        return msgspec.json.decode(text, type=Ready, dec_hook=lambda kind, value: kind(value))
    except msgspec.DecodeError as error:
        raise InvalidDocumentError(str(file), (str(error),)) from None


def check_writable(file: Path) -> None:
    """Make sure that a file can be written later, before anything is done that would be in vain without it.

    Raises:
        InvalidRequestError: its directory is none, or nobody here may write into it.
    """
    folder = file.absolute().parent
    if not folder.is_dir():
        raise InvalidRequestError(f"{file} cannot be written: there is no directory {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidRequestError(f"{file} cannot be written: {folder} may not be written into")


def write_whole(file: Path, text: bytes) -> None:
    """Write a file so that whoever finds it finds all of it."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_bytes(text)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
