"""Seals segments under keys of their own, kept in a table that all instances of a node read.

Box: AES-256-GCM, nonce first, under the segment's key, used once. The segment's key is wrapped under the node key
(kms.ports.NodeKey), which every instance has and the database never sees, bound to keyring and handle. A handle is
random and never used again.

What erasing is here: the row is deleted, durably, before `erase` returns, and no instance, dump or query finds it
again. PostgreSQL overwrites nothing in place: an UPDATE too writes a second version beside the first. Until the dead
version's room is used again (the table is vacuumed early), the write-ahead log is recycled, and replicas and archives
of the log have let go of it, whoever reads those files finds the *wrapped* key, which opens only with the node key.
So keep the node key off the database's machines and out of its backups, and archives of the log short.
"""

from __future__ import annotations

import asyncio
import functools
import struct
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trenza.adapters.postgres.group import DropKey, PutKey
from trenza.adapters.postgres.store import PostgresStore
from trenza.base.entropy import Entropy
from trenza.base.errors import AuthenticationError, StoreUnavailableError
from trenza.base.secret import Secret
from trenza.base.units import Seconds
from trenza.kms.ports import NodeKey, Sealed

_KEYRING_LABEL = b"trenza postgres keyring v1"
_WRAP_LABEL = b"trenza postgres segment key v1"
_BOX_LABEL = b"trenza sealed box v1"
_NONCE = 12
_TAG = 16
_KEY = 32
_CHECKED = 16
_HANDLE = struct.Struct(">Q")
_HANDLE_MASK = (1 << 63) - 1
_SPARED = Seconds(60.0)
"""A key younger than this may be one that another instance has sealed under and not yet named in a row."""

_Answer = TypeVar("_Answer")


class PostgresSealer:
    """Implements kms.ports.Sealer for all instances of a node. Whoever begins to lead calls `retain` once."""

    def __init__(self, store: PostgresStore, node_key: NodeKey, entropy: Entropy) -> None:
        """Prepare; `open` is the way to make one."""
        self._store = store
        self._node_key = node_key
        self._entropy = entropy
        self._identity = b""
        self._asking: ThreadPoolExecutor | None = None
        if not node_key.is_at_hand:  # a thread of its own, so that a token that hangs holds up nothing else
            self._asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trenza-node-key")

    @classmethod
    async def open(cls, store: PostgresStore, *, node_key: NodeKey, entropy: Entropy) -> PostgresSealer:
        """Open the keyring in the store's schema, making it if absent; the node key stays the caller's.

        Raises:
            AuthenticationError: the keyring was made under another node key: give all instances the same.
            StoreUnavailableError: no answer, or the node key's token cannot be used.
        """
        sealer = cls(store, node_key, entropy)
        try:
            await sealer._open()
        except BaseException:
            await sealer.close()
            raise
        return sealer

    async def seal(self, secret: Secret | bytes, *, associated: bytes) -> Sealed:
        key = self._entropy.token(_KEY)
        nonce, wrapping_nonce = bytes(self._entropy.token(_NONCE)), bytes(self._entropy.token(_NONCE))
        handle = _HANDLE.unpack(self._entropy.token(_HANDLE.size))[0] & _HANDLE_MASK
        clear = secret.view() if isinstance(secret, Secret) else secret
        box = nonce + AESGCM(key).encrypt(nonce, clear, _box_context(handle, associated))
        try:
            wrapped = await self._wrap(key, wrapping_nonce, self._key_context(handle))
        finally:
            key[:] = bytes(_KEY)
        await self._store.write([PutKey(_HANDLE.pack(handle), wrapping_nonce + wrapped)])
        return Sealed(handle, box)

    async def unseal(self, sealed: Sealed, *, associated: bytes) -> Secret:
        if len(sealed.box) < _NONCE + _TAG:
            raise AuthenticationError("the sealed box is cut short")
        key = await self._key_of(sealed.handle)
        opening = AESGCM(key)
        key[:] = bytes(_KEY)
        clear = bytearray(len(sealed.box) - _NONCE - _TAG)
        try:
            context = _box_context(sealed.handle, associated)
            opening.decrypt_into(sealed.box[:_NONCE], sealed.box[_NONCE:], context, clear)
        except InvalidTag:
            raise AuthenticationError("the sealed box was altered, or belongs elsewhere") from None
        return Secret(clear)

    async def erase(self, handles: Sequence[int]) -> None:
        if handles:
            await self._store.write([DropKey(_HANDLE.pack(handle)) for handle in handles])

    async def retain(self, handles: AbstractSet[int], *, spared: Seconds = _SPARED) -> int:
        """Erase all keys but these and the youngest, and return how many.

        Args:
            handles: every handle that the store's rows name.
            spared: seconds of age, by the server's clock, below which a key is left alone.
        """
        present = [_HANDLE.unpack(key)[0] for key in await self._store.reading.segment_keys(older_than=spared)]
        leaked = [handle for handle in present if handle not in handles]
        await self.erase(leaked)
        return len(leaked)

    async def close(self) -> None:
        """Let go of the thread; store and node key are their owners'."""
        if self._asking is not None:
            self._asking.shutdown(wait=False)

    # --- keys

    async def _open(self) -> None:
        new = bytes(self._entropy.token(_NONCE))
        tag = await self._wrap(bytearray(_CHECKED), new, _KEYRING_LABEL + new)
        self._identity, tag = await self._store.reading.keyring(new, tag)
        try:
            await self._unwrap(tag, self._identity, _KEYRING_LABEL + self._identity)
        except AuthenticationError:
            raise AuthenticationError(
                "the keyring was made under another node key: give all instances of a node the same one"
            ) from None

    async def _key_of(self, handle: int) -> bytearray:
        kept = await self._store.reading.segment_key(_HANDLE.pack(handle))
        if kept is None:
            raise AuthenticationError("the sealed box's key was erased")
        try:
            if len(kept) != _NONCE + _KEY + _TAG:
                raise AuthenticationError("not as it was written")
            return await self._unwrap(kept[_NONCE:], kept[:_NONCE], self._key_context(handle))
        except AuthenticationError:
            raise AuthenticationError("a segment's key was altered in the database") from None

    async def _wrap(self, key: bytearray, nonce: bytes, context: bytes) -> bytes:
        return await self._asked(functools.partial(self._node_key.wrap, key, nonce=nonce, context=context))

    async def _unwrap(self, wrapped: bytes, nonce: bytes, context: bytes) -> bytearray:
        return await self._asked(functools.partial(self._node_key.unwrap, wrapped, nonce=nonce, context=context))

    async def _asked(self, question: Callable[[], _Answer]) -> _Answer:
        """Return the node key's answer: at once, or without holding up the loop."""
        if self._asking is None:
            return question()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._asking, question)
        except RuntimeError:
            raise StoreUnavailableError("the sealer is closed") from None

    def _key_context(self, handle: int) -> bytes:
        return _WRAP_LABEL + self._identity + _HANDLE.pack(handle)


def _box_context(handle: int, associated: bytes) -> bytes:
    return _BOX_LABEL + _HANDLE.pack(handle) + associated
