"""Answers of the key delivery interface: written by a KME, read by an SAE (ETSI GS QKD 014 V1.1.1, Tables 9, 11, 13).

A container is the one place where key bytes become text: copies that Python cannot wipe, so they are few and live
briefly. Request order is kept, since clients rely on it although the standard does not promise it.
"""

from __future__ import annotations

import binascii
import functools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from trenza.base.errors import RemoteProtocolError
from trenza.base.secret import Secret
from trenza.base.units import NANOSECONDS_PER_SECOND, Nanoseconds
from trenza.wire import strict_json
from trenza.wire.etsi014.extensions import VENDOR_PREFIX
from trenza.wire.etsi014.values import Error, Key, KeyExtension, Status

_TIMES: Final = ("created", "expires")
_SHARED: Final = ("recipe", "origins", "supply", "strength", "hops", "created")
_EXPIRES: Final = f"{VENDOR_PREFIX}expires".encode()

# --- written by a KME ----------------------------------------------------------------------------------------------


def encode_status(status: Status) -> bytes:
    """Return the body of a Status (Table 9)."""
    return msgspec.json.encode(status)


def encode_error(error: Error) -> bytes:
    """Return the body of an Error (Table 13)."""
    return msgspec.json.encode(error)


def encode_container(keys: Iterable[Key]) -> bytes:
    """Return the body of a Key container (Table 11); the keys stay their owner's.

    The array is called `keys`, as in the standard's example and in every implementation, not `Keys` as in its table.
    """
    parts: list[bytes] = []
    told: KeyExtension | None = None  # keys of one request mostly share what is told of them
    tail = b""
    for key in keys:
        if key.extension != told:
            told, tail = key.extension, key_tail(key.extension)
        material = binascii.b2a_base64(key.key.view(), newline=False)
        parts.append(b'{"key_ID":"%b","key":"%b%b' % (str(key.key_id).encode(), material, tail))
    return b'{"keys":[%b]}' % b",".join(parts)


def container_of_one(number: int, key: bytearray, tail: bytes) -> bytes:
    """Return the body of a container of one key, given the number of its ID and what `key_tail` made."""
    text = b"%032x" % number
    material = binascii.b2a_base64(key, newline=False)
    return b'{"keys":[{"key_ID":"%b-%b-%b-%b-%b","key":"%b%b]}' % (
        text[:8],
        text[8:12],
        text[12:16],
        text[16:20],
        text[20:],
        material,
        tail,
    )


def key_tail(extension: KeyExtension) -> bytes:
    """Return what follows the key's own text in its entry."""
    members = _shared_members(
        extension.recipe,
        extension.origins,
        extension.supply,
        extension.strength,
        extension.hops,
        extension.created,
    )
    if extension.expires is not None:
        comma = b"," if members else b""
        members = b'%b%b"%b":"%b"' % (members, comma, _EXPIRES, rfc3339(extension.expires).encode())
    return b'","key_extension":{%b}}' % members if members else b'"}'


@functools.lru_cache(maxsize=1024)
def _shared_members(*values: Any) -> bytes:
    """Return what all keys of one segment are told of, without the braces; remembered."""
    told = {
        VENDOR_PREFIX + name: rfc3339(value) if name in _TIMES else value
        for name, value in zip(_SHARED, values, strict=True)
        if value not in (None, ())
    }
    return msgspec.json.encode(told)[1:-1]


# --- read by an SAE ------------------------------------------------------------------------------------------------


def decode_status(body: bytes) -> Status:
    """Read a Status.

    Raises:
        RemoteProtocolError: it is none.
    """
    try:
        return msgspec.convert(strict_json.read(body), type=Status)
    except (strict_json.JsonError, msgspec.ValidationError) as error:
        raise RemoteProtocolError(f"the KME's status cannot be read: {error}") from None


def decode_container(body: bytes) -> list[Key]:
    """Read a Key container, its array called `keys` or `Keys`; the caller wipes the keys.

    Raises:
        RemoteProtocolError: it is none, or a key ID appears twice in it.
    """
    try:
        return _keys_of(strict_json.read(body))
    except (ValueError, TypeError, OverflowError, msgspec.ValidationError):
        # What was wrong is not repeated: it may be a piece of a key.
        raise RemoteProtocolError("the KME's key container cannot be read") from None


def decode_error(body: bytes) -> Error:
    """Read an Error as far as it is one; KMEs are known to answer errors with anything."""
    try:
        value = strict_json.read(body)
    except strict_json.JsonError:
        return Error("")
    if not isinstance(value, dict):
        return Error("")
    message, details = value.get("message"), value.get("details")
    return Error(
        message=message if isinstance(message, str) else "",
        details=tuple(pair for pair in details if isinstance(pair, dict)) if isinstance(details, list) else (),
    )


class _KeyEntry(msgspec.Struct, rename={"key_id": "key_ID"}):
    """One entry of a container before its text becomes a Secret; it never leaves this module."""

    key_id: UUID
    key: str
    key_extension: dict[str, Any] | None = None


def _keys_of(container: Any) -> list[Key]:
    if not isinstance(container, dict):
        raise TypeError("a container is an object")
    if ("keys" in container) == ("Keys" in container):
        raise ValueError("a container has one array of keys")
    keys: list[Key] = []
    try:
        for entry in msgspec.convert(container.get("keys", container.get("Keys")), type=list[_KeyEntry]):
            extension = _extension_of(entry.key_extension)
            material = Secret(bytearray(binascii.a2b_base64(entry.key, strict_mode=True)))
            keys.append(Key(entry.key_id, material, extension))
        if len({key.key_id for key in keys}) != len(keys):
            raise ValueError("a key ID appears twice")
    except BaseException:
        wipe_all(keys)
        raise
    return keys


def wipe_all(keys: Sequence[Key]) -> None:
    """Wipe every key."""
    for key in keys:
        key.key.wipe()


def _extension_of(members: dict[str, Any] | None) -> KeyExtension:
    """Return what is told under our prefix; everything else in a `key_extension` is another vendor's."""
    told = {
        name.removeprefix(VENDOR_PREFIX): value
        for name, value in (members or {}).items()
        if name.startswith(VENDOR_PREFIX)
    }
    for field in _TIMES:
        if field in told:
            told[field] = moment_of(told[field])
    return msgspec.convert(told, type=KeyExtension)


# --- moments -------------------------------------------------------------------------------------------------------


def rfc3339(moment: Nanoseconds) -> str:
    """Return `moment` in UTC, to the microsecond below it."""
    whole, rest = divmod(moment, NANOSECONDS_PER_SECOND)
    return f"{_second(whole)}.{rest // 1000:06d}Z"


@functools.lru_cache(maxsize=1024)
def _second(whole: int) -> str:
    """Return a second in UTC; remembered, since the keys of a busy second share theirs."""
    return datetime.fromtimestamp(whole, UTC).isoformat()[:19]


def moment_of(text: str) -> Nanoseconds:
    """Read what `rfc3339` wrote.

    Raises:
        ValueError: it is no RFC 3339 time with an offset.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without an offset")
    whole = moment.replace(microsecond=0)
    return Nanoseconds(int(whole.timestamp()) * NANOSECONDS_PER_SECOND + moment.microsecond * 1000)
