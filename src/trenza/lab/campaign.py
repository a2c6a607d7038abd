"""Campaigns: one story after another over a range of seeds, in several processes, and what came of all of them.

What a seed gives depends on nothing but the scenario, the plan and the seed: not on its process nor on its turn. A
harness that falls over is a failure of its seed like a broken rule, and so is a process of ours that is killed.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import signal
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Final

from trenza.app.scenario import Scenario, load_scenario
from trenza.lab.history import Delivered
from trenza.lab.loop import run
from trenza.lab.plan import FAULTS, INSTANCE_FAULTS, PLANS
from trenza.lab.rules import Balance, balance
from trenza.lab.stories import story_of
from trenza.lab.story import Outcome

_CHUNK: Final = 2
"""Seeds that a process takes at once."""

_LITTER: Final = 20_000
"""Objects made since the last look for those that hold each other, until the next: stories make many that last."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one seed gave."""

    seed: int
    violations: tuple[str, ...]
    slots: Balance
    issued: int
    delivered: int
    fired: Counter[str]
    cpu: float  # seconds of processor time
    virtual: float  # seconds that the story took for those in it
    harness: str = ""  # where the lab itself fell over


@dataclass(slots=True)
class Tally:
    """What many seeds gave."""

    seeds: int = 0
    keys: int = 0
    delivered: int = 0
    violations: int = 0
    fewest_keys: int = 0
    failing: list[int] = field(default_factory=list)
    harness_failures: int = 0
    fired_in: Counter[str] = field(default_factory=Counter)  # seeds by kind of fault
    slots: Counter[str] = field(default_factory=Counter)
    cpu: float = 0.0
    virtual: float = 0.0

    def add(self, one: Verdict) -> None:
        """Count a verdict."""
        self.fewest_keys = one.issued if not self.seeds else min(self.fewest_keys, one.issued)
        self.seeds += 1
        self.keys += one.issued
        self.delivered += one.delivered
        self.violations += len(one.violations)
        self.harness_failures += bool(one.harness)
        if one.violations or one.harness:
            self.failing.append(one.seed)
        self.fired_in.update(kind for kind, times in one.fired.items() if times)
        for what in ("filled", "issued", "doubtful", "left"):
            self.slots[what] += getattr(one.slots, what)
        self.cpu += one.cpu
        self.virtual += one.virtual

    def document(self, *, scenario: str, plan: str, seconds: float) -> dict[str, object]:
        """Return all of it, for a program."""
        faults = INSTANCE_FAULTS if PLANS[plan].has_instances else FAULTS
        return {
            "scenario": scenario,
            "plan": plan,
            "seeds": self.seeds,
            "keys": self.keys,
            "delivered": self.delivered,
            "violations": self.violations,
            "harness_failures": self.harness_failures,
            "failing_seeds": sorted(self.failing),
            "fewest_keys": self.fewest_keys,
            "slots": dict(self.slots),
            "faults": {kind: round(self.fired_in[kind] / max(1, self.seeds), 4) for kind in faults},
            "cpu_seconds": round(self.cpu, 1),
            "virtual_seconds": round(self.virtual, 1),
            "seconds": round(seconds, 1),
        }


def lived(scenario: Scenario, seed: int, plan: str, without: Sequence[str] = ()) -> Outcome:
    """Live through one seed, under a plan of that name without some kinds of trouble."""

    async def story() -> Outcome:
        return await story_of(scenario, seed=seed, plan=PLANS[plan].without(without)).run()

    return run(story())


def judged(scenario: Scenario, seed: int, plan: str, without: Sequence[str] = ()) -> tuple[Verdict, Outcome | None]:
    """Live through one seed; whatever goes wrong in the lab itself is told, not raised."""
    began = time.process_time()
    try:
        outcome = lived(scenario, seed, plan, without)
    except Exception:  # noqa: BLE001 - the harness's own failure is a result too
        cpu = time.process_time() - began
        told = traceback.format_exc()
        return Verdict(seed, (), Balance(0, 0, 0, 0), 0, 0, Counter(), cpu, 0.0, told), None
    cpu = time.process_time() - began
    events = outcome.history.events
    verdict = Verdict(
        seed=seed,
        violations=tuple(outcome.broken),
        slots=balance(outcome.history),
        issued=outcome.issued,
        delivered=sum(isinstance(event, Delivered) for event in events),
        fired=outcome.fired,
        cpu=cpu,
        virtual=outcome.seconds,
    )
    return verdict, outcome


def _chunk(scenario: str, seeds: Sequence[int], plan: str, without: Sequence[str]) -> list[Verdict]:
    """Run some seeds in a process of their own."""
    logging.disable(logging.WARNING)  # what nodes complain of in trouble is no news here
    gc.collect()
    gc.freeze()  # modules and what they made: to look through them again and again finds nothing
    gc.set_threshold(_LITTER)
    found = load_scenario(scenario)
    return [judged(found, seed, plan, without)[0] for seed in seeds]


def campaign(
    scenario: str, seeds: range, *, plan: str, jobs: int, without: Sequence[str] = ()
) -> Generator[Verdict, None, None]:
    """Yield the verdict of every seed, as they come; whoever closes this early lets no more of them begin.

    Args:
        scenario: a file, or the name of one that comes with Trenza.
        seeds: which.
        plan: a key of lab.plan.PLANS.
        jobs: processes.
        without: kinds of trouble that do not come.
    """
    chunk = max(1, min(_CHUNK, -(-len(seeds) // jobs)))
    chunks = [seeds[at : at + chunk] for at in range(0, len(seeds), chunk)]
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        max_workers=min(jobs, len(chunks)),
        mp_context=context,
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),  # Ctrl-C ends it without a word; who started it has the last
    )
    try:
        with _deaf_to_ctrl_c():  # and so is a process that has only begun
            waiting: dict[Future[list[Verdict]], range] = {
                pool.submit(_chunk, scenario, some, plan, without): some for some in chunks
            }
        for done in as_completed(waiting):
            try:
                yield from done.result()
            except BrokenProcessPool:
                yield from (_untold(seed) for seed in waiting[done])
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Ignore SIGINT, here and in every process that is started meanwhile until it chooses otherwise."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _untold(seed: int) -> Verdict:
    told = "the process that ran this seed, or another of the campaign, was killed"
    return Verdict(seed, (), Balance(0, 0, 0, 0), 0, 0, Counter(), 0.0, 0.0, told)
