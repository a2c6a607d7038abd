"""Emulated QKD devices behind sockets of their own: for every end of every pair a key door and a telemetry port.

The devices of one host share a process, as devices of one rack share a building; no node shares it with them in
anything but memory, and what passes between a node and a device crosses mutually authenticated TLS.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

from trenza.app.config import DeviceEndConfig, DeviceHostConfig, DevicePairConfig
from trenza.app.listening import listen
from trenza.app.pki import device_uri
from trenza.base.clock import Clock, SystemClock
from trenza.base.entropy import Entropy, SystemEntropy
from trenza.base.errors import InvalidDocumentError
from trenza.base.names import LinkId, NodeId, SaeId
from trenza.base.units import Bits, BitsPerSecond, Decibel
from trenza.net.gate import Gate
from trenza.net.http_server import HttpServer
from trenza.net.tls import TlsIdentity, TlsStatistics, server_context
from trenza.qkd.emulator.pair import DeviceEnd, EmulatedPair
from trenza.qkd.emulator.settings import CAPACITY, KeyLimits, PairSettings
from trenza.qkd.physics.devices import DEVICE_CLASSES
from trenza.serve.device import DeviceNames, TelemetryDoor, device_key_door

_GRACE_S: Final = 2.0
_REQUEST_BYTES: Final = 65_536
_LIMITS: Final = KeyLimits(max_size=Bits(8_192))
"""Long keys, as key management prefers them: fewer of them carry the same bits, so an hour of Spain costs less."""


class DeviceHost:
    """Emulated pairs and their doors. Made by `build_devices`; ended by `stop`."""

    def __init__(self) -> None:
        self.pairs: dict[LinkId, EmulatedPair] = {}
        self._servers: list[HttpServer] = []
        self._stack = AsyncExitStack()

    async def open(self, config: DeviceHostConfig, clock: Clock, entropy: Entropy) -> None:
        """Make all pairs and open their doors."""
        try:
            for pair in config.pairs:
                await self._open_pair(config, pair, clock, entropy)
        except BaseException:
            await self.stop()
            raise

    async def _open_pair(
        self, config: DeviceHostConfig, pair: DevicePairConfig, clock: Clock, entropy: Entropy
    ) -> None:
        emulated = self.pairs[pair.link] = EmulatedPair(_settings(pair), clock=clock, entropy=entropy)
        ends = ((pair.a, pair.b, emulated.a), (pair.b, pair.a, emulated.b))
        for near, far, end in ends:
            await self._open_end(config, near, far, end)

    async def _open_end(
        self, config: DeviceHostConfig, near: DeviceEndConfig, far: DeviceEndConfig, end: DeviceEnd
    ) -> None:
        try:
            context = server_context(TlsIdentity(near.certificate, near.private_key, config.trust))
        except (OSError, ValueError) as error:
            raise InvalidDocumentError(f"the certificate of device {near.device}", (str(error),)) from None
        names = DeviceNames(near.device, far.device, SaeId(near.node), SaeId(far.node), near.node_uri)
        telemetry = TelemetryDoor(end, readers=frozenset({near.node_uri}), operators=frozenset(config.operators))
        doors = (("keys", near.keys, device_key_door(end, names)), ("telemetry", near.telemetry, telemetry))
        for name, address, door in doors:
            limits, gate = config.limits.http(max_body_bytes=_REQUEST_BYTES), Gate(config.limits.gate)
            server = HttpServer(door, lambda: context, door.error_response, limits, gate)
            await listen(server, address, setting=f"{name} of device {near.device}")
            self._stack.push_async_callback(server.stop, _GRACE_S)
            self._servers.append(server)

    def statistics(self) -> list[TlsStatistics]:
        """Return what happened at each port."""
        return [server.statistics for server in self._servers]

    async def stop(self) -> None:
        """Close all doors; may be called twice."""
        await self._stack.aclose()


async def build_devices(
    config: DeviceHostConfig, *, clock: Clock | None = None, entropy: Entropy | None = None
) -> DeviceHost:
    """Make the emulated pairs of a host and open their doors.

    Raises:
        InvalidDocumentError: a certificate cannot be used.
        OSError: an address cannot be bound.
    """
    host = DeviceHost()
    await host.open(config, clock or SystemClock(), entropy or SystemEntropy())
    return host


def device_name(link: LinkId, node: NodeId) -> str:
    """Return what an emulated device is called."""
    return f"{link}.{node}"


def device_identity(link: LinkId, node: NodeId) -> str:
    """Return the certificate name of an emulated device."""
    return device_uri(device_name(link, node))


def _settings(pair: DevicePairConfig) -> PairSettings:
    return PairSettings(
        device_class=DEVICE_CLASSES[pair.device_class],
        loss_db=Decibel(pair.loss_db),
        initial_stock=Bits(pair.initial_stock_bits),
        time_factor=pair.time_factor,
        fixed_rate=None if pair.fixed_rate_bps is None else BitsPerSecond(pair.fixed_rate_bps),
        capacity=Bits(max(CAPACITY, pair.initial_stock_bits)),
        limits=_LIMITS,
    )
