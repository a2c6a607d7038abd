from __future__ import annotations

import asyncio
import itertools

import pytest

from trenza.base.units import Seconds
from trenza.lab import loop
from trenza.lab.loop import EPOCH, VirtualClock, run


def test_a_run_that_can_neither_proceed_nor_jump_says_so() -> None:
    with pytest.raises(RuntimeError, match="deadlock"):
        run(asyncio.Event().wait())


def test_a_run_that_turns_in_a_circle_ends(monkeypatch) -> None:
    monkeypatch.setattr(loop, "_MOST_TURNS", 1_000)

    async def story() -> None:
        for _ in itertools.count():
            await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="no end"):
        run(story())


def test_a_clock_that_is_off_jumps_and_drifts_while_timers_keep_the_true_time() -> None:
    async def story() -> None:
        true = VirtualClock(asyncio.get_running_loop())
        wrong = VirtualClock(asyncio.get_running_loop(), skew=Seconds(7.0), drift=1e-3)
        assert wrong.now() - true.now() == 7_000_000_000
        await asyncio.sleep(100.0)
        assert true.now() == EPOCH + 100_000_000_000
        assert wrong.elapsed() - true.elapsed() == pytest.approx(0.1)
        wrong.skew = Seconds(-3.0)
        assert wrong.now() - true.now() == pytest.approx(-2_900_000_000, abs=1_000)
        assert wrong.elapsed() - true.elapsed() == pytest.approx(0.1)

    run(story())
