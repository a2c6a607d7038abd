"""Which networks run here, as their state directories tell."""

import fcntl
import json
import os
import shutil

import pytest
from click.testing import CliRunner

from trenza.base.errors import InvalidDocumentError, InvalidRequestError, UnavailableError
from trenza.cli.main import main
from trenza.cli.state import (
    forget,
    places,
    read_ready,
    remember,
    running_networks,
    state_home,
    the_network,
    write_whole,
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("TRENZA_STATE_DIR", raising=False)
    return tmp_path / "trenza"


def network(home, name, pid):
    folder = home / name
    folder.mkdir(parents=True)
    (folder / "network.pid").write_text(f"{pid}\n")
    return folder


@pytest.fixture
def held():
    """Hold the lock of a network's file, as its process does."""
    opened = []

    def hold(folder):
        opened.append((folder / "network.pid").open())
        fcntl.flock(opened[-1], fcntl.LOCK_EX)
        return folder

    yield hold
    for file in opened:
        file.close()


def test_only_networks_whose_process_holds_them_run(home, held):
    held(network(home, "alive", os.getpid()))
    network(home, "dead", os.getpid())  # whoever has its number by now
    (home / "empty").mkdir()
    assert [found.name for found in running_networks()] == ["alive"]


def test_the_only_network_need_not_be_named(home, held):
    held(network(home, "alive", os.getpid()))
    assert the_network(None, None).name == "alive"


def test_of_several_networks_one_must_be_named(home, held):
    held(network(home, "one", os.getpid()))
    held(network(home, "two", os.getpid()))
    with pytest.raises(InvalidRequestError, match="one, two"):
        the_network(None, None)
    assert the_network("two", None).name == "two"


def test_a_network_that_does_not_run_is_said_not_to(home):
    with pytest.raises(UnavailableError, match="trenza up"):
        the_network(None, None)
    with pytest.raises(UnavailableError, match="running: none"):
        the_network("spain", None)
    with pytest.raises(UnavailableError, match="no network runs in"):
        the_network(None, home)


def test_a_network_may_keep_its_files_elsewhere(home, held, tmp_path):
    folder = held(network(tmp_path / "elsewhere", "mine", os.getpid()))
    assert the_network(None, folder).state == folder


def test_a_network_that_keeps_its_files_elsewhere_is_found_while_it_runs(home, held, tmp_path):
    folder = held(network(tmp_path / "elsewhere", "mine", os.getpid()))
    assert running_networks() == []
    assert [found.state for found in running_networks(folder)] == [folder]
    remember(folder)
    remember(folder)
    assert [found.state for found in running_networks(folder)] == [folder]
    assert the_network("mine", None).state == the_network(None, None).state == folder


def test_a_network_that_has_ended_is_forgotten_and_one_that_runs_is_not(home, held, tmp_path):
    dead, alive = (network(tmp_path / "elsewhere", name, os.getpid()) for name in ("dead", "alive"))
    remember(dead)
    remember(held(alive))
    forget(dead)
    forget(alive)  # a second start there was refused
    assert places() == [alive]


def test_a_directory_that_has_gone_is_tidied_away(home, tmp_path):
    gone, here = (network(tmp_path / "elsewhere", name, os.getpid()) for name in ("gone", "here"))
    remember(gone)
    shutil.rmtree(gone)
    remember(here)
    assert places() == [here]


def test_of_two_networks_of_one_name_the_directory_must_be_said(home, held, tmp_path):
    held(network(home, "mine", os.getpid()))
    remember(held(network(tmp_path / "elsewhere", "mine", os.getpid())))
    with pytest.raises(InvalidRequestError, match="--state-dir"):
        the_network("mine", None)


def test_where_nothing_runs_it_is_said_where_we_looked(home, tmp_path):
    folder = network(tmp_path / "elsewhere", "mine", os.getpid())
    remember(folder)
    with pytest.raises(UnavailableError) as caught:
        the_network(None, None)
    told = CliRunner().invoke(main, ["ps", "--state-dir", str(tmp_path / "other")]).stdout
    assert all(str(place) in caught.value.message for place in (home, folder))
    assert all(str(place) in told for place in (home, folder, tmp_path / "other"))


def test_a_relative_state_home_is_ignored(home, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # XDG Base Directory Specification: must be absolute
    assert state_home().is_absolute()


def test_a_network_without_a_ready_document_is_still_starting(home, held):
    held(network(home, "alive", os.getpid()))
    with pytest.raises(UnavailableError, match="still starting"):
        the_network(None, None).site.ready()


def test_a_ready_document_that_is_none_is_refused(tmp_path):
    file = tmp_path / "ready.json"
    file.write_text('{"nodes": 7}')
    with pytest.raises(InvalidDocumentError):
        read_ready(file)


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    file = tmp_path / "ready.json"
    file.write_text("old")
    write_whole(file, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["ready.json"]
    assert file.read_bytes() == b"new"


def test_ps_lists_what_runs(home, held):
    held(network(home, "alive", os.getpid()))
    result = CliRunner().invoke(main, ["ps", "--json"])
    (found,) = json.loads(result.stdout)["networks"]
    assert (found["name"], found["state"], found["pid"]) == ("alive", "starting", os.getpid())
    assert "alive" in CliRunner().invoke(main, ["ps"]).stdout


def test_ps_says_how_to_start_when_nothing_runs(home):
    assert "trenza up" in CliRunner().invoke(main, ["ps"]).stdout


def test_down_of_nothing_says_so(home):
    result = CliRunner().invoke(main, ["down", "spain", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"] == "unavailable"
