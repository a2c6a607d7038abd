"""Every rule can be broken: a forged history that breaks it is found, and its sound neighbour is not."""

from __future__ import annotations

from uuid import UUID

import pytest
from msgspec.structs import replace

from trenza.base.names import NodeId, SaeId
from trenza.core.provenance import (
    FORMAT_VERSION,
    KEY_RECORD_VERSION,
    DoubtfulRecord,
    KeyRecord,
    Lineage,
    SegmentRecord,
)
from trenza.core.strand import Origin
from trenza.lab import rules
from trenza.lab.history import (
    Delivered,
    Doubted,
    Ended,
    Filled,
    Forgot,
    Granted,
    Handed,
    HandedBack,
    Heard,
    History,
    Issued,
    Place,
    Reach,
    Recorded,
    Refused,
    Reserved,
    Sent,
    Stored,
    Took,
    Used,
    WentBack,
    violations,
)
from trenza.lab.rules import Balance, balance
from trenza.wire.peer import PadRange, Presence, Relay

A, B = NodeId("A"), NodeId("B")
A1, B1 = SaeId("A1"), SaeId("B1")
HOMES = {A1: A, B1: B}
ONE, TWO = UUID(int=1), UUID(int=2)
SEGMENT, BLOCK, KEYS = bytes([7]) * 16, bytes([9]) * 16, bytes([8]) * 16
RECORD = SegmentRecord(
    version=FORMAT_VERSION,
    segment=SEGMENT,
    leader="A",
    follower="B",
    issuer="A",
    slots=8,
    origins=(Origin.CLASSICAL, Origin.PQC),
    lineage=Lineage(bytes(16), "lab", bytes(96), ()),
    hops=(),
    created=0,
    uncertainty=0,
)


def issued(key_id: UUID = ONE, *, first: int = 0, digest: str = "aa", time: float = 5.0) -> Issued:
    return Issued(time, key_id, A1, (B1,), "hybrid-catkdf", digest, Place(A, B, 1, first, 1))


def delivered(key_id: UUID = ONE, *, first: int = 0, digest: str = "aa") -> Delivered:
    return Delivered(6.0, key_id, A1, B1, digest, Place(A, B, 1, first, 1))


def granted(window: int = 1, *, first: int = 0, count: int = 4) -> Granted:
    return Granted(2.0, B, A, window, SEGMENT, first, count)


def reserved(mark: int = 4, *, window: int = 1, first: int = 0) -> Reserved:
    return Reserved(3.0, A, B, window, SEGMENT, first, mark)


def took(window: int = 1, *, node: NodeId = A, first: int = 0, count: int = 4) -> Took:
    return Took(2.1, node, B if node == A else A, window, SEGMENT, first, count)


def recorded(deed: str, slot: int) -> Recorded:
    node, peer = (A, B) if deed == "issued" else (B, A)
    record = KeyRecord(
        version=KEY_RECORD_VERSION,
        segment=SEGMENT,
        peer=peer,
        window=1,
        slots=(slot,),
        initiator=A1,
        target=B1,
        recipe="hybrid-catkdf",
        size=256,
        policy="all",
        policy_digest=bytes(32),
        tls_group="lab",
        uncertainty=0,
        times=(0,),
    )
    return Recorded(6.0, node, deed, record)


def doubted(deed: str, first: int, count: int) -> Doubted:
    node, peer = (A, B) if deed == "issued" else (B, A)
    return Doubted(9.0, node, DoubtfulRecord(FORMAT_VERSION, deed, SEGMENT, peer, 1, ((first, count),)))


def refused(code: str = "unknown-key", *key_ids: UUID, time: float = 7.0) -> Refused:
    return Refused(time, "fetch", B1, A1, code, key_ids or (ONE,))


def sent(*pads: PadRange, relay: int = 1) -> Sent:
    key = PadRange(KEYS, 0, 1)
    return Sent(4.0, A, Relay(bytes([relay]) * 16, SEGMENT, ("A", "B"), 1, "AB", pads, key, b"", (), bytes(16)))


def told(rule, *events) -> list[str]:
    history = History(1)
    for event in events:
        history.add(event)
    if rule is rules.what_was_issued_can_be_fetched:
        return list(rule(history, homes=HOMES, lease=5.0))
    return list(rule(history))


FILLED = (Filled(1.0, A, RECORD), Filled(1.0, B, RECORD))
STORED = Stored(1.0, A, BLOCK, 8, False, (b"device key",))
RESERVE = (Stored(1.0, A, KEYS, 8, True, ()), Used(2.0, A, KEYS, 0b1))
HANDED = Handed(5.5, B, A, ((1, 0),))

CASES = [
    (
        rules.no_strand_in_two_keys,
        [issued(digest="aa bb"), delivered(digest="aa bb"), issued(TWO, digest="cc dd")],
        [issued(digest="aa bb"), issued(TWO, digest="cc bb")],
        "share bits",
    ),
    (rules.deliveries_are_marked_first, [HANDED, delivered()], [delivered(), HANDED], "before its delivery"),
    (rules.deliveries_are_marked_first, [HANDED, delivered()], [HANDED, delivered(first=1)], "before its delivery"),
    (
        rules.slots_are_granted_once,
        [granted(), granted(2, first=4), reserved()],
        [granted(), granted(2, first=3)],
        "twice",
    ),
    (
        rules.slots_are_granted_once,
        [granted(), granted(count=1), granted(2, first=1)],  # handed back in part, and granted again
        [granted(), granted(count=2), granted(2, first=1)],
        "twice",
    ),
    (
        rules.slots_are_granted_once,
        [granted(), Ended(2.5, B, A, 1), granted(2)],
        [granted(), Ended(2.5, B, A, 2), granted(2)],
        "twice",
    ),
    (
        rules.slots_are_granted_once,
        [granted(), Granted(2.5, A, B, 1, SEGMENT, 4, 4)],  # ceded: each end may grant, but not the same slots
        [granted(), Granted(2.5, A, B, 1, SEGMENT, 3, 4)],
        "the first time by B",
    ),
    (  # a node that went back may offer again what it ceded: whoever is granted it refuses
        rules.slots_are_granted_once,
        [*FILLED, Granted(2.0, A, B, 1, SEGMENT, 3, 4), WentBack(2.5, B, 1.5), granted()],
        [WentBack(0.5, B, 0.0), *FILLED, Granted(2.0, A, B, 1, SEGMENT, 3, 4), granted()],
        "the first time by A",
    ),
    (  # not so what it granted itself before it was copied
        rules.slots_are_granted_once,
        [*FILLED, granted(), WentBack(2.5, B, 1.5), granted(2)],
        [*FILLED, granted(), WentBack(2.5, B, 2.1), granted(2)],
        "twice",
    ),
    (
        rules.slots_are_taken_once,
        [took(), took(2, first=4), took(node=B, first=8)],
        [took(), took(2, first=3)],
        "A took over slots",
    ),
    (  # ceded: whichever end took them first, and whatever the other has forgotten
        rules.slots_are_taken_once,
        [took(node=B, first=4), WentBack(2.5, B, 1.5), granted(count=8)],
        [took(node=B, first=4), WentBack(2.5, B, 1.5), granted(count=8), took(count=8)],
        "that B had taken over before",
    ),
    (
        rules.slots_are_taken_once,
        [took(), HandedBack(2.2, A, SEGMENT, (1, 2, 3)), took(2, first=1, count=3)],
        [took(), HandedBack(2.2, A, SEGMENT, (2, 3)), took(2, first=1, count=3)],
        "that A had taken over before",
    ),
    (rules.slots_are_granted_once, [granted(), reserved()], [granted(), reserved(window=2)], "not granted like that"),
    (
        rules.slots_come_from_segments,
        [*FILLED, granted(), reserved()],
        [reserved(), *FILLED],
        "never made it durable",
    ),
    (rules.slots_come_from_segments, [*FILLED, reserved(8)], [*FILLED, reserved(9)], "beyond the end"),
    (
        rules.units_are_given_up_first,
        [*RESERVE, STORED, Used(2.0, A, BLOCK, 0b110), sent(PadRange(BLOCK, 1, 2))],
        [*RESERVE, STORED, Used(2.0, A, BLOCK, 0b010), sent(PadRange(BLOCK, 1, 2))],
        "before its use was durable",
    ),
    (
        rules.units_are_given_up_first,
        [*RESERVE, STORED, Used(2.0, A, BLOCK, 0b10), sent(PadRange(BLOCK, 1, 1))],
        [*RESERVE, STORED, Used(2.0, A, BLOCK, 0b10), sent(PadRange(BLOCK, 8, 1))],
        "does not hold",
    ),
    (
        rules.units_are_given_up_first,
        [*RESERVE, STORED, Used(2.0, A, BLOCK, 0b10), sent(PadRange(BLOCK, 1, 1))],
        [*RESERVE, Used(2.0, A, KEYS, 0b11), sent(PadRange(KEYS, 1, 1))],
        "for another purpose",
    ),
    (
        rules.device_keys_are_used_once,
        [STORED, STORED],
        [STORED, Stored(2.0, A, SEGMENT, 8, False, (b"device key",))],
        "is in blocks",
    ),
    (rules.what_was_issued_can_be_fetched, [issued(), delivered()], [issued(), refused()], "not to be had"),
    (  # what a node forgot is excused, with what was issued to it for a lease
        rules.what_was_issued_can_be_fetched,
        [issued(), Forgot(5.5, B), refused()],
        [Forgot(1.0, B), issued(time=6.5), refused()],
        "not to be had",
    ),
    (  # so is what was asked for without an answer; what was refused whole was not touched
        rules.what_was_issued_can_be_fetched,
        [issued(), refused("no answer"), refused()],
        [issued(), refused("unavailable"), refused()],
        "not to be had",
    ),
    (
        rules.what_was_issued_can_be_fetched,
        [issued(), Forgot(5.5, A, goes_on=True), issued(TWO, time=60.0), refused("unknown-key", TWO)],
        [issued(), Forgot(5.5, A, goes_on=True), Forgot(6.0, A), issued(TWO, time=60.0), refused("unknown-key", TWO)],
        "not to be had",
    ),
    (
        rules.what_left_is_in_the_ledger,
        [issued(first=2), delivered(first=2), recorded("issued", 2), doubted("delivered", 0, 3)],
        [issued(first=2), delivered(first=2), recorded("issued", 2), doubted("delivered", 0, 2)],
        "was delivered by B and is not in its ledger",
    ),
    (
        rules.what_left_is_in_the_ledger,
        [issued(), Forgot(6.0, A)],  # before it lost its memory, but not after
        [Forgot(4.0, A), issued(), recorded("delivered", 0)],
        "was issued by A and is not in its ledger",
    ),
]


@pytest.mark.parametrize(("rule", "sound", "unsound", "sentence"), CASES)
def test_a_rule_that_is_broken_is_told_and_one_that_is_kept_is_not(rule, sound, unsound, sentence) -> None:
    assert told(rule, *sound) == []
    assert any(sentence in line for line in told(rule, *unsound)), told(rule, *unsound)


FIRST = Presence(1, 1, b"first", place=b"here")  # of node B, to which keys are delivered
ORIGINAL = Presence(1, 2, b"original", place=b"here", past=(b"first",), ends=(10,))
COPY = Presence(1, 3, b"copy", place=b"there", past=(b"original", b"first"), ends=(20, 10))
AGAIN = Presence(1, 3, b"again", place=b"here", past=(b"original", b"first"), ends=(30, 10))
FIRST_MET, ORIGINAL_MET, COPY_MET, AGAIN_MET = (Heard(1.0, A, one, B) for one in (FIRST, ORIGINAL, COPY, AGAIN))
COPY_TOLD = Heard(7.0, A, replace(COPY, reached=25), B)


def by(life: Presence, *, counter: int = 25) -> Delivered:
    return Delivered(6.0, ONE, A1, B1, "aa", by=Reach(B, A, life, counter))


@pytest.mark.parametrize(
    "events",
    [
        (FIRST_MET, ORIGINAL_MET, COPY_MET, by(ORIGINAL), by(COPY)),  # nobody was told of the original's delivery
        (FIRST_MET, ORIGINAL_MET, COPY_MET, by(COPY), COPY_TOLD, by(ORIGINAL)),  # the original is cut off
        (FIRST_MET, COPY_MET, by(COPY), COPY_TOLD, by(ORIGINAL)),  # since its start, which was no boot
        (FIRST_MET, COPY_MET, by(COPY), COPY_TOLD, by(AGAIN)),  # and starts once more
    ],
)
def test_a_second_delivery_by_a_copy_that_cannot_know_of_the_first_is_excused(events) -> None:
    assert violations_of(*events) == []


@pytest.mark.parametrize(
    "events",
    [
        (ORIGINAL_MET, COPY_MET, by(COPY), by(COPY)),  # it knows what it did itself
        (ORIGINAL_MET, COPY_MET, by(ORIGINAL, counter=20), by(COPY)),  # and what was done before it was copied
        (FIRST_MET, COPY_MET, by(COPY), COPY_TOLD, ORIGINAL_MET, by(ORIGINAL)),  # was met by a node that knew
        (FIRST_MET, COPY_MET, by(COPY), COPY_TOLD, ORIGINAL_MET, by(AGAIN)),  # as was the life before it, there
        (COPY_MET, by(COPY), COPY_TOLD, by(ORIGINAL)),  # no life was met at its place: it had to wait
        (FIRST_MET, by(FIRST), by(ORIGINAL)),  # at one place the memory of the life before is whole
    ],
)
def test_a_second_delivery_that_the_copy_or_the_issuing_node_could_tell_is_not_excused(events) -> None:
    assert any("delivered twice to B1" in line for line in violations_of(*events))


def violations_of(*events) -> list[str]:
    history = History(1)
    for event in (Issued(5.0, ONE, A1, (B1,), "hybrid-catkdf", "aa"), *events):
        history.add(event)
    return violations(history)


def test_slots_add_up_and_where_they_do_not_it_is_told() -> None:
    history = History(1)
    for event in (*FILLED, granted(), reserved(3), issued(), issued(TWO, first=1, digest="bb")):
        history.add(event)
    assert balance(history) == Balance(filled=8, issued=2, doubtful=1, left=5)
    assert list(balance(history).broken()) == []
    history.add(reserved(9))  # one slot more than there is
    assert "do not add up" in next(balance(history).broken())


def test_all_rules_are_asked() -> None:
    named = {rule for rule, *_ in CASES}
    public = {
        one
        for name, one in vars(rules).items()
        if callable(one)
        and getattr(one, "__module__", "") == rules.__name__
        and "History" in str(one.__annotations__)
    }
    assert public - named == {rules.broken, rules.balance}


def test_a_history_tells_what_a_node_took_and_handed_back_from_what_became_durable() -> None:
    from trenza.kms import rows
    from trenza.kms.ports import Delete, Insert, Put, Table

    window = rows.window_key(rows.ISSUER, B, 1)
    row = Insert(Table.WINDOW, window, rows.encode(rows.IssuerWindowRow(SEGMENT, 2, 4, 2)))

    def segment(*theirs: tuple[int, int]) -> Put:
        return Put(Table.SEGMENT, SEGMENT, rows.encode(rows.SegmentRow(B, b"", 0, (), theirs)))

    def noted(*commits) -> list:
        history = History(1)
        for changes in commits:
            history.note_commit(1.0, A, changes)
        return [event for event in history.events if isinstance(event, Took | HandedBack)]

    took = Took(1.0, A, B, 1, SEGMENT, 2, 4)
    assert noted([row, segment((0, 2), (6, 2))]) == [took]
    assert noted([row], [segment((0, 8))]) == [took]  # to forget what was taken is not to hand it back
    assert noted([row], [Delete(Table.WINDOW, window)]) == [took]  # nor is to be done with it
    handed_back = HandedBack(1.0, A, SEGMENT, (4, 5))
    assert noted([row], [Delete(Table.WINDOW, window), segment((0, 2), (4, 4))]) == [took, handed_back]


def test_a_history_tells_strands_apart_and_hides_their_bytes() -> None:
    from trenza.base.secret import Secret

    history = History(1)
    one, other = bytes(range(32)), bytes(range(1, 33))
    told = history.digest(Secret.of(one + other)).split()
    assert told == [history.digest(Secret.of(one)), history.digest(Secret.of(other))]
    assert history.digest(Secret.of(one + b"tail")) == told[0]
    assert history.digest(Secret.of(b"8 bytes!")) != ""
    assert one.hex()[:32] not in told
    assert History(2).digest(Secret.of(one)) != told[0]
