"""What processes say is shown where somebody reads it, and what is wrong everywhere."""

import pytest

from trenza.cli.screen import Log, Picture, Quiet, is_routine

ROUTINE = "2026-11-23 18:36:24,385 INFO node Alice is open"
WRONG = "2026-11-23 18:36:24,385 ERROR the disk is full"


@pytest.mark.parametrize(("line", "routine"), [(ROUTINE, True), (WRONG, False), ("Error: no", False), ("", False)])
def test_a_line_is_routine_by_its_level(line, routine):
    assert is_routine(line) is routine


def test_a_quiet_start_still_says_what_is_wrong(capsys):
    for line in (ROUTINE, WRONG):
        Quiet().forward("Alice", line)
    said, complained = capsys.readouterr()
    assert (said, complained) == ("", f"Alice: {WRONG}\n")


def test_a_log_says_everything_and_whose_it_is(capsys):
    for line in (ROUTINE, WRONG):
        Log().forward("Alice", line)
    assert [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()] == [
        f"Alice: {ROUTINE}",
        f"Alice: {WRONG}",
    ]


def test_a_picture_is_not_scrolled_away_by_routine(capsys):
    picture = Picture()
    for line in (ROUTINE, WRONG, "evil\x1b[2J"):
        picture.forward("Alice", line)
    assert capsys.readouterr().out.splitlines() == [f"Alice: {WRONG}", "Alice: evil[2J"]
