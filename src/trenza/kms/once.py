"""The same request gets the same answer: a peer that asks again joins what is under way, or hears how it ended."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from trenza.base.errors import RemoteProtocolError, TrenzaError, UnavailableError
from trenza.base.names import NodeId

_A = TypeVar("_A")


@dataclass(slots=True)
class _Course(Generic[_A]):
    digest: bytes
    done: asyncio.Event = field(default_factory=asyncio.Event)
    answer: _A | None = None
    error: TrenzaError | None = None


class Once(Generic[_A]):
    """Answers by peer and request ID. The latest `most` are remembered; to act again after that must be safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._courses: OrderedDict[tuple[NodeId, bytes], _Course[_A]] = OrderedDict()

    async def answer(self, peer: NodeId, request: bytes, digest: bytes, act: Callable[[], Awaitable[_A]]) -> _A:
        """Return what `act` returns or raises; it runs once for each request.

        Args:
            peer: who asks.
            request: the request's ID.
            digest: of the whole request.
            act: the story that answers it.

        Raises:
            RemoteProtocolError: the peer asked for something else under that ID.
            UnavailableError: the one who ran the story was interrupted; what came of it is not known.
        """
        course = self._courses.get((peer, request))
        if course is None:
            course = self._courses[peer, request] = _Course(digest)
            return await self._run(course, act)
        if course.digest != digest:
            raise RemoteProtocolError(f"node {peer} sends two requests under one ID")
        await course.done.wait()
        if course.answer is not None:
            return course.answer
        raise course.error or UnavailableError("the same request was interrupted before")

    async def _run(self, course: _Course[_A], act: Callable[[], Awaitable[_A]]) -> _A:
        try:
            course.answer = await act()
            return course.answer
        except TrenzaError as error:
            course.error = error
            raise
        finally:
            course.done.set()
            while len(self._courses) > self._most and next(iter(self._courses.values())).done.is_set():
                self._courses.popitem(last=False)
