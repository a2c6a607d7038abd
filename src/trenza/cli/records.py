"""The records inside the management door's statements, as far as people read them: bytes stay hexadecimal text.

What each member means is said where it is written: `core/provenance`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from trenza.base.errors import RemoteProtocolError

_T = TypeVar("_T", bound=msgspec.Struct)


class HopTold(msgspec.Struct, frozen=True):
    """One QKD link that the strands crossed."""

    link: str
    sender: str
    receiver: str
    supply: str
    emulated: bool
    bootstrap: str
    epsilon: float | None


class LineageTold(msgspec.Struct, frozen=True):
    """The joint exchange behind the classical and the post-quantum strand."""

    exchange: str
    scheme: str
    authentication: tuple[str, ...]


class SegmentTold(msgspec.Struct, frozen=True):
    """Where the strands come from and who saw them."""

    leader: str
    follower: str
    lineage: LineageTold
    hops: tuple[HopTold, ...]
    known_to: tuple[str, ...]
    supply: str | None
    epsilon: float | None
    created: str
    uncertainty: int  # nanoseconds


class UseTold(msgspec.Struct, frozen=True):
    """What was done with keys: issued or delivered."""

    initiator: str
    target: str
    recipe: str
    policy: str
    policy_digest: str
    tls_group: str
    uncertainty: int  # nanoseconds
    slots: tuple[int, ...] = ()


def told(record: dict[str, Any], kind: type[_T]) -> _T:
    """Return a record as a `kind`.

    Raises:
        RemoteProtocolError: it is none.
    """
    try:
        return msgspec.convert(record, type=kind)
    except msgspec.ValidationError as error:
        raise RemoteProtocolError(f"a node's statement about a key cannot be read: {error}") from None
