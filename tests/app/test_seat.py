"""One process has an instance's seat at a time, and knows which one had it before."""

import signal
import subprocess
import sys

import pytest

from trenza.app.seat import Seat
from trenza.base.errors import StoreUnavailableError

FIRST, SECOND = b"1" * 16, b"2" * 16
_SIT = (
    "import pathlib, sys; from trenza.app.seat import Seat; seat = Seat(pathlib.Path(sys.argv[1]));"
    "seat.take(b'1' * 16); print('sits', flush=True); sys.stdin.read()"
)


@pytest.fixture
def anchor(tmp_path):
    return tmp_path / "beside" / "anchor"


def test_who_sits_down_learns_who_sat_there_before(anchor) -> None:
    seat = Seat(anchor)
    assert seat.take(FIRST) is None
    seat.leave()
    seat = Seat(anchor)
    assert seat.take(SECOND) == FIRST
    seat.leave()


def test_nobody_sits_down_beside_a_process_that_lives_and_anybody_after_it_was_killed(anchor) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SIT, str(anchor)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "sits\n"
        with pytest.raises(StoreUnavailableError, match="another process uses the anchor"):
            Seat(anchor)
        process.send_signal(signal.SIGKILL)
        process.wait()
    seat = Seat(anchor)
    assert seat.take(SECOND) == FIRST
    seat.leave()


def test_a_copy_of_the_seat_proves_nobodys_death(anchor) -> None:
    seat = Seat(anchor)
    seat.take(FIRST)
    copied = anchor.with_name("copy")
    copied.with_name("copy.seat").write_bytes(anchor.with_name("anchor.seat").read_bytes())
    copy = Seat(copied)
    assert copy.take(SECOND) is None
    copy.leave()
    seat.leave()


@pytest.mark.parametrize("said", [b"", b"short", bytes(64)])
def test_what_is_not_as_it_was_written_tells_of_nobody(anchor, said) -> None:
    anchor.parent.mkdir()
    anchor.with_name("anchor.seat").write_bytes(said)
    seat = Seat(anchor)
    assert seat.take(FIRST) is None
    seat.leave()
    seat = Seat(anchor)
    assert seat.take(SECOND) == FIRST
    seat.leave()
