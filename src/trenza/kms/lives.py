"""The lives of one node, compared: which are the same, and which came later.

A life is (epoch, incarnation, nonce). The incarnation grows at every start; the epoch grows when the node cannot
prove that its memory is whole (docs/adr/0005-windows-and-lives.md). A life also says how far each one before it had
got, so that a copy that has forgotten what others remember shows (docs/adr/0023-counters-among-peers.md). Pure.
"""

from __future__ import annotations

import math

from trenza.wire.peer import Presence


def is_same(one: Presence | None, other: Presence) -> bool:
    """Tell whether both speak of one life, whichever of the node's keys signed it."""
    return one is not None and (one.epoch, one.incarnation, one.nonce) == (
        other.epoch,
        other.incarnation,
        other.nonce,
    )


def is_later(one: Presence, other: Presence) -> bool:
    """Tell whether `one` shows that `other` is an earlier life, another copy of the same, or a later one of a copy.

    A node that runs on a copy of a memory may start more often than the copy that was met; its past shows it, by
    the nonces of lives that were others, or by counting less than they had reached.
    """
    if (one.epoch, one.incarnation) == (other.epoch, other.incarnation):
        return one.nonce != other.nonce
    since = other.incarnation - one.incarnation
    if one.epoch == other.epoch and 0 < since <= len(other.past):
        return one.nonce != other.past[since - 1] or one.reached > _end_of(other, since)
    return (one.epoch, one.incarnation) > (other.epoch, other.incarnation)


def _end_of(life: Presence, since: int) -> float:
    """Return what the store had counted when the life so many before this one was over."""
    return life.ends[since - 1] if since <= len(life.ends) else math.inf
