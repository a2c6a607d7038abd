"""What one node, or one host of emulated devices, is told at its start: TOML, read whole or refused whole.

Paths are relative to the file they stand in. Who may share keys with whom is not said here: that is the policy book,
which the key officer signs. Secrets are not said here either, only the files that hold them.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterator
from enum import StrEnum, unique
from pathlib import Path
from typing import Any

import msgspec

from trenza.adapters.keyring import TokenKeyUri
from trenza.app.documents import Document, Mistake, toml_text
from trenza.app.limits import DoorLimits
from trenza.app.pki import node_uri
from trenza.app.scenario_checks import did_you_mean
from trenza.app.scenario_lines import Place
from trenza.app.scenario_model import Factor, Loss, Rate, Whole
from trenza.base.errors import InvalidDocumentError
from trenza.base.names import LinkId, NodeId, is_name
from trenza.base.units import Seconds
from trenza.kms.context import Settings
from trenza.net.tls import Groups, OldestTls, TlsIdentity
from trenza.qkd.physics.devices import DEVICE_CLASSES

_MAY_BE_ZERO = frozenset({"ledger_days", "ledger_max_bytes"})  # where it means that there is no limit
SHARED_WINDOW_S = Seconds(8.0)
"""How many seconds of demand a node asks windows for where several instances share them, unless it is told."""

_SETTINGS = {field.name: field for field in dataclasses.fields(Settings)}


class Identity(msgspec.Struct, frozen=True):
    """PEM files of one party: what it shows and whom it trusts."""

    certificate: Path
    private_key: Path
    trust: Path

    @property
    def files(self) -> TlsIdentity:
        return TlsIdentity(self.certificate, self.private_key, self.trust)


class Listener(Identity, frozen=True):
    """Where a door is."""

    address: str  # host:port; port 0 for any free one
    limits: DoorLimits = DoorLimits()

    @property
    def host_and_port(self) -> tuple[str, int]:
        return host_and_port(self.address)


@unique
class Exposure(StrEnum):
    """Who can reach the application listener (design decision 16)."""

    LOOPBACK = "loopback"
    """Processes of this machine only."""

    SITE_PROTECTED = "site-protected"
    """A network that the site vouches for: classical TLS reveals nothing to strangers there."""

    OPEN = "open"
    """Anyone: post-quantum groups only."""


class ApplicationListener(Listener, frozen=True):
    """The door for applications, whose clients are other people's."""

    exposure: Exposure | None = None  # None: loopback if the address is, else open
    accepts_tls_1_2: bool = False  # for clients that know no newer; never where exposure is open

    @property
    def effective_exposure(self) -> Exposure:
        if self.exposure is not None:
            return self.exposure
        return Exposure.LOOPBACK if is_loopback(self.address) else Exposure.OPEN

    @property
    def groups(self) -> Groups:
        return Groups.HYBRID_ONLY if self.effective_exposure is Exposure.OPEN else Groups.HYBRID_PREFERRED

    @property
    def oldest(self) -> OldestTls:
        return OldestTls.TLS_1_2 if self.accepts_tls_1_2 else OldestTls.TLS_1_3


class LinkConfig(msgspec.Struct, frozen=True):
    """This node's end of one QKD link."""

    name: LinkId
    peer: NodeId
    device: str  # host:port of the device's key door (GS QKD 014)
    device_identity: str  # what the device's certificate must name: a URI, a host name or an address
    far_sae: str = ""  # how the device calls the far node; empty: by its name
    far_sae_as_initiator: str = ""  # the same, for keys which the far node drew; empty: no difference
    telemetry: str = ""  # host:port; empty: the device is mute
    telemetry_identity: str = ""  # empty: as the key door's
    classical_tls: bool = (
        False  # a vendor's device that knows no post-quantum group; an exception, to be written down
    )
    emulated: bool = False


class Preshared(msgspec.Struct, frozen=True):
    """A secret that this node and another were given by hand: the first end-to-end root of the pair."""

    node: NodeId
    file: Path  # 32 to 64 bytes, readable by its owner only


class TokenConfig(msgspec.Struct, frozen=True):
    """Where the node key is when it is in a PKCS #11 token, which it never leaves."""

    key: str  # RFC 7512: pkcs11:token=LABEL;object=LABEL
    module: Path  # the token's library
    pin_file: Path  # the user PIN, readable by its owner only

    @property
    def uri(self) -> TokenKeyUri:
        return TokenKeyUri.parse(self.key)


class DatabaseConfig(msgspec.Struct, frozen=True):
    """The PostgreSQL schema that is a node's memory where several instances of the node share it."""

    address: Path  # a file that says where the database is: one line, readable by its owner only
    schema: str = ""  # of this node alone; empty: the node's name
    instance: str = ""  # by which operators know this process; empty: the machine's name


class NodeConfig(msgspec.Struct, frozen=True):
    """All that `trenza node` is told."""

    name: NodeId
    data_directory: Path  # nothing is kept there where there is a database
    anchor: Path  # outside the data directory, on this machine's own disk; never part of a backup
    officer: Path  # the key officer's public key, PEM
    application: ApplicationListener
    peers: Listener
    management: Listener
    node_key: Path | None = None  # wraps the keys at rest; on another medium than the data, best
    token: TokenConfig | None = None  # or a token has that key
    database: DatabaseConfig | None = None  # the memory is there, and other instances may share it
    archive_directory: Path | None = None  # where old ledger entries go before they are pruned
    book: Path | None = None  # the first signed policy book; later ones also come from peers and operators
    devices: Identity | None = None  # what this node shows its QKD devices
    links: tuple[LinkConfig, ...] = ()
    preshared: tuple[Preshared, ...] = ()
    settings: dict[str, float] = {}  # names, meaning and defaults: kms.context.Settings

    def kms_settings(self) -> Settings:
        changed: dict[str, Any] = {
            name: type(getattr(Settings(), name))(value) for name, value in self.settings.items()
        }
        if self.database is not None:  # who serves beside a lead that has died lives on what is granted already
            changed.setdefault("window_seconds", SHARED_WINDOW_S)
        return Settings(**changed)


class DeviceEndConfig(msgspec.Struct, frozen=True):
    """One emulated device, and the node beside it."""

    node: NodeId
    device: str  # its name, as a KME
    keys: str  # host:port of its key door
    telemetry: str  # host:port of its telemetry port
    certificate: Path
    private_key: Path
    node_identity: str = ""  # what the node's certificate says; empty: urn:trenza:node:NAME

    @property
    def node_uri(self) -> str:
        return self.node_identity or node_uri(self.node)


class DevicePairConfig(msgspec.Struct, frozen=True):
    """One emulated pair; what the keys mean is said at `app.scenario_model.Link`."""

    link: LinkId
    device_class: str
    loss_db: Loss
    a: DeviceEndConfig
    b: DeviceEndConfig
    initial_stock_bits: Whole = 0
    time_factor: Factor = 1.0
    fixed_rate_bps: Rate | None = None

    @property
    def ends(self) -> tuple[DeviceEndConfig, DeviceEndConfig]:
        return self.a, self.b


class DeviceHostConfig(msgspec.Struct, frozen=True):
    """All that a host of emulated devices is told."""

    trust: Path  # the authority of the nodes and operators
    pairs: tuple[DevicePairConfig, ...]
    operators: tuple[str, ...] = ()  # certificate identities that may cut, repair, disable and enable
    limits: DoorLimits = DoorLimits()  # of each port


# --- reading -------------------------------------------------------------------------------------------------------


def load_node_config(path: Path) -> NodeConfig:
    """Return the configuration of a node.

    Raises:
        InvalidDocumentError: it cannot be read or has mistakes; all are listed. Files it names must exist.
    """
    document = Document(_text(path), what=f"configuration {path}", folder=path.parent)
    config = document.read(NodeConfig)
    document.add(list(_mistakes_of_node(config)))
    document.refuse_mistakes()
    return config


def load_device_host_config(path: Path) -> DeviceHostConfig:
    """Return the configuration of a host of emulated devices.

    Raises:
        InvalidDocumentError: it cannot be read or has mistakes; all are listed. Files it names must exist.
    """
    document = Document(_text(path), what=f"configuration {path}", folder=path.parent)
    config = document.read(DeviceHostConfig)
    document.add(list(_mistakes_of_devices(config)))
    document.refuse_mistakes()
    return config


def write_config(config: NodeConfig | DeviceHostConfig, path: Path) -> None:
    """Write a configuration that reads back as `config`."""
    path.write_text(toml_text(config, folder=path.parent), encoding="utf-8")


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of `host:port`, or of `[address]:port`.

    Raises:
        ValueError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (colon and bare and port.isascii() and port.isdigit() and int(port) <= 65_535) or (
        ":" in bare and bare == host
    ):
        raise ValueError(f"{address!r} is not host:port, such as 127.0.0.1:8443 or [::1]:8443")
    return bare, int(port)


def is_loopback(address: str) -> bool:
    """Tell whether only this machine reaches `host:port`."""
    try:
        return ipaddress.ip_address(host_and_port(address)[0]).is_loopback
    except ValueError:
        return address.startswith("localhost:")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDocumentError(f"configuration {path}", (f"it cannot be read: {error}",)) from None


# --- mistakes between values ---------------------------------------------------------------------------------------


def _mistakes_of_node(config: NodeConfig) -> Iterator[Mistake]:
    if not is_name(config.name):
        yield ("name",), f"name: {config.name!r} is not a name (1 to 64 characters of RFC 3986)"
    yield from _missing_files(config, ("officer", "book"))
    for door in ("application", "peers", "management"):
        listener: Listener = getattr(config, door)
        yield from _address_mistake(listener.address, (door, "address"))
        yield from _missing_files(listener, ("certificate", "private_key", "trust"), (door,))
    yield from _exposure_mistakes(config.application)
    if config.anchor.resolve().is_relative_to(config.data_directory.resolve()):
        yield ("anchor",), "anchor: inside data_directory a restored copy would bring its own anchor along"
    archives = config.archive_directory
    if archives is not None and archives.resolve().is_relative_to(config.data_directory.resolve()):
        yield ("archive_directory",), "archive_directory: inside data_directory it would be lost together with it"
    yield from _node_key_mistakes(config)
    if config.database is not None:
        yield from _missing_files(config.database, ("address",), ("database",))
    if config.devices is not None:
        yield from _missing_files(config.devices, ("certificate", "private_key", "trust"), ("devices",))
    elif config.links:
        yield ("links",), "devices: is missing; links need the certificate that this node shows its devices"
    yield from _link_mistakes(config)
    for at, preshared in enumerate(config.preshared):
        yield from _missing_files(preshared, ("file",), ("preshared", at))
    yield from _settings_mistakes(config)


def _node_key_mistakes(config: NodeConfig) -> Iterator[Mistake]:
    if (config.node_key is None) == (config.token is None):
        yield ("node_key",), "node_key: either this file or [token] has the key that wraps the keys at rest"
    if config.token is None:
        return
    yield from _missing_files(config.token, ("module", "pin_file"), ("token",))
    try:
        TokenKeyUri.parse(config.token.key)
    except ValueError as error:
        yield ("token", "key"), f"token.key: {error}"


def _exposure_mistakes(application: ApplicationListener) -> Iterator[Mistake]:
    place: Place = ("application", "exposure")
    if application.exposure is Exposure.LOOPBACK and not is_loopback(application.address):
        yield place, f"application.exposure: {application.address} is not on the loopback"
    if application.accepts_tls_1_2 and application.effective_exposure is Exposure.OPEN:
        why = "TLS 1.2 has no post-quantum group; declare the listener site-protected if the site is"
        yield ("application", "accepts_tls_1_2"), f"application.accepts_tls_1_2: {why}"


def _link_mistakes(config: NodeConfig) -> Iterator[Mistake]:
    seen: set[str] = set()
    for at, link in enumerate(config.links):
        if link.name in seen:
            yield ("links", at, "name"), f"links: {link.name} appears more than once"
        seen.add(link.name)
        if link.peer == config.name:
            yield ("links", at, "peer"), f"links.{link.name}: a link leads to another node"
        yield from _address_mistake(link.device, ("links", at, "device"))
        if link.telemetry:
            yield from _address_mistake(link.telemetry, ("links", at, "telemetry"))


def _settings_mistakes(config: NodeConfig) -> Iterator[Mistake]:
    for name, value in config.settings.items():
        if name not in _SETTINGS:
            yield ("settings", name), f"settings.{name}: no such key{did_you_mean(name, _SETTINGS)}"
        elif value < 0 or (value == 0 and name not in _MAY_BE_ZERO):
            yield ("settings", name), f"settings.{name}: must be greater than 0"
        elif isinstance(getattr(Settings(), name), int) and value != int(value):
            yield ("settings", name), f"settings.{name}: must be a whole number"


def _mistakes_of_devices(config: DeviceHostConfig) -> Iterator[Mistake]:
    yield from _missing_files(config, ("trust",))
    for at, pair in enumerate(config.pairs):
        if pair.device_class not in DEVICE_CLASSES:
            hint = did_you_mean(pair.device_class, DEVICE_CLASSES)
            why = f"no device class is called {pair.device_class!r}{hint}"
            yield ("pairs", at, "device_class"), f"pairs.{pair.link}: {why}"
        for name, end in (("a", pair.a), ("b", pair.b)):
            yield from _address_mistake(end.keys, ("pairs", at, name, "keys"))
            yield from _address_mistake(end.telemetry, ("pairs", at, name, "telemetry"))
            yield from _missing_files(end, ("certificate", "private_key"), ("pairs", at, name))


def _address_mistake(address: str, place: Place) -> Iterator[Mistake]:
    try:
        host_and_port(address)
    except ValueError as error:
        yield place, f"{_label(place)}: {error}"


def _missing_files(struct: msgspec.Struct, keys: tuple[str, ...], place: Place = ()) -> Iterator[Mistake]:
    for key in keys:
        path: Path | None = getattr(struct, key)
        if path is not None and not path.is_file():
            yield (*place, key), f"{_label((*place, key))}: there is no file {path}"


def _label(place: Place) -> str:
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in place)
