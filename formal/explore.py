"""Visiting every state that a model can reach, breadth first, so that the first violation found is a shortest one.

Knows nothing of what the model means. A model gives its first state, the steps from a state, and what is wrong with a
state; whoever calls says how many states are enough.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True)
class Found(Generic[S]):
    """What became of an exploration."""

    states: int
    steps: int
    depth: int  # of the last state visited
    whole: bool  # every reachable state was visited, or a violation ended it
    seconds: float
    wrong: str | None = None
    trace: tuple[tuple[str, S], ...] = field(default=(), repr=False)  # step by step to what is wrong

    def told(self) -> str:
        """Return the violation and how it comes about, a line a step."""
        lines = [f"{number:3}  {step}" for number, (step, _) in enumerate(self.trace)]
        return "\n".join([f"VIOLATED: {self.wrong}", *lines])


def explore(
    first: S,
    *,
    steps: Callable[[S], Iterable[tuple[str, S]]],
    wrong: Callable[[S], str | None],
    most: int,
) -> Found[S]:
    """Visit every state reachable from `first`, at most `most` of them, until one is wrong."""
    began = time.perf_counter()
    came_from: dict[S, tuple[S, str] | None] = {first: None}
    waiting: deque[tuple[S, int]] = deque([(first, 0)])
    taken = depth = 0

    def result(*, whole: bool, violation: str | None = None, at: S | None = None) -> Found[S]:
        trace = () if at is None else tuple(_trace(came_from, at))
        return Found(len(came_from), taken, depth, whole, time.perf_counter() - began, violation, trace)

    while waiting:
        state, depth = waiting.popleft()
        violation = wrong(state)
        if violation is not None:
            return result(whole=True, violation=violation, at=state)
        for name, after in steps(state):
            taken += 1
            if after in came_from:
                continue
            if len(came_from) >= most:
                return result(whole=False)
            came_from[after] = (state, name)
            waiting.append((after, depth + 1))
    return result(whole=True)


def _trace(came_from: dict[S, tuple[S, str] | None], last: S) -> list[tuple[str, S]]:
    found: list[tuple[str, S]] = []
    state: S = last
    while (step := came_from[state]) is not None:
        found.append((step[1], state))
        state = step[0]
    return [("(the beginning)", state), *reversed(found)]
