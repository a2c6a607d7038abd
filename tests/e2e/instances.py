"""Two instances of one node behind a balancer, on a real PostgreSQL, and a peer with a store of its own."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from tests import postgres as servers
from tests.e2e.balancer import Balancer
from tests.e2e.product import Process, Sites, until

from trenza.app.config import DatabaseConfig, NodeConfig, host_and_port, load_node_config, write_config
from trenza.app.network_files import NetworkFiles, Ports
from trenza.app.scenario import load_scenario
from trenza.app.state_directory import StateDirectory

SCENARIO, SHARED, PEER = "two-nodes", "Alice", "Bob"
PAIRS = (("sae-alice", "sae-bob"), ("sae-bob", "sae-alice"))
DOORS = ("application", "peers", "management")


@dataclass
class Instances:
    """A network of which one node is several processes."""

    sites: Sites
    folder: Path
    configs: dict[str, Path]
    cluster: servers.Cluster
    balancer: Balancer  # of applications
    processes: dict[str, Process] = field(default_factory=dict)

    def start(self, *names: str) -> None:
        for name in names:
            log = self.folder / f"{name}.log"
            self.processes[name] = Process(log, "node", "--config", self.configs[name])

    def status(self, name: str) -> dict:
        """Ask one instance's own management door."""
        self._know_as(name, name)
        return self.sites.network.status(name)

    def _know_as(self, node: str, name: str) -> None:
        """Let a node's management door be that of an instance; no balancer is before those."""
        config = load_node_config(self.configs[name])
        known = self.sites.network.ready["nodes"].setdefault(
            node, {"etsi014": f"https://{config.application.address}"}
        )
        known["management"] = f"https://{config.management.address}"

    def leader(self) -> str | None:
        """Return the instance that lets itself be connected to at the peer port."""
        for name, path in self.configs.items():
            with contextlib.suppress(OSError):
                socket.create_connection(host_and_port(load_node_config(path).peers.address), 1).close()
                return name
        return None

    def is_open(self, name: str) -> bool:
        """Tell whether an instance serves applications, and the balancer knows it."""
        door = load_node_config(self.configs[name]).application
        try:
            socket.create_connection(door.host_and_port, 1).close()
        except OSError:
            return False
        return door.host_and_port not in self.balancer.down

    def leads(self, name: str) -> bool:
        """Tell whether an instance says that it leads; then it issues from its own windows, too."""
        return self.status(name)["instance"]["role"] == "lead"

    def whole(self) -> dict[str, bool]:
        """Tell of each node's ledger whether it is whole."""
        self._know_as(SHARED, next(name for name in self.configs if self.is_open(name)))
        return {node: self.sites.audited(node)["whole"] for node in (SHARED, PEER)}

    def kill(self, name: str) -> None:
        self.processes[name].kill()

    def freeze(self, name: str) -> None:
        os.kill(self.processes[name].pid, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        os.kill(self.processes[name].pid, signal.SIGCONT)


@contextlib.contextmanager
def in_stock(folder: Path, first: str, *others: str) -> Iterator[Instances]:
    """Run such a network: the first instance leads, and there are keys to be had."""
    with instances(folder, first, *others) as made:
        made.start(first)
        until("a lead", lambda: made.leader() == first)
        made.start(*others)
        until("the others", lambda: all(made.is_open(name) for name in others))
        for pair in PAIRS:
            made.sites.until_issuable(*pair)
        until("a stock", lambda: sum(pool["ungranted"] for pool in made.status(first)["pools"]) > 4_000)
        yield made


@contextlib.contextmanager
def instances(folder: Path, *names: str) -> Iterator[Instances]:
    """Write what the machines of such a network have on their disks, and start the devices and the peer."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(servers.cluster())
        scenario, ports = load_scenario(SCENARIO), Ports()
        stack.callback(ports.release)
        state = StateDirectory(folder / "state")
        stack.callback(state.release)
        files = NetworkFiles(scenario, state, ports)
        at = {name: {door: ports.address() for door in DOORS} for name in names}
        balancers = {}
        for door in ("application", "peers"):
            backends = [host_and_port(at[name][door]) for name in names]
            balancers[door] = stack.enter_context(Balancer(backends))
            host, port = balancers[door].address
            files._addresses[SHARED, door] = f"{host}:{port}"
        files.write()
        address = folder / "database"
        address.write_text(cluster.dsn() + "\n")
        address.chmod(0o600)
        common = load_node_config(state.node_config(SHARED))
        configs = {name: folder / f"{name}.toml" for name in names}
        for name, path in configs.items():
            write_config(_instance(common, name, at[name], address, folder), path)
        sites = Sites(scenario, state, files)
        made = Instances(sites, folder, configs, cluster, balancers["application"])
        stack.callback(sites.end)
        stack.callback(lambda: [process.end() for process in made.processes.values()])
        sites.start_devices()
        sites.start(PEER)
        yield made


def _instance(common: NodeConfig, name: str, at: dict[str, str], address: Path, folder: Path) -> NodeConfig:
    listeners = {door: msgspec.structs.replace(getattr(common, door), address=at[door]) for door in DOORS}
    return msgspec.structs.replace(
        common, database=DatabaseConfig(address, instance=name), anchor=folder / f"{name}.anchor", **listeners
    )
