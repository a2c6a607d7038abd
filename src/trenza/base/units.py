"""Units as types: they catch swapped arguments; conversions live in named functions."""

from __future__ import annotations

from typing import NewType

Bits = NewType("Bits", int)
BitsPerSecond = NewType("BitsPerSecond", float)
Decibel = NewType("Decibel", float)
Kilometre = NewType("Kilometre", float)
Seconds = NewType("Seconds", float)
Nanoseconds = NewType("Nanoseconds", int)
"""Nanoseconds since 1970-01-01T00:00:00Z where a moment is meant."""

NANOSECONDS_PER_SECOND = 1_000_000_000


def bits_of_bytes(count: int) -> Bits:
    """Return the size in bits of `count` bytes."""
    return Bits(count * 8)


def whole_bytes(size: Bits) -> int:
    """Return the number of bytes that hold exactly `size` bits.

    Raises:
        ValueError: `size` is not a multiple of 8.
    """
    count, rest = divmod(size, 8)
    if rest:
        raise ValueError(f"{size} bits are not whole bytes")
    return count


def nanoseconds(duration: Seconds) -> Nanoseconds:
    """Return `duration` in nanoseconds, rounded to the nearest."""
    return Nanoseconds(round(duration * NANOSECONDS_PER_SECOND))


def seconds(duration: Nanoseconds) -> Seconds:
    """Return `duration` in seconds."""
    return Seconds(duration / NANOSECONDS_PER_SECOND)
