import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from trenza.base.errors import AuthenticationError
from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds
from trenza.core.chain import chain_hash, sign_checkpoint, verify_chain, verify_checkpoint
from trenza.kms.ports import ChainHead, LedgerEntry

ALICE = NodeId("alice")
NOW = Nanoseconds(1_000)


def ledger(count: int) -> list[LedgerEntry]:
    entries: list[LedgerEntry] = []
    previous = bytes(48)
    for sequence in range(1, count + 1):
        fields = {"sequence": sequence, "time": Nanoseconds(sequence), "kind": "issued", "body": b"%d" % sequence}
        terms = ("node:a", f"key:{sequence}")
        previous = chain_hash(previous, **fields, terms=terms)
        entries.append(LedgerEntry(**fields, hash=previous, terms=terms))
    return entries


def head_of(entry: LedgerEntry) -> ChainHead:
    return ChainHead(entry.sequence, entry.hash)


def test_a_whole_ledger_verifies_and_gives_the_start_of_the_next_audit() -> None:
    entries = ledger(6)
    middle = verify_chain(entries[:3], ChainHead())
    assert middle == (3, entries[2].hash)
    assert verify_chain(entries[3:], ChainHead(*middle)) == (6, entries[5].hash)


def test_an_empty_ledger_verifies() -> None:
    assert verify_chain([], ChainHead()) == (0, bytes(48))


def test_a_deleted_entry_is_named() -> None:
    entries = ledger(6)
    del entries[2]
    with pytest.raises(AuthenticationError, match="entry 3 is missing"):
        verify_chain(entries, ChainHead())


def test_a_deleted_entry_is_found_when_the_later_ones_are_renumbered() -> None:
    entries = ledger(6)
    del entries[2]
    entries = [dataclasses.replace(entry, sequence=place) for place, entry in enumerate(entries, 1)]
    with pytest.raises(AuthenticationError, match="entry 3 was altered"):
        verify_chain(entries, ChainHead())


def test_reordered_entries_are_named() -> None:
    entries = ledger(6)
    entries[3], entries[4] = entries[4], entries[3]
    with pytest.raises(AuthenticationError, match="entry 4 is missing: 5"):
        verify_chain(entries, ChainHead())
    with pytest.raises(AuthenticationError, match="entry 2 is out of order"):
        verify_chain([*ledger(3), ledger(2)[1]], ChainHead())


@pytest.mark.parametrize(
    "change",
    [
        {"time": Nanoseconds(99)},
        {"kind": "voided"},
        {"body": b"other"},
        {"terms": ("node:a",)},
        {"terms": ("key:4", "node:a")},
        {"hash": bytes(48)},
    ],
    ids=str,
)
def test_an_altered_entry_is_named(change) -> None:
    entries = ledger(6)
    entries[3] = dataclasses.replace(entries[3], **change)
    with pytest.raises(AuthenticationError, match="entry 4 was altered"):
        verify_chain(entries, ChainHead())


def test_bytes_moved_from_one_field_to_the_next_change_the_hash() -> None:
    fixed = {"sequence": 1, "time": NOW}
    hashes = {
        chain_hash(bytes(48), kind="ab", body=b"c", terms=("d", "e"), **fixed),
        chain_hash(bytes(48), kind="a", body=b"bc", terms=("d", "e"), **fixed),
        chain_hash(bytes(48), kind="ab", body=b"c", terms=("de",), **fixed),
        chain_hash(bytes(48), kind="ab", body=b"cd", terms=("e",), **fixed),
    }
    assert len(hashes) == 4


def test_a_ledger_computed_anew_is_found_by_a_checkpoint() -> None:
    honest, forged = ledger(6), ledger(6)
    signer = MLDSA65PrivateKey.generate()
    checkpoint = sign_checkpoint(signer.sign, node=ALICE, head=head_of(honest[3]), time=NOW)
    verify_checkpoint(checkpoint, signer.public_key().public_bytes_raw())
    assert verify_chain(honest, ChainHead(), through=[checkpoint])
    previous = bytes(48)  # when someone leaves out what entry 2 said and computes all hashes again
    for place, entry in enumerate(forged):
        body = b"" if place == 1 else entry.body
        previous = chain_hash(
            previous, sequence=entry.sequence, time=entry.time, kind=entry.kind, body=body, terms=entry.terms
        )
        forged[place] = dataclasses.replace(entry, body=body, hash=previous)
    assert verify_chain(forged, ChainHead())  # then the chain alone cannot tell
    with pytest.raises(AuthenticationError, match="entry 4 is not the one"):
        verify_chain(forged, ChainHead(), through=[checkpoint])


def test_a_ledger_cut_short_is_found_by_a_checkpoint() -> None:
    entries = ledger(6)
    signer = MLDSA65PrivateKey.generate()
    checkpoint = sign_checkpoint(signer.sign, node=ALICE, head=head_of(entries[5]), time=NOW)
    with pytest.raises(AuthenticationError, match="entry 5 is missing"):
        verify_chain(entries[:4], ChainHead(), through=[checkpoint])


def test_a_checkpoint_of_another_node_or_hash_does_not_verify() -> None:
    signer, other = MLDSA65PrivateKey.generate(), MLDSA65PrivateKey.generate()
    checkpoint = sign_checkpoint(signer.sign, node=ALICE, head=ChainHead(7, bytes(48)), time=NOW)
    with pytest.raises(AuthenticationError, match="entry 7 is not signed by alice"):
        verify_checkpoint(checkpoint, other.public_key().public_bytes_raw())
    altered = type(checkpoint)(ALICE, 8, checkpoint.hash, checkpoint.time, checkpoint.signature)
    with pytest.raises(AuthenticationError):
        verify_checkpoint(altered, signer.public_key().public_bytes_raw())
