"""Seals segments under keys of their own, kept in the keyring's slots.

Layout of the keyring, from its first byte, in 64-byte places:
    header: magic (8), identity (16), check (32: 16 zero bytes wrapped under the node key, bound to both), zeros.
        Of keyrings made by release 0.1: another magic, and a check of 16 bytes (nothing wrapped, nonce zero).
    slot n: generation (4, big-endian; odd: in use), nonce (12), wrapped key (48). 64 bytes never straddle a sector.
A handle is the slot's number and its generation, so a slot that is used again does not answer for its former box.
Wrapping: under the node key (kms.ports.NodeKey), bound to keyring and handle. Box: AES-256-GCM, nonce first, under
the slot's key, used once.
"""

from __future__ import annotations

import asyncio
import functools
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trenza.adapters.keyring.node_key import HeldNodeKey
from trenza.adapters.keyring.slots import FileSlots, MemorySlots, Slots
from trenza.base.entropy import Entropy
from trenza.base.errors import AuthenticationError, InvalidDocumentError, StoreUnavailableError
from trenza.base.secret import Secret
from trenza.kms.ports import NodeKey, Sealed

KEYRING_NAME = "keyring"  # of the file, in the data directory

_PLACE = 64
_MAGIC = b"TRZAKR\x00\x02"
_FIRST_MAGIC = b"TRZAKR\x00\x01"
_CHECKED = 16
_WRAP_LABEL = b"trenza keyring slot v1"
_BOX_LABEL = b"trenza sealed box v1"
_NONCE = 12
_TAG = 16
_KEY = 32
_GENERATION = struct.Struct(">I")
_PLACE_GENERATION = struct.Struct(f">I{_PLACE - 4}x")  # a whole place, of which only that is read
_HANDLE = struct.Struct(">Q")
_SLOT_BITS = 20
_MOST_SLOTS = 1 << _SLOT_BITS
_LAST_GENERATION = 0xFFFF_FFFD  # a slot worn out after 2^31 uses is left alone
_GROWTH = 4096  # slots, 256 KiB
_ERASED = b"\xa5" * (
    _PLACE - 4
)  # no randomness: erasing must not wait for a healthy generator; nor zeros, which thin
# disks drop instead of writing

_Answer = TypeVar("_Answer")


class KeyringSealer:
    """Implements kms.ports.Sealer. What it promises and what not: see the package. Call `retain` once at start."""

    def __init__(self, slots: Slots, *, node_key: Secret | NodeKey, entropy: Entropy) -> None:
        """Open the keyring in `slots`; `open` and `in_memory` are the usual ways.

        Args:
            slots: where it is.
            node_key: 32 bytes, which the caller wipes afterwards; or a key elsewhere, which stays the caller's.
            entropy: where the segments' keys come from.

        Raises:
            AuthenticationError: the keyring was made under another node key.
            InvalidDocumentError: this is not a keyring.
            StoreUnavailableError: the node key's token cannot be used.
        """
        self._slots = slots
        self._entropy = entropy
        self._node_key: NodeKey = HeldNodeKey(node_key) if isinstance(node_key, Secret) else node_key
        self._asking: ThreadPoolExecutor | None = None
        if not self._node_key.is_at_hand:  # a thread of its own, so that a token that hangs holds up nothing else
            self._asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trenza-node-key")
        self._content = bytearray(slots.content())  # the file as it is to be, always ahead of the disk
        self._growing = asyncio.Lock()
        if len(self._content) < _PLACE:  # absent, or a crash before the first slot could be written
            self._begin()
        self._identity = self._checked_identity()
        self._content.extend(bytes(-len(self._content) % _PLACE))
        self._begun = self._slot_count() > 0  # then the header is on the disk; else it goes with the first slots
        self._free: deque[int] = deque()
        self._leaving: dict[int, int] = {}  # slot and generation: overwritten here, not yet known to be so on disk
        self._free.extend(self._unused(range(self._slot_count())))

    @classmethod
    def open(cls, path: Path, *, node_key: Secret | NodeKey, entropy: Entropy) -> KeyringSealer:
        """Open the keyring file at `path`, making it if absent.

        Raises:
            StoreUnavailableError: another process holds it, or the disk fails.
        """
        slots = FileSlots(path)
        try:
            return cls(slots, node_key=node_key, entropy=entropy)
        except BaseException:
            slots.abandon()
            raise

    @classmethod
    def in_memory(cls, *, node_key: Secret | NodeKey, entropy: Entropy, image: bytes = b"") -> KeyringSealer:
        """Open a keyring that lives in memory, from an `image` of an earlier one: for the lab."""
        return cls(MemorySlots(image), node_key=node_key, entropy=entropy)

    def image(self) -> bytes:
        """Return what is on the disk now: what a thief, a backup or a restart would find."""
        return self._slots.content()

    async def seal(self, secret: Secret | bytes, *, associated: bytes) -> Sealed:
        key = self._entropy.token(_KEY)
        nonce, wrapping_nonce = bytes(self._entropy.token(_NONCE)), bytes(self._entropy.token(_NONCE))
        slot = await self._allocate()
        handle = slot | (self._generation(slot) + 1) << _SLOT_BITS
        clear = secret.view() if isinstance(secret, Secret) else secret
        box = nonce + AESGCM(key).encrypt(nonce, clear, _box_context(handle, associated))
        wrap = functools.partial(self._node_key.wrap, key, nonce=wrapping_nonce, context=self._wrap_context(handle))
        try:
            wrapped = await self._asked(wrap)
        except BaseException:
            self._free.appendleft(slot)  # nothing was put into it
            raise
        finally:
            key[:] = bytes(_KEY)
        self._put(slot, _GENERATION.pack(handle >> _SLOT_BITS) + wrapping_nonce + wrapped)
        try:
            await self._write([_place_of(slot)])
        except BaseException:  # nobody will ever name this handle: the next `erase` takes the slot back
            self._overwrite(slot)
            raise
        return Sealed(handle, box)

    async def unseal(self, sealed: Sealed, *, associated: bytes) -> Secret:
        key = await self._unwrap(sealed.handle)
        opening = AESGCM(key)
        key[:] = bytes(_KEY)
        clear = bytearray(max(0, len(sealed.box) - _NONCE - _TAG))
        nonce, sealed_bytes = sealed.box[:_NONCE], sealed.box[_NONCE:]
        if len(sealed_bytes) < _TAG:
            raise AuthenticationError("the sealed box is cut short")
        try:
            opening.decrypt_into(nonce, sealed_bytes, _box_context(sealed.handle, associated), clear)
        except InvalidTag:
            raise AuthenticationError("the sealed box was altered, or belongs elsewhere") from None
        return Secret(clear)

    async def erase(self, handles: Sequence[int]) -> None:
        for handle in handles:
            slot, generation = _parts(handle)
            if self._holds(slot, generation):
                self._overwrite(slot)
        if self._leaving:  # also those whose earlier overwriting failed or is under way
            await self._clear()

    async def retain(self, handles: AbstractSet[int]) -> int:
        """Erase all slots but these, and return how many: a crash between `seal` and the row that names it leaks one.

        Call it once at start, before the first `seal`, with every handle that the store's rows name.
        """
        kept = {slot for slot, generation in map(_parts, handles) if self._holds(slot, generation)}
        leaked = [slot for slot in range(self._slot_count()) if self._generation(slot) & 1 and slot not in kept]
        for slot in leaked:
            self._overwrite(slot)
        if leaked:
            await self._clear()
        return len(leaked)

    async def close(self) -> None:
        """Finish what was called, then let go of the file; the node key stays its owner's."""
        if self._asking is not None:
            self._asking.shutdown(wait=False)
        await self._slots.close()

    # --- slots ------------------------------------------------------------------------------------------------------

    async def _allocate(self) -> int:
        if not self._free:
            async with self._growing:
                if not self._free:
                    await self._grow()
        return self._free.popleft()  # the longest unused first: generations last for ages

    async def _grow(self) -> None:
        """Make room on the disk before it is needed: what is overwritten in place then needs none."""
        first = self._slot_count()
        if first >= _MOST_SLOTS:
            raise StoreUnavailableError(f"the keyring is full: {_MOST_SLOTS} segments are sealed")
        room, end = bytes(_GROWTH * _PLACE), len(self._content)
        header = b"" if self._begun else bytes(self._content)
        await self._slots.write([(end - len(header), header + room)])
        self._begun = True
        self._content.extend(room)
        self._free.extend(self._unused(range(first, self._slot_count())))

    def _overwrite(self, slot: int) -> None:
        """Make the slot useless here and now; `_clear` makes it so on disk."""
        self._leaving[slot] = self._generation(slot) + 1
        self._put(slot, _GENERATION.pack(self._leaving[slot]) + _ERASED)

    async def _clear(self) -> None:
        leaving = dict(self._leaving)
        await self._write([_place_of(slot) for slot in leaving])
        durable = [slot for slot, generation in leaving.items() if self._leaving.get(slot) == generation]
        for slot in durable:  # not those that another caller, who waited for the same, has offered already
            del self._leaving[slot]
        self._offer(durable)

    async def _write(self, places: Iterable[range]) -> None:
        await self._slots.write([(at.start, bytes(self._content[at.start : at.stop])) for at in places])

    def _offer(self, slots: Iterable[int]) -> None:
        self._free.extend(slot for slot in slots if self._generation(slot) < _LAST_GENERATION)

    def _unused(self, slots: range) -> list[int]:
        """Return those of all these slots, one after another, that hold nothing and are not worn out."""
        first, end = _place_of(slots.start).start, _place_of(slots.stop).start
        generations = _PLACE_GENERATION.iter_unpack(memoryview(self._content)[first:end])
        return [
            slot
            for slot, (generation,) in zip(slots, generations, strict=True)
            if not generation & 1 and generation < _LAST_GENERATION
        ]

    def _slot_count(self) -> int:
        return min(len(self._content) // _PLACE - 1, _MOST_SLOTS)

    def _generation(self, slot: int) -> int:
        generation: int = _GENERATION.unpack_from(self._content, _place_of(slot).start)[0]
        return generation

    def _holds(self, slot: int, generation: int) -> bool:
        return slot < self._slot_count() and generation & 1 == 1 and self._generation(slot) == generation

    def _put(self, slot: int, place: bytes) -> None:
        at = _place_of(slot)
        self._content[at.start : at.stop] = place

    # --- keys -------------------------------------------------------------------------------------------------------

    async def _asked(self, question: Callable[[], _Answer]) -> _Answer:
        """Return the node key's answer: at once, or without holding up the loop."""
        if self._asking is None:
            return question()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._asking, question)
        except RuntimeError:
            raise StoreUnavailableError("the keyring is closed") from None

    async def _unwrap(self, handle: int) -> bytearray:
        slot, generation = _parts(handle)
        if not self._holds(slot, generation):
            raise AuthenticationError("the sealed box's key was erased")
        at = _place_of(slot)
        place = bytes(self._content[at.start + _GENERATION.size : at.stop])
        nonce, wrapped = place[:_NONCE], place[_NONCE:]
        unwrap = functools.partial(self._node_key.unwrap, wrapped, nonce=nonce, context=self._wrap_context(handle))
        try:
            return await self._asked(unwrap)
        except AuthenticationError:
            raise AuthenticationError("the keyring's slot was altered") from None

    def _wrap_context(self, handle: int) -> bytes:
        return _WRAP_LABEL + self._identity + _HANDLE.pack(handle)

    def _begin(self) -> None:
        named = _MAGIC + bytes(self._entropy.token(16))
        check = self._node_key.wrap(bytearray(_CHECKED), nonce=named[8 : 8 + _NONCE], context=named)
        self._content = bytearray((named + check).ljust(_PLACE, b"\0"))

    def _checked_identity(self) -> bytes:
        named = bytes(self._content[:24])
        match named[:8]:
            case magic if magic == _MAGIC:
                nonce, length = named[8 : 8 + _NONCE], _CHECKED + _TAG
            case magic if magic == _FIRST_MAGIC:
                nonce, length = bytes(_NONCE), _TAG
            case _:
                raise InvalidDocumentError("the keyring", ("it is another program's file, or of another format",))
        try:
            self._node_key.unwrap(bytes(self._content[24 : 24 + length]), nonce=nonce, context=named)
        except AuthenticationError:
            raise AuthenticationError(
                "the keyring was made under another node key, or its header was altered"
            ) from None
        return named[8:]


def _place_of(slot: int) -> range:
    """Return where in the file the slot's bytes are; the header has the first place."""
    return range((slot + 1) * _PLACE, (slot + 2) * _PLACE)


def _parts(handle: int) -> tuple[int, int]:
    return handle & (_MOST_SLOTS - 1), handle >> _SLOT_BITS


def _box_context(handle: int, associated: bytes) -> bytes:
    return _BOX_LABEL + _HANDLE.pack(handle) + associated
