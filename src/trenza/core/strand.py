"""Strands: secret bits of one origin that two end nodes share, and the bundle of them that fills one slot.

Knows what a strand is and who owns it; not where it is stored, how it travelled, or how it is braided.
Source: the origins are those a hybrid key combines in ETSI TS 103 744 V1.2.1 clause 8; the transcript is that
standard's MA and MB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import final

from trenza.base.errors import MissingOriginError
from trenza.base.secret import Secret

STRAND_BYTES = 32
"""Every strand has this length, so that strands laid end to end can be cut in one way only."""

TRANSCRIPT_BYTES = 48
"""A SHA-384 digest."""


class Origin(Enum):
    """Where secret bits come from; what a recipe demands and `combine` checks."""

    QKD = "qkd"
    PQC = "pqc"
    CLASSICAL = "classical"
    PRESHARED = "preshared"
    LOCAL = "local"
    """The node's own generator: known to one node, shared with nobody until it is delivered."""

    __hash__ = object.__hash__  # as members are equal by identity; Enum's own runs Python code, dozens of times a key


class Supply(Enum):
    """How close the bits are to a device; from best to worst."""

    LIVE = "live"
    WARM = "warm"
    SYNTHETIC = "synthetic"


_SUPPLIES = tuple(Supply)


def worst_of(supplies: Iterable[Supply]) -> Supply:
    """Return what may be said of a key whose strands have these supplies.

    Raises:
        ValueError: there are none; a key without strands has no supply.
    """
    return max(supplies, key=_SUPPLIES.index)


@dataclass(frozen=True, slots=True)
class Transcript:
    """What the joint exchange said, in both directions: MA and MB of TS 103 744.

    The standard hashes the full messages into the context. We pass the SHA-384 digest of each full message instead,
    because the digests are kept with every slot of the exchange and the messages (about 3 kB) are not. As the digest
    is collision resistant, the key stays bound to every byte of both messages.
    """

    initiator: bytes
    responder: bytes

    def __post_init__(self) -> None:
        if len(self.initiator) != TRANSCRIPT_BYTES or len(self.responder) != TRANSCRIPT_BYTES:
            raise ValueError(f"a transcript digest has {TRANSCRIPT_BYTES} bytes")


NO_EXCHANGE = Transcript(bytes(TRANSCRIPT_BYTES), bytes(TRANSCRIPT_BYTES))
"""The transcript of a key that no exchange contributed to."""


@final
class Bundle:
    """The strands of one slot, one per origin. Owns them: whoever holds the bundle wipes it."""

    __slots__ = ("_strands", "origins")

    def __init__(self, strands: Mapping[Origin, Secret]) -> None:
        self._strands = dict(strands)
        self.origins = frozenset(self._strands)

    def __repr__(self) -> str:
        return f"<Bundle {', '.join(sorted(origin.value for origin in self.origins))}>"

    def strand(self, origin: Origin) -> Secret:
        """Return the strand of `origin`; it stays the bundle's.

        Raises:
            MissingOriginError: the slot holds no strand of that origin.
        """
        try:
            return self._strands[origin]
        except KeyError:
            raise MissingOriginError(f"the slot holds no {origin.value} strand") from None

    def wipe(self) -> None:
        """Overwrite every strand; may be called twice."""
        for secret in self._strands.values():
            secret.wipe()
