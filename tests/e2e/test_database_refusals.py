"""A node that cannot have its memory in the database it was told of says why in one sentence, and ends."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from tests import postgres as servers

from trenza.app.config import DatabaseConfig, load_node_config, write_config
from trenza.app.network_files import NetworkFiles, Ports
from trenza.app.scenario import load_scenario
from trenza.app.state_directory import StateDirectory

pytestmark = pytest.mark.slow

FAILED = 1
ENDS_WITHIN_S = 30.0
WITHOUT_DRIVER = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "asyncpg":
            raise ModuleNotFoundError("No module named 'asyncpg'", name="asyncpg")

sys.meta_path.insert(0, Missing())
from trenza.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def server():
    if (why := servers.missing()) is not None:
        pytest.skip(why)
    pytest.importorskip("asyncpg", reason="the extra `postgres` is not installed")
    with servers.cluster() as cluster:
        yield cluster


@dataclass
class Told:
    """A node's configuration, and where its database is said to be."""

    config: Path
    address: Path

    def say(self, dsn: str, *, mode: int = 0o600) -> None:
        self.address.write_text(dsn + "\n")
        self.address.chmod(mode)

    def refusal(self, *, program: tuple[str, ...] = ("-m", "trenza.cli")) -> str:
        """Start the node; return its one sentence."""
        words = [sys.executable, "-P", *program, "node", "--config", str(self.config)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=ENDS_WITHIN_S, check=False)
        assert done.returncode == FAILED, done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("Error") == 1
        return done.stderr


@pytest.fixture
def told(tmp_path):
    state, ports = StateDirectory(tmp_path / "state"), Ports()
    scenario = load_scenario("two-nodes")
    NetworkFiles(scenario, state, ports).write()
    address = tmp_path / "database"
    config = state.node_config(scenario.nodes[0].name)
    changed = msgspec.structs.replace(
        load_node_config(config), database=DatabaseConfig(address, schema=tmp_path.name)
    )
    address.touch(mode=0o600)
    write_config(changed, config)
    ports.release()
    yield Told(config, address)
    state.release()


def test_without_the_driver_the_extra_is_named(told):
    assert "pip install 'trenza[postgres]'" in told.refusal(program=("-c", WITHOUT_DRIVER))


def test_a_server_that_is_not_there_cannot_be_reached(told, tmp_path):
    pytest.importorskip("asyncpg", reason="the extra `postgres` is not installed")
    told.say(f"postgresql://{servers.USER}@/postgres?host={tmp_path}")
    assert "the database cannot be reached" in told.refusal()


def test_a_password_that_others_may_read_is_refused_and_not_repeated(told):
    pytest.importorskip("asyncpg", reason="the extra `postgres` is not installed")
    told.say("postgresql://trenza:hunter2@/postgres", mode=0o644)
    sentence = told.refusal()
    assert "chmod 600" in sentence
    assert "hunter2" not in sentence


def test_a_server_that_may_forget_is_refused(told, server):
    told.say(server.dsn())
    server.stop("fast")
    server.start(fsync="off")
    try:
        assert "fsync is off: it may forget what it acknowledged" in told.refusal()
    finally:
        server.stop("fast")
        server.start()


def test_another_node_key_than_that_of_the_instances_before_is_refused(told, server):
    told.say(server.dsn())
    words = [sys.executable, "-P", "-m", "trenza.cli", "node", "--config", str(told.config)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        assert any("is open" in line for line in first.stderr)
        first.terminate()
        first.stderr.read()
    assert first.returncode == 0
    key = load_node_config(told.config).node_key
    key.write_bytes(os.urandom(32))
    assert "node key" in told.refusal()
