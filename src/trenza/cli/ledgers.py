"""A ledger that was taken away from its node, and the audit that needs nothing but it and the node's certificate.

Fetches through the management door; judges by `core.chain` alone. An export carries what the node said; the public
key that vouches for it must come from elsewhere, since whoever can alter a ledger can alter a key beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from trenza.app.archives import Archives
from trenza.app.pki import node_uri
from trenza.base.errors import AuthenticationError, InvalidDocumentError, RemoteProtocolError
from trenza.base.names import NodeId
from trenza.base.units import NANOSECONDS_PER_SECOND, Nanoseconds
from trenza.cli.doors import Doors
from trenza.core import chain
from trenza.core.archive import Mark, missing
from trenza.core.chain import Checkpoint, verify_chain, verify_checkpoint
from trenza.core.provenance import PrunedRecord
from trenza.kms.ports import LedgerEntry
from trenza.kms.retention import PRUNED
from trenza.wire.management import Checkpoints, Entries, Entry, Head, SignedHead

FORMAT: Final = "trenza ledger v1"
_OF_NODES: Final = node_uri(NodeId(""))
_PAGE: Final = 250  # entries asked for at once; one may tell of hundreds of pairs


class Export(msgspec.Struct):
    """A node's ledger as it is kept and its checkpoints, as its management door told them: bytes in hexadecimal."""

    node: NodeId
    entries: list[Entry]
    checkpoints: list[SignedHead]
    format: str = FORMAT
    start: Head = Head(0, "00" * 48)  # before the first entry: those up to it were pruned


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit found: every entry is in its place, as the node wrote it, as far as a checkpoint vouches."""

    node: NodeId
    first: int
    """The first entry that was seen; those before were pruned, and no archive of them was given."""

    entries: int
    """Up to this entry."""

    checkpoints: int
    vouched: int
    """Entries up to the last checkpoint. What came later hangs together, but no signature covers it yet."""

    vouched_at: datetime | None
    pruned_until: datetime | None = None
    """Entries before `first` were written before this moment."""


async def fetch_ledger(doors: Doors, node: NodeId) -> Export:
    """Return a node's ledger, as far as it is kept."""
    signed = await doors.ask(node, "/v1/checkpoints", Checkpoints)  # first: what they vouch for is there by then
    entries: list[Entry] = []
    after: int | None = 0
    start = Head(0, "")
    while after is not None:
        page = await doors.ask(node, "/v1/ledger", Entries, query={"after": after, "limit": _PAGE})
        entries += page.entries
        after, start = page.next_after, page.start
    kept = [entry for entry in entries if entry.sequence > start.sequence]  # some were pruned while we asked
    return Export(node, kept, list(signed.checkpoints), start=start)


def read_export(file: Path) -> Export:
    """Return the ledger in a file.

    Raises:
        InvalidDocumentError: the file holds none.
    """
    try:
        export = msgspec.json.decode(file.read_bytes(), type=Export)
    except OSError as error:
        raise InvalidDocumentError(f"the ledger {file}", (f"it cannot be read: {error.strerror}",)) from None
    except msgspec.DecodeError as error:
        raise InvalidDocumentError(f"the ledger {file}", (str(error),)) from None
    if export.format != FORMAT:
        raise InvalidDocumentError(f"the ledger {file}", (f"its format is {export.format!r}, not {FORMAT!r}",))
    return export


def public_key_in(certificate: Path, node: NodeId) -> bytes:
    """Return the raw ML-DSA-65 key of a node's certificate.

    Raises:
        InvalidDocumentError: the file holds no such certificate, or that of another node.
    """
    try:
        read = x509.load_pem_x509_certificate(certificate.read_bytes())
        named = _nodes_named_in(read)
        key = read.public_key()
    except OSError as error:
        raise InvalidDocumentError(f"the certificate {certificate}", (error.strerror or str(error),)) from None
    except ValueError as error:
        raise InvalidDocumentError(f"the certificate {certificate}", (str(error),)) from None
    if not isinstance(key, MLDSA65PublicKey):
        raise InvalidDocumentError(f"the certificate {certificate}", ("its key is not an ML-DSA-65 key",))
    if named and node_uri(node) not in named:
        raise InvalidDocumentError(f"the certificate {certificate}", (f"it is that of {named[0]}, not of {node}",))
    return key.public_bytes_raw()


def _nodes_named_in(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(_OF_NODES)]


def audited(export: Export, public_key: bytes, archives: Archives | None = None) -> Verdict:
    """Check a ledger from the first entry that is kept, or from the first of the archives, which were checked before.

    Raises:
        AuthenticationError: names the first entry that was deleted, reordered or altered, or whose checkpoint the
            node did not sign; or entries that are missing without a word of the node that it pruned them.
        RemoteProtocolError: bytes are not in hexadecimal.
    """
    try:
        entries = [
            LedgerEntry(
                one.sequence, Nanoseconds(one.time_ns), one.kind, _bytes(one.body), _bytes(one.hash), one.terms
            )
            for one in export.entries
        ]
        checkpoints = [
            Checkpoint(
                NodeId(one.node), one.sequence, _bytes(one.hash), Nanoseconds(one.time_ns), _bytes(one.signature)
            )
            for one in export.checkpoints
        ]
        start = Mark(export.start.sequence, _bytes(export.start.hash))
    except ValueError:
        raise RemoteProtocolError(f"the ledger of {export.node} has bytes that are not hexadecimal") from None
    for checkpoint in checkpoints:
        if checkpoint.node != export.node:
            raise RemoteProtocolError(f"a checkpoint in the ledger of {export.node} is that of {checkpoint.node}")
        verify_checkpoint(checkpoint, public_key)
    places: list[chain.Head] = [*checkpoints]
    if archives is not None:
        if start.sequence > archives.last.sequence:
            raise AuthenticationError(missing(archives.last.sequence + 1, start.sequence))
        places.append(archives.last)
    pruned = _pruning_of(entries, start, checkpoints)
    count, _ = verify_chain(entries, start, through=places)
    last = max(checkpoints, key=lambda one: one.sequence, default=None)
    return Verdict(
        node=export.node,
        first=(start.sequence + 1) if archives is None else min(archives.first, start.sequence + 1),
        entries=count,
        checkpoints=len(checkpoints),
        vouched=last.sequence if last else 0,
        vouched_at=_moment(last.time) if last else None,
        pruned_until=None if pruned is None or archives is not None else _moment(pruned.time),
    )


def _pruning_of(entries: Sequence[LedgerEntry], start: Mark, checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint up to which the node said that it prunes; None where the ledger starts at its beginning.

    Whoever takes entries away cannot say so in the node's name: what follows is chained and signed.
    """
    if start.sequence == 0:
        return None
    said = [PrunedRecord.decode(entry.body) for entry in entries if entry.kind == PRUNED]
    through = {one.through: one.hash for one in said if one.through >= start.sequence}
    if not through:
        raise AuthenticationError(
            f"ledger entries 1 to {start.sequence} are missing: the node nowhere says that it pruned them"
        )
    signed = [one for one in checkpoints if through.get(one.sequence) == one.hash]
    if not signed:
        raise AuthenticationError(
            f"ledger entries 1 to {start.sequence} were pruned without a checkpoint that vouches for their end"
        )
    return min(signed, key=lambda one: one.sequence)


def _moment(time: int) -> datetime:
    return datetime.fromtimestamp(time // NANOSECONDS_PER_SECOND, UTC)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text)
