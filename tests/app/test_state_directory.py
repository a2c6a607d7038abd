"""One directory, one network, one process; and nothing is removed that is not a network's."""

import json
import threading
from functools import partial

import pytest

from trenza.app.state_directory import StateDirectory, change_ready, file_name
from trenza.base.errors import ConflictError, UnavailableError
from trenza.base.names import NodeId


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


def test_a_directory_that_is_held_is_refused_and_its_holder_named(path):
    held = StateDirectory(path)
    with pytest.raises(UnavailableError, match=r"process \d+.*trenza down"):
        StateDirectory(path)
    held.release()
    StateDirectory(path).release()


def test_a_directory_of_something_else_is_left_alone(path):
    path.mkdir()
    (path / "thesis.tex").touch()
    with pytest.raises(UnavailableError, match="no network"):
        StateDirectory(path)
    assert [one.name for one in path.iterdir()] == ["thesis.tex"]


def test_clearing_removes_a_networks_files_only(path):
    held = StateDirectory(path)
    (held.node(NodeId("Alice")) / "data").mkdir(parents=True)
    held.book.touch()
    (path / "notes.txt").touch()
    held.clear()
    assert sorted(one.name for one in path.iterdir()) == ["network.pid", "notes.txt"]
    held.release()


def test_taking_hold_and_letting_go_both_end_that_it_is_ready(path):
    held = StateDirectory(path)
    held.ready_file.touch()
    held.release()
    held.release()
    assert not held.ready_file.exists()
    assert (path / "network.pid").read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "file"),
    [("Alice", "Alice"), ("CSIC-A", "CSIC-A"), ("../x", "..%2Fx"), ("..", "%2E%2E"), ("a:b", "a%3Ab")],
)
def test_a_name_is_never_a_path(name, file):
    assert file_name(name) == file


def test_whoever_changes_the_ready_document_keeps_what_others_changed(path):
    held = StateDirectory(path)
    held.tell_ready(b"{}")

    def add(name):
        for number in range(20):
            change_ready(held.ready_file, partial(dict.update, **{f"{name}{number}": number}))

    threads = [threading.Thread(target=add, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads(held.ready_file.read_bytes())) == 60
    held.release()


def test_a_network_that_stops_gets_no_ready_document_again(path):
    held = StateDirectory(path)
    held.tell_ready(b"{}")
    held.release()
    change_ready(held.ready_file, lambda document: document.update(late=True))
    assert not held.ready_file.exists()


def test_what_another_network_remembers_is_not_gone_on_with(path):
    state = StateDirectory(path)
    assert not state.may_go_on([NodeId("Alice")])
    for name in ("Alice", "Bob/2"):
        config = state.node_config(NodeId(name))
        config.parent.mkdir(parents=True)
        config.touch()
    assert state.may_go_on([NodeId("Bob/2"), NodeId("Alice")])
    for others in (["Alice"], ["Alice", "Bob/2", "Carol"]):
        with pytest.raises(ConflictError, match=r"nodes Alice, Bob/2.*without --resume"):
            state.may_go_on([NodeId(name) for name in others])
    state.release()
