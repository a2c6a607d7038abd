"""A small PKI of the project's own kind, and a runner for both event loops."""

import asyncio
import datetime as dt
import warnings
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from trenza.app.pki import CertificateAuthority, KeyType
from trenza.net.endpoints import connect
from trenza.net.tls import TlsIdentity, client_context
from trenza.net.tls_transport import Terms


@dataclass
class Pki:
    """Files of one authority and of the parties it vouches for."""

    folder: Path
    authority: CertificateAuthority
    identities: dict[str, TlsIdentity] = field(default_factory=dict)

    @property
    def trust_file(self) -> Path:
        return self.folder / "ca.pem"

    def identity(self, name: str, *, trust_file: Path | None = None, **options: Any) -> TlsIdentity:
        """Issue (once) the certificate of `name`, a node reachable on the loopback."""
        if name not in self.identities:
            options = {
                "uris": [f"urn:trenza:node:{name}"],
                "dns_names": ["localhost"],
                "ips": ["127.0.0.1"],
            } | options
            certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
            self.authority.issue(name, **options).save(certificate, key)
            self.identities[name] = TlsIdentity(certificate, key, trust_file or self.trust_file)
        return self.identities[name]

    def expired(self, name: str) -> TlsIdentity:
        return self.identity(name, valid_from=dt.datetime(2020, 1, 1, tzinfo=dt.UTC), valid_for=dt.timedelta(days=1))


def make_pki(folder: Path, key_type: KeyType) -> Pki:
    pki = Pki(folder, CertificateAuthority.create("Test network", key_type))
    pki.authority.save(pki.trust_file, folder / "ca.key")
    return pki


@pytest.fixture(scope="session")
def pki(tmp_path_factory) -> Pki:
    """ECDSA P-256: also understood by other people's clients."""
    return make_pki(tmp_path_factory.mktemp("ecdsa"), KeyType.ECDSA_P256)


@pytest.fixture(scope="session")
def foreign_pki(tmp_path_factory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("foreign"), KeyType.ECDSA_P256)


@pytest.fixture(scope="session")
def ml_dsa_pki(tmp_path_factory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("mldsa"), KeyType.ML_DSA_65)


Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request) -> Run:
    """Run a coroutine to its end under each event loop, at most 20 seconds; errors nobody handled fail the test."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def runner(story):
        unhandled = []

        async def bounded():
            asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
            async with asyncio.timeout(20):
                return await story

        # A warning turned into an error inside uvloop's close would make it wait for ever: collect them instead.
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with asyncio.Runner(loop_factory=factory) as loop_runner:
                result = loop_runner.run(bounded())
        assert not unhandled
        assert not [str(warning.message) for warning in warned]
        return result

    return runner


class Dialogue(asyncio.Protocol):
    """A client that says exactly the bytes it is told to."""

    def __init__(self) -> None:
        self.heard = b""
        self.more = asyncio.Event()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.heard += data
        self.more.set()

    def connection_lost(self, exc):
        self.lost.set_result(exc)
        self.more.set()

    def say(self, data: bytes) -> None:
        self.transport.write(data)

    async def hear(self, ending: bytes) -> bytes:
        """Return and forget what was heard up to `ending`."""
        while ending not in self.heard:
            assert not self.lost.done(), f"the connection ended after {self.heard!r}"
            self.more.clear()
            await self.more.wait()
        said, end, self.heard = self.heard.partition(ending)
        return said + end

    async def hear_all(self) -> bytes:
        """Return what was heard until the other side closed."""
        await self.lost
        return self.heard

    async def hang_up(self) -> None:
        self.transport.close()
        await self.lost


@pytest.fixture
def dial():
    """Open a connection to a port of the loopback as `identity`."""

    async def open_dialogue(port: int, identity: TlsIdentity) -> Dialogue:
        return await connect(Dialogue, client_context(identity), "127.0.0.1", port, terms=Terms(), timeout_s=5)

    return open_dialogue
