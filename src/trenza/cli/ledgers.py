"""A ledger that was taken away from its node, and the audit that needs nothing but it and the node's certificate.

Fetches through the management door; judges by `core.chain` alone. An export carries what the node said; the public
key that vouches for it must come from elsewhere, since whoever can alter a ledger can alter a key beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from trenza.app.pki import node_uri
from trenza.base.errors import InvalidDocumentError, RemoteProtocolError
from trenza.base.names import NodeId
from trenza.base.units import NANOSECONDS_PER_SECOND, Nanoseconds
from trenza.cli.doors import Doors
from trenza.core.chain import Checkpoint, verify_chain, verify_checkpoint
from trenza.kms.ports import ChainHead, LedgerEntry
from trenza.wire.management import Checkpoints, Entries, Entry, SignedHead

FORMAT: Final = "trenza ledger v1"
_OF_NODES: Final = node_uri(NodeId(""))
_PAGE: Final = 1_000


class Export(msgspec.Struct):
    """A node's whole ledger and its checkpoints, as its management door told them: bytes in hexadecimal."""

    node: NodeId
    entries: list[Entry]
    checkpoints: list[SignedHead]
    format: str = FORMAT


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit found: every entry is in its place, as the node wrote it, as far as a checkpoint vouches."""

    node: NodeId
    entries: int
    checkpoints: int
    vouched: int
    """Entries up to the last checkpoint. What came later hangs together, but no signature covers it yet."""

    vouched_at: datetime | None


async def fetch_ledger(doors: Doors, node: NodeId) -> Export:
    """Return a node's whole ledger."""
    signed = await doors.ask(node, "/v1/checkpoints", Checkpoints)  # first: what they vouch for is there by then
    entries: list[Entry] = []
    after: int | None = 0
    while after is not None:
        page = await doors.ask(node, "/v1/ledger", Entries, query={"after": after, "limit": _PAGE})
        entries += page.entries
        after = page.next_after
    return Export(node, entries, list(signed.checkpoints))


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


def audited(export: Export, public_key: bytes) -> Verdict:
    """Check a ledger from its first entry.

    Raises:
        AuthenticationError: names the first entry that was deleted, reordered or altered, or whose checkpoint the
            node did not sign.
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
    except ValueError:
        raise RemoteProtocolError(f"the ledger of {export.node} has bytes that are not hexadecimal") from None
    for checkpoint in checkpoints:
        if checkpoint.node != export.node:
            raise RemoteProtocolError(f"a checkpoint in the ledger of {export.node} is that of {checkpoint.node}")
        verify_checkpoint(checkpoint, public_key)
    count, _ = verify_chain(entries, ChainHead(), through=checkpoints)
    last = max(checkpoints, key=lambda one: one.sequence, default=None)
    return Verdict(
        node=export.node,
        entries=count,
        checkpoints=len(checkpoints),
        vouched=last.sequence if last else 0,
        vouched_at=datetime.fromtimestamp(last.time // NANOSECONDS_PER_SECOND, UTC) if last else None,
    )


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text)
