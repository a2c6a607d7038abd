"""Archives of a ledger's old entries, each judged by itself and after the one before it."""

import dataclasses

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from trenza.base.errors import AuthenticationError, InvalidDocumentError
from trenza.core.archive import ArchiveHead, Mark, entry_lines, head_line, read_entries, read_head, verify_archive
from trenza.core.chain import chain_hash, sign_checkpoint
from trenza.kms.ports import LedgerEntry

SIGNER = MLDSA65PrivateKey.from_seed_bytes(bytes(32))
STRANGER = MLDSA65PrivateKey.from_seed_bytes(bytes([1] * 32))
PUBLIC = SIGNER.public_key().public_bytes_raw()


def ledger(count: int, *, of: str = "body") -> list[LedgerEntry]:
    entries, digest = [], bytes(48)
    for n in range(1, count + 1):
        body = f"{of} {n}".encode()
        digest = chain_hash(digest, sequence=n, time=n, kind="issued", body=body, terms=("é",))
        entries.append(LedgerEntry(n, n, "issued", body, digest, ("é",)))
    return entries


LEDGER = ledger(30)


def mark(sequence: int, entries=LEDGER) -> Mark:
    return Mark(sequence, entries[sequence - 1].hash if sequence else bytes(48))


def archive(after: int, last: int, *, entries=LEDGER, signer=SIGNER, checkpoints=None):
    """Return an archive as it is read back: its head and its entries."""
    signed = [
        sign_checkpoint(signer.sign, node="A", head=mark(at, entries), time=at)
        for at in ([last] if checkpoints is None else checkpoints)
    ]
    head = ArchiveHead("A", mark(after, entries), mark(last, entries), tuple(signed))
    text = head_line(head) + entry_lines(entries[after:last])
    first, *others = text.splitlines(keepends=True)
    return read_head(first, name="x"), list(read_entries(others, name="x"))


def checked(one, reached=None, name="x"):
    return verify_archive(*one, PUBLIC, reached=reached, name=name)


def test_an_archive_says_what_was_in_the_ledger():
    _, entries = archive(3, 9)
    assert [dataclasses.astuple(e) for e in LEDGER[3:9]] == [msgspec.structs.astuple(e) for e in entries]


def test_archives_follow_each_other_and_may_overlap():
    reached = checked(archive(0, 10, checkpoints=[4, 10]))
    assert reached == mark(10)
    for after, last in ((10, 20), (7, 20), (10, 10), (3, 8), (0, 10)):
        assert checked(archive(after, last), reached) == mark(max(10, last))


def without(one, place):
    head, entries = one
    return head, entries[:place] + entries[place + 1 :]


def altered(one, place, **members):
    head, entries = one
    return head, [*entries[:place], msgspec.structs.replace(entries[place], **members), *entries[place + 1 :]]


@pytest.mark.parametrize(
    ("one", "reached", "told"),
    [
        (without(archive(0, 10), 4), None, "archive x: ledger entry 5 is missing"),
        (without(archive(0, 10), 9), None, "entry 10 is missing: a checkpoint vouches for 10"),
        (altered(archive(0, 10), 4, body=b""), None, "archive x: ledger entry 5 was altered"),
        (altered(archive(0, 10), 4, time=9), None, "ledger entry 5 was altered"),
        (archive(12, 20), 10, "ledger entries 11 to 12 are missing"),
        (archive(0, 10, checkpoints=[4]), None, "no checkpoint vouches for its end, entry 10"),
        (archive(0, 10, checkpoints=[]), None, "no checkpoint vouches for its end, entry 10"),
        (archive(0, 10, signer=STRANGER), None, "is not signed by A"),
        (archive(10, 20, entries=ledger(30, of="other")), 10, "the ledger forked|not the one"),
        (archive(5, 20, entries=ledger(30, of="other")), 10, "ledger entry 10 is not the one"),
    ],
)
def test_what_was_done_to_an_archive_is_named(one, reached, told):
    with pytest.raises(AuthenticationError, match=told):
        checked(one, mark(reached) if reached else None)


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"\xff", b'{"node":"A"}', head_line(archive(0, 9)[0]).replace(b"v1", b"v9")]
)
def test_what_is_no_archive_is_said_to_be_none(line):
    with pytest.raises(InvalidDocumentError, match="the archive x"):
        read_head(line, name="x")


def test_a_line_that_is_no_entry_is_named():
    with pytest.raises(InvalidDocumentError, match="line 3 is no entry"):
        list(read_entries([entry_lines(LEDGER[:1]), b"{}\n"], name="x"))
