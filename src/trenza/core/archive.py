"""An archive: old entries of a ledger in a file of their own, for whoever audits what the node has pruned.

A file holds a whole stretch from one checkpoint to another: a line that says which, with the checkpoints that the
node signed in it, then a line for each entry; JSON with bytes in base64, compressed with gzip. It can be judged by
itself, needs nothing but the node's public key, and goes on where the archive before it ended. Pure: lines come and
go as bytes; who reads and writes them is `adapters/archive`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from trenza.base.errors import AuthenticationError, InvalidDocumentError
from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds
from trenza.core.chain import Checkpoint, Entry, Head, verify_chain, verify_checkpoint

FORMAT: Final = "trenza ledger archive v1"


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place in a ledger: an entry's sequence and hash. Implements core.chain.Head."""

    sequence: int
    hash: bytes


class ArchiveHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An archive's first line: what is in it."""

    node: NodeId
    previous: Mark  # the entry before the first; sequence 0 and zeros where there is none
    last: Mark
    checkpoints: tuple[Checkpoint, ...]  # those that the node kept of this stretch; the last is of `last`
    format: str = FORMAT


class ArchivedEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry. Implements core.chain.Entry."""

    sequence: int
    time: Nanoseconds
    kind: str
    body: bytes
    hash: bytes
    terms: tuple[str, ...]


_encoder = msgspec.json.Encoder()
_entries = msgspec.json.Decoder(ArchivedEntry)
_heads = msgspec.json.Decoder(ArchiveHead)


def head_line(head: ArchiveHead) -> bytes:
    """Return an archive's first line."""
    return _encoder.encode(head) + b"\n"


def entry_lines(entries: Iterable[Entry]) -> bytes:
    """Return the lines of some entries."""
    lines = (ArchivedEntry(one.sequence, one.time, one.kind, one.body, one.hash, one.terms) for one in entries)
    return b"".join(_encoder.encode(line) + b"\n" for line in lines)


def read_head(line: bytes, *, name: str) -> ArchiveHead:
    """Return what an archive's first line says.

    Raises:
        InvalidDocumentError: it is none, or of another format.
    """
    try:
        head = _heads.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidDocumentError(f"the archive {name}", (f"it is no ledger archive: {error}",)) from None
    if head.format != FORMAT:
        raise InvalidDocumentError(f"the archive {name}", (f"its format is {head.format!r}, not {FORMAT!r}",))
    return head


def read_entries(lines: Iterable[bytes], *, name: str) -> Iterator[ArchivedEntry]:
    """Return the entries of the lines after the first.

    Raises:
        InvalidDocumentError: a line is no entry.
    """
    for number, line in enumerate(lines, 2):
        try:
            yield _entries.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidDocumentError(f"the archive {name}", (f"line {number} is no entry: {error}",)) from None


def verify_archive(
    head: ArchiveHead, entries: Iterable[Entry], public_key: bytes, *, reached: Head | None, name: str
) -> Mark:
    """Check one archive, and that it goes on where the audit has got.

    Args:
        head: its first line.
        entries: the others.
        public_key: of the node, raw ML-DSA-65.
        reached: the last entry of the archives before it; None where this is the first.
        name: of the archive, for messages.

    Returns:
        The last entry: how far the audit has got now.

    Raises:
        AuthenticationError: what is missing, altered or not vouched for.
    """
    for checkpoint in head.checkpoints:
        if checkpoint.node != head.node:
            raise AuthenticationError(f"archive {name}: a checkpoint in it is that of {checkpoint.node}")
        verify_checkpoint(checkpoint, public_key)
    if (head.last.sequence, head.last.hash) not in {(one.sequence, one.hash) for one in head.checkpoints}:
        raise AuthenticationError(f"archive {name}: no checkpoint vouches for its end, entry {head.last.sequence}")
    if reached is not None and head.previous.sequence > reached.sequence:
        raise AuthenticationError(missing(reached.sequence + 1, head.previous.sequence))
    is_new = reached is None or head.last.sequence >= reached.sequence
    joint = [reached] if reached is not None and is_new else []
    try:
        end = Mark(*verify_chain(entries, head.previous, through=[*head.checkpoints, *joint]))
    except AuthenticationError as error:
        raise AuthenticationError(f"archive {name}: {error.message}") from None
    if end != head.last:
        raise AuthenticationError(f"archive {name}: it ends at entry {end.sequence}, not at {head.last.sequence}")
    return end if reached is None or is_new else Mark(reached.sequence, reached.hash)


def missing(first: int, last: int) -> str:
    """Say that entries between two pieces of a ledger are nowhere."""
    return f"ledger entries {first} to {last} are missing: an archive of them was not given, or there is none"
