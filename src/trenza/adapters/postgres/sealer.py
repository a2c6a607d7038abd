"""Seals segments under keys of their own, kept in a table that all instances of a node read.

Box: AES-256-GCM, nonce first, under the segment's key, used once. The segment's key is wrapped with AES-256-GCM-SIV
(RFC 8452) under the node key, which every instance holds and the database never sees, bound to keyring and handle.
A handle is random and never used again.

What erasing is here: the row is deleted, durably, before `erase` returns, and no instance, dump or query finds it
again. PostgreSQL overwrites nothing in place: an UPDATE too writes a second version beside the first. Until the dead
version's room is used again (the table is vacuumed early), the write-ahead log is recycled, and replicas and archives
of the log have let go of it, whoever reads those files finds the *wrapped* key, which opens only with the node key.
So keep the node key off the database's machines and out of its backups, and archives of the log short.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV

from trenza.adapters.postgres.group import DropKey, PutKey
from trenza.adapters.postgres.store import PostgresStore
from trenza.base.entropy import Entropy
from trenza.base.errors import AuthenticationError
from trenza.base.secret import Secret
from trenza.base.units import Seconds
from trenza.kms.ports import Sealed

_KEYRING_LABEL = b"trenza postgres keyring v1"
_WRAP_LABEL = b"trenza postgres segment key v1"
_BOX_LABEL = b"trenza sealed box v1"
_NONCE = 12
_TAG = 16
_KEY = 32
_HANDLE = struct.Struct(">Q")
_HANDLE_MASK = (1 << 63) - 1
_SPARED = Seconds(60.0)
"""A key younger than this may be one that another instance has sealed under and not yet named in a row."""


class PostgresSealer:
    """Implements kms.ports.Sealer for all instances of a node. Whoever begins to lead calls `retain` once."""

    def __init__(self, store: PostgresStore, wrapping: AESGCMSIV, identity: bytes, entropy: Entropy) -> None:
        self._store = store
        self._wrapping = wrapping
        self._identity = identity
        self._entropy = entropy

    @classmethod
    async def open(cls, store: PostgresStore, *, node_key: Secret, entropy: Entropy) -> PostgresSealer:
        """Open the keyring in the store's schema, making it if absent; the caller wipes `node_key` afterwards.

        Raises:
            AuthenticationError: the keyring was made under another node key: give all instances the same.
            StoreUnavailableError: no answer.
        """
        wrapping = AESGCMSIV(node_key.view())
        new = bytes(entropy.token(16))
        identity, tag = await store.reading.keyring(new, wrapping.encrypt(bytes(_NONCE), b"", _KEYRING_LABEL + new))
        try:
            wrapping.decrypt(bytes(_NONCE), tag, _KEYRING_LABEL + identity)
        except InvalidTag:
            raise AuthenticationError(
                "the keyring was made under another node key: give all instances of a node the same one"
            ) from None
        return cls(store, wrapping, identity, entropy)

    async def seal(self, secret: Secret | bytes, *, associated: bytes) -> Sealed:
        key = self._entropy.token(_KEY)
        nonce, wrapping_nonce = bytes(self._entropy.token(_NONCE)), bytes(self._entropy.token(_NONCE))
        handle = _HANDLE.unpack(self._entropy.token(_HANDLE.size))[0] & _HANDLE_MASK
        clear = secret.view() if isinstance(secret, Secret) else secret
        box = nonce + AESGCM(key).encrypt(nonce, clear, _box_context(handle, associated))
        wrapped = wrapping_nonce + self._wrapping.encrypt(wrapping_nonce, key, self._wrap_context(handle))
        key[:] = bytes(_KEY)
        await self._store.write([PutKey(_HANDLE.pack(handle), wrapped)])
        return Sealed(handle, box)

    async def unseal(self, sealed: Sealed, *, associated: bytes) -> Secret:
        if len(sealed.box) < _NONCE + _TAG:
            raise AuthenticationError("the sealed box is cut short")
        key = await self._unwrap(sealed.handle)
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
        """Nothing to let go of: the store is its owner's."""

    async def _unwrap(self, handle: int) -> bytearray:
        wrapped = await self._store.reading.segment_key(_HANDLE.pack(handle))
        if wrapped is None:
            raise AuthenticationError("the sealed box's key was erased")
        key = bytearray(_KEY)
        try:
            self._wrapping.decrypt_into(wrapped[:_NONCE], wrapped[_NONCE:], self._wrap_context(handle), key)
        except (InvalidTag, ValueError):
            raise AuthenticationError("a segment's key was altered in the database") from None
        return key

    def _wrap_context(self, handle: int) -> bytes:
        return _WRAP_LABEL + self._identity + _HANDLE.pack(handle)


def _box_context(handle: int, associated: bytes) -> bytes:
    return _BOX_LABEL + _HANDLE.pack(handle) + associated
