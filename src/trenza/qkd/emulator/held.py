"""Keys that one end was handed and the other end has not fetched yet.

Each is handed out once. Bounded in number and in age: an unfetched key is erased when its lifetime ends.
No clock: the caller says what time it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from trenza.base.errors import InvalidRequestError, UnknownKeyError
from trenza.base.secret import Secret
from trenza.base.units import Seconds
from trenza.qkd.emulator.stock import Supply


class DeviceKey(NamedTuple):
    """One key as a device hands it out; the receiver wipes the secret."""

    key_id: UUID
    secret: Secret
    supply: Supply


class HeldKeys:
    """The copies that wait for one end."""

    def __init__(self, *, most: int, lifetime: Seconds) -> None:
        if most < 1 or not lifetime > 0.0:
            raise ValueError("at least one key must wait for some time")
        self._most = most
        self._lifetime = lifetime
        self._waiting: dict[UUID, tuple[DeviceKey, Seconds]] = {}  # in order of expiry: one lifetime for all

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def room(self) -> int:
        """How many more keys may wait."""
        return self._most - len(self._waiting)

    def hold(self, key: DeviceKey, now: Seconds) -> None:
        """Keep `key` for this end; the secret is now ours."""
        assert self.room > 0
        assert key.key_id not in self._waiting
        self._waiting[key.key_id] = (key, Seconds(now + self._lifetime))

    def expire(self, now: Seconds) -> None:
        """Erase every key whose lifetime has ended."""
        while self._waiting:
            key_id = next(iter(self._waiting))
            key, end = self._waiting[key_id]
            if end > now:
                return
            del self._waiting[key_id]
            key.secret.wipe()

    def fetch(self, key_ids: Sequence[UUID]) -> list[DeviceKey]:
        """Hand out the keys named, in that order; each only this once.

        Raises:
            InvalidRequestError: an ID is named twice.
            UnknownKeyError: an ID is unknown, expired or already fetched; nothing is consumed.
        """
        if len(set(key_ids)) != len(key_ids):
            raise InvalidRequestError("a key ID is named twice in one request")
        missing = [key_id for key_id in key_ids if key_id not in self._waiting]
        if missing:
            raise UnknownKeyError(
                "one or more keys specified are not found on KME",
                details=tuple({"key_ID": str(key_id)} for key_id in missing),
            )
        return [self._waiting.pop(key_id)[0] for key_id in key_ids]
