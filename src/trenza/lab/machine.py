"""One node's machine in the lab: its disk, its clock, its anchor, its devices' doors, and the process on it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from uuid import UUID

from trenza.adapters.anchor import MemoryAnchor
from trenza.base.errors import DeviceUnavailableError, TrenzaError
from trenza.base.names import LinkId, NodeId
from trenza.base.units import Bits
from trenza.core.strand import Supply
from trenza.kms.node import Node
from trenza.kms.ports import DeviceLimits, RawKey
from trenza.lab.disk import DeathAt, DiskHealth, Doubt, LabDisk
from trenza.lab.loop import VirtualClock
from trenza.lab.network import Handler, LabPeers
from trenza.lab.process import Process
from trenza.lab.volume import KEYRING, STORE, Volume, VolumeStore
from trenza.qkd.emulator.pair import DeviceEnd

_SILENCE = 4.0
"""Seconds until the adapter gives up on a device that does not answer."""


class LabDevice:
    """A device end within reach of the hand: the LinkDevice port without a socket."""

    def __init__(self, end: DeviceEnd, *, is_mute: Callable[[], bool] = lambda: False) -> None:
        self._end = end
        self._is_mute = is_mute

    async def limits(self) -> DeviceLimits:
        await self._speak()
        limits = self._end.limits
        stored = self._end.stored_key_count(limits.default_size) * limits.default_size
        return DeviceLimits(Bits(stored), limits.max_keys_per_request, Bits(limits.max_size), Bits(limits.min_size))

    async def draw(self, *, number: int, size: Bits) -> list[RawKey]:
        await self._speak()
        return _raw(self._end.draw, number, size)

    async def fetch(self, key_ids: Sequence[UUID]) -> list[RawKey]:
        await self._speak()
        return _raw(self._end.fetch, key_ids)

    async def _speak(self) -> None:
        if self._is_mute():
            await asyncio.sleep(_SILENCE)
            raise DeviceUnavailableError("the device does not answer")


def _raw(deed: object, *arguments: object) -> list[RawKey]:
    assert callable(deed)
    try:
        return [RawKey(key.key_id, key.secret, Supply(key.supply.value)) for key in deed(*arguments)]
    except TrenzaError as error:
        raise DeviceUnavailableError(error.message) from None


class GroupAnchor(MemoryAnchor):
    """An anchor that is told of every commit group once a life has named its store."""

    _identity: bytes | None = None

    def remember(self, identity: bytes, counter: int) -> None:
        self._identity = identity
        super().remember(identity, counter)

    def note(self, counter: int) -> None:
        if self._identity is not None:
            super().remember(self._identity, counter)

    def fall_behind(self, chance: random.Random) -> None:
        """Be what the page of a file is after a power loss: never synced, so from any moment before."""
        known = self.recall()
        if known is not None:
            super().remember(known[0], max(0, known[1] - chance.randrange(40)))


@dataclass(slots=True)
class Copy:
    """A copy of a machine's data directory."""

    files: dict[str, bytes] = field(repr=False)

    def opened(self) -> VolumeStore:
        """Open the store in it; the copy stays as it is."""
        return VolumeStore.open(Volume(self.files))

    @property
    def keyring(self) -> bytes:
        return self.files.get(KEYRING, b"")


@dataclass(slots=True)
class Machine:
    """One node's machine, and the process on it while there is one. Several machines may have one node's name."""

    name: NodeId
    node_key: bytes = field(repr=False)
    clock: VirtualClock
    anchor: GroupAnchor = field(default_factory=GroupAnchor)
    health: DiskHealth = field(default_factory=DiskHealth)
    disk: Copy | None = None
    doubt: Doubt | None = None  # of the disk, where the machine did not stop in good order
    node: Node | None = None
    store: LabDisk | None = None
    peers: LabPeers | None = None
    process: Process | None = None
    main: asyncio.Task[None] | None = None  # the process's own task
    handler: Handler | None = None  # answers the network
    lives: int = 0
    boots: int = 0
    commits: int = 0  # called so far, in all lives
    death: DeathAt | None = None
    fatal_step: int = 0  # of the next life
    mute: set[LinkId] = field(default_factory=set)  # devices that do not answer this machine
    tag: str = ""  # tells a clone's randomness from the original's

    @property
    def place(self) -> str:
        """Return what histories call it."""
        return f"{self.name} {self.tag}".strip()

    def digest_of_place(self) -> bytes:
        """Return what a life here states of its place: this directory on this machine, since it was booted.

        One process is on it at a time; a copy is on another.
        """
        return sha256(f"{self.place}, boot {self.boots}".encode()).digest()[:16]

    def copy(self) -> Copy:
        """Take a copy of the data directory, as a backup does."""
        if self.store is None:
            assert self.disk is not None, "the machine was never started"
            return self.disk
        inner = self.store.inner
        return Copy({STORE: inner.image(), KEYRING: bytes(inner.volume.file(KEYRING).live)})

    def end(self, *, power: bool) -> list[asyncio.Task[object]]:
        """End the process, or the whole machine, at this instant; return the tasks that still unwind."""
        process, store, peers = self.process, self.store, self.peers
        self.node = self.store = self.peers = self.process = self.main = self.handler = None
        if peers is not None:
            peers.dead = True
        if store is not None:
            self.commits = store.commits
            self.boots += power
            files, self.doubt = store.cut_power() if power else store.kill()
            self.disk = Copy(files)
        return process.die() if process is not None else []
