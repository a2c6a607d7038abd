"""Nodes killed one after the other while applications fetch keys at both ends: what is lost, and for how long.

    python tests/e2e/kill_soak.py --minutes 10 [--store sqlite | postgres] [--instances 2]

Runs `trenza up SCENARIO --processes`, kills a random node with SIGKILL every few seconds, and judges: no key differs,
none comes twice, none that an application was given is missing at the other end, also of those that were issued
before the kill and are fetched only after it. With `--store postgres` the nodes' memory is in a server that is made
for it. With `--instances 2` one node is two processes on that server, behind a balancer, and one of them is killed.

How long the service was away is the longest time, between a kill and the next, in which no key of some direction came
through to both ends. Exit status 1 where one rule is broken or it was away too long. `test_kill.py` runs some of it.
"""

import argparse
import contextlib
import functools
import importlib.util
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Protocol

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import postgres as servers
from tests.e2e import instances, product
from tests.e2e.product import Network, until
from tests.e2e.traffic import History, Traffic, fetch_what_waits

SCENARIO = "three-nodes"
PAIRS = tuple(permutations(("sae-alice", "sae-relay", "sae-bob"), 2))
CLIENTS = 2  # of each direction
EVERY_S = 5.0  # between kills; peers put off whoever begins a session more often than once in five seconds, for long
KEPT = 4  # keys of each direction that wait through a kill
AWAY_S = 3.0
BACK_WITHIN_S = 30.0
SKIPPED = 75  # the exit status that says: nothing is wrong, and nothing was tried


class Victims(Protocol):
    """What can be killed, and comes back."""

    names: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    network: Network

    def kill(self, name: str) -> None:
        """Kill it with SIGKILL, and let it be started again."""
        ...

    def is_back(self, name: str) -> bool:
        """Tell whether it serves again, so that the next may be killed."""
        ...

    def saes(self, name: str) -> frozenset[str]:
        """Return the applications that the victim serves."""
        ...

    def whole(self) -> dict[str, bool]:
        """Tell of each node's ledger whether it is whole."""
        ...

    def said(self) -> str:
        """Return all that they said."""
        ...


class Processes:
    """The nodes of `trenza up --processes`, whose ready document names each process."""

    pairs = PAIRS

    def __init__(self, network: Network) -> None:
        self.network = network
        self.names = tuple(sorted(network.ready["nodes"]))

    def kill(self, name: str) -> None:
        os.kill(self.network.pid(name), signal.SIGKILL)

    def is_back(self, name: str) -> bool:
        return True  # pairs have come through it by then

    def saes(self, name: str) -> frozenset[str]:
        return frozenset(sae for sae, one in self.network.ready["saes"].items() if one["node"] == name)

    def whole(self) -> dict[str, bool]:
        return {node: told["whole"] for node, told in self.network.command_json("audit")["nodes"].items()}

    def said(self) -> str:
        return self.network.process.said()


class Beside:
    """Instances of one node on one database, behind a balancer."""

    pairs = instances.PAIRS

    def __init__(self, made: instances.Instances) -> None:
        self._made = made
        self.network = made.sites.network
        self.names = tuple(made.configs)

    def kill(self, name: str) -> None:
        self._made.kill(name)
        self._made.start(name)

    def is_back(self, name: str) -> bool:
        return self._made.is_open(name)

    def saes(self, name: str) -> frozenset[str]:  # all of them serve the same
        return frozenset(sae for sae, one in self.network.ready["saes"].items() if one["node"] == instances.SHARED)

    def whole(self) -> dict[str, bool]:
        return self._made.whole()

    def said(self) -> str:
        return "".join(process.said() for process in self._made.processes.values())


@dataclass
class Kill:
    """One kill and what came of it."""

    victim: str
    moment: float
    pairs: list[tuple[str, str]]  # that go through the victim
    most_in_doubt: int  # fetches that can be under way at the victim when it dies
    first_s: float = 0.0  # until the first pair of keys through it again
    away_s: float = 0.0  # the longest time until the next kill in which nothing came through of one of the pairs
    in_doubt: int = 0  # keys whose delivery got no answer, and which nobody gets any more: perhaps they were sent

    def __str__(self) -> str:
        return f"{self.victim}, first pair again after {self.first_s:.2f} s, away for {self.away_s:.2f} s"


@dataclass
class Soak:
    """Load, kills, and the judgement."""

    victims: Victims
    seed: int
    history: History = field(default_factory=History)
    kills: list[Kill] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    load: list[float] = field(default_factory=lambda: [0.0, 0.0])  # of the machine, before and after

    def run(self, seconds: float, *, every_s: float = EVERY_S, tell: Callable[[str], None] | None = None) -> None:
        """Kill somebody again and again for so long; `tell` is told what came of each kill."""
        self.load[0] = os.getloadavg()[0]
        chance = random.Random(self.seed)
        end = time.monotonic() + seconds
        with Traffic(self._network, self.history, *self.victims.pairs, clients=CLIENTS):
            self._until_through(self.victims.pairs, time.monotonic())
            while time.monotonic() < end:
                kill = self._kill(chance.choice(self.victims.names))
                time.sleep(max(0.0, kill.moment + every_s * chance.uniform(0.8, 1.2) - time.monotonic()))
                self._until(f"{kill.victim} is back", lambda kill=kill: self.victims.is_back(kill.victim))
                kill.away_s = self.history.longest_gap(kill.pairs, kill.moment, time.monotonic())
                if tell is not None:
                    left = max(0.0, end - time.monotonic())
                    tell(f"{len(self.kills)}: {kill}; {self.history.counts['fetched']} pairs, {left:.0f} s to go")
        self.load[1] = os.getloadavg()[0]
        fetch_what_waits(self._network, self.history)

    @property
    def _network(self) -> Network:
        return self.victims.network

    def _kill(self, victim: str) -> Kill:
        served = self.victims.saes(victim)
        pairs = [pair for pair in self.victims.pairs if served & set(pair)]
        kept = self._issue(pairs)
        before = frozenset(self.history.unheard)
        self.victims.kill(victim)
        under_way = CLIENTS * sum(target in served for _, target in pairs)
        kill = Kill(victim, time.monotonic(), pairs, most_in_doubt=under_way)
        self.kills.append(kill)
        self._until("a first pair", lambda: self.history.pairs_since(kill.moment) & set(pairs))
        kill.first_s = time.monotonic() - kill.moment
        self._until_through(pairs, kill.moment)
        self._fetch(kept)
        unheard = frozenset(self.history.unheard) - before
        fetch_what_waits(self._network, self.history, unheard)
        kill.in_doubt = len(unheard & self.history.doubtful)
        return kill

    def _until_through(self, pairs, moment: float) -> None:
        wanted = set(pairs)
        self._until(f"pairs for all of {sorted(wanted)}", lambda: wanted <= self.history.pairs_since(moment))

    def _until(self, what: str, condition: Callable[[], object]) -> None:
        until(f"{what} ({self.history.counts})", condition, within_s=BACK_WITHIN_S, every_s=0.01)

    def _issue(self, pairs) -> dict[tuple[str, str], dict[str, bytes]]:
        """Issue keys that nobody fetches yet."""
        kept = {}
        for initiator, target in pairs:
            application = self._network.application(initiator)
            code, container = application.enc(target, number=KEPT)
            if code == 200:  # else the kill before is not quite over: fewer are kept
                kept[initiator, target] = product.bits_of(container)
                for key_id, key in kept[initiator, target].items():
                    self.history.note_issued((initiator, target), key_id, key)
            application.close()
        return kept

    def _fetch(self, kept: dict[tuple[str, str], dict[str, bytes]]) -> None:
        """Fetch what was issued before the kill: its target is there again, and so must the keys be."""
        for (initiator, target), keys in kept.items():
            application = self._network.application(target)
            code, container = application.dec(initiator, *keys)
            if code != 200:
                self.missing += [f"{initiator} to {target}: {key_id} ({code})" for key_id in keys]
            else:
                for key_id, key in product.bits_of(container).items():
                    self.history.note_fetched(key_id, key)
            application.close()

    # --- judgement

    def broken(self) -> list[str]:
        """Return the rules that were broken; the time away is not among them."""
        found = [*self.history.wrong]
        found += [f"key {key_id} was issued and could not be had" for key_id in self.history.lost]
        found += [f"issued before a kill and gone after it: {one}" for one in self.missing]
        found += [
            f"killing {kill.victim} left {kill.in_doubt} keys in doubt"
            for kill in self.kills
            if kill.in_doubt > kill.most_in_doubt
        ]
        found += [f"the ledger of {node} is not whole" for node, whole in self.victims.whole().items() if not whole]
        if "Traceback" in self.victims.said():
            found.append("something failed that nobody had thought of: there is a traceback in the log")
        return found

    def summary(self) -> list[str]:
        """Return the figures."""
        counts = self.history.counts
        away = [kill.away_s for kill in self.kills]
        wrong, missing = len(self.history.wrong), len(self.history.lost) + len(self.missing)
        unheard, doubtful = len(self.history.unheard), len(self.history.doubtful)
        lines = [
            f"{len(self.kills)} kills ({_listed(Counter(kill.victim for kill in self.kills))}), seed {self.seed}",
            f"{counts['issued']} keys issued, {counts['fetched']} fetched at the other end too",
            f"{wrong} different or repeated, {missing} missing",
            f"{unheard} whose fetch got no answer at first, {doubtful} of them in doubt",
        ]
        if away:
            first = [kill.first_s for kill in self.kills]
            lines += [
                f"first pair again after p50 {statistics.median(first):.2f} s, max {max(first):.2f} s",
                f"away for p50 {statistics.median(away):.2f} s, max {max(away):.2f} s",
                f"keys in doubt per kill: max {max(kill.in_doubt for kill in self.kills)}",
                f"load average {self.load[0]:.1f} before, {self.load[1]:.1f} after, {os.cpu_count()} processors",
            ]
        return lines


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[Victims]:
    """Nodes with the embedded store."""
    with product.up(SCENARIO, folder, "--processes") as network:
        yield Processes(network)


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Victims]:
    """Nodes with a schema each, in a server of their own."""
    with servers.cluster() as cluster:
        address = folder / "database"
        address.write_text(cluster.dsn() + "\n")
        address.chmod(0o600)
        options = ("--processes", "--store", "postgres", "--database-address", address)
        with product.up(SCENARIO, folder, *options) as network:
            yield Processes(network)


@contextlib.contextmanager
def beside(folder: Path, count: int = 2) -> Iterator[Victims]:
    """Several instances of one node, and a peer with a store of its own."""
    with instances.in_stock(folder, *(f"instance-{number + 1}" for number in range(count))) as made:
        yield Beside(made)


KINDS = {"sqlite": sqlite, "postgres": postgres, "instances": beside}


def missing(kind: str) -> str | None:
    """Say why nodes of that kind cannot run here, or None."""
    if kind == "sqlite":
        return None
    if importlib.util.find_spec("asyncpg") is None:
        return "the extra `postgres` is not installed: pip install 'trenza[postgres]'"
    return servers.missing()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=EVERY_S, metavar="SECONDS", help="between kills")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--instances", type=int, default=1, help="of one node, on PostgreSQL, behind a balancer")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    told = parser.parse_args()
    if told.instances > 1 and told.store != "postgres":
        parser.error("several instances share a memory: --store postgres")
    kind = "instances" if told.instances > 1 else told.store
    if (why := missing(kind)) is not None:
        print(f"not run: {why}")  # noqa: T201 - what it is for
        return SKIPPED
    made = functools.partial(beside, count=told.instances) if kind == "instances" else KINDS[kind]
    with tempfile.TemporaryDirectory() as folder, made(Path(folder)) as victims:
        soak = Soak(victims, told.seed)
        soak.run(60 * told.minutes, every_s=told.every, tell=lambda line: print(line, file=sys.stderr))  # noqa: T201
        broken = soak.broken()
        broken += [f"{one.victim} was away for {one.away_s:.2f} s" for one in soak.kills if one.away_s > AWAY_S]
        print("\n".join([*soak.summary(), *broken]))  # noqa: T201
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
