"""A network of two nodes on real sockets: two applications fetch the same key with nobody's client but their own."""

import asyncio
import base64
import http.client
import json
import shutil
import ssl
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
import uvloop
from cryptography import x509
from tests.e2e.product import Process

from trenza.app.network import Network
from trenza.app.pki import CertificateAuthority, load_officer_key, node_uri
from trenza.app.scenario import load_scenario
from trenza.base.errors import UnavailableError
from trenza.core.policy import SignedBook, bytes_to_sign, message_of
from trenza.net.http_client import HttpClient
from trenza.net.tls import TlsIdentity, client_context, fingerprint_of

pytestmark = pytest.mark.slow
TIMEOUT_S = 90


def run(story):
    async def bounded():
        async with asyncio.timeout(TIMEOUT_S):
            return await story

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


@asynccontextmanager
async def running(state, **options):
    network = await Network.start(load_scenario("two-nodes"), state=state, progress=lambda _what: None, **options)
    try:
        yield network, network.ready_document()
    finally:
        await network.stop()


async def until(holds):
    """Wait until something holds that other tasks of this loop bring about; at most as long as a test may take."""
    while not holds():  # noqa: ASYNC110 - what is waited for is seen from outside only
        await asyncio.sleep(0.05)


def fingerprint_in(certificate):
    return fingerprint_of(x509.load_pem_x509_certificate(Path(certificate).read_bytes()))


def ask_as(ready, sae, path, body=None):
    """Ask a node as an application with the standard library's client does; return status and JSON."""
    files = ready["saes"][sae]
    context = ssl.create_default_context(cafile=files["ca"])
    context.load_cert_chain(files["certificate"], files["private_key"])
    where = urlsplit(ready["nodes"][files["node"]]["etsi014"])
    connection = http.client.HTTPSConnection(where.hostname, where.port, context=context, timeout=10)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


async def ask_operator(ready, node, path, method="GET", body=None):
    files = ready["operator"]
    identity = TlsIdentity(*(Path(files[name]) for name in ("certificate", "private_key", "ca")))
    where = urlsplit(ready["nodes"][node]["management"])
    client = HttpClient(client_context(identity), where.hostname, where.port)
    try:
        response = await client.request(method, path, body)
        return response.status, json.loads(response.body)
    finally:
        await client.aclose()


async def fetch_pair(ready, initiator="sae-alice", target="sae-bob"):
    """Return (key ID, initiator's key entry, target's key entry)."""
    status, issued = await asyncio.to_thread(ask_as, ready, initiator, f"/api/v1/keys/{target}/enc_keys?number=1")
    assert status == 200, issued
    key_id = issued["keys"][0]["key_ID"]
    status, fetched = await asyncio.to_thread(
        ask_as, ready, target, f"/api/v1/keys/{initiator}/dec_keys", {"key_IDs": [{"key_ID": key_id}]}
    )
    assert status == 200, fetched
    return key_id, issued["keys"][0], fetched["keys"][0]


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("network") / "two-nodes"


def test_both_ends_hold_the_same_hybrid_key_and_are_told_what_it_is_made_of(state):
    async def story():
        async with running(state) as (_, ready):
            key_id, here, there = await fetch_pair(ready)
            assert here["key"] == there["key"]
            assert len(base64.b64decode(here["key"])) == 32
            assert "hybrid-catkdf" in json.dumps(here["key_extension"])
            assert there["key_ID"] == key_id
            again, _ = await asyncio.to_thread(
                ask_as, ready, "sae-bob", f"/api/v1/keys/sae-alice/dec_keys?key_ID={key_id}"
            )
            assert again == 400  # a key is delivered once

    run(story())


def test_every_pair_gets_what_its_policy_names(state):
    async def story():
        async with running(state) as (_, ready):
            for initiator, target, recipe in (
                ("sae-bob", "sae-alice", "hybrid-catkdf"),
                ("sae-alice-2", "sae-bob-2", "hybrid-catkdf"),
                ("sae-alice", "sae-alice-2", "local"),
            ):
                _, here, there = await fetch_pair(ready, initiator, target)
                assert here["key"] == there["key"]
                assert recipe in json.dumps(here["key_extension"])
            status, _ = await asyncio.to_thread(ask_as, ready, "sae-alice-2", "/api/v1/keys/sae-bob/enc_keys")
            assert status == 401  # no rule lets these two share keys

    run(story())


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_a_key(state):
    async def story():
        async with running(state) as (_, ready):
            files = ready["saes"]["sae-alice"]
            url = f"{ready['nodes']['Alice']['etsi014']}/api/v1/keys/sae-bob/enc_keys?number=2&size=512"
            command = ["curl", "-sS", "--fail", "--cacert", files["ca"], "--cert", files["certificate"]]
            command += ["--key", files["private_key"], url]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=20, check=False)
            assert done.returncode == 0, done.stderr
            assert [len(base64.b64decode(key["key"])) for key in json.loads(done.stdout)["keys"]] == [64, 64]

    run(story())


def test_every_internal_listener_speaks_post_quantum_tls_only_and_nodes_really_talk(state):
    async def story():
        async with running(state) as (network, ready):
            await fetch_pair(ready)
            for node in network.nodes:
                status, told = await ask_operator(ready, node, "/v1/status")
                assert status == 200
                doors = {one["door"]: one for one in told["tls"]}
                for door in ("peers", "management", "to peers", "to devices"):
                    assert set(doors[door]["handshakes"]) == {"X25519MLKEM768"}, door
                assert doors["application"]["handshakes"]
                assert all(one["sent"] > 0 and one["received"] > 0 for one in told["messages"])
                assert {one["peer"] for one in told["messages"]} == set(network.nodes) - {node}
            for statistics in network.devices.statistics():
                assert set(statistics.completed) == {"X25519MLKEM768"}

    run(story())


def test_an_operator_learns_what_protected_a_key_and_an_application_does_not_get_in(state):
    async def story():
        async with running(state) as (network, ready):
            key_id, _, _ = await fetch_pair(ready)
            stories = [(await ask_operator(ready, node, f"/v1/keys/{key_id}"))[1] for node in ("Alice", "Bob")]
            assert [[event["kind"] for event in one["events"]] for one in stories] == [["issued"], ["delivered"]]
            assert stories[0]["segment"] == stories[1]["segment"]
            assert [hop["link"] for hop in stories[0]["segment"]["hops"]] == ["Alice-Bob"]
            assert (await ask_operator(ready, "Alice", "/v1/health"))[0] == 200
            files = ready["saes"]["sae-alice"]
            node = urlsplit(ready["nodes"]["Alice"]["management"])
            context = ssl.create_default_context(cafile=files["ca"])
            context.load_cert_chain(files["certificate"], files["private_key"])
            with pytest.raises(OSError):
                await asyncio.open_connection(node.hostname, node.port, ssl=context)
            assert network.view().keys_issued >= 1

    run(story())


def test_a_node_that_is_stopped_and_started_again_still_delivers_what_the_other_issued(state):
    async def story():
        async with running(state) as (network, ready):
            status, issued = await asyncio.to_thread(
                ask_as, ready, "sae-alice", "/api/v1/keys/sae-bob/enc_keys?number=1"
            )
            assert status == 200
            await network.restart("Bob")
            key_id = issued["keys"][0]["key_ID"]
            status, fetched = await asyncio.to_thread(
                ask_as, ready, "sae-bob", f"/api/v1/keys/sae-alice/dec_keys?key_ID={key_id}"
            )
            assert status == 200, fetched
            assert fetched["keys"][0]["key"] == issued["keys"][0]["key"]
            assert network.nodes["Bob"].node.ctx.counters["starts_from_a_copy"] == 0

    run(story())


def test_a_network_goes_on_from_its_own_files(state):
    async def story():
        async with running(state) as (network, ready):
            before = network.nodes["Alice"].node.ctx.presence
        async with running(state, fresh=False) as (network, again):
            assert network.nodes["Alice"].node.ctx.presence.epoch == before.epoch
            assert network.nodes["Alice"].node.ctx.presence.incarnation == before.incarnation + 1
            assert again["saes"] == ready["saes"]
            _, here, there = await fetch_pair(again)
            assert here["key"] == there["key"]

    run(story())


def test_a_second_network_in_the_same_directory_is_refused(state):
    async def story():
        async with running(state):
            with pytest.raises(UnavailableError, match="trenza down"):
                await Network.start(load_scenario("two-nodes"), state=state, progress=lambda _what: None)

    run(story())


def test_after_stopping_nothing_says_that_it_is_ready(state):
    async def story():
        async with running(state):
            assert json.loads((state / "ready.json").read_bytes())["scenario"] == "two-nodes"
        assert not (state / "ready.json").exists()

    run(story())


def test_a_node_follows_its_changed_files_without_a_restart(state):
    async def story():
        async with running(state) as (network, ready):
            alice = network.nodes["Alice"]
            authority = CertificateAuthority.load(
                state / "pki" / "internal-ca.pem", state / "pki" / "internal-ca.key"
            )
            for file in (alice.config.peers.certificate, alice.config.peers.private_key):
                file.unlink()
            renewed = authority.issue("Alice", uris=[node_uri("Alice")])
            renewed.save(alice.config.peers.certificate, alice.config.peers.private_key)
            path = state / "nodes" / "Alice" / "config.toml"
            path.write_text(path.read_text().replace("stock_target = 8192", "stock_target = 100"))
            status, told = await ask_operator(ready, "Alice", "/v1/reload", "POST")
            assert status == 200, told
            assert told["changed"] == ["certificates loaded", "settings"]
            assert alice.node.ctx.settings.stock_target == 100
            alice.node.sessions.end("Bob")  # the next session is signed with the new key
            await until(lambda: alice.node.sessions.has_lease("Bob"))
            path.write_text(path.read_text().replace('name = "Alice"', 'name = "Carol"'))
            status, told = await ask_operator(ready, "Alice", "/v1/reload", "POST")
            assert (status, told["error"]) == (422, "invalid-document")
            assert "name: changes with a restart only" in told["mistakes"]

    run(story())


def test_a_link_is_taken_out_and_put_back_while_the_node_runs(state):
    async def story():
        async with running(state) as (network, ready):
            alice = network.nodes["Alice"]
            path = state / "nodes" / "Alice" / "config.toml"
            whole = path.read_text()
            head, _, tail = whole.partition("[[links]]")
            path.write_text(head + tail[tail.find("\n[") :] if "\n[" in tail else head)
            assert (
                "link Alice-Bob removed" in (await ask_operator(ready, "Alice", "/v1/reload", "POST"))[1]["changed"]
            )
            assert not alice.node.ctx.links
            path.write_text(whole)
            assert "link Alice-Bob added" in (await ask_operator(ready, "Alice", "/v1/reload", "POST"))[1]["changed"]
            assert list(alice.node.ctx.links) == ["Alice-Bob"]

    run(story())


def test_a_certificate_that_the_book_revokes_opens_no_door_any_more(state):
    async def story():
        async with running(state) as (network, ready):
            fingerprint = fingerprint_in(ready["saes"]["sae-alice"]["certificate"])
            book = msgspec.structs.replace(network.nodes["Alice"].node.ctx.book, version=2, revoked=(fingerprint,))
            body = bytes_to_sign(book)
            officer = load_officer_key(state / "officer.key")
            signed = SignedBook(body, officer.sign(message_of(body))).encode()
            assert await ask_operator(ready, "Alice", "/v1/book", "PUT", signed) == (200, {"version": 2})
            with pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)):
                await asyncio.to_thread(ask_as, ready, "sae-alice", "/api/v1/keys/sae-bob/status")
            await until(lambda: network.nodes["Bob"].node.ctx.book.version == 2)  # told by its peer

    run(story())


def test_each_node_and_the_devices_run_alone_from_the_same_files(state, tmp_path):
    async def begin():
        async with running(state) as (_, ready):
            return ready  # the files stay

    async def use(ready):
        path = "/api/v1/keys/sae-bob/enc_keys"
        while await asks_in_vain(ready, path):  # noqa: ASYNC110 - other processes bring it about
            await asyncio.sleep(0.05)  # the processes start, and the nodes meet again
        assert (await ask_operator(ready, "Alice", "/v1/health"))[0] == 200
        _, here, there = await fetch_pair(ready)
        assert here["key"] == there["key"]

    async def asks_in_vain(ready, path):
        try:
            return (await asyncio.to_thread(ask_as, ready, "sae-alice", path))[0] == 503
        except OSError:  # nobody listens yet
            return True

    ready = run(begin())
    words = [("devices", state / "devices.toml")]
    words += [("node", state / "nodes" / node / "config.toml") for node in ("Alice", "Bob")]
    processes = [
        Process(tmp_path / f"{number}.log", what, "--config", file) for number, (what, file) in enumerate(words)
    ]
    try:
        run(use(ready))
        assert [one.interrupt() for one in processes] == [0, 0, 0]
    finally:
        for one in processes:
            one.end()


def test_a_node_whose_story_crashes_is_started_again(state, caplog):
    async def story():
        async with running(state) as (network, ready):
            stop = asyncio.Event()
            keeping = asyncio.create_task(network.run(stop))
            before = network.nodes["Bob"]

            async def broken():
                raise ZeroDivisionError

            before.node.levels.tick = broken
            await until(lambda: network.nodes["Bob"] is not before and network.nodes["Bob"].is_running)
            await until(lambda: not network._missing())
            _, here, there = await fetch_pair(ready)
            assert here["key"] == there["key"]
            stop.set()
            await keeping
            assert "node Bob failed and is started again" in caplog.text

    run(story())
