"""What an application asks and gets, in the house's words; every door's standard is translated to and from these.

Pure values. Sizes are in bits. The calling SAE is never part of a request: it comes from the verified certificate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Bits, Nanoseconds, Seconds
from trenza.core.strand import Origin, Supply


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller demands of the keys beyond their size; all must be met or the request is refused."""

    origins: frozenset[Origin] = frozenset()  # every one of these must be in the key
    recipe: str | None = None  # exactly this recipe, by name
    max_hops: int | None = None  # QKD links crossed; 1 is a direct link
    max_age: Seconds | None = None  # of the strands, since they were verified


@dataclass(frozen=True, slots=True)
class IssueRequest:
    """Ask for fresh keys shared with `target` (and, all or nothing, with every additional target)."""

    target: SaeId
    number: int = 1
    size: Bits | None = None  # None: the node's default
    additional_targets: tuple[SaeId, ...] = ()
    wishes: Wishes = field(default_factory=Wishes)
    tls_group: str = ""  # what the application's connection negotiated; recorded, never trusted


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What an application may know of what protected its key."""

    recipe: str
    origins: tuple[Origin, ...]
    supply: Supply | None  # None where no QKD bit is in the key
    strength: str  # "information-theoretic" or "256-bit"…
    hops: int  # QKD links crossed; 0 without QKD
    created: Nanoseconds  # when the strands were verified
    expires: Nanoseconds


@dataclass(frozen=True, slots=True)
class DeliveredKey:
    """A key on its way out; the door that encodes it wipes it."""

    key_id: UUID
    key: Secret = field(repr=False)
    facts: KeyFacts


@dataclass(frozen=True, slots=True)
class PairStatus:
    """What two SAEs may expect now (GS QKD 014 Table 9)."""

    source_node: NodeId
    target_node: NodeId
    initiator: SaeId
    target: SaeId
    default_size: Bits
    stored_key_count: int
    max_key_count: int
    max_keys_per_request: int
    max_key_size: Bits
    min_key_size: Bits
    max_additional_targets: int
