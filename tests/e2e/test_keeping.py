"""What operators do for a node's memory, with the processes and commands they have: back up, lose all, restore."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.adapters.keyring import softhsm
from tests.e2e import product
from tests.e2e.product import until
from tests.e2e.traffic import History, Traffic
from tests.small_disk import small_disk

from trenza.app.config import TokenConfig

pytestmark = pytest.mark.slow

FORTH, BACK = ("sae-alice", "sae-bob"), ("sae-bob", "sae-alice")


@pytest.fixture
def sites(tmp_path):
    with product.sites("two-nodes", tmp_path) as made:
        yield made


def all_run(sites) -> None:
    sites.start_devices()
    sites.start("Alice", "Bob")
    both_ways(sites)


def both_ways(sites) -> None:
    for pair in (FORTH, BACK):
        sites.until_issuable(*pair)


def more(history, pairs: int) -> None:
    wanted = history.counts["fetched"] + pairs
    until(f"{pairs} more pairs ({history.counts})", lambda: history.counts["fetched"] >= wanted)


def test_a_node_that_lost_all_is_restored_and_works_with_its_peer_again(sites, tmp_path):
    all_run(sites)
    history, config = History(), sites.state.node_config("Alice")
    with Traffic(sites.network, history, FORTH, BACK):
        more(history, 50)
        done = product.run("node", "backup", "--config", config, "--to", tmp_path / "backups", "--json")
        more(history, 50)  # it goes on meanwhile, and afterwards
    assert history.wrong == []
    (backup,) = (tmp_path / "backups").iterdir()
    told = json.loads(done.stdout)
    assert told["backup"] == str(backup)
    assert told["manifest"]["ledger_end"] > 0
    old = [key for key in history.fetched if "events" in sites.network.manage("Alice", f"/v1/keys/{key}")[1]]
    assert old

    sites.processes["Alice"].kill()
    data = sites.state.node("Alice") / "data"
    shutil.rmtree(data)
    refused = product.run("node", "restore", "--config", sites.state.node_config("Bob"), "--from", backup, ok=False)
    assert "of node Alice, not of Bob" in refused.stderr
    product.run("node", "restore", "--config", config, "--from", backup)
    sites.start("Alice")
    both_ways(sites)

    status = sites.network.status("Alice")
    assert status["epoch"] == 2
    assert status["counters"]["starts_from_a_copy"] == 1
    with Traffic(sites.network, history, FORTH, BACK):
        more(history, 50)
    assert history.wrong == []
    known = [key for key in old if sites.network.manage("Alice", f"/v1/keys/{key}")[0] == 200]
    assert set(old[:20]) <= set(known), "keys of before the backup are explained"
    verdict = sites.audited("Alice")
    assert verdict["whole"], verdict
    kinds = {entry["kind"] for entry in sites.network.manage("Alice", "/v1/ledger?kind=restored")[1]["entries"]}
    assert kinds == {"restored"}
    again = product.run("node", "restore", "--config", config, "--from", backup, ok=False)
    assert "in use by process" in again.stderr


def test_a_node_keeps_its_key_in_a_token(sites, tmp_path, monkeypatch):
    (tmp_path / "hsm").mkdir()
    tokens = softhsm.soft_tokens(tmp_path / "hsm")
    next(tokens)
    token = softhsm.new_token(tmp_path / "hsm")
    try:
        module, pin = ("--module", token.module), ("--pin-file", token.pin_file)
        product.run("node", "make-key", token.uri(), *module, *pin)
        in_token = TokenConfig(token.uri(), token.module, token.pin_file)
        sites.configure("Alice", lambda config: replace(config, node_key=None, token=in_token))
        all_run(sites)
        history = History()
        with Traffic(sites.network, history, FORTH, BACK):
            more(history, 30)
            token.take_out()
            until("the token is missed", lambda: "token" in str(sites.network.status("Alice")["troubles"]))
            assert not sites.processes["Alice"].ended
            token.put_back()
            until("the token is back", lambda: "token" not in str(sites.network.status("Alice")["troubles"]))
            more(history, 200)
        assert history.wrong == []
        sites.processes["Alice"].kill()
        sites.start("Alice")
        both_ways(sites)
        with Traffic(sites.network, history, FORTH, BACK):
            more(history, 30)
        assert history.wrong == []
        assert "1234" not in sites.processes["Alice"].said()
    finally:
        next(tokens, None)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_node_whose_disk_is_full_refuses_and_goes_on_by_itself_when_there_is_room(sites):
    alice, history = sites.state.node("Alice") / "data", History()
    with small_disk(alice, kilobytes=16_384) as disk:
        try:
            all_run(sites)
            lives = sites.network.status("Alice")["incarnation"]
            application = sites.network.application("sae-alice")
            for _ in range(2):
                with Traffic(sites.network, history, FORTH, BACK):
                    more(history, 30)
                    disk.fill()
                    code, refusal = until("a refusal", lambda: refused(application, "sae-bob"), within_s=90.0)
                    assert code == 503, refusal  # the store's, or, where the load took all before, for want of keys
                before = processor_seconds(sites.processes["Alice"].pid)
                time.sleep(5.0)
                spent = processor_seconds(sites.processes["Alice"].pid) - before
                assert spent < 3.0, "what cannot be written is tried again, not without end"
                status = sites.network.status("Alice")  # operators are still told what is wrong
                assert any("store" in trouble for trouble in status["troubles"].values()), status["troubles"]
                disk.free()
                both_ways(sites)
            with Traffic(sites.network, history, FORTH, BACK):
                more(history, 50)
            assert history.wrong == []
            assert sites.network.status("Alice")["incarnation"] == lives, "nothing has restarted"
            assert "Traceback" not in sites.processes["Alice"].said()
            assert sites.audited("Alice")["whole"]
        finally:
            sites.end()


def refused(application, target: str):
    """Return what a request was refused with; nothing if it was served."""
    code, answer = application.enc(target, number=1)
    return None if code == 200 else (code, answer)
