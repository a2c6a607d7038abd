"""Doing several things at once, all of which must succeed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

from trenza.base.errors import TrenzaError


async def together(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all steps; when one fails the others are cancelled, and the first TrenzaError is raised by itself.

    Raises:
        TrenzaError: of the step that failed first.
        BaseExceptionGroup: a step failed in another way.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except BaseExceptionGroup as failures:  # not `except*`: in Python 3.11.2 it wraps what is raised in it once more
        expected, others = failures.split(TrenzaError)
        if expected is None or others is not None:
            raise
        raise _first(expected) from None


def _first(failures: BaseExceptionGroup[TrenzaError]) -> TrenzaError:
    error = failures.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
