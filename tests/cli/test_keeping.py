"""`trenza node make-key`, `backup` and `restore` say what they did, or what to do."""

import json

import pytest
from click.testing import CliRunner
from tests.adapters.keyring import softhsm

from trenza.cli.main import main


@pytest.fixture
def token(tmp_path):
    tokens = softhsm.soft_tokens(tmp_path)
    next(tokens)
    yield softhsm.new_token(tmp_path)
    next(tokens, None)


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def make_key(token, uri):
    return run("node", "make-key", uri, "--module", token.module, "--pin-file", token.pin_file)


def test_a_key_is_made_in_a_token_once(token):
    done = make_key(token, token.uri())
    assert (done.exit_code, done.output) == (0, f"{token.uri()} is made\n")
    again = make_key(token, token.uri())
    assert again.exit_code == 1
    assert "is there already" in again.output


def test_what_is_wrong_with_a_token_is_said(token):
    for uri, status, why in (
        ("node.key", 2, "not a PKCS #11 URI"),
        ("pkcs11:token=nowhere;object=k", 1, "is not there"),
    ):
        done = make_key(token, uri)
        assert done.exit_code == status, done.output
        assert why in done.output
    token.set_pin("9999")
    done = make_key(token, token.uri())
    assert done.exit_code == 1
    assert "refuses the PIN" in done.output
    assert "9999" not in done.output


@pytest.mark.parametrize("command", [("backup", "--to"), ("restore", "--from")])
def test_a_configuration_with_mistakes_is_refused_for_programs_too(tmp_path, command):
    config = tmp_path / "config.toml"
    config.write_text("name = 3")
    done = run("node", command[0], "--config", config, command[1], tmp_path / "backups", "--json")
    assert done.exit_code == 1
    assert json.loads(done.output)["error"] == "invalid-document"
    assert not (tmp_path / "backups").exists()
