"""The operators' door: who may enter, what it shows, and how it refuses."""

import asyncio
import json

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from tests.kms.fakes import FakeClock, FakeDevicePair, FakeNetwork, join, make_book, make_context

from trenza.adapters.anchor import MemoryAnchor
from trenza.app.pki import CertificateAuthority, KeyType, operator_uri, sae_uri
from trenza.base.names import LinkId, NodeId
from trenza.core.policy import SignedBook, bytes_to_sign, message_of
from trenza.kms.node import Node
from trenza.kms.ports import Append, LinkReading
from trenza.net.http import Request
from trenza.net.rpc_frames import MessageCounters
from trenza.net.tls import PeerIdentity, TlsStatistics, fingerprint_of
from trenza.serve.management import ManagementDoor

ALICE, BOB = NodeId("Alice"), NodeId("Bob")
BOOK = make_book(["Alice", "Bob"], [("Alice-Bob", "Alice", "Bob")])


@pytest.fixture(scope="module")
def authority():
    return CertificateAuthority.create("Test network", KeyType.ECDSA_P256)


def caller(authority, uri):
    certificate = authority.issue("someone", uris=[uri]).certificate
    return PeerIdentity(certificate, fingerprint_of(certificate), (uri,), "X25519MLKEM768", "TLSv1.3")


@pytest.fixture(scope="module")
def operator(authority):
    return caller(authority, operator_uri("ana"))


class Telemetry:
    async def read(self):
        return LinkReading("running", 0.01, 1000.0, 3.0, ("los",))


class World:
    """Alice, started on fakes, and her management door."""

    def __init__(self, operator):
        self.operator = operator
        self.officer = MLDSA65PrivateKey.generate()
        self.revoked = set()
        network, clock = FakeNetwork(), FakeClock()
        self.ctx = make_context(ALICE, network, clock=clock)
        self.ctx.officer = self.officer.public_key().public_bytes_raw()
        other = make_context(BOB, network, clock=clock)
        join(self.ctx, other, LinkId("Alice-Bob"), FakeDevicePair(1))
        self.node = Node(self.ctx, anchor=MemoryAnchor())
        self.reloads = 0

    def signed(self, version=1, officer=None, **changes):
        body = bytes_to_sign(msgspec.structs.replace(BOOK, version=version, **changes))
        return SignedBook(body, (officer or self.officer).sign(message_of(body)))

    async def reload(self):
        self.reloads += 1
        return ["settings"]

    async def door(self, *, book=True):
        await self.node.start(self.signed() if book else None)
        statistics = TlsStatistics()
        statistics.completed["X25519MLKEM768"] += 2
        self._door = ManagementDoor(
            lambda: self.node,
            version="9.9",
            tls=lambda: {"peers": statistics},
            messages=lambda: {BOB: [MessageCounters(1, 2), MessageCounters(3, 4)]},
            reload=self.reload,
            is_revoked=self.revoked.__contains__,
        )
        return self

    async def ask(self, path, query="", *, method="GET", body=b"", peer=None):
        request = Request(method.encode(), path.encode(), query.encode(), {}, body, peer or self.operator)
        response = await self._door(request)
        assert dict(response.headers)["cache-control"] == "no-store"
        return response.status, json.loads(response.body)


def tell(operator, story, **options):
    async def run():
        world = World(operator)
        await world.door(**options)
        return await story(world)

    return asyncio.run(run())


def test_the_status_tells_who_this_is_and_what_it_holds(operator):
    async def story(world):
        world.ctx.counters["keys_issued"] += 3
        world.node.troubles["beat Bob"] = "no answer"
        status, told = await world.ask("/v1/status")
        assert status == 200
        assert (told["node"], told["version"], told["book_version"]) == ("Alice", "9.9", 1)
        assert (told["epoch"], told["incarnation"]) == (1, 1)
        assert told["counters"]["keys_issued"] == 3
        assert told["troubles"] == {"beat Bob": "no answer"}
        (at_peers,) = told["tls"]
        assert (at_peers["door"], at_peers["handshakes"]) == ("peers", {"X25519MLKEM768": 2})
        assert (at_peers["failed"], at_peers["refused"], at_peers["connections"]) == ({}, {}, 0)
        assert told["messages"] == [{"peer": "Bob", "sent": 6, "received": 4}]
        assert told["ledger"] == {"sequence": 0, "hash": "00" * 48}

    tell(operator, story)


def test_links_are_shown_with_their_stock_and_what_the_device_says(operator):
    async def story(world):
        _, told = await world.ask("/v1/status")
        (link,) = told["links"]
        assert link["reading"] is None  # a mute device
        assert [one["sender"] for one in link["stock"]] == ["Alice", "Bob"]
        world.ctx.links[LinkId("Alice-Bob")].telemetry = Telemetry()
        _, told = await world.ask("/v1/status")
        assert told["links"][0]["reading"]["state"] == "running"
        assert told["links"][0]["reading"]["alarms"] == ["los"]

    tell(operator, story)


def test_only_operators_get_in(operator, authority):
    async def story(world):
        sae = caller(authority, sae_uri("sae-alice"))
        status, told = await world.ask("/v1/status", peer=sae)
        assert (status, told["error"]) == (403, "unauthorised")
        world.revoked.add(world.operator.fingerprint)
        assert (await world.ask("/v1/status"))[0] == 403

    tell(operator, story)


def test_health_says_what_is_missing(operator):
    async def without_book(world):
        status, told = await world.ask("/v1/health")
        assert (status, told) == (503, {"healthy": False, "why": ["no policy book yet"]})

    async def without_partners(world):
        assert (await world.ask("/v1/health"))[0] == 200

    tell(operator, without_book, book=False)
    tell(operator, without_partners)


def test_a_newer_book_of_the_officer_is_taken_whoever_brings_it(operator):
    async def story(world):
        status, told = await world.ask("/v1/book", method="PUT", body=world.signed(2).encode())
        assert (status, told) == (200, {"version": 2})
        assert world.ctx.book.version == 2

    tell(operator, story)


def test_books_that_are_not_newer_not_the_officers_or_not_sound_are_refused(operator):
    async def story(world):
        put = {"method": "PUT"}
        assert (await world.ask("/v1/book", body=world.signed(1).encode(), **put))[0] == 409
        stranger = world.signed(2, officer=MLDSA65PrivateKey.generate())
        assert (await world.ask("/v1/book", body=stranger.encode(), **put))[1]["error"] == "authentication"
        unsound = world.signed(2, nodes=BOOK.nodes[:1])
        status, told = await world.ask("/v1/book", body=unsound.encode(), **put)
        assert (status, told["error"]) == (422, "invalid-document")
        assert told["mistakes"] == ["links.Alice-Bob: no node is called Bob"]
        assert (await world.ask("/v1/book", body=b"{", **put))[0] == 422
        assert world.ctx.book.version == 1

    tell(operator, story)


def test_the_ledger_is_read_page_by_page_in_hexadecimal(operator):
    async def story(world):
        entries = [Append(world.ctx.clock.now(), "note", bytes([at]), (f"node:{at}",)) for at in range(3)]
        for entry in entries:
            await world.ctx.store.commit([entry])
        _, first = await world.ask("/v1/ledger", "limit=2")
        assert [one["body"] for one in first["entries"]] == ["00", "01"]
        assert first["next_after"] == 2
        _, rest = await world.ask("/v1/ledger", "after=2&limit=2")
        assert [one["sequence"] for one in rest["entries"]] == [3]
        assert rest["next_after"] is None
        entry = rest["entries"][0]
        assert (entry["time_ns"], entry["terms"]) == (entries[2].time, ["node:2"])
        assert len(entry["hash"]) == 96
        _, found = await world.ask("/v1/ledger", "term=node:1")
        assert [one["sequence"] for one in found["entries"]] == [2]
        assert (await world.ask("/v1/ledger", "since=2000-01-01T00:00:00Z&until=2001-01-01T00:00:00Z"))[1] == {
            "entries": [],
            "next_after": None,
            "start": {"sequence": 0, "hash": "00" * 48},
        }

    tell(operator, story)


def test_checkpoints_are_shown_with_all_that_their_signatures_cover(operator):
    async def story(world):
        await world.ctx.store.commit([Append(world.ctx.clock.now(), "note", b"", ())])
        made = await world.node.notary.sign()
        _, told = await world.ask("/v1/checkpoints")
        (shown,) = told["checkpoints"]
        assert (shown["node"], shown["sequence"], shown["time_ns"]) == ("Alice", 1, made.time)
        assert bytes.fromhex(shown["signature"]) == made.signature

    tell(operator, story)


def test_a_key_that_nobody_knows_is_not_found(operator):
    async def story(world):
        status, told = await world.ask("/v1/keys/01234567-89ab-4def-8123-456789abcdef")
        assert (status, told["error"]) == (404, "unknown-key")
        assert (await world.ask("/v1/keys/7"))[0] == 400

    tell(operator, story)


def test_exposed_keys_are_asked_for_by_node_and_time(operator):
    async def story(world):
        status, told = await world.ask("/v1/exposed", "node=Bob&since=2026-01-01T00:00:00Z")
        assert status == 200
        assert (told["node"], told["since"], told["exposed"]) == ("Bob", "2026-01-01T00:00:00.000000Z", [])
        assert told["next"] is None
        assert (await world.ask("/v1/exposed"))[0] == 400
        assert (await world.ask("/v1/exposed", "node=Bob&after=3.4&limit=10"))[0] == 200
        for after in ("3", "3.", "a.b", "-1.2"):
            assert (await world.ask("/v1/exposed", f"node=Bob&after={after}"))[0] == 400

    tell(operator, story)


@pytest.mark.parametrize("query", ["after=-1", "limit=x", "since=yesterday", "after=1&after=2", "after", "%FF=1&&"])
def test_malformed_queries_are_refused(operator, query):
    async def story(world):
        status, told = await world.ask("/v1/ledger", query)
        assert (status, told["error"]) == (400, "invalid-request")

    tell(operator, story)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/status", 405), ("GET", "/v1/book", 405), ("GET", "/v1/reload", 405), ("GET", "/v2", 404)],
)
def test_other_paths_and_methods_are_refused(operator, method, path, status):
    async def story(world):
        assert (await world.ask(path, method=method))[0] == status

    tell(operator, story)


def test_a_reload_is_asked_for_and_its_changes_told(operator):
    async def story(world):
        assert await world.ask("/v1/reload", method="POST") == (200, {"changed": ["settings"]})
        assert world.reloads == 1

    tell(operator, story)
