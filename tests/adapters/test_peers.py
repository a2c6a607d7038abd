"""Nodes call each other over mutual TLS: who is there comes from certificates, where they are from the book."""

import asyncio

import pytest

from trenza.adapters.peers import PeerAddress, PeerConnections
from trenza.app.pki import CertificateAuthority, KeyType, node_uri
from trenza.base.errors import (
    AuthenticationError,
    PeerUnavailableError,
    RefusedError,
    StaleError,
    UnavailableError,
)
from trenza.base.names import NodeId
from trenza.base.units import Seconds
from trenza.core.policy import Book, NodeEntry
from trenza.net.rpc_server import RpcServer
from trenza.net.tls import TlsIdentity, client_context, server_context
from trenza.serve.peer import PeerDoor
from trenza.wire.peer import BookAnswer, BookRequest, Done, Knock, Leave, Presence

ALICE, BOB = NodeId("Alice"), NodeId("Bob")
SOON = Seconds(5.0)
LEAVE = Leave(bytes(16), ())


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    """Alice, Bob and Mallory (whom no book knows), of one authority."""
    folder = tmp_path_factory.mktemp("pki")
    authority = CertificateAuthority.create("Test network", KeyType.ML_DSA_65)
    authority.save(folder / "ca.pem", folder / "ca.key")
    made = {}
    for name in ("Alice", "Bob", "Mallory"):
        authority.issue(name, uris=[node_uri(NodeId(name))]).save(folder / f"{name}.pem", folder / f"{name}.key")
        made[name] = TlsIdentity(folder / f"{name}.pem", folder / f"{name}.key", folder / "ca.pem")
    return made


class Meeting:
    """Bob behind his door, and Alice who calls him."""

    def __init__(self, identities):
        self.identities = identities
        self.heard = []
        self.called_by = []
        self.answered_by = []
        self.revoked = set()
        self.book = Book(1, (NodeEntry(ALICE, "a:1"), NodeEntry(BOB, "b:1")), (), (), (), ())
        self.address = None
        self.answer = Done()

    async def handle(self, node, message):
        self.heard.append((node, message))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def run(self, story, caller="Alice"):
        door = PeerDoor(
            self.handle,
            lambda: self.book,
            saw=lambda *seen: self.called_by.append(seen),
            is_revoked=self.revoked.__contains__,
        )
        server_side = server_context(self.identities["Bob"])
        self.server = RpcServer(door, lambda: server_side)
        port = await self.server.start("127.0.0.1")
        self.address = PeerAddress(node_uri(BOB), "127.0.0.1", port)
        client_side = client_context(self.identities[caller])
        peers = PeerConnections(
            lambda: client_side,
            lambda _node: self.address,
            saw=lambda *seen: self.answered_by.append(seen),
            is_revoked=self.revoked.__contains__,
        )
        try:
            async with asyncio.timeout(20):
                await story(peers)
        finally:
            await peers.aclose()
            await self.server.stop()


def test_a_message_reaches_the_node_and_its_answer_comes_back(identities):
    meeting = Meeting(identities)
    meeting.answer = BookAnswer(b"signed")

    async def story(peers):
        assert await peers.call(BOB, BookRequest(3), timeout=SOON) == BookAnswer(b"signed")
        assert peers.counters[BOB].messages_out == 1
        assert peers.statistics[BOB].completed == {"X25519MLKEM768": 1}

    asyncio.run(meeting.run(story))
    assert meeting.heard == [(ALICE, BookRequest(3))]


def test_both_ends_hear_whose_certificate_was_verified(identities):
    meeting = Meeting(identities)

    async def story(peers):
        await peers.call(BOB, LEAVE, timeout=SOON)

    asyncio.run(meeting.run(story))
    assert [(node, peer.uris) for node, peer in meeting.called_by] == [(ALICE, (node_uri(ALICE),))]
    assert [(node, peer.uris) for node, peer in meeting.answered_by] == [(BOB, (node_uri(BOB),))]


def test_a_refusal_arrives_with_the_peers_code(identities):
    meeting = Meeting(identities)
    meeting.answer = StaleError("an earlier life")

    async def story(peers):
        with pytest.raises(RefusedError, match="an earlier life") as refused:
            await peers.call(BOB, Knock(Presence(1, 1, bytes(16))), timeout=SOON)
        assert refused.value.remote_code == StaleError.code

    asyncio.run(meeting.run(story))


def test_a_caller_that_the_book_does_not_know_is_refused_unheard(identities):
    meeting = Meeting(identities)

    async def story(peers):
        with pytest.raises(RefusedError) as refused:
            await peers.call(BOB, LEAVE, timeout=SOON)
        assert refused.value.remote_code == "unauthorised"

    asyncio.run(meeting.run(story, caller="Mallory"))
    assert meeting.heard == []
    assert meeting.called_by == []


def test_a_node_whose_certificate_names_another_gets_no_request(identities):
    meeting = Meeting(identities)

    async def story(peers):
        meeting.address = PeerAddress(node_uri(NodeId("Carol")), meeting.address.host, meeting.address.port)
        with pytest.raises(AuthenticationError):
            await peers.call(NodeId("Carol"), LEAVE, timeout=SOON)

    asyncio.run(meeting.run(story))
    assert meeting.heard == []


def test_a_node_that_the_book_does_not_know_is_not_called(identities):
    meeting = Meeting(identities)

    async def story(peers):
        meeting.address = None
        with pytest.raises(PeerUnavailableError) as unavailable:
            await peers.call(BOB, LEAVE, timeout=SOON)
        assert not unavailable.value.sent

    asyncio.run(meeting.run(story))


def test_a_node_that_has_moved_is_called_at_its_new_address(identities):
    meeting = Meeting(identities)

    async def story(peers):
        there = meeting.address
        meeting.address = PeerAddress(there.uri, "127.0.0.1", 1)  # nobody listens there
        with pytest.raises(PeerUnavailableError):
            await peers.call(BOB, LEAVE, timeout=SOON)
        meeting.address = there
        await peers.call(BOB, LEAVE, timeout=SOON)

    asyncio.run(meeting.run(story))
    assert len(meeting.heard) == 1


def test_a_certificate_revoked_under_an_open_connection_ends_it_at_the_callers_side(identities):
    meeting = Meeting(identities)

    async def story(peers):
        await peers.call(BOB, LEAVE, timeout=SOON)
        meeting.revoked.add(meeting.answered_by[0][1].fingerprint)
        with pytest.raises(AuthenticationError, match="revoked"):
            await peers.call(BOB, LEAVE, timeout=SOON)
        with pytest.raises(AuthenticationError, match="revoked"):  # nor is it taken on a new connection
            await peers.call(BOB, LEAVE, timeout=SOON)

    asyncio.run(meeting.run(story))


def test_a_certificate_revoked_under_an_open_connection_is_refused_at_the_door(identities):
    meeting = Meeting(identities)

    async def story(peers):
        await peers.call(BOB, LEAVE, timeout=SOON)
        meeting.revoked.add(meeting.called_by[0][1].fingerprint)
        with pytest.raises(RefusedError):
            await peers.call(BOB, LEAVE, timeout=SOON)

    asyncio.run(meeting.run(story))
    assert len(meeting.heard) == 1


def test_a_node_without_a_book_says_that_it_is_not_ready(identities):
    meeting = Meeting(identities)

    class NoBook:
        @property
        def node_by_uri(self):
            raise UnavailableError("no policy book yet")

    meeting.book = NoBook()

    async def story(peers):
        with pytest.raises(RefusedError) as refused:
            await peers.call(BOB, LEAVE, timeout=SOON)
        assert refused.value.remote_code == "unavailable"

    asyncio.run(meeting.run(story))


def test_after_reconnecting_the_next_call_shakes_hands_again(identities):
    meeting = Meeting(identities)

    async def story(peers):
        await peers.call(BOB, LEAVE, timeout=SOON)
        peers.reconnect()
        await peers.call(BOB, LEAVE, timeout=SOON)
        assert meeting.server.statistics.handshakes_completed == 2

    asyncio.run(meeting.run(story))


def test_a_server_with_a_new_certificate_is_called_over_a_new_connection(identities):
    meeting = Meeting(identities)

    async def story(peers):
        await peers.call(BOB, LEAVE, timeout=SOON)
        meeting.server.renew()
        await asyncio.gather(*(peers.call(BOB, LEAVE, timeout=SOON) for _ in range(3)))
        await peers.call(BOB, LEAVE, timeout=SOON)
        assert meeting.server.statistics.handshakes_completed == 2
        assert len(meeting.heard) == 5

    asyncio.run(meeting.run(story))
