"""Archives in a directory: one compressed file for each stretch of the ledger that the node has pruned.

A file is written under a temporary name, synced, and then renamed, so what has a name is whole. It is never
overwritten. The format is `core/archive`'s; anything that reads gzip and JSON reads it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from trenza.base.errors import InvalidDocumentError, StoreUnavailableError
from trenza.core.archive import ArchivedEntry, ArchiveHead, entry_lines, head_line, read_entries, read_head
from trenza.kms.ports import LedgerEntry

SUFFIX: Final = ".ledger.gz"
_DRAFT: Final = ".partial"
_LONGEST_LINE: Final = 64 * 1024 * 1024  # a damaged file must not fill the memory


class ArchiveDirectory:
    """Implements kms.ports.Archive. Files are written in threads, so that the node's loop never waits for a disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def keep(self, head: ArchiveHead, entries: AsyncIterator[Sequence[LedgerEntry]]) -> str:
        name = archive_name(head)
        path = self._directory / name
        with _failures_told(path):
            if await asyncio.to_thread(path.exists):
                await asyncio.to_thread(_check_same, path, head)
                return name
            draft = await asyncio.to_thread(_Draft, path, head)
            try:
                async for some in entries:
                    await asyncio.to_thread(draft.add, some)
                await asyncio.to_thread(draft.finish)
            finally:
                await asyncio.to_thread(draft.discard)
        return name


def archive_name(head: ArchiveHead) -> str:
    """Return the name of an archive's file: the node, and from which entry to which."""
    return f"{quote(head.node, safe='')}-{head.previous.sequence + 1:012d}-{head.last.sequence:012d}{SUFFIX}"


@contextlib.contextmanager
def opened_archive(path: Path) -> Iterator[tuple[ArchiveHead, Iterator[ArchivedEntry]]]:
    """Open an archive for reading: what its first line says, and its entries, one after the other.

    Raises:
        InvalidDocumentError: it cannot be read, or is no archive.
    """
    try:
        with gzip.open(path, "rb") as file:
            head = read_head(file.readline(_LONGEST_LINE), name=path.name)
            yield head, read_entries(iter(lambda: file.readline(_LONGEST_LINE), b""), name=path.name)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InvalidDocumentError(f"the archive {path}", (f"it cannot be read: {why}",)) from None


class _Draft:
    """A file in the making."""

    def __init__(self, path: Path, head: ArchiveHead) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._draft = path.with_name(f".{path.name}{_DRAFT}")
        self._draft.unlink(missing_ok=True)  # of an attempt that a crash ended
        self._raw = self._draft.open("xb")
        try:
            os.fchmod(self._raw.fileno(), 0o600)
            self._packed = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=self._raw, mtime=0)
            self._packed.write(head_line(head))
        except BaseException:
            self.discard()
            raise

    def add(self, entries: Sequence[LedgerEntry]) -> None:
        self._packed.write(entry_lines(entries))

    def finish(self) -> None:
        """Make it durable, and give it its name."""
        self._packed.close()
        self._raw.flush()
        os.fsync(self._raw.fileno())
        self._draft.rename(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def discard(self) -> None:
        """Let go of it; what was not finished is gone."""
        with contextlib.suppress(OSError):  # a full disk: what could not be written is not wanted
            self._raw.close()
        with contextlib.suppress(OSError):
            self._draft.unlink(missing_ok=True)


def _check_same(path: Path, head: ArchiveHead) -> None:
    """See that a file of the same name, from before a crash, is of the same stretch; synced before it was named."""
    try:
        with opened_archive(path) as (there, _):
            is_same = (there.node, there.previous, there.last) == (head.node, head.previous, head.last)
    except InvalidDocumentError as error:
        raise StoreUnavailableError(f"{error.message}: move it away") from None
    if not is_same:
        raise StoreUnavailableError(f"the archive {path} is of another ledger: move it away")


@contextlib.contextmanager
def _failures_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(f"the archive {path} cannot be written: {error.strerror}") from error
