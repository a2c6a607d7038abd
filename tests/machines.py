"""What the state machines of the tests share: how long they run, and a loop to run coroutines on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine

T = TypeVar("T")

QUICK = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,  # the same examples in every run: what fails, fails again
    suppress_health_check=[HealthCheck.too_slow],
)


class AsyncMachine(RuleBasedStateMachine):
    """A machine whose rules may run coroutines."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()

    def now(self, deed: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(deed)

    def teardown(self) -> None:
        self._loop.close()
