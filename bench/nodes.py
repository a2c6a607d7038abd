"""A network of node processes, each with its own store, and of one process of emulated devices: as on real sites.

Writes what `trenza up` writes, then starts `trenza devices` and one `trenza node` each, and looks at them from
outside: through their management doors and /proc.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from processes import HERE, START_DEADLINE_S, TRENZA, LoadProcess, Word, refuse_dead, running

sys.path.insert(0, str(HERE.parent))
from tests import postgres as servers

from trenza.app.config import write_config
from trenza.app.network_database import NetworkDatabase
from trenza.app.network_files import NetworkFiles, Ports
from trenza.app.scenario_model import Scenario
from trenza.app.state_directory import StateDirectory
from trenza.base.errors import TrenzaError
from trenza.base.names import NodeId
from trenza.cli.doors import Doors
from trenza.cli.state import read_ready
from trenza.wire.management import NodeStatus

DEVICES = "devices"
DATABASE = "database"
LOOK_EVERY_S = 0.2
FILLED_AFTER_S = 1.0  # without a new slot


@dataclass(frozen=True)
class Database:
    """A PostgreSQL server of this run alone, with settings under which no commit can be lost."""

    address: Path  # as in a node's configuration
    version: str
    pid_file: Path

    @classmethod
    def start(cls, stack: ExitStack, folder: Path) -> Database:
        cluster = stack.enter_context(servers.cluster(run=False))
        cluster.start(autovacuum="on", shared_buffers="128MB")
        address = folder / "database"
        address.write_text(cluster.dsn() + "\n")
        address.chmod(0o600)
        programs = servers.programs()
        assert programs is not None
        told = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True)
        return cls(address, told.stdout.strip(), cluster.data / "postmaster.pid")

    def pids(self) -> dict[str, int]:
        """Return the server's processes of now, each node's connections among them, but none that soon ends."""
        server = int(self.pid_file.read_text().split()[0])
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        return {f"{DATABASE} {pid}": int(pid) for pid in (str(server), *children) if _stays(pid)}


def _stays(pid: str) -> bool:
    try:
        return b"autovacuum worker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


class Files:
    """All that the processes of a network are told, written before any of them starts."""

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        stack: ExitStack,
        settings: Mapping[str, float] | None = None,
        database: Database | None = None,
    ) -> None:
        self.scenario = scenario
        self.folder = folder
        self.state = StateDirectory(folder / "network")
        stack.callback(self.state.release)
        ports = Ports()
        stack.callback(ports.release)
        self.database = database
        self._files = NetworkFiles(scenario, self.state, ports, None if database is None else database.address)
        self._files.write()
        for node in scenario.nodes:
            config = self._files.node_config(node.name)
            changed = msgspec.structs.replace(config, settings=config.settings | dict(settings or {}))
            write_config(changed, self.config(node.name))
        if database is not None:
            asyncio.run(NetworkDatabase(database.address, scenario, self.state).prepare())
        self.ready_file = folder / "ready.json"
        self.ready_file.write_bytes(msgspec.json.encode(self._ready_document()))

    def config(self, node: str) -> Path:
        return self.state.node_config(NodeId(node))

    def data(self, node: str) -> Path:
        return self.state.node(NodeId(node))

    def _ready_document(self) -> dict[str, Any]:
        files, operator = self._files, self._files.operator
        configs = {node.name: files.node_config(node.name) for node in self.scenario.nodes}
        return {
            "nodes": {
                name: {
                    "etsi014": f"https://{config.application.address}",
                    "management": f"https://{config.management.address}",
                    "peers": config.peers.address,
                }
                for name, config in configs.items()
            },
            "saes": {
                sae.name: {"node": sae.node, "certificate": str(one.certificate), "private_key": str(one.private_key)}
                | {"ca": str(one.ca)}
                for sae in self.scenario.saes
                for one in (files.sae(sae.name),)
            },
            "operator": {
                "certificate": str(operator.certificate),
                "private_key": str(operator.private_key),
                "ca": str(operator.ca),
            },
        }


class Nodes:
    """The running network. `pids` names each process: the nodes by their names, "devices", "database PID"."""

    def __init__(
        self,
        name: str,
        files: Files,
        stack: ExitStack,
        *,
        launcher: Sequence[Word] = (TRENZA,),
        together: Sequence[str] = (),
    ) -> None:
        """Start everything.

        Args:
            name: what results call it.
            files: what it is told.
            stack: ends it.
            launcher: what stands before `node --config FILE`.
            together: nodes that share one process, because nobody measures them.
        """
        self.name = name
        self.files = files
        self.log = files.folder / "nodes.log"
        self._ready = read_ready(files.ready_file)
        self._processes = {
            DEVICES: stack.enter_context(running([TRENZA, "devices", "--config", files.state.devices], self.log))
        }
        if together:
            command: list[Word] = [sys.executable, HERE / "together.py", *map(files.config, together)]
            self._processes["the others"] = stack.enter_context(running(command, self.log))
        for node in files.scenario.nodes:
            if node.name not in together:
                command = [*launcher, "node", "--config", files.config(node.name)]
                self._processes[node.name] = stack.enter_context(running(command, self.log))
        self._stack = stack

    @property
    def pids(self) -> dict[str, int]:
        """Every process by its name, those of the database too."""
        own = {name: process.pid for name, process in self._processes.items()}
        return own if self.files.database is None else own | self.files.database.pids()

    def load(self, initiator: str = "sae-alice", target: str = "sae-bob") -> LoadProcess:
        return LoadProcess(self._stack, self.files.ready_file, initiator, target)

    def status(self, node: str) -> NodeStatus | None:
        """Return what a node says of itself, or None while it does not answer."""
        return asyncio.run(self._status(NodeId(node)))

    async def _status(self, node: NodeId) -> NodeStatus | None:
        async with Doors(self._ready) as doors:
            answer = (await doors.ask_all("/v1/status", NodeStatus, nodes=[node]))[node]
        return None if isinstance(answer, TrenzaError) else answer

    def wait_until_issuing(self, node: str, peers: Sequence[str], *, at_least: int = 1) -> float:
        """Wait until `node` holds slots to issue to each of `peers`; return the seconds that it took.

        Raises:
            SystemExit: a process ended, or it took too long.
        """
        began = time.monotonic()
        while True:
            for process in self._processes.values():
                refuse_dead(process, self.log)
            found = self.status(node)
            stock = {} if found is None else {one.peer: one.issuable for one in found.pools if one.issuer == node}
            if all(stock.get(peer, 0) >= at_least for peer in peers):
                return time.monotonic() - began
            if time.monotonic() - began > START_DEADLINE_S:
                raise SystemExit(f"node {node} had nothing to issue within {START_DEADLINE_S:.0f} s: see {self.log}")
            time.sleep(LOOK_EVERY_S)

    def wait_until_filled(self, node: str) -> int:
        """Wait until `node` fills nothing more by itself; return the slots that it has filled.

        Raises:
            SystemExit: it went on and on.
        """
        began, last = time.monotonic(), -1
        while (filled := self.counters(node).get("slots_filled", 0)) != last:
            if time.monotonic() - began > START_DEADLINE_S:
                raise SystemExit(f"node {node} was still filling after {START_DEADLINE_S:.0f} s: see {self.log}")
            last = filled
            time.sleep(FILLED_AFTER_S)
        return filled

    def counters(self, node: str) -> dict[str, int]:
        found = self.status(node)
        if found is None:
            raise SystemExit(f"node {node} does not answer: see {self.log}")
        return found.counters
