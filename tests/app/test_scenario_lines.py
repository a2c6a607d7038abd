"""Where tables and keys stand in a TOML text."""

import tomllib

import pytest

from trenza.app.scenario_lines import Lines

TEXT = '''# first line
name = "x"  # [[nodes]] in a comment

about = """
[[nodes]]
name = "not a node" \\""" ""
"""
list = [
  "a", # ]
  { key = "[[nodes]]" },
]

[[nodes]]
name = 'A # not a comment'

[[nodes]]  # the second
name = "B"
"quoted = key" = 1
where.street = "dotted"

[nodes.inner]
depth = 1

[[nodes.more]]
more = 1

[ plain . "ta]ble" ]
key = [[1, 2],
       [3]]
last = 1'''


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("name",), 2),
        (("about",), 4),
        (("list",), 8),
        (("list", 1, "key"), 8),
        (("nodes", 0), 13),
        (("nodes", 0, "name"), 14),
        (("nodes", 0, "missing"), 13),
        (("nodes", 1), 16),
        (("nodes", 1, "name"), 17),
        (("nodes", 1, "quoted = key"), 18),
        (("nodes", 1, "where"), 19),
        (("nodes", 1, "where", "street"), 19),
        (("nodes", 1, "inner", "depth"), 22),
        (("nodes", 1, "more", 0, "more"), 25),
        (("plain", "ta]ble"), 27),
        (("plain", "ta]ble", "key"), 28),
        (("plain", "ta]ble", "last"), 30),
        (("nowhere",), 1),
        ((), 1),
    ],
)
def test_every_table_and_key_has_its_line(place: tuple[str | int, ...], line: int) -> None:
    assert Lines(TEXT).line_of(place) == line


def test_the_text_of_these_tests_is_toml() -> None:
    assert [node["name"] for node in tomllib.loads(TEXT)["nodes"]] == ["A # not a comment", "B"]


def test_windows_line_ends_count_once() -> None:
    assert Lines("a = 1\r\n[b]\r\nc = 1\r\n").line_of(("b", "c")) == 3
