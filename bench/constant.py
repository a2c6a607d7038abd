"""What the bare server and the floor share: certificates, a constant answer, a ready document, and an orderly end."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import msgspec
import uvloop

from trenza.app.pki import CertificateAuthority, Credential, KeyType, sae_uri
from trenza.base.names import SaeId
from trenza.base.secret import Secret
from trenza.base.units import Nanoseconds
from trenza.cli.state import write_whole
from trenza.net.tls import TlsContext, TlsIdentity, server_context
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
KEY_ID = UUID(int=4 << 76 | 2 << 62)


def constant_key() -> Key:
    """Return the constant in the shape and of the size of a real answer."""
    return Key(KEY_ID, Secret(bytearray(32)), TOLD)


Listen = Callable[[TlsContext], Awaitable[int]]
"""Starts a server and returns its port."""


async def _serve(name: str, listen: Listen, folder: Path, ready_file: Path) -> None:
    """Serve both ends until a signal comes."""
    authority = CertificateAuthority.create(f"The authority of {name}", KeyType.ECDSA_P256)
    trust = folder / f"{name}-ca.pem"
    authority.save(trust, folder / f"{name}-ca.key.pem")
    door = _saved(authority.issue(name, ips=(HOST,), client=False), folder, f"{name}-door", trust)
    port = await listen(server_context(door))
    saes = {}
    for sae, node in ((INITIATOR, "Alice"), (TARGET, "Bob")):
        files = _saved(authority.issue(sae, uris=(sae_uri(sae),), server=False), folder, f"{name}-{sae}", trust)
        saes[sae] = {
            "node": node,
            "certificate": str(files.certificate_file),
            "private_key": str(files.private_key_file),
            "ca": str(trust),
        }
    nodes = {node: {"etsi014": f"https://{HOST}:{port}"} for node in ("Alice", "Bob")}
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    write_whole(ready_file, msgspec.json.encode({"nodes": nodes, "saes": saes}))
    await stop.wait()


def _saved(credential: Credential, folder: Path, name: str, trust: Path) -> TlsIdentity:
    files = TlsIdentity(folder / f"{name}.pem", folder / f"{name}.key.pem", trust)
    credential.save(files.certificate_file, files.private_key_file)
    return files


def run(name: str, listen: Listen, description: str) -> None:
    """Be a server of the name: the whole of a script's main."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="an empty folder for its certificates")
    parser.add_argument("--ready-file", type=Path, required=True)
    asked = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(name, listen, asked.folder, asked.ready_file))
