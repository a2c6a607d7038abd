"""`trenza up --processes`: what one process promises, kept by many that die one by one."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from tests.e2e import product
from tests.e2e.product import Process, until

from trenza.app.config import load_node_config
from trenza.app.state_directory import StateDirectory

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    with product.up("two-nodes", tmp_path_factory.mktemp("processes"), "--processes") as made:
        yield made


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def a_key(network):
    told = network.command_json("key", "get", "--from", "sae-alice", "--to", "sae-bob")
    (key,) = told["keys"]
    assert key["equal"]
    return key["key_ID"]


def test_every_node_is_a_process_of_its_own_and_commands_see_one_network(network):
    pids = {node: network.pid(node) for node in ("Alice", "Bob")}
    assert len({*pids.values(), network.process.pid}) == 3
    assert all(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[4] == b"node" for pid in pids.values())
    (listed,) = [one for one in network.command_json("ps")["networks"] if one["directory"] == str(network.state)]
    assert (listed["pid"], listed["processes"]) == (network.process.pid, pids)
    assert set(network.command_json("status")["nodes"]) == set(pids)
    statements = network.command_json("explain", a_key(network))["statements"]
    assert [one["node"] for one in statements] == ["Alice", "Bob"]


@pytest.mark.parametrize("node", ["Alice", "Bob"])
def test_who_is_killed_comes_back_and_both_ready_documents_name_the_new_process(network, node):
    before = network.pid(node)
    os.kill(before, signal.SIGKILL)
    until("another process", lambda: network.pid(node) != before)
    assert not is_alive(before)
    until("both documents agree", lambda: in_ready_file(network, node) == network.pid(node))
    until("it answers again", lambda: network.command("status", node, ok=False).returncode == 0)
    until(
        "keys again",
        lambda: network.command("key", "get", "--from", "sae-alice", "--to", "sae-bob", ok=False).returncode == 0,
    )
    said = network.process.said()
    assert f"{node}: was ended by SIGKILL; started again as process {network.pid(node)} (restart 1)" in said
    assert f"INFO node {node} is open" in said


def in_ready_file(network, node):
    return json.loads((network.state.parent / "ready.json").read_text())["nodes"][node]["pid"]


def test_an_application_that_was_added_stays_in_the_document_when_a_node_is_started_again(network):
    network.command("sae", "new", "sae-carol", "--node", "Bob", "--with", "sae-alice")
    before = network.pid("Alice")
    os.kill(before, signal.SIGKILL)
    until("another process", lambda: network.pid("Alice") != before)
    assert "sae-carol" in json.loads((network.state / "ready.json").read_text())["saes"]


def test_a_second_network_in_the_same_place_is_refused_and_harms_nobody(network):
    pids = [network.pid(node) for node in ("Alice", "Bob")]
    refused = product.run("up", "two-nodes", "--processes", "--state-dir", network.state, ok=False)
    assert refused.returncode == 1
    assert "trenza down" in refused.stderr
    assert all(is_alive(pid) for pid in pids)


def test_no_process_outlives_a_supervisor_that_is_killed_and_its_network_resumes(tmp_path):
    with product.up("two-nodes", tmp_path, "--processes") as first:
        key_id = a_key(first)
        members = everybody(first)
        os.kill(first.process.pid, signal.SIGKILL)
        until("nobody is left", lambda: not any(is_alive(pid) for pid in members))
    (tmp_path / "ready.json").unlink()
    with product.up("two-nodes", tmp_path, "--processes", "--resume") as second:
        statements = second.command_json("explain", key_id)["statements"]
        assert {one["node"] for one in statements} == {"Alice", "Bob"}  # by time: a lost record comes later
        assert second.status("Alice")["incarnation"] == 2
        a_key(second)


def everybody(network):
    """Return the processes whose parent is the supervisor: the nodes and the devices."""
    numbered = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    found = [int(entry.name) for entry in numbered if parent_of(entry) == network.process.pid]
    assert len(found) == 3
    return found


def parent_of(entry):
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_ctrl_c_stops_every_process_in_good_order(tmp_path):
    with product.up("two-nodes", tmp_path, "--processes") as network:
        members = everybody(network)
        began = time.monotonic()
        assert network.process.interrupt() == 0, network.process.said()
        assert time.monotonic() - began < product.STOPS_WITHIN_S
        assert not any(is_alive(pid) for pid in members)
        assert not (network.state / "ready.json").exists()
        assert not (tmp_path / "ready.json").exists()
        said = network.process.said()
        assert "node Alice stops" in said
        assert "killed" not in said
        assert "Traceback" not in said


@pytest.fixture
def stopped(tmp_path):
    """The files of a network that ran once."""
    with product.up("two-nodes", tmp_path, "--processes") as network:
        assert network.process.interrupt() == 0
    return StateDirectory(tmp_path / "state")


def resumed(tmp_path, stopped):
    stopped.release()
    process = Process(tmp_path / "again", "up", "two-nodes", "--processes", "--resume", "--state-dir", stopped.path)
    until("its end", lambda: process.ended)
    return process


def test_a_node_that_cannot_start_ends_the_start_and_says_why(tmp_path, stopped):
    (stopped.node("Bob") / "node.key").write_bytes(b"short")
    process = resumed(tmp_path, stopped)
    assert process.exit_status == 1
    assert "Error: the process of Bob ended with status 1 at its start: " in process.said()
    why = process.said().rpartition("at its start: ")[2]
    assert "node.key" in why
    assert "it holds 5 bytes" in why


def test_a_port_in_use_ends_the_start_and_says_why(tmp_path, stopped):
    path = stopped.node_config("Alice")
    config = load_node_config(path)
    with socket.create_server(config.peers.host_and_port):
        process = resumed(tmp_path, stopped)
    assert process.exit_status == 1
    assert "the process of Alice ended with status 1 at its start" in process.said()
    assert "another process listens there" in process.said()


def test_a_configuration_with_mistakes_ends_the_start_and_says_which(tmp_path, stopped):
    path = stopped.node_config("Alice")
    path.write_text(path.read_text() + "\nnonsense = 1\n")
    process = resumed(tmp_path, stopped)
    assert process.exit_status == 1
    assert "nonsense" in process.said()
