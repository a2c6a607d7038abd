"""What nodes say to each other: one request and one answer a message, in MessagePack, tagged by type.

These are values and bytes only. The frames that carry them over a mutually authenticated connection are
`net.rpc_frames`; who the peer is comes from its certificate, never from a message. This is our own protocol
(ITU-T Y.3802 calls the reference point Kx and leaves its encoding open); it is documented message by message here.

Conventions: identifiers are 16 random bytes; digests and tags of SHA-384 are 48 bytes; times are nanoseconds since
1970-01-01T00:00:00Z; a `unit` is 32 bytes of link key. Unknown members are refused: both sides speak one version,
which the book's rollout keeps in step (PROTOCOL_VERSION is compared when a session is made).

What a value may be is said by its type, and `decode` refuses the rest: no story ever sees a number, a length or a
word that its arithmetic was not made for.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from trenza.base.errors import RemoteProtocolError

PROTOCOL_VERSION = 1

WINDOW_NUMBERS = 1 << 26
SLOT_NUMBERS = 1 << 10
KEY_BITS = 8_192
"""The bounds of what a key ID can say (core.keyid), and of a segment and a key."""

_INT64 = (1 << 63) - 1

Count: TypeAlias = Annotated[int, Meta(ge=0, le=_INT64)]
Moment: TypeAlias = Annotated[int, Meta(ge=0, le=_INT64)]  # nanoseconds since 1970
Measure: TypeAlias = Annotated[float, Meta(ge=0.0, le=1e15)]  # neither infinite nor "not a number"
Seconds: TypeAlias = Annotated[float, Meta(ge=0.0, le=86_400.0)]
Identifier: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Tag: TypeAlias = Annotated[bytes, Meta(min_length=48, max_length=48)]
Place: TypeAlias = Annotated[bytes, Meta(max_length=16)]  # 16 bytes, or none
Past: TypeAlias = Annotated[tuple[Identifier, ...], Meta(max_length=64)]
Ends: TypeAlias = Annotated[tuple[Count, ...], Meta(max_length=64)]
OneTimeTag: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]  # Poly1305
Public: TypeAlias = Annotated[bytes, Meta(max_length=2_048)]  # the key agreement knows its exact length
Signature: TypeAlias = Annotated[bytes, Meta(max_length=4_096)]  # so does whoever verifies it
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
SupplyName: TypeAlias = Annotated[str, Meta(pattern=r"\A(?:live|warm|synthetic)\Z")]
BootstrapName: TypeAlias = Annotated[str, Meta(pattern=r"\A(?:preshared|computational)\Z")]
WindowNumber: TypeAlias = Annotated[int, Meta(ge=0, lt=WINDOW_NUMBERS)]
SlotNumber: TypeAlias = Annotated[int, Meta(ge=0, lt=SLOT_NUMBERS)]
SlotCount: TypeAlias = Annotated[int, Meta(ge=1, le=SLOT_NUMBERS)]
UnitNumber: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 20)]
UnitCount: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 20)]
KeySize: TypeAlias = Annotated[int, Meta(ge=8, le=KEY_BITS, multiple_of=8)]
Identifiers: TypeAlias = Annotated[tuple[Identifier, ...], Meta(max_length=1 << 16)]
Names: TypeAlias = Annotated[tuple[Name, ...], Meta(max_length=1 << 12)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=str.lower):
    """Base of all messages."""


# --- sessions: who is alive, in which incarnation, with which keys


class Presence(msgspec.Struct, frozen=True, array_like=True):
    """Which life of a node speaks. `nonce` tells two copies with the same numbers apart.

    The node signs each of its lives, so whoever says "I have met a later life of you" can show one that nobody but a
    copy of that node could have signed.
    """

    epoch: Count  # bumped when a node cannot prove that its memory is whole (restore, clone)
    incarnation: Count  # bumped at every start
    nonce: Identifier  # drawn at every start
    signature: Signature = b""  # the node's own, ML-DSA-65, over `life_message`
    place: Place = b""  # where it is lived: a later life at the same place came after the end of this one
    past: Past = ()  # nonces of the lives before it in this epoch, newest first, as far as its memory tells
    ends: Ends = ()  # and how many commits its store had counted when each of them was over
    reached: Count = 0  # how many it has counted now; 0: it does not say


def life_message(node: str, presence: Presence) -> bytes:
    """Return what the signature in a presence covers."""
    name = node.encode()
    numbers = presence.epoch.to_bytes(8, "big") + presence.incarnation.to_bytes(8, "big")
    past = b"past" + b"".join(presence.past) if presence.past else b""
    counts = b""
    if presence.ends or presence.reached:
        ends = (len(presence.ends), *presence.ends, presence.reached)
        counts = b"counts" + b"".join(count.to_bytes(8, "big") for count in ends)
    said = numbers + presence.nonce + presence.place + past + counts
    return b"trenza life v1" + len(name).to_bytes(4, "big") + name + said


class ExchangeOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First half of a joint exchange (X448 and ML-KEM-1024), authenticated twice."""

    exchange_id: Identifier
    public: Public
    root_generation: Count
    root_tag: Tag  # HMAC-SHA384 under the end-to-end root of that generation
    signature: Signature  # ML-DSA-65


class ExchangeAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Second half; its tag and signature cover both halves."""

    public: Public
    root_tag: Tag
    signature: Signature


class Hello(_Message, frozen=True):
    """The leader opens a session: both say which life they live, agree on keys, and compare what they hold."""

    version: Count
    presence: Presence
    knows: Presence | None  # the last life of the other that this node remembers
    root_reset: bool  # this node no longer has the root of the last exchange
    segments: Identifiers  # ready segments of this pair that this node holds
    blocks: Identifiers  # blocks of links shared with the other that this node holds
    exchange: ExchangeOffer


class HelloAnswer(_Message, frozen=True):
    """The follower's side. What only one of the two holds is dropped by the one that holds it."""

    presence: Presence
    knows: Presence | None
    segments: Identifiers
    blocks: Identifiers
    exchange: ExchangeAnswer


class RootReset(_Message, frozen=True):
    """Answer to Hello: the follower lost the root (it was restored); begin again from the preshared one."""

    presence: Presence


class Superseded(_Message, frozen=True):
    """Answer to Hello, Knock or Reached: this node has met a later life of the other, or another copy of it.

    `known` may also be a life before the one that speaks, which had got further than that one knows of.

    If that life carries the receiver's own signature, the receiver cannot trust its memory: it drops its strands and
    comes back in an epoch after `known`. Otherwise it stays as it is, and has no session here.
    """

    known: Presence


class Knock(_Message, frozen=True):
    """The follower asks the leader to open a session: it has just started, or lost the last one."""

    presence: Presence


class Done(_Message, frozen=True):
    """Nothing to add."""


class WindowMark(msgspec.Struct, frozen=True, array_like=True):
    """How far the initiator has issued in a window, and which of those it has void."""

    window: WindowNumber
    issued: Annotated[int, Meta(ge=0, le=SLOT_NUMBERS)]  # slots issued, counted from the window's first
    void: Annotated[tuple[SlotNumber, ...], Meta(max_length=SLOT_NUMBERS)]  # slots, counted from the segment's first


class Leave(_Message, frozen=True):
    """This node stops in good order: its lease may end now.

    It has given up, durably, what it has not issued of the windows that it names: the holder may grant that again.
    """

    session: Identifier
    marks: Annotated[tuple[WindowMark, ...], Meta(max_length=1 << 16)]


class StockMark(msgspec.Struct, frozen=True, array_like=True):
    """What one node can still issue to the other, so that the leader knows when to fill."""

    full: Count  # slots with QKD
    plain: Count  # slots without
    full_rate: Measure  # slots a second, lately
    plain_rate: Measure


class Beat(_Message, frozen=True):
    """Once a second: I live, I have issued so far, I have this much left, and my book has this version."""

    session: Identifier
    marks: Annotated[tuple[WindowMark, ...], Meta(max_length=1 << 16)]
    stock: StockMark
    book_version: Count


class BeatAnswer(_Message, frozen=True):
    """The other lives too: its lease for issuing to this node holds for `lease_s` from the beat's sending."""

    lease_s: Seconds
    book_version: Count


class Reached(_Message, frozen=True):
    """My store has got so far: remember it, durably, before you answer.

    A copy that was made before this and comes up later is found by it. It is said before anything leaves under link
    key, and soon after keys were delivered.
    """

    session: Identifier
    presence: Presence


# --- windows


class WindowRequest(_Message, frozen=True):
    """Ask the far node to grant slots of segments that this node may issue from."""

    session: Identifier
    full: bool  # with QKD
    max_hops: Count  # links that the QKD strands may have crossed
    relays: Names  # that they may have passed; empty: any
    oldest: Moment  # when they must have been made, or later
    slots: Annotated[int, Meta(ge=1, le=_INT64)]  # about how many are wanted


class WindowGrant(msgspec.Struct, frozen=True, array_like=True):
    """Slots [first, first + count) of a segment, under a number that no other grant of this pool has."""

    window: WindowNumber
    segment: Identifier
    first: SlotNumber
    count: SlotCount


class WindowAnswer(_Message, frozen=True):
    """What was granted; and how far the granter's store has got, to be remembered before a window is used.

    A copy of the granter that knows nothing of these windows would give their numbers away again.
    """

    grants: Annotated[tuple[WindowGrant, ...], Meta(max_length=1 << 12)]
    reached: Presence | None = None


class Cede(_Message, frozen=True):
    """Slots [first, first + count) that I could have granted you I have given up, durably: grant them to me.

    The answer is a WindowAnswer of that one window, the same however often it is asked for in the same two lives.
    """

    session: Identifier
    segment: Identifier
    first: SlotNumber
    count: SlotCount


# --- filling


class SegmentOffer(_Message, frozen=True):
    """The leader begins a segment: the joint exchange that its classical and post-quantum strands come from."""

    session: Identifier
    segment: Identifier
    exchange: ExchangeOffer


class SegmentAnswer(_Message, frozen=True):
    exchange: ExchangeAnswer


class SegmentCommit(_Message, frozen=True):
    """Both have all strands: compare them, agree on their provenance, and make them issuable."""

    session: Identifier
    segment: Identifier
    provenance: Annotated[
        bytes, Meta(max_length=1 << 16)
    ]  # core.provenance.SegmentRecord, encoded; bound into every key
    tag: Tag  # of all strands and the provenance, under the session's verification key


class SegmentCommitted(_Message, frozen=True):
    tag: Tag


class SegmentDrop(_Message, frozen=True):
    """This segment will not be: forget what there is of it."""

    segment: Identifier


# --- links and relay


class PadRange(msgspec.Struct, frozen=True, array_like=True):
    """Units [first, first + count) of one block of link key."""

    block: Identifier
    first: UnitNumber
    count: UnitCount


class BlockOffer(_Message, frozen=True):
    """The link's leader has drawn a block from its device: fetch the same bits from yours and compare."""

    session: Identifier
    link: Name
    block: Identifier
    from_leader: bool  # which end sends under this block
    reserve: bool  # kept for authentication, never drawn on by traffic
    key_ids: Annotated[tuple[Identifier, ...], Meta(min_length=1, max_length=1 << 14)]
    key_bytes: Annotated[int, Meta(ge=1, le=1 << 24)]
    supply: SupplyName
    created: Moment
    tag: Tag


class BlockAccepted(_Message, frozen=True):
    tag: Tag


class HopRecord(msgspec.Struct, frozen=True, array_like=True):
    """One link a strand crossed, as the sending node states it."""

    link: Name
    sender: Name
    receiver: Name
    supply: SupplyName
    emulated: bool
    bootstrap: BootstrapName  # how the link's first authentication key was agreed: "preshared" | "computational"
    epsilon: Measure | None  # of the blocks drawn on, summed; None where the source states none


class Relay(_Message, frozen=True):
    """Carry a strand one hop further: one-time pad and one-time MAC, both from the link's blocks.

    On the first hop `ciphertext` is empty: the strand *is* the named units of the first link.
    """

    relay: Identifier
    segment: Identifier
    route: Annotated[tuple[Name, ...], Meta(max_length=64)]
    position: Annotated[int, Meta(ge=1, le=64)]  # index in route of the receiver
    link: Name
    pads: Annotated[tuple[PadRange, ...], Meta(max_length=1 << 12)]
    key: PadRange  # one unit of the reserve: the Poly1305 key
    ciphertext: Annotated[bytes, Meta(max_length=1 << 20)]
    hops: Annotated[tuple[HopRecord, ...], Meta(max_length=64)]
    tag: OneTimeTag


class Relayed(_Message, frozen=True):
    """The strand has arrived at the end of the route, over these hops."""

    hops: Annotated[tuple[HopRecord, ...], Meta(max_length=64)]


class LinkLevel(msgspec.Struct, frozen=True, array_like=True):
    """How much key one end can send under, as that end says; newer sequence wins."""

    link: Name
    sender: Name
    units: Count  # of traffic key
    reserve: Count  # units kept for authentication; without one, nothing can be sent
    sequence: Moment


class LinkLevels(_Message, frozen=True):
    """Flooded among neighbours when levels change; `gone` is between the two of them only."""

    levels: Annotated[tuple[LinkLevel, ...], Meta(max_length=1 << 16)]
    gone: Identifiers  # blocks of links shared with the receiver that the speaker no longer holds


# --- several targets


class WrapOffer(_Message, frozen=True):
    """Phase one of a key for several targets: hold it, wrapped under a full braid with this node."""

    session: Identifier
    key_id: Identifier  # of the key for all targets
    braid_id: Identifier  # key ID under which this node finds the braid that wraps it
    initiator: Name
    target: Name
    size: KeySize
    wrapped: Annotated[bytes, Meta(min_length=1, max_length=KEY_BITS // 8)]  # key XOR braid
    tag: OneTimeTag  # Poly1305 under the rest of the braid
    expires: Moment
    facts: Annotated[bytes, Meta(max_length=1 << 12)]  # what the target's application will be told


class WrapCommit(_Message, frozen=True):
    """Phase two: all targets hold it; it may be fetched."""

    key_id: Identifier
    targets: Names


class WrapVoid(_Message, frozen=True):
    """Not all targets could hold it: destroy it. Harmless when it is not there."""

    key_id: Identifier


# --- the book


class BookRequest(_Message, frozen=True):
    newer_than: Count


class BookAnswer(_Message, frozen=True):
    signed: Annotated[bytes, Meta(max_length=1 << 22)]  # core.policy.SignedBook, encoded; empty: nothing newer


PeerMessage = (
    Hello
    | HelloAnswer
    | RootReset
    | Superseded
    | Leave
    | Knock
    | Done
    | Beat
    | BeatAnswer
    | Reached
    | WindowRequest
    | WindowAnswer
    | Cede
    | SegmentOffer
    | SegmentAnswer
    | SegmentCommit
    | SegmentCommitted
    | SegmentDrop
    | BlockOffer
    | BlockAccepted
    | Relay
    | Relayed
    | LinkLevels
    | WrapOffer
    | WrapCommit
    | WrapVoid
    | BookRequest
    | BookAnswer
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[PeerMessage] = msgspec.msgpack.Decoder(PeerMessage)


def encode(message: PeerMessage) -> bytes:
    """Return the bytes of `message`."""
    return _encoder.encode(message)


def decode(body: bytes) -> PeerMessage:
    """Return the message in `body`.

    Raises:
        RemoteProtocolError: not a message of this protocol version.
    """
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"not a message of peer protocol version {PROTOCOL_VERSION}: {error}") from None


def canonical(value: msgspec.Struct) -> bytes:
    """Return the bytes that tags and signatures cover; equal values give equal bytes."""
    return _encoder.encode(value)
