"""Ledgers whose older entries were pruned, and the archives of these: what an auditor is told."""

import asyncio
import gzip
import json

import msgspec
import pytest
from tests.core.test_archive import mark

from trenza.adapters.archive import ArchiveDirectory
from trenza.app.pki import CertificateAuthority, KeyType
from trenza.core.archive import ArchiveHead
from trenza.core.chain import chain_hash, sign_checkpoint
from trenza.core.provenance import PrunedRecord
from trenza.kms.ports import LedgerEntry

COUNT, START = 120, 60  # the entries, and how many of them were pruned
ENDS = (20, 40, 60)  # of the archives


@pytest.fixture(scope="module")
def signer():
    return CertificateAuthority.create("Alice", KeyType.ML_DSA_65).credential


@pytest.fixture
def node(network, tmp_path, signer):
    """Let Alice tell a pruned ledger, and keep its archives."""
    entries: list[LedgerEntry] = []

    def append(kind, body=b""):
        sequence, previous = len(entries) + 1, entries[-1].hash if entries else bytes(48)
        digest = chain_hash(previous, sequence=sequence, time=sequence, kind=kind, body=body, terms=())
        entries.append(LedgerEntry(sequence, sequence, kind, body, digest, ()))

    while len(entries) < COUNT:
        if len(entries) == 100:
            append("pruned", msgspec.msgpack.encode(PrunedRecord(1, START, entries[START - 1].hash, 60, "x")))
        append("issued", b"%d" % len(entries))

    def signed(at):
        return sign_checkpoint(signer.private_key.sign, node="Alice", head=mark(at, entries), time=at)

    async def pages(of):
        yield of

    for first, last in zip((0, *ENDS), ENDS, strict=False):
        head = ArchiveHead("Alice", mark(first, entries), mark(last, entries), (signed(last),))
        asyncio.run(ArchiveDirectory(tmp_path / "archives").keep(head, pages(entries[first:last])))
    told = [
        {"sequence": e.sequence, "time": "", "time_ns": e.time, "kind": e.kind, "body": e.body.hex()}
        | {"hash": e.hash.hex(), "terms": []}
        for e in entries
    ]
    checkpoints = [
        {"node": "Alice", "sequence": at, "hash": entries[at - 1].hash.hex(), "time": "", "time_ns": at}
        | {"signature": signed(at).signature.hex()}
        for at in (START, COUNT)
    ]
    answer = {"entries": told[START:], "next_after": None}
    answer["start"] = {"sequence": START, "hash": entries[START - 1].hash.hex()}
    network.answers[("Alice", "/v1/ledger")] = answer
    network.answers[("Alice", "/v1/checkpoints")] = {"checkpoints": checkpoints}
    signer.save(tmp_path / "alice.pem", tmp_path / "alice.key")
    assert network.run("ledger", "export", "Alice", str(tmp_path / "ledger")).exit_code == 0
    return json.loads((tmp_path / "ledger").read_bytes())


def audit(network, tmp_path, document=None, archives=()):
    words = [word for archive in archives for word in ("--archive", str(archive))]
    if document is not None:
        (tmp_path / "ledger").write_text(json.dumps(document))
        words += ["--file", str(tmp_path / "ledger")]
    result = network.run_alone("audit", "--certificate", str(tmp_path / "alice.pem"), "--json", *words)
    return result, json.loads(result.stdout)["nodes"]["Alice"]


def archives_in(tmp_path):
    return sorted((tmp_path / "archives").iterdir())


def test_a_pruned_ledger_is_checked_from_its_start_and_says_from_when(network, node, tmp_path):
    result, verdict = audit(network, tmp_path, node)
    assert result.exit_code == 0
    assert (verdict["whole"], verdict["first"], verdict["entries"]) == (True, START + 1, COUNT)
    assert verdict["pruned_until"].startswith("1970-01-01T00:00:00")


def test_with_its_archives_a_ledger_is_checked_from_the_first_entry(network, node, tmp_path):
    _, verdict = audit(network, tmp_path, node, reversed(archives_in(tmp_path)))
    assert (verdict["whole"], verdict["first"], verdict["entries"]) == (True, 1, COUNT)
    assert verdict["pruned_until"] is None
    _, verdict = audit(network, tmp_path, node, archives_in(tmp_path)[1:])
    assert (verdict["whole"], verdict["first"]) == (True, 21)


def test_archives_are_checked_without_the_ledger(network, node, tmp_path):
    _, verdict = audit(network, tmp_path, None, archives_in(tmp_path))
    assert (verdict["whole"], verdict["first"], verdict["entries"], verdict["checkpoints"]) == (True, 1, 60, 3)


def test_archives_of_a_running_node_are_joined_to_its_ledger(network, node, tmp_path):
    words = [word for archive in archives_in(tmp_path) for word in ("--archive", str(archive))]
    result = network.run("audit", "Alice", "--certificate", str(tmp_path / "alice.pem"), "--json", *words)
    assert json.loads(result.stdout)["nodes"]["Alice"]["first"] == 1


def test_an_archive_that_is_missing_in_the_middle_or_at_the_end_is_named(network, node, tmp_path):
    first, _, last = archives_in(tmp_path)
    result, verdict = audit(network, tmp_path, node, (first, last))
    assert (result.exit_code, verdict["whole"]) == (1, False)
    assert "ledger entries 21 to 40 are missing" in verdict["message"]
    assert "ledger entries 21 to 60 are missing" in audit(network, tmp_path, node, (first,))[1]["message"]


def test_a_mistyped_name_of_an_archive_is_no_word_against_the_ledger(network, node, tmp_path):
    result = network.run("audit", "Alice", "--archive", str(tmp_path / "no-such-archive"))
    assert result.exit_code == 2
    assert "does not exist" in result.stderr
    assert "evidence" not in result.stderr


def test_what_was_done_inside_an_archive_is_named(network, node, tmp_path):
    _, middle, _ = archives_in(tmp_path)
    lines = gzip.decompress(middle.read_bytes()).splitlines(keepends=True)
    middle.write_bytes(gzip.compress(b"".join([*lines[:5], lines[5].replace(b"issued", b"voided"), *lines[6:]])))
    assert "ledger entry 25 was altered" in audit(network, tmp_path, node, archives_in(tmp_path))[1]["message"]
    middle.write_bytes(gzip.compress(b"".join([*lines[:5], *lines[6:]])))
    message = audit(network, tmp_path, node, archives_in(tmp_path))[1]["message"]
    assert f"archive {middle.name}: ledger entry 25 is missing" in message


def silenced(document):
    """Take the announcement away as whoever can write the ledger would: the rest is chained anew."""
    kept = [entry for entry in document["entries"] if entry["sequence"] <= 100]
    document["entries"] = kept
    document["checkpoints"] = [one for one in document["checkpoints"] if one["sequence"] <= 100]


def beheaded(document):
    """Remove more than was announced."""
    gone = document["entries"][:10]
    del document["entries"][:10]
    document["start"] = {"sequence": gone[-1]["sequence"], "hash": gone[-1]["hash"]}


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (silenced, "ledger entries 1 to 60 are missing: the node nowhere says that it pruned them"),
        (beheaded, "ledger entries 1 to 70 are missing: the node nowhere says"),
        (lambda document: document["checkpoints"].pop(0), "were pruned without a checkpoint"),
        (lambda document: document["start"].update(hash="00" * 48), "entry 60 is not the one"),
        (lambda document: document.pop("start"), "ledger entry 1 is missing: 61 stands in its place"),
        (lambda document: document["entries"].pop(0), "ledger entry 61 is missing"),
    ],
)
def test_taking_entries_away_is_told_from_pruning(network, node, tmp_path, tamper, told):
    tamper(node)
    result, verdict = audit(network, tmp_path, node)
    assert result.exit_code == 1
    assert told in verdict["message"]


def test_archives_alone_need_the_certificate(network, node, tmp_path):
    result = network.run_alone("audit", "--archive", str(archives_in(tmp_path)[0]))
    assert result.exit_code == 2
    assert "--certificate" in result.stderr
