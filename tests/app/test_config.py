"""A node's configuration is read whole or refused with every mistake, each with its line and key."""

from pathlib import Path

import pytest

from trenza.app.config import (
    DoorLimits,
    Exposure,
    NodeConfig,
    host_and_port,
    load_device_host_config,
    load_node_config,
    write_config,
)
from trenza.base.errors import InvalidDocumentError
from trenza.kms.context import Settings
from trenza.net.tls import Groups, OldestTls

FILES = ("officer.pem", "book.json", "ca.pem", "node.pem", "node.key.pem", "psk")
NODE = """\
name = "Alice"
data_directory = "data"
node_key = "node.key"
anchor = "anchor"
officer = "officer.pem"
book = "book.json"

[application]
certificate = "node.pem"
private_key = "node.key.pem"
trust = "ca.pem"
address = "127.0.0.1:8443"

[peers]
certificate = "node.pem"
private_key = "node.key.pem"
trust = "ca.pem"
address = "[::1]:8444"

[management]
certificate = "node.pem"
private_key = "node.key.pem"
trust = "ca.pem"
address = "127.0.0.1:8445"

[devices]
certificate = "node.pem"
private_key = "node.key.pem"
trust = "ca.pem"

[[links]]
name = "Alice-Bob"
peer = "Bob"
device = "192.0.2.1:443"
device_identity = "urn:trenza:device:a"

[[preshared]]
node = "Bob"
file = "psk"

[settings]
stock_target = 99
lease = 2.5
"""


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / name).touch()
    return tmp_path


def loaded(folder, text=NODE) -> NodeConfig:
    path = folder / "config.toml"
    path.write_text(text)
    return load_node_config(path)


def mistakes(folder, text) -> tuple[str, ...]:
    with pytest.raises(InvalidDocumentError) as refused:
        loaded(folder, text)
    return refused.value.mistakes


def test_a_configuration_is_read_with_paths_beside_it(folder):
    config = loaded(folder)
    assert config.name == "Alice"
    assert config.data_directory == folder / "data"
    assert config.peers.host_and_port == ("::1", 8444)
    assert config.links[0].peer == "Bob"
    assert config.preshared[0].file == folder / "psk"


def test_settings_replace_the_defaults_and_keep_their_types(folder):
    settings = loaded(folder).kms_settings()
    assert settings == Settings(stock_target=99, lease=2.5)
    assert isinstance(settings.stock_target, int)


def test_what_is_written_reads_back_the_same(folder):
    config = loaded(folder)
    (folder / "elsewhere").mkdir()
    write_config(config, folder / "elsewhere" / "again.toml")
    again = load_node_config(folder / "elsewhere" / "again.toml")
    assert again.name == config.name
    assert again.links == config.links
    assert again.settings == config.settings
    assert again.officer.resolve() == config.officer.resolve()


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(folder):
    text = NODE.replace('anchor = "anchor"', 'ancor = "anchor"').replace("127.0.0.1:8445", "127.0.0.1")
    text = text.replace("stock_target", "stok_target").replace('peer = "Bob"', "peer = 3")
    told = mistakes(folder, text)
    assert any("anchor: is missing" in one for one in told)
    assert "line 4: ancor: no such key; did you mean anchor?" in told
    assert "line 33: links.1.peer: Expected `str`, got `int`" in told
    assert len(told) == 3
    lines = [int(one.split()[1].rstrip(":")) for one in told]
    assert lines == sorted(lines)


def test_mistakes_between_values_are_told_at_once(folder):
    text = NODE.replace("127.0.0.1:8445", "127.0.0.1").replace("stock_target = 99", "stok_target = 99")
    text = text.replace("lease = 2.5", "lease = 0").replace('peer = "Bob"', 'peer = "Alice"')
    told = "\n".join(mistakes(folder, text))
    assert "management.address: '127.0.0.1' is not host:port" in told
    assert "settings.stok_target: no such key; did you mean stock_target?" in told
    assert "settings.lease: must be greater than 0" in told
    assert "links.Alice-Bob: a link leads to another node" in told


def test_files_that_are_not_there_are_named(folder):
    (folder / "psk").unlink()
    (folder / "ca.pem").unlink()
    told = mistakes(folder, NODE)
    assert sum("ca.pem" in one for one in told) == 4
    assert any(str(folder / "psk") in one for one in told)


def test_an_anchor_inside_the_data_directory_is_refused(folder):
    told = mistakes(folder, NODE.replace('anchor = "anchor"', 'anchor = "data/anchor"'))
    assert told == ("line 4: anchor: inside data_directory a restored copy would bring its own anchor along",)


TOKEN = """
[token]
key = "pkcs11:token=hsm;object=node-key"
module = "module.so"
pin_file = "pin"
"""


def test_the_node_key_may_be_in_a_token(folder):
    for name in ("module.so", "pin"):
        (folder / name).touch()
    config = loaded(folder, NODE.replace('node_key = "node.key"\n', "") + TOKEN)
    assert (config.node_key, config.token.uri.token, config.token.pin_file) == (None, "hsm", folder / "pin")
    write_config(config, folder / "again.toml")
    assert load_node_config(folder / "again.toml") == config


def test_the_node_key_is_in_one_place(folder):
    assert "either this file or [token]" in mistakes(folder, NODE.replace('node_key = "node.key"\n', ""))[0]
    told = "\n".join(mistakes(folder, NODE + TOKEN.replace("object=node-key", "object=k?pin-value=1")))
    for part in ("either this file or [token]", "token.module: there is no file", "token.key: nothing may follow"):
        assert part in told


def test_links_need_a_certificate_to_show_the_devices(folder):
    head, _, tail = NODE.partition("[devices]")
    told = mistakes(folder, head + tail[tail.index("[[links]]") :])
    assert told[0].endswith("links need the certificate that this node shows its devices")


def test_a_fraction_of_a_slot_is_refused(folder):
    (told,) = mistakes(folder, NODE.replace("= 99", "= 9.5"))
    assert "settings.stock_target: must be a whole number" in told


def test_text_that_is_not_toml_is_refused_with_its_place(folder):
    (told,) = mistakes(folder, "name = \n")
    assert "line 1" in told


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InvalidDocumentError, match="cannot be read"):
        load_node_config(tmp_path / "none.toml")


def test_classical_groups_are_accepted_on_the_loopback_and_on_protected_sites_only(folder):
    assert loaded(folder).application.effective_exposure is Exposure.LOOPBACK
    assert loaded(folder).application.groups is Groups.HYBRID_PREFERRED
    public = NODE.replace('"127.0.0.1:8443"', '"0.0.0.0:8443"')
    assert loaded(folder, public).application.effective_exposure is Exposure.OPEN
    assert loaded(folder, public).application.groups is Groups.HYBRID_ONLY
    declared = public.replace('"0.0.0.0:8443"', '"0.0.0.0:8443"\nexposure = "site-protected"')
    assert loaded(folder, declared).application.groups is Groups.HYBRID_PREFERRED


def test_nobody_declares_a_public_address_to_be_the_loopback(folder):
    text = NODE.replace('"127.0.0.1:8443"', '"0.0.0.0:8443"\nexposure = "loopback"')
    assert mistakes(folder, text) == ("line 13: application.exposure: 0.0.0.0:8443 is not on the loopback",)


def test_an_unknown_exposure_is_refused_with_the_choices(folder):
    (told,) = mistakes(folder, NODE.replace('"127.0.0.1:8443"', '"127.0.0.1:8443"\nexposure = "any"'))
    assert told.endswith(": loopback, site-protected, open")


def test_tls_1_2_is_accepted_where_classical_groups_are(folder):
    text = NODE.replace('"127.0.0.1:8443"', '"127.0.0.1:8443"\naccepts_tls_1_2 = true')
    assert loaded(folder, text).application.oldest is OldestTls.TLS_1_2
    (told,) = mistakes(folder, text.replace("127.0.0.1:8443", "0.0.0.0:8443"))
    assert "TLS 1.2 has no post-quantum group" in told


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:65536", "::1:80", "host:-1", "host:٣"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="host:port"):
        host_and_port(address)


DEVICES = """\
trust = "ca.pem"
operators = ["urn:trenza:operator:local"]

[[pairs]]
link = "Alice-Bob"
device_class = "decoy-bb84-1ghz"
loss_db = 3.0

[pairs.a]
node = "Alice"
device = "a"
keys = "127.0.0.1:1"
telemetry = "127.0.0.1:2"
certificate = "node.pem"
private_key = "node.key.pem"

[pairs.b]
node = "Bob"
device = "b"
keys = "127.0.0.1:3"
telemetry = "127.0.0.1:4"
certificate = "node.pem"
private_key = "node.key.pem"
node_identity = "urn:example:bob"
"""


def test_a_host_of_devices_is_read(folder):
    path = folder / "devices.toml"
    path.write_text(DEVICES)
    (pair,) = load_device_host_config(path).pairs
    assert [end.node_uri for end in pair.ends] == ["urn:trenza:node:Alice", "urn:example:bob"]


def test_mistakes_of_a_host_of_devices_are_all_told(folder):
    path = folder / "devices.toml"
    path.write_text(DEVICES.replace("decoy-bb84-1ghz", "decoy-bb84-2ghz").replace("127.0.0.1:3", "127.0.0.1"))
    with pytest.raises(InvalidDocumentError) as refused:
        load_device_host_config(path)
    assert len(refused.value.mistakes) == 2
    assert "did you mean" in refused.value.mistakes[0]


def test_configurations_that_were_written_hold_relative_paths_only(folder):
    path = folder / "config.toml"
    write_config(loaded(folder), path)
    assert str(folder) not in path.read_text()
    assert Path(load_node_config(path).officer) == folder / "officer.pem"


# --- limits of doors


def test_a_door_has_the_limits_that_are_said_and_the_defaults_otherwise(folder):
    said = NODE + "\n[application.limits]\nmax_connections_per_client = 3\nrequest_timeout_s = 2.5\n"
    config = loaded(folder, said)
    limits = config.application.limits
    assert limits.gate.max_connections_per_client == 3
    assert limits.http(max_body_bytes=9).request_timeout_s == 2.5
    assert limits.http(max_body_bytes=9).max_connections < limits.gate.max_connections  # the last are told why
    assert config.peers.limits == config.management.limits == DoorLimits()
    write_config(config, folder / "again.toml")
    assert load_node_config(folder / "again.toml").application.limits == limits


@pytest.mark.parametrize(
    ("said", "mistake"),
    [
        ("max_connections = 0", "line 46: application.limits.max_connections: Expected `int` >= 1"),
        ("handshakes_per_second = -1", "line 46: application.limits.handshakes_per_second: Expected `float` > 0.0"),
        (
            "max_conections = 1",
            "line 46: application.limits.max_conections: no such key; did you mean max_connections?",
        ),
    ],
)
def test_a_limit_that_is_none_is_refused_with_its_line(folder, said, mistake):
    (told,) = mistakes(folder, f"{NODE}\n[application.limits]\n{said}\n")
    assert told.startswith(mistake)
