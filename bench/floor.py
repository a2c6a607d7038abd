"""The floor: what an answer costs before there is any key in it.

The same HTTP server, TLS transport, parser and routing as a node's application door, and a constant in the shape and
of the size of a real answer. No caller is looked up, no request body read, nothing is stored. Its ready document lets
the same load ask it the same requests.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path
from uuid import UUID

import msgspec
import uvloop

from trenza.app.pki import CertificateAuthority, Credential, KeyType, sae_uri
from trenza.base.names import SaeId
from trenza.base.secret import Secret
from trenza.base.units import Nanoseconds
from trenza.cli.state import write_whole
from trenza.net.http import Request, Response
from trenza.net.http_server import HttpServer
from trenza.net.tls import TlsContext, TlsIdentity, server_context
from trenza.serve._etsi014_http import KeyDoor, ok
from trenza.wire import etsi014
from trenza.wire.etsi014 import Key, KeyExtension

HOST = "127.0.0.1"
INITIATOR, TARGET = SaeId("sae-alice"), SaeId("sae-bob")
TOLD = KeyExtension(
    recipe="hybrid-catkdf",
    origins=("CLASSICAL", "PQC", "QKD"),
    supply="synthetic",
    strength="256-bit strength",
    hops=1,
    created=Nanoseconds(1_000_000_000),
    expires=Nanoseconds(2_000_000_000),
)
CONSTANT = ok(etsi014.encode_container([Key(UUID(int=4 << 76 | 2 << 62), Secret(bytearray(32)), TOLD)]))


def answer(request: Request) -> Response:
    """Answer the constant to each path of the interface."""
    route = etsi014.route(request.path.decode("latin-1"))
    return CONSTANT if route is not None else KeyDoor.error_response(404, "no such path in ETSI GS QKD 014")


async def serve(folder: Path, ready_file: Path) -> None:
    """Serve both ends, each on its own port as two nodes have, until a signal comes."""
    authority = CertificateAuthority.create("The floor's authority", KeyType.ECDSA_P256)
    trust = folder / "floor-ca.pem"
    authority.save(trust, folder / "floor-ca.key.pem")
    door = _saved(authority.issue("floor", ips=(HOST,), client=False), folder, "floor-door", trust)
    context: TlsContext = server_context(door)
    servers = {node: HttpServer(answer, lambda: context, KeyDoor.error_response) for node in ("Alice", "Bob")}
    ports = {node: await server.start(HOST) for node, server in servers.items()}
    saes = {}
    for sae, node in ((INITIATOR, "Alice"), (TARGET, "Bob")):
        files = _saved(authority.issue(sae, uris=(sae_uri(sae),), server=False), folder, f"floor-{sae}", trust)
        saes[sae] = {
            "node": node,
            "certificate": str(files.certificate_file),
            "private_key": str(files.private_key_file),
            "ca": str(trust),
        }
    nodes = {node: {"etsi014": f"https://{HOST}:{port}"} for node, port in ports.items()}
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    write_whole(ready_file, msgspec.json.encode({"nodes": nodes, "saes": saes}))
    await stop.wait()
    for server in servers.values():
        await server.stop(grace_s=1.0)


def _saved(credential: Credential, folder: Path, name: str, trust: Path) -> TlsIdentity:
    files = TlsIdentity(folder / f"{name}.pem", folder / f"{name}.key.pem", trust)
    credential.save(files.certificate_file, files.private_key_file)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="an empty folder for its certificates")
    parser.add_argument("--ready-file", type=Path, required=True)
    asked = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(asked.folder, asked.ready_file))


if __name__ == "__main__":
    main()
