"""What a peer may say: every value outside its type's bounds is refused where it comes in."""

from __future__ import annotations

import math

import msgspec
import pytest

from trenza.base.errors import InvalidDocumentError, RemoteProtocolError
from trenza.core import keyid
from trenza.core.policy import SignedBook
from trenza.core.segment import SegmentFacts
from trenza.core.strand import Supply
from trenza.wire import peer
from trenza.wire.peer import (
    Beat,
    BeatAnswer,
    BlockOffer,
    ExchangeAnswer,
    ExchangeOffer,
    HopRecord,
    Knock,
    LinkLevel,
    LinkLevels,
    PadRange,
    PeerMessage,
    Presence,
    Relay,
    Relayed,
    SegmentAnswer,
    SegmentOffer,
    StockMark,
    Superseded,
    WindowAnswer,
    WindowGrant,
    WindowMark,
    WindowRequest,
    WrapOffer,
    canonical,
    decode,
    encode,
)

ID, TAG = b"i" * 16, b"t" * 48
LIFE = Presence(1, 1, ID, b"signed")
HOP = HopRecord("l", "a", "b", "live", emulated=True, bootstrap="preshared", epsilon=1e-10)
STOCK = StockMark(1, 1, 0.5, 0.5)
BLOCK = BlockOffer(ID, "l", ID, True, False, (ID,), 32, "live", 5, TAG)
WRAP = WrapOffer(ID, ID, ID, "A1", "B1", 256, bytes(32), ID, 5, b"")
ASKED = WindowRequest(ID, True, 2, ("c",), 5, 10)
RELAY = Relay(ID, ID, ("a", "b"), 1, "l", (PadRange(ID, 0, 1),), PadRange(ID, 0, 1), b"", (HOP,), ID)
MAX = (1 << 63) - 1

SOUND: list[PeerMessage] = [
    Knock(LIFE),
    Superseded(LIFE),
    Beat(ID, (WindowMark(0, 1, (0,)),), STOCK, 1),
    BeatAnswer(5.0, 1),
    WindowAnswer((WindowGrant(peer.WINDOW_NUMBERS - 1, ID, 0, 1),)),
    Relayed((HOP,)),
    BLOCK,
    WRAP,
    ASKED,
    RELAY,
    LinkLevels((LinkLevel("l", "a", 1, 1, 1),), (ID,)),
    SegmentOffer(ID, ID, ExchangeOffer(ID, b"public", MAX, TAG, b"signed")),
    SegmentAnswer(ExchangeAnswer(b"public", TAG, b"signed")),
]


def life(**changes: object) -> Knock:
    return Knock(msgspec.structs.replace(LIFE, **changes))


def stock(**changes: object) -> Beat:
    return Beat(ID, (), msgspec.structs.replace(STOCK, **changes), 1)


def hop(**changes: object) -> Relayed:
    return Relayed((msgspec.structs.replace(HOP, **changes),))


BAD = [
    life(epoch=-1),
    life(epoch=MAX + 1),
    life(incarnation=-1),
    life(nonce=b"short"),
    life(signature=bytes(5_000)),
    life(place=bytes(17)),
    stock(full_rate=math.inf),
    stock(plain_rate=math.nan),
    stock(full=-1),
    Beat(ID, (WindowMark(-1, 1, ()),), STOCK, 1),
    Beat(ID, (WindowMark(0, -1, ()),), STOCK, 1),
    Beat(ID, (WindowMark(0, 1, (-1,)),), STOCK, 1),
    Beat(ID, (WindowMark(0, 1, tuple(range(1_025))),), STOCK, 1),
    Beat(b"", (), STOCK, 1),
    BeatAnswer(math.inf, 1),
    BeatAnswer(-1.0, 1),
    *(WindowAnswer((WindowGrant(number, ID, 0, 1),)) for number in (-1, peer.WINDOW_NUMBERS, 1 << 40)),
    WindowAnswer((WindowGrant(0, ID, -1, 1),)),
    WindowAnswer((WindowGrant(0, ID, 0, 0),)),
    WindowAnswer((WindowGrant(0, b"", 0, 1),)),
    hop(supply="bogus"),
    hop(supply="live\n"),
    hop(bootstrap="guessed"),
    hop(epsilon=math.nan),
    hop(link="x" * 65),
    msgspec.structs.replace(BLOCK, supply="fresh"),
    msgspec.structs.replace(BLOCK, key_ids=(b"short",)),
    msgspec.structs.replace(BLOCK, key_bytes=1 << 40),
    msgspec.structs.replace(BLOCK, created=-1),
    msgspec.structs.replace(WRAP, braid_id=b"short"),
    msgspec.structs.replace(WRAP, size=257),
    msgspec.structs.replace(WRAP, size=0),
    msgspec.structs.replace(WRAP, tag=TAG),
    msgspec.structs.replace(ASKED, slots=0),
    msgspec.structs.replace(ASKED, oldest=-1),
    msgspec.structs.replace(ASKED, relays=("",)),
    msgspec.structs.replace(RELAY, position=-1),
    msgspec.structs.replace(RELAY, key=PadRange(ID, 0, 1 << 60)),
    msgspec.structs.replace(RELAY, pads=(PadRange(ID, -1, 1),)),
    LinkLevels((LinkLevel("l", "a", -1, 1, 1),), ()),
    LinkLevels((), (b"",)),
    SegmentOffer(ID, ID, ExchangeOffer(ID, b"", -1, TAG, b"")),
    SegmentAnswer(ExchangeAnswer(b"", b"", b"")),
]


@pytest.mark.parametrize("message", SOUND, ids=lambda one: type(one).__name__)
def test_what_is_within_bounds_arrives_as_it_was_sent(message) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("message", BAD, ids=repr)
def test_what_is_out_of_bounds_is_refused(message) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(encode(message))


@pytest.mark.parametrize(
    "body",
    [b"", b"\x80", b"\xff", b"\xa1\xff", b"\x81\xa4type\xa2\xff\xff", b"\x81\xa4type\xa4okay", b"\x91" * 10_000],
    ids=repr,
)
def test_bytes_that_are_no_message_are_refused(body) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(body)


def test_a_segment_record_that_is_no_text_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        SegmentFacts.of(b"\x81\xa2\xff\xff\x01")


def test_the_bounds_are_those_of_key_ids() -> None:
    assert (peer.WINDOW_NUMBERS, peer.SLOT_NUMBERS, peer.KEY_BITS) == (
        keyid.WINDOWS_MAX,
        keyid.SLOTS_MAX,
        keyid.SIZE_MAX,
    )


def test_every_supply_has_its_name_on_the_wire() -> None:
    for supply in Supply:
        assert decode(encode(hop(supply=supply.value))) == hop(supply=supply.value)


def test_an_exchange_may_be_left_out_of_what_is_only_signed() -> None:
    assert canonical(ExchangeAnswer(b"", b"", b""))


def test_a_policy_book_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidDocumentError):
        SignedBook.decode(b'{"\xff":1}')
