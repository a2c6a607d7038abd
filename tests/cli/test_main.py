"""What people read when they ask for help, and when they are not understood."""

import errno
import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from trenza.base.errors import UnavailableError
from trenza.cli import main as main_module
from trenza.cli.main import COMMANDS, Entry, main

HELP = """
import sys
from trenza.cli.main import main
try:
    main(["--help"])
finally:
    print(len([name for name in sys.modules if name.startswith("trenza.cli.")]), "cryptography" in sys.modules)
"""


INTERRUPTED_AT_CLICK = """
import sys
class Interrupted:
    def find_spec(self, name, *_):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from trenza.cli.main import main
"""


def run(*words):
    return CliRunner().invoke(main, words)


def test_help_names_every_command_and_needs_none_of_their_modules():
    told = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True).stdout
    assert all(name in told for name in COMMANDS)
    assert told.endswith("2 False\n")  # trenza.cli.main and trenza.cli.output, and nothing that is slow to import


def test_ctrl_c_while_modules_are_read_ends_it_without_a_traceback():
    told = subprocess.run([sys.executable, "-c", INTERRUPTED_AT_CLICK], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (130, "", "Error: interrupted\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(name):
    command = main.get_command(click.Context(main), name)
    assert command.get_short_help_str(limit=200).rstrip(".") == COMMANDS[name].help.rstrip(".")


def test_a_misspelt_command_is_answered_with_the_one_that_was_meant():
    result = run("stauts")
    assert result.exit_code == 2
    assert "Did you mean 'status'?" in result.stderr


def test_the_version_is_told():
    assert run("--version").stdout.startswith("trenza 0.")


def test_usage_errors_are_json_where_json_was_asked_for():
    result = run("ps", "--nonsense", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stderr)["error"] == "usage"
    assert result.stdout == ""


@pytest.fixture
def failing(monkeypatch):
    @click.command()
    @click.option("--json", is_flag=True)
    def ps(**_):
        raise UnavailableError("the door is closed: open it\x1b[31m")

    module = type(sys)("trenza.cli.failing")
    module.ps = ps
    monkeypatch.setitem(sys.modules, "trenza.cli.failing", module)
    monkeypatch.setitem(main_module.COMMANDS, "ps", Entry("failing", ""))


def test_a_failure_is_one_sentence_without_a_traceback(failing):
    result = run("ps")
    assert result.exit_code == 1
    assert result.stderr == "Error: the door is closed: open it[31m\n"  # and moves no terminal's cursor


def test_a_failure_is_one_json_document_where_json_was_asked_for(failing):
    result = run("ps", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"] == "unavailable"
    assert result.stdout == ""


def test_debug_shows_where_a_failure_comes_from(failing):
    assert "Traceback" in run("--debug", "ps").stderr


def test_what_the_operating_system_refuses_is_one_sentence_that_names_the_file(failing, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied", "/etc/ready.json")

    monkeypatch.setattr(sys.modules["trenza.cli.failing"].ps, "callback", refuse)
    result = run("ps")
    assert (result.exit_code, result.stderr) == (1, "Error: /etc/ready.json: Permission denied\n")
    assert json.loads(run("ps", "--json").stderr) == {
        "error": "system",
        "message": "/etc/ready.json: Permission denied",
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_completion_script(shell):
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_TRENZA_COMPLETE" in result.stdout


def completed(*words, **environment) -> list[str]:
    asked = {"_TRENZA_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner().invoke(main, [], env=asked | environment, prog_name="trenza")
    return [line.partition(",")[2] for line in result.stdout.split()]


def test_completion_offers_commands():
    assert completed("trenza", "s") == ["status", "sae", "scenario"]


def test_completion_offers_what_the_network_has(network):
    state = {"TRENZA_STATE_DIR": str(network.state)}
    assert completed("trenza", "status", "A", **state) == ["Alice"]
    assert completed("trenza", "key", "get", "--from", "sae-", **state) == ["sae-alice", "sae-bob"]
    assert completed("trenza", "up", "two") == ["two-nodes"]


def test_completion_never_complains(tmp_path):
    assert completed("trenza", "status", "A", XDG_STATE_HOME=str(tmp_path), TRENZA_STATE_DIR=None) == []
