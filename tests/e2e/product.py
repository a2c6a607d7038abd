"""The product as its users run it: processes, ready files, sockets, commands. Nothing here looks inside a process."""

import asyncio
import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from trenza.app.config import NodeConfig, load_node_config, write_config
from trenza.app.network_files import NetworkFiles, Ports, SaeFiles
from trenza.app.scenario import Scenario, load_scenario
from trenza.app.state_directory import StateDirectory
from trenza.net.http_client import HttpClient
from trenza.net.tls import TlsIdentity, client_context

TRENZA = Path(sys.executable).with_name("trenza")
SCENARIOS = Path(__file__).parents[2] / "scenarios"
JSON = "application/json"
HYBRID = "X25519MLKEM768"
STARTS_WITHIN_S = 120.0
STOPS_WITHIN_S = 30.0
ANSWERS_WITHIN_S = 30.0


# --- processes -----------------------------------------------------------------------------------------------------


class Process:
    """One `trenza` process in a process group of its own, its words kept in a file."""

    def __init__(self, log: Path, *words: object) -> None:
        self.log = log
        with log.open("ab") as out:
            self._popen = subprocess.Popen(
                [str(TRENZA), *map(str, words)], stdout=out, stderr=out, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    @property
    def exit_status(self) -> int | None:
        return self._popen.poll()

    def said(self) -> str:
        return self.log.read_text()

    def interrupt(self) -> int:
        """Ctrl-C; return the exit status."""
        self._popen.send_signal(signal.SIGINT)
        return self._popen.wait(STOPS_WITHIN_S)

    def kill(self) -> None:
        """`kill -9`: nothing is said and nothing is finished."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def end(self) -> None:
        """Whatever happened, leave nothing of it behind."""
        if not self.ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.interrupt()
        self.kill()

    def peak_memory_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def group_members(group: int) -> list[int]:
    """Return the processes of a group that live."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def connect(address: tuple[str, int]) -> None:
    """Connect and leave; raises ConnectionRefusedError where nobody listens."""
    socket.create_connection(address, ANSWERS_WITHIN_S).close()


def until(what: str, condition: Callable[[], object], *, within_s: float = 60.0, every_s: float = 0.05):
    """Return the first true thing that `condition` says; fail where there is none in time."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(every_s)
    return found


def run(*words: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    done = subprocess.run(
        [str(TRENZA), *map(str, words)], capture_output=True, text=True, timeout=ANSWERS_WITHIN_S * 2, check=False
    )
    assert not ok or done.returncode == 0, done.stderr
    return done


# --- networks ------------------------------------------------------------------------------------------------------


@dataclass
class Network:
    """What a ready document says, and who can be asked through it."""

    ready: dict
    state: Path
    process: Process | None = None
    started_s: float = 0.0
    _applications: list["Application"] = field(default_factory=list)

    def application(self, sae: str, *, node: str | None = None, **other: str) -> "Application":
        """Return a client that is `sae`, at its own node or at another one."""
        files = self.ready["saes"][sae]
        at = self.ready["nodes"][node or files["node"]]["etsi014"]
        shown = {name: other.get(name, files[name]) for name in ("certificate", "private_key", "ca")}
        made = Application(sae, at, shown["certificate"], shown["private_key"], shown["ca"])
        self._applications.append(made)
        return made

    def manage(self, node: str, path: str, *, method: str = "GET", body: bytes | None = None):
        """Ask a management door as the operator; return (status, document)."""
        return asyncio.run(self._manage(node, path, method, body))

    async def _manage(self, node: str, path: str, method: str, body: bytes | None):
        operator = self.ready["operator"]
        identity = TlsIdentity(*(Path(operator[name]) for name in ("certificate", "private_key", "ca")))
        url = urlsplit(self.ready["nodes"][node]["management"])
        client = HttpClient(client_context(identity), url.hostname, url.port, max_body_bytes=64 * 1024 * 1024)
        try:
            response = await client.request(method, path, body, timeout_s=ANSWERS_WITHIN_S)
        finally:
            await client.aclose()
        return response.status, json.loads(response.body)

    def status(self, node: str) -> dict:
        code, document = self.manage(node, "/v1/status")
        assert code == 200, document
        return document

    def command(self, *words: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `trenza …` against this network."""
        return run(*words, "--state-dir", self.state, ok=ok)

    def command_json(self, *words: object):
        return json.loads(self.command(*words, "--json").stdout)

    def pid(self, node: str) -> int:
        """Return the process that a node is now, where it has one of its own."""
        return json.loads((self.state / "ready.json").read_text())["nodes"][node]["pid"]

    def close(self) -> None:
        for application in self._applications:
            application.close()


@contextlib.contextmanager
def up(scenario: object, folder: Path, *options: object) -> Iterator[Network]:
    """Run `trenza up` until the end of the block."""
    ready, state = folder / "ready.json", folder / "state"
    began = time.monotonic()
    process = Process(
        folder / "log", "up", scenario, "--ready-file", ready, "--state-dir", state, "--no-live", *options
    )
    network = None
    try:
        until("a ready file", lambda: ready.exists() or process.ended, within_s=STARTS_WITHIN_S)
        assert not process.ended, process.said()
        network = Network(json.loads(ready.read_text()), state, process, time.monotonic() - began)
        yield network
    finally:
        if network is not None:
            network.close()
        process.end()


# --- applications, with nothing but the standard library -----------------------------------------------------------


class Application:
    """A client of the key delivery door, as anybody would write one."""

    def __init__(self, name: str, url: str, certificate: str, private_key: str, ca: str) -> None:
        self.name = name
        self._at = urlsplit(url)
        self._files = (certificate, private_key, ca)
        self._connection: http.client.HTTPSConnection | None = None

    def context(self) -> ssl.SSLContext:
        certificate, private_key, ca = self._files
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(certificate, private_key)
        return context

    def ask(self, verb: str, path: str, body: object = None, *, headers: dict | None = None):
        """Send one request over the kept connection; return (status, document)."""
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        told = {"Content-Type": JSON} if body is not None else {}
        connection = self._kept()
        try:
            connection.request(verb, path, body, told | (headers or {}))
            answer = connection.getresponse()
            text = answer.read()
        except BaseException:
            self.close()
            raise
        return answer.status, json.loads(text)

    def status(self, other: str):
        return self.ask("GET", self.path(other, "status"))

    def enc(self, other: str, **members: object):
        return self.ask("POST", self.path(other, "enc_keys"), members)

    def dec(self, other: str, *key_ids: str):
        return self.ask("POST", self.path(other, "dec_keys"), {"key_IDs": [{"key_ID": one} for one in key_ids]})

    def keys(self, other: str, **members: object) -> dict[str, bytes]:
        """Return fresh keys by their IDs."""
        code, container = self.enc(other, **members)
        assert code == 200, container
        return bits_of(container)

    def fetch(self, other: str, *key_ids: str) -> dict[str, bytes]:
        """Return the keys that `other` was given."""
        code, container = self.dec(other, *key_ids)
        assert code == 200, container
        return bits_of(container)

    @staticmethod
    def path(other: str, method: str) -> str:
        return f"/api/v1/keys/{quote(other, safe='')}/{method}"

    @property
    def address(self) -> tuple[str, int]:
        return self._at.hostname, self._at.port

    def socket(self) -> ssl.SSLSocket:
        """Return a connection of its own, for saying things that no client says."""
        raw = socket.create_connection(self.address, ANSWERS_WITHIN_S)
        return self.context().wrap_socket(raw, server_hostname=self.address[0])

    def presented_certificate(self) -> bytes:
        """Return what a new connection is shown (DER)."""
        with self.socket() as connection:
            return connection.getpeercert(binary_form=True)

    def _kept(self) -> http.client.HTTPSConnection:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                *self.address, context=self.context(), timeout=ANSWERS_WITHIN_S
            )
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def bits_of(container: dict) -> dict[str, bytes]:
    """Return the keys of a container by their IDs."""
    return {one["key_ID"]: base64.b64decode(one["key"], validate=True) for one in container["keys"]}


# --- sites: the files of a network, for processes of their own -----------------------------------------------------


@contextlib.contextmanager
def sites(scenario: object, folder: Path) -> Iterator["Sites"]:
    """Write what the sites of a network have on their disks; nothing runs yet."""
    state, ports = StateDirectory(folder / "state"), Ports()
    made = Sites(load_scenario(str(scenario)), state, NetworkFiles(load_scenario(str(scenario)), state, ports))
    try:
        made.files.write()
        yield made
    finally:
        made.end()
        ports.release()
        state.release()


@dataclass
class Sites:
    """The processes of a network, each started alone."""

    scenario: Scenario
    state: StateDirectory
    files: NetworkFiles
    processes: dict[str, Process] = field(default_factory=dict)
    _network: Network | None = None

    def start_devices(self) -> None:
        self.processes["devices"] = Process(self._log("devices"), "devices", "--config", self.state.devices)

    def start(self, *nodes: str) -> None:
        for node in nodes:
            config = self.state.node_config(node)
            self.processes[node] = Process(self._log(node), "node", "--config", config)

    def configure(self, node: str, change: Callable[[NodeConfig], NodeConfig]) -> None:
        """Rewrite the configuration of a node."""
        path = self.state.node_config(node)
        write_config(change(load_node_config(path)), path)

    def audited(self, node: str) -> dict:
        """Return the verdict on a node's ledger, with the certificate that its site has on its disk."""
        doors = self.state.path.parent / "doors.json"
        doors.write_text(json.dumps(self.network.ready))
        certificate = self.files.node_config(node).peers.certificate
        told = run("audit", node, "--certificate", certificate, "--doors", doors, "--json", ok=False)
        return json.loads(told.stdout)["nodes"][node]

    def end(self) -> None:
        if self._network is not None:
            self._network.close()
        for process in self.processes.values():
            process.end()

    @property
    def network(self) -> Network:
        """Return the network as clients see it."""
        if self._network is None:
            nodes = {node.name: load_node_config(self.state.node_config(node.name)) for node in self.scenario.nodes}
            saes = {sae.name: (sae.node, self.files.sae(sae.name)) for sae in self.scenario.saes}
            operator = self.files.operator
            ready = {
                "nodes": {
                    name: {
                        "etsi014": f"https://{config.application.address}",
                        "management": f"https://{config.management.address}",
                    }
                    for name, config in nodes.items()
                },
                "saes": {name: {"node": node, **_paths(files)} for name, (node, files) in saes.items()},
                "operator": _paths(operator),
            }
            self._network = Network(ready, self.state.path)
        return self._network

    def until_issuable(self, initiator: str, target: str, *, within_s: float = 60.0) -> int:
        """Wait until the application door of an initiator has keys in stock; return how many."""
        application = self.network.application(initiator)

        def stored() -> int:
            for name, process in self.processes.items():
                assert not process.ended, f"{name} has ended: {process.said()}"
            try:
                code, status = application.status(target)
            except OSError:
                return 0  # not open yet, or just now not
            return status["stored_key_count"] if code == 200 else 0

        return until(f"keys from {initiator} to {target}", stored, within_s=within_s)

    def _log(self, name: str) -> Path:
        return self.state.path.parent / f"{name}.log"


def _paths(files: SaeFiles) -> dict[str, str]:
    named = {"certificate": files.certificate, "private_key": files.private_key, "ca": files.ca}
    return {name: str(path) for name, path in named.items()}
