"""Key records as the ledger keeps them: one body for the keys of a batch, about a byte for each key.

What many keys have in common is written once: names, recipe and policy, segment and window. Slots are runs, times
steps of milliseconds. The first byte tells how a body is written: an array of four is version 4; before, each heading
had a body of its own, an array of fourteen (version 3) or a map (1 and 2). Why: docs/adr/0021-retention.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias, TypeVar

import msgspec

from trenza.core.provenance import KEY_RECORD_VERSION, KeyRecord

T = TypeVar("T")
Runs: TypeAlias = tuple[tuple[int, int, int], ...]
"""First slot of a key, step to the next key's, number of keys."""

_BATCH: Final = b"\x94"  # a MessagePack array of four
_PACKED: Final = b"\x9e"  # one of fourteen


class _Terms(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What keys of many pairs have in common."""

    recipe: str
    size: int
    policy: str
    policy_digest: bytes
    tls_group: str
    uncertainty: int


class _Use(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What became of slots of one window for one pair; the first three are places in the batch's lists."""

    initiator: int
    target: int
    terms: int
    slots: Runs
    times: tuple[int, ...]  # milliseconds from the key before, or from the entry's time


class _Source(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One window of one segment, and what its slots became."""

    segment: bytes
    peer: str
    window: int
    uses: tuple[_Use, ...]


class _Batch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The body of an entry of version 4."""

    version: int
    names: tuple[str, ...]
    terms: tuple[_Terms, ...]
    sources: tuple[_Source, ...]


class _Packed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The body of an entry of version 3."""

    version: int
    segment: bytes
    peer: str
    window: int
    slots: Runs
    initiator: str
    target: str
    recipe: str
    size: int
    policy: str
    policy_digest: bytes
    tls_group: str
    uncertainty: int
    times: tuple[int, ...]


_batch = msgspec.msgpack.Decoder(_Batch)
_packed = msgspec.msgpack.Decoder(_Packed)
_map = msgspec.msgpack.Decoder(KeyRecord)


def encode_key_records(records: Iterable[KeyRecord]) -> bytes:
    """Return the body of one entry for all of `records`; times are kept to the millisecond."""
    names: dict[str, int] = {}
    terms: dict[tuple[str, int, str, bytes, str, int], int] = {}
    sources: dict[tuple[bytes, str, int], list[_Use]] = {}
    for one in records:
        told = one.recipe, one.size, one.policy, one.policy_digest, one.tls_group, one.uncertainty
        use = _Use(
            names.setdefault(one.initiator, len(names)),
            names.setdefault(one.target, len(names)),
            terms.setdefault(told, len(terms)),
            _runs_of(one.slots),
            _steps_of(one.times),
        )
        sources.setdefault((one.segment, one.peer, one.window), []).append(use)
    return msgspec.msgpack.encode(
        _Batch(
            KEY_RECORD_VERSION,
            tuple(names),
            tuple(itertools.starmap(_Terms, terms)),
            tuple(_Source(*source, tuple(uses)) for source, uses in sources.items()),
        )
    )


def decode_key_records(
    body: bytes, *, window: tuple[str, int] | None = None, segment: bytes | None = None
) -> tuple[KeyRecord, ...]:
    """Return the records in a body of whatever version; msgspec's error means that the ledger is damaged.

    Args:
        body: of a ledger entry about keys made of slots.
        window: leave out those of other windows (the peer's name, and the number).
        segment: leave out those of other segments.
    """

    def is_wanted(one: KeyRecord | _Source | _Packed) -> bool:
        return window in {None, (one.peer, one.window)} and segment in {None, one.segment}

    if body[:1] == _BATCH:
        return tuple(_unpacked(_batch.decode(body), is_wanted))
    found = _unpacked_one(_packed.decode(body)) if body[:1] == _PACKED else _map.decode(body)
    return (found,) if is_wanted(found) else ()


def _unpacked(batch: _Batch, is_wanted: Callable[[_Source], bool]) -> Iterator[KeyRecord]:
    for source in filter(is_wanted, batch.sources):
        for use in source.uses:
            terms = _listed(batch.terms, use.terms)
            yield KeyRecord(
                version=batch.version,
                segment=source.segment,
                peer=source.peer,
                window=source.window,
                slots=_slots_of(use.slots),
                initiator=_listed(batch.names, use.initiator),
                target=_listed(batch.names, use.target),
                recipe=terms.recipe,
                size=terms.size,
                policy=terms.policy,
                policy_digest=terms.policy_digest,
                tls_group=terms.tls_group,
                uncertainty=terms.uncertainty,
                times=_times_of(use.times),
            )


def _unpacked_one(packed: _Packed) -> KeyRecord:
    members = {name: getattr(packed, name) for name in packed.__struct_fields__}
    return KeyRecord(**members | {"slots": _slots_of(packed.slots), "times": _times_of(packed.times)})


def _listed(listed: Sequence[T], place: int) -> T:
    if not 0 <= place < len(listed):
        raise msgspec.ValidationError("a key record names what its entry does not list")
    return listed[place]


def _runs_of(slots: Sequence[int]) -> Runs:
    """Return slots as runs of one step each; in a window that is used up in order that is one."""
    if len(slots) == 1:  # as with nearly every key where thousands of pairs take turns
        return ((slots[0], 0, 1),)
    runs: list[tuple[int, int, int]] = []
    for slot in slots:
        first, step, count = runs[-1] if runs else (0, 0, 0)
        if count and (count == 1 or slot == first + step * count):
            runs[-1] = (first, slot - first if count == 1 else step, count + 1)
        else:
            runs.append((slot, 0, 1))
    return tuple(runs)


def _slots_of(runs: Runs) -> tuple[int, ...]:
    return tuple(first + place * step for first, step, count in runs for place in range(count))


def _steps_of(times: Sequence[int]) -> tuple[int, ...]:
    if len(times) == 1:
        return (times[0] // 1_000,)
    moments = [time // 1_000 for time in times]
    return tuple(moment - before for before, moment in zip([0, *moments], moments, strict=False))


def _times_of(steps: Sequence[int]) -> tuple[int, ...]:
    return tuple(moment * 1_000 for moment in itertools.accumulate(steps))
