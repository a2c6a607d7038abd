"""Archives in files: whole or not there, never overwritten, readable by anything that reads gzip and JSON."""

import asyncio
import dataclasses
import gzip
import json
import os

import pytest
from tests.core.test_archive import LEDGER, archive
from tests.small_disk import small_disk

from trenza.adapters.archive import ArchiveDirectory, opened_archive
from trenza.base.errors import InvalidDocumentError, StoreUnavailableError

NAME = "A-000000000001-000000000010.ledger.gz"


async def pages(entries=LEDGER[:10]):
    yield entries[:6]
    yield entries[6:]


def files_in(folder) -> list[str]:
    return [path.name for path in folder.iterdir()]


def keep(folder, one=None, entries=None) -> str:
    head, _ = one or archive(0, 10)
    return asyncio.run(ArchiveDirectory(folder).keep(head, pages() if entries is None else entries))


def test_an_archive_is_read_back_and_nothing_else_is_left(tmp_path):
    one = archive(0, 10)
    assert keep(tmp_path / "kept", one) == NAME
    with opened_archive(tmp_path / "kept" / NAME) as (head, entries):
        assert (head, list(entries)) == one
    assert files_in(tmp_path / "kept") == [NAME]
    assert (tmp_path / "kept" / NAME).stat().st_mode & 0o777 == 0o600
    lines = gzip.decompress((tmp_path / "kept" / NAME).read_bytes()).splitlines()
    assert [json.loads(line).get("sequence") for line in lines] == [None, *range(1, 11)]


def test_what_a_crash_left_is_made_anew_and_what_it_had_finished_is_kept(tmp_path):
    (tmp_path / f".{NAME}.partial").write_bytes(b"cut short")
    keep(tmp_path)
    before = (tmp_path / NAME).stat().st_mtime_ns, (tmp_path / NAME).read_bytes()
    assert keep(tmp_path) == NAME
    assert ((tmp_path / NAME).stat().st_mtime_ns, (tmp_path / NAME).read_bytes()) == before
    assert files_in(tmp_path) == [NAME]


def test_what_is_there_under_the_name_of_an_archive_is_not_overwritten(tmp_path):
    for content in (b"", b"something else", gzip.compress(b"{}")):
        (tmp_path / NAME).write_bytes(content)
        with pytest.raises(StoreUnavailableError, match="move it away"):
            keep(tmp_path)
        assert (tmp_path / NAME).read_bytes() == content


def test_where_reading_the_ledger_fails_there_is_no_archive(tmp_path):
    async def broken():
        yield LEDGER[:2]
        raise StoreUnavailableError("the store could not be read")

    with pytest.raises(StoreUnavailableError, match="could not be read"):
        keep(tmp_path, entries=broken())
    assert files_in(tmp_path) == []


def test_a_file_that_is_cut_short_or_altered_is_said_to_be_unreadable(tmp_path):
    keep(tmp_path)
    whole = (tmp_path / NAME).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    for content in (whole[:-20], bytes(flipped), b""):
        (tmp_path / NAME).write_bytes(content)
        with (
            pytest.raises(InvalidDocumentError, match="the archive"),
            opened_archive(tmp_path / NAME) as (_, entries),
        ):
            list(entries)


def test_a_full_disk_leaves_no_archive_and_says_so(tmp_path):
    with small_disk(tmp_path / "disk", kilobytes=400) as disk:
        with pytest.raises(StoreUnavailableError, match="No space left"):
            keep(disk.path, entries=endless())
        assert files_in(disk.path) == []


async def endless():
    while True:
        yield [dataclasses.replace(LEDGER[0], body=os.urandom(100_000))]
