"""Nodes killed one after the other while applications fetch keys at both ends: what is lost, and for how long.

    python tests/e2e/kill_soak.py --minutes 10 [--store postgres]

Runs `trenza up SCENARIO --processes`, kills a random node with SIGKILL every few seconds, and judges: no key differs,
none comes twice, none that an application was given is missing at the other end, also of those that were issued
before the kill and are fetched only after it. Exit status 1 where one rule is broken or a node stays away too long.
`test_kill.py` runs some of it. With `--store postgres` the nodes' memory is in a server that is made for it, and who
takes a killed node's place waits until the lead's lease has ended. For several instances behind a balancer, give
`Soak` another `Victims`.
"""

import argparse
import contextlib
import importlib.util
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Protocol

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import postgres as servers
from tests.e2e import product
from tests.e2e.product import Network, until
from tests.e2e.traffic import History, Traffic, fetch_what_waits

SCENARIO = "three-nodes"
PAIRS = tuple(permutations(("sae-alice", "sae-relay", "sae-bob"), 2))
CLIENTS = 2  # of each direction
EVERY_S = 5.0  # between kills; peers put off whoever begins a session more often than once in five seconds, for long
KEPT = 4  # keys of each direction that wait through a kill
AWAY_S = {"sqlite": 3.0, "postgres": 5.0}  # first the lead's lease of two seconds ends
BACK_WITHIN_S = 30.0


class Victims(Protocol):
    """What can be killed, and is started again by whoever supervises it."""

    names: tuple[str, ...]

    def pid(self, name: str) -> int:
        """Return the process that a victim is now."""
        ...

    def saes(self, name: str) -> frozenset[str]:
        """Return the applications that the victim serves."""
        ...


class Processes:
    """The nodes of `trenza up --processes`, whose ready document names each process."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.names = tuple(sorted(network.ready["nodes"]))

    def pid(self, name: str) -> int:
        return self._network.pid(name)

    def saes(self, name: str) -> frozenset[str]:
        return frozenset(sae for sae, one in self._network.ready["saes"].items() if one["node"] == name)


@dataclass
class Kill:
    """One kill and what came of it."""

    victim: str
    first_s: float = 0.0  # until the first pair of keys through it again
    away_s: float = 0.0  # until pairs in every direction through it again
    most_in_doubt: int = 0  # fetches that can be under way at the victim when it dies
    in_doubt: int = 0  # keys whose delivery got no answer, and which nobody gets any more: perhaps they were sent


@dataclass
class Soak:
    """Load, kills, and the judgement."""

    network: Network
    victims: Victims
    seed: int
    history: History = field(default_factory=History)
    kills: list[Kill] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    load: list[float] = field(default_factory=lambda: [0.0, 0.0])  # of the machine, before and after

    def run(self, seconds: float, *, every_s: float = EVERY_S) -> None:
        """Kill somebody again and again for so long."""
        self.load[0] = os.getloadavg()[0]
        chance = random.Random(self.seed)
        end = time.monotonic() + seconds
        with Traffic(self.network, self.history, *PAIRS, clients=CLIENTS):
            self._until_through(PAIRS, time.monotonic())
            while time.monotonic() < end:
                began = time.monotonic()
                self._kill(chance.choice(self.victims.names))
                time.sleep(max(0.0, began + every_s * chance.uniform(0.8, 1.2) - time.monotonic()))
        self.load[1] = os.getloadavg()[0]
        fetch_what_waits(self.network, self.history)

    def _kill(self, victim: str) -> None:
        through = [pair for pair in PAIRS if self.victims.saes(victim) & set(pair)]
        kept = self._issue(through)
        before = frozenset(self.history.unheard)
        os.kill(self.victims.pid(victim), signal.SIGKILL)
        moment = time.monotonic()
        to_victim = [target for _, target in through if target in self.victims.saes(victim)]
        kill = Kill(victim, most_in_doubt=CLIENTS * len(to_victim))
        self._until("a first pair", lambda: self.history.pairs_since(moment) & set(through))
        kill.first_s = time.monotonic() - moment
        self._until_through(through, moment)
        kill.away_s = time.monotonic() - moment
        self._fetch(kept)
        unheard = frozenset(self.history.unheard) - before
        fetch_what_waits(self.network, self.history, unheard)
        kill.in_doubt = len(unheard & self.history.doubtful)
        self.kills.append(kill)

    def _until_through(self, pairs, moment: float) -> None:
        wanted = set(pairs)
        self._until(f"pairs for all of {sorted(wanted)}", lambda: wanted <= self.history.pairs_since(moment))

    def _until(self, what: str, condition: Callable[[], object]) -> None:
        until(f"{what} ({self.history.counts})", condition, within_s=BACK_WITHIN_S, every_s=0.01)

    def _issue(self, pairs) -> dict[tuple[str, str], dict[str, bytes]]:
        """Issue keys that nobody fetches yet."""
        kept = {}
        for initiator, target in pairs:
            application = self.network.application(initiator)
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
            application = self.network.application(target)
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
        for node, told in self.network.command_json("audit")["nodes"].items():
            if not told["whole"]:
                found.append(f"the ledger of {node} is not whole")
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
                f"all directions again after p50 {statistics.median(away):.2f} s, max {max(away):.2f} s",
                f"keys in doubt per kill: max {max(kill.in_doubt for kill in self.kills)}",
                f"load average {self.load[0]:.1f} before, {self.load[1]:.1f} after, {os.cpu_count()} processors",
            ]
        return lines


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


@contextlib.contextmanager
def sqlite(folder: Path):
    """Nodes with the embedded store."""
    with product.up(SCENARIO, folder, "--processes") as network:
        yield network, Processes(network)


@contextlib.contextmanager
def postgres(folder: Path):
    """Nodes with a schema each, in a server of their own."""
    with servers.cluster() as cluster:
        address = folder / "database"
        address.write_text(cluster.dsn() + "\n")
        address.chmod(0o600)
        options = ("--processes", "--store", "postgres", "--database-address", address)
        with product.up(SCENARIO, folder, *options) as network:
            yield network, Processes(network)


STORES = {"sqlite": sqlite, "postgres": postgres}


def missing(store: str) -> str | None:
    """Say why nodes with that store cannot run here, or None."""
    if store != "postgres":
        return None
    if importlib.util.find_spec("asyncpg") is None:
        return "the extra `postgres` is not installed"
    return servers.missing()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=EVERY_S, metavar="SECONDS", help="between kills")
    parser.add_argument("--store", choices=STORES, default="sqlite")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    told = parser.parse_args()
    if (why := missing(told.store)) is not None:
        parser.error(why)
    with tempfile.TemporaryDirectory() as folder, STORES[told.store](Path(folder)) as (network, victims):
        soak = Soak(network, victims, told.seed)
        soak.run(60 * told.minutes, every_s=told.every)
        broken = soak.broken()
        too_long = [kill for kill in soak.kills if kill.away_s > AWAY_S[told.store]]
        broken += [f"{kill.victim} was away for {kill.away_s:.2f} s" for kill in too_long]
        print("\n".join([*soak.summary(), *broken]))  # noqa: T201 - what it is for
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
