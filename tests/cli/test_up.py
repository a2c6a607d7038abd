"""A whole network started, used and stopped by the commands that people type."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from trenza.app.scenario import load_scenario
from trenza.cli.first_key import farthest_pair
from trenza.cli.main import main
from trenza.cli.up import directory_name

TRENZA = Path(sys.executable).with_name("trenza")
DEADLINE_S = 60


def start(home: Path, *words: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "TRENZA_STATE_DIR"}
    return subprocess.Popen(
        [TRENZA, "up", *words],
        env={**environment, "XDG_STATE_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass
class Up:
    """A network that `trenza up` started."""

    home: Path
    ready_file: Path
    process: subprocess.Popen

    def run(self, *words: str):
        return CliRunner().invoke(main, words, env={"XDG_STATE_HOME": str(self.home), "TRENZA_STATE_DIR": None})

    def run_json(self, *words: str):
        result = self.run(*words, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    ready_file = home / "ready.json"
    ready_file.write_text("of an earlier run")
    process = start(home, "two-nodes", "--ready-file", str(ready_file))
    deadline = time.monotonic() + DEADLINE_S
    while not (ready_file.exists() and ready_file.read_text() != "of an earlier run"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield Up(home, ready_file, process)
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_key_is_fetched_and_explained(up):
    key = up.run_json("key", "get", "--from", "sae-alice", "--to", "sae-bob")["keys"][0]
    assert key["equal"]
    assert key["recipe"] == "hybrid-catkdf"
    statements = up.run_json("explain", key["key_ID"])["statements"]
    assert [one["node"] for one in statements] == ["Alice", "Bob"]
    told = up.run("explain", key["key_ID"]).stdout
    assert "Alice and Bob tell the same story" in told
    assert "CLASSICAL + PQC + QKD" in told


@pytest.mark.slow
def test_the_network_is_listed_and_tells_its_status(up):
    (found,) = up.run_json("ps")["networks"]
    assert (found["name"], found["state"], found["nodes"], found["pid"]) == ("two-nodes", "ready", 2, up.process.pid)
    nodes = up.run_json("status")["nodes"]
    assert nodes["Alice"]["book_version"] == nodes["Bob"]["book_version"]
    assert "Alice-Bob" in up.run("status").stdout


@pytest.mark.slow
def test_both_ledgers_are_whole(up):
    assert all(one["whole"] for one in up.run_json("audit")["nodes"].values())


@pytest.mark.slow
def test_no_relay_saw_what_crossed_one_link(up):
    assert up.run_json("exposed", "Bob")["exposed"] == []


@pytest.mark.slow
def test_an_application_comes_and_goes_without_a_restart(up):
    up.run_json("sae", "new", "sae-carol", "--node", "Bob", "--with", "sae-alice")
    assert up.run_json("key", "get", "--from", "sae-carol", "--to", "sae-alice")["keys"][0]["equal"]
    files = json.loads((up.home / "trenza" / "two-nodes" / "ready.json").read_text())["saes"]["sae-carol"]
    up.run_json("sae", "revoke", "sae-carol")
    url = json.loads(up.ready_file.read_text())["nodes"]["Bob"]["etsi014"] + "/api/v1/keys/sae-alice/enc_keys"
    shown = ["--cert", files["certificate"], "--key", files["private_key"], "--cacert", files["ca"]]
    if shutil.which("curl"):
        refused = subprocess.run(["curl", "-sS", *shown, url], capture_output=True, text=True, check=False)
        assert '"key"' not in refused.stdout


@pytest.mark.slow
def test_a_second_network_in_the_same_place_is_refused(up):
    second = start(up.home, "two-nodes", "--quiet")
    said, complaint = second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 1
    assert said == ""
    assert "trenza down" in complaint


@pytest.mark.slow
def test_nodes_read_their_configuration_anew(up):
    assert set(up.run_json("node", "reload")["nodes"]) == {"Alice", "Bob"}


@pytest.mark.slow
def test_what_is_printed_can_be_pasted_and_down_stops_everything(up):  # the last one: nothing runs afterwards
    assert up.run_json("down")["stopped"]
    said, complaint = up.process.communicate(timeout=DEADLINE_S)
    assert (up.process.returncode, complaint) == (0, "")
    assert not up.ready_file.exists()
    words = [shlex.split(line.split(" ", 1)[1]) for line in said.splitlines() if " curl " in line]
    assert [one[0] for one in words] == ["curl", "curl"]
    assert words[0][-1].endswith("/enc_keys")
    assert words[1][-1].endswith("/dec_keys?key_ID=KEY_ID")
    assert up.run_json("ps")["networks"] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_start_that_is_interrupted_ends_in_good_order(tmp_path, number):
    process = start(tmp_path, "two-nodes")
    assert "starting" in process.stdout.readline()
    process.send_signal(number)
    _said, complaint = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, complaint) == (0, "")


def test_a_scenario_with_mistakes_starts_nothing_and_all_mistakes_are_listed(tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text('name = "wrong"\ntitle = "Wrong"\nnonsense = 1\n[[nodes]]\nname = "A"\n')
    result = CliRunner().invoke(main, ["scenario", "check", str(file), "--json"])
    assert result.exit_code == 1
    mistakes = json.loads(result.stderr)["mistakes"]
    assert any("nonsense" in mistake for mistake in mistakes)
    assert any("operator" in mistake for mistake in mistakes)
    started = CliRunner().invoke(main, ["up", str(file), "--state-dir", str(tmp_path / "state")])
    assert started.exit_code == 1
    assert not (tmp_path / "state").exists()


def test_a_ready_file_that_could_never_be_written_starts_nothing(tmp_path):
    state = tmp_path / "state"
    file = tmp_path / "nowhere" / "ready.json"
    result = CliRunner().invoke(main, ["up", "two-nodes", "--ready-file", str(file), "--state-dir", str(state)])
    assert result.exit_code == 1
    assert f"there is no directory {file.parent}" in result.stderr
    assert not state.exists()


def test_the_scenarios_that_come_along_are_listed_and_have_no_mistakes():
    result = CliRunner().invoke(main, ["scenario", "list", "--json"])
    names = [one["name"] for one in json.loads(result.stdout)["scenarios"]]
    assert {"spain", "two-nodes"} <= set(names)
    assert "no mistakes" in CliRunner().invoke(main, ["scenario", "check", "spain"]).stdout


def test_the_pair_that_is_shown_first_is_the_farthest_that_its_policy_lets_share_keys():
    assert set(farthest_pair(load_scenario("three-nodes"))) == {"sae-alice", "sae-bob"}


def test_a_scenario_of_any_name_has_a_directory():
    assert directory_name("Spain, south/west") == "Spain-south-west"
    assert directory_name("../..") == "network"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--store", "postgres"), "needs --processes"),
        (("--store", "postgres", "--processes"), "needs --database-address"),
        (("--database-address", "file"), "needs --store postgres"),
    ],
)
def test_a_database_that_was_half_told_is_refused_with_what_is_missing(words, why):
    result = CliRunner().invoke(main, ["up", "two-nodes", *words])
    assert result.exit_code == 2
    assert why in result.stderr
