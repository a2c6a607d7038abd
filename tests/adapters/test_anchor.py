import errno
import stat
import subprocess
import sys

import pytest
from tests.small_disk import small_disk

from trenza.adapters.anchor import FileAnchor, MemoryAnchor


def test_what_was_remembered_is_recalled_by_the_next_process(tmp_path) -> None:
    path = tmp_path / "run" / "anchor"
    anchor = FileAnchor(path)
    assert anchor.recall() is None
    for counter in (1, 2, 2**40):
        anchor.remember(b"alice", counter)
        assert anchor.recall() == (b"alice", counter)
    assert FileAnchor(path).recall() == (b"alice", 2**40)  # though the first was never closed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    anchor.close()


def test_another_identity_replaces_the_first(tmp_path) -> None:
    anchor = FileAnchor(tmp_path / "anchor")
    anchor.remember(b"a long identity", 9)
    anchor.remember(b"short", 3)
    assert FileAnchor(tmp_path / "anchor").recall() == (b"short", 3)
    with pytest.raises(ValueError, match="at most"):
        anchor.remember(bytes(300), 1)


def test_after_a_boot_nothing_is_known(tmp_path) -> None:
    FileAnchor(tmp_path / "anchor", boot_id=b"monday").remember(b"alice", 5)
    assert FileAnchor(tmp_path / "anchor", boot_id=b"monday").recall() == (b"alice", 5)
    rebooted = FileAnchor(tmp_path / "anchor", boot_id=b"tuesday")
    assert rebooted.recall() is None
    rebooted.remember(b"alice", 6)
    assert rebooted.recall() == (b"alice", 6)


@pytest.mark.parametrize("place", [0, 16, 20, 60])
def test_a_damaged_file_says_nothing(tmp_path, place) -> None:
    path = tmp_path / "anchor"
    FileAnchor(path).remember(b"alice", 5)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert FileAnchor(path).recall() is None


def test_a_memory_anchor_remembers_the_last() -> None:
    anchor = MemoryAnchor()
    assert anchor.recall() is None
    anchor.remember(b"alice", 1)
    anchor.remember(b"alice", 2)
    assert anchor.recall() == (b"alice", 2)


def test_a_full_disk_is_told_and_ends_no_process(tmp_path) -> None:
    story = (
        "import sys, pathlib, trenza.adapters.anchor as a; a.FileAnchor(pathlib.Path(sys.argv[1])).remember(b'a', 1)"
    )
    with small_disk(tmp_path / "disk", kilobytes=256) as disk:
        (disk.path / "run").mkdir()
        disk.fill()
        ended = subprocess.run(
            [sys.executable, "-c", story, str(disk.path / "run" / "anchor")],
            check=False,
            capture_output=True,
            text=True,
        )
    assert ended.returncode == 1
    assert f"[Errno {errno.ENOSPC}]" in ended.stderr
