"""A network as the command line sees it: a state directory, and doors that answer what a test tells them to."""

import asyncio
import fcntl
import json
import os
import secrets
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner

from trenza.app.pki import CertificateAuthority, KeyType, create_officer_key, node_uri, operator_uri, sae_uri
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.cli.main import main
from trenza.net.http import Request, Response
from trenza.net.http_server import HttpServer
from trenza.net.tls import TlsIdentity, server_context
from trenza.wire import etsi014
from trenza.wire.etsi014 import Key, KeyExtension, Method

NODES = ("Alice", "Bob")
SAES = {"sae-alice": "Alice", "sae-bob": "Bob"}
TOLD = KeyExtension(recipe="hybrid-catkdf", origins=("qkd", "pqc"), supply="synthetic", strength="256-bit", hops=1)


def refusal(status: int, message: str) -> Response:
    return Response(status, json.dumps({"error": "refused-here", "message": message}).encode())


@dataclass
class FakeNetwork:
    """Two nodes. Management answers are JSON documents by (node, path); keys are random and shared by both nodes."""

    state: Path
    answers: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    keys: dict[UUID, bytes] = field(default_factory=dict)
    alters_keys: bool = False

    def management(self, node: str):
        def answer(request: Request) -> Response:
            path = request.path.decode()
            query = {name: values[0] for name, values in parse_qs(request.query.decode()).items()}
            self.asked.append((node, request.method.decode(), path, query, request.body))
            found = self.answers.get((node, path), self.answers.get(("*", path)))
            if callable(found):
                found = found(node, query, request.body)
            if found is None:
                return refusal(404, f"there is no {path}")
            return found if isinstance(found, Response) else Response(200, json.dumps(found).encode())

        return answer

    def application(self, request: Request) -> Response:
        found = etsi014.route(request.path.decode())
        assert found is not None
        if found.method is Method.GET_KEY:
            asked = etsi014.key_request_from_body(request.body)
            if asked.mandatory.recipe == "its":
                error = etsi014.Error(etsi014.MANDATORY_UNMET, ({"extension_mandatory_unmet": "recipe"},))
                return Response(400, etsi014.encode_error(error))
            issued = {uuid4(): secrets.token_bytes((asked.size or 256) // 8) for _ in range(asked.number)}
            self.keys |= issued
            return self._container(issued)
        wanted = etsi014.key_ids_from_body(request.body)
        return self._container({one: bytes(32) if self.alters_keys else self.keys[one] for one in wanted})

    def _container(self, keys: dict[UUID, bytes]) -> Response:
        return Response(200, etsi014.encode_container([Key(i, Secret.of(key), TOLD) for i, key in keys.items()]))

    def run(self, *words: str):
        """Run one command as a user of this network."""
        return CliRunner().invoke(main, [*words, "--state-dir", str(self.state)])

    def run_alone(self, *words: str):
        """Run one command that needs no network."""
        return CliRunner().invoke(main, words)

    def run_json(self, *words: str):
        result = self.run(*words, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> tuple[CertificateAuthority, Path]:
    folder = tmp_path_factory.mktemp("authority")
    made = CertificateAuthority.create("Test applications", KeyType.ECDSA_P256)
    made.save(folder / "ca.pem", folder / "ca.key")
    return made, folder


@pytest.fixture
def network(tmp_path, authority):
    """Serve the doors from a thread of their own: a command runs a loop of its own."""
    made, folder = authority
    state = tmp_path / "state"
    pki = state / "pki"
    pki.mkdir(parents=True)

    def identity(name: str, **options) -> TlsIdentity:
        files = TlsIdentity(pki / f"{name}.pem", pki / f"{name}.key", folder / "ca.pem")
        made.issue(name, **options).save(files.certificate_file, files.private_key_file)
        return files

    def files(one: TlsIdentity) -> dict[str, str]:
        return {
            "certificate": str(one.certificate_file),
            "private_key": str(one.private_key_file),
            "ca": str(one.trust_file),
        }

    fake = FakeNetwork(state)
    contexts = {node: server_context(identity(node, uris=[node_uri(NodeId(node))])) for node in NODES}
    ready = {
        "scenario": "two-nodes",
        "nodes": {},
        "saes": {name: {"node": at, **files(identity(name, uris=[sae_uri(name)]))} for name, at in SAES.items()},
        "operator": files(identity("operator", uris=[operator_uri("demo")])),
    }
    create_officer_key(state / "officer.key", state / "officer.pem")
    made.save(pki / "application-ca.pem", pki / "application-ca.key")
    pid_file = (state / "network.pid").open("w")
    pid_file.write(str(os.getpid()))
    pid_file.flush()
    fcntl.flock(pid_file, fcntl.LOCK_EX)

    servers: list[HttpServer] = []
    opened, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def listen(node, handler) -> str:
        server = HttpServer(handler, lambda: contexts[node], refusal)
        servers.append(server)
        return f"https://127.0.0.1:{await server.start('127.0.0.1')}"

    async def serve() -> None:
        for node in NODES:
            ready["nodes"][node] = {
                "etsi014": await listen(node, fake.application),
                "management": await listen(node, fake.management(node)),
            }
        (state / "ready.json").write_text(json.dumps(ready))
        opened.set()
        await stop.wait()
        await asyncio.gather(*(server.stop() for server in servers))

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert opened.wait(10)
    yield fake
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()
    pid_file.close()
