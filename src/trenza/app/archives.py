"""The audit of archives in files: each by itself, then that it goes on where the one before it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trenza.adapters.archive import opened_archive
from trenza.base.errors import InvalidDocumentError
from trenza.base.names import NodeId
from trenza.base.units import NANOSECONDS_PER_SECOND
from trenza.core.archive import Mark, verify_archive


@dataclass(frozen=True, slots=True)
class Archives:
    """What an audit of archives found, before the ledger itself."""

    first: int
    last: Mark
    checkpoints: int
    vouched_at: datetime


def archives_audited(files: Sequence[Path], node: NodeId, public_key: bytes) -> Archives | None:
    """Check archives of a node's ledger, from the first entry that they hold on, in whatever order they are given.

    Raises:
        AuthenticationError: names what is missing, altered or not vouched for.
        InvalidDocumentError: a file is no archive, or another node's.
    """
    begins: list[tuple[int, int, Path]] = []
    for file in files:
        with opened_archive(file) as (head, _):
            if head.node != node:
                raise InvalidDocumentError(f"the archive {file}", (f"it is of node {head.node}, not of {node}",))
            begins.append((head.previous.sequence, head.last.sequence, file))
    reached: Mark | None = None
    checkpoints, until = 0, 0
    for _, _, file in sorted(begins):
        with opened_archive(file) as (head, entries):
            reached = verify_archive(head, entries, public_key, reached=reached, name=file.name)
            checkpoints += len(head.checkpoints)
            until = max(until, *(one.time for one in head.checkpoints))
    if reached is None:
        return None
    vouched_at = datetime.fromtimestamp(until // NANOSECONDS_PER_SECOND, UTC)
    return Archives(min(begins)[0] + 1, reached, checkpoints, vouched_at)


def node_of(file: Path) -> NodeId:
    """Return whose ledger an archive is of, as it says itself.

    Raises:
        InvalidDocumentError: it is no archive.
    """
    with opened_archive(file) as (head, _):
        return head.node
