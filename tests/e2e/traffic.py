"""Applications that fetch keys at both ends all the time, outlive every failure, and remember all they were given."""

import http.client
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from tests.e2e.product import Network, bits_of

PAUSE_S = 0.02  # after anything but a key, as a client of good manners makes


class Fetched(NamedTuple):
    """A key that both ends have."""

    asked: float
    done: float
    pair: tuple[str, str]


@dataclass
class History:
    """Everything that was given to anybody, over all traffic of a test module."""

    issued: dict[str, bytes] = field(default_factory=dict)
    fetched: dict[str, bytes] = field(default_factory=dict)
    who: dict[str, tuple[str, str]] = field(default_factory=dict)  # (initiator, target) of each key
    waiting: set[str] = field(default_factory=set)  # issued, and the target got no answer yet
    counts: Counter[str] = field(default_factory=Counter)
    pairs: list[Fetched] = field(default_factory=list)
    unheard: set[str] = field(default_factory=set)  # a fetch got no answer, or 503: perhaps delivered, perhaps not
    doubtful: set[str] = field(default_factory=set)  # … and refused when asked for again: delivered to nobody's use
    lost: list[str] = field(default_factory=list)  # refused to their target, who had not asked for them before
    wrong: list[str] = field(default_factory=list)
    _bits: set[bytes] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note_issued(self, pair: tuple[str, str], key_id: str, key: bytes) -> None:
        with self._lock:
            if key_id in self.issued:
                self.wrong.append(f"key ID {key_id} was issued twice")
            if key in self._bits:
                self.wrong.append(f"the bits of key {key_id} were issued before")
            self.issued[key_id] = key
            self.who[key_id] = pair
            self._bits.add(key)
            self.waiting.add(key_id)
            self.counts["issued"] += 1

    def note_fetched(self, key_id: str, key: bytes, *, asked: float | None = None) -> None:
        with self._lock:
            if asked is not None:
                self.pairs.append(Fetched(asked, time.monotonic(), self.who[key_id]))
            if key_id in self.fetched:
                self.wrong.append(f"key {key_id} was delivered twice")
            if self.issued.get(key_id) != key:
                self.wrong.append(f"key {key_id} differs at the two ends")
            self.fetched[key_id] = key
            self.waiting.discard(key_id)
            self.counts["fetched"] += 1

    def note(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def note_unheard(self, key_id: str) -> None:
        with self._lock:
            self.counts["dec without answer"] += 1
            self.unheard.add(key_id)

    def note_refused(self, key_id: str, code: int) -> None:
        with self._lock:
            if code == 503:
                self.unheard.add(key_id)
            elif code in (400, 401) and key_id in self.unheard:
                self.doubtful.add(key_id)
            elif code in (400, 401):
                self.lost.append(key_id)

    def pairs_since(self, moment: float) -> set[tuple[str, str]]:
        """Return whose keys were asked for after a moment, and fetched."""
        with self._lock:
            return {one.pair for one in self._since(moment) if one.asked > moment}

    def count_since(self, moment: float, pair: tuple[str, str]) -> int:
        """Return how many keys of a pair were asked for after a moment, and fetched."""
        with self._lock:
            return sum(one.pair == pair and one.asked > moment for one in self._since(moment))

    def longest_gap(self, pairs: Iterable[tuple[str, str]], since: float, until: float) -> float:
        """Return the longest time between two moments in which no key of some pair came through."""
        found = 0.0
        with self._lock:
            for pair in pairs:
                inside = (one.done for one in self.pairs if one.pair == pair and since < one.done < until)
                moments = [since, *sorted(inside), until]
                found = max([found, *(later - before for before, later in itertools.pairwise(moments))])
        return found

    def _since(self, moment: float) -> Iterator[Fetched]:
        """Yield what came through after a moment, the last first."""
        return itertools.takewhile(lambda one: one.done > moment, reversed(self.pairs))


class Traffic:
    """Clients of some SAE pairs, each in a thread, until the end of the `with` block."""

    def __init__(self, network: Network, history: History, *pairs: tuple[str, str], clients: int = 2) -> None:
        self._network = network
        self._history = history
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=pair) for pair in pairs for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, initiator: str, target: str) -> None:
        near, far = (self._network.application(sae) for sae in (initiator, target))
        while not self._stop.is_set():
            if not self._pair(near, far):
                self._stop.wait(PAUSE_S)
        near.close()
        far.close()

    def _pair(self, near, far) -> bool:
        history = self._history
        asked = time.monotonic()
        try:
            code, container = near.enc(far.name)
        except (OSError, http.client.HTTPException):
            history.note("enc without answer")
            return False
        if code != 200:
            history.note(f"enc {code}")
            return False
        ((key_id, key),) = bits_of(container).items()
        history.note_issued((near.name, far.name), key_id, key)
        try:
            code, container = far.dec(near.name, key_id)
        except (OSError, http.client.HTTPException):
            history.note_unheard(key_id)  # for `fetch_what_waits`
            return False
        if code != 200:
            history.note(f"dec {code}")
            history.note_refused(key_id, code)
            return False
        history.note_fetched(key_id, bits_of(container)[key_id], asked=asked)
        return True


def fetch_what_waits(network: Network, history: History, keys: Iterable[str] | None = None) -> Counter[str]:
    """Fetch, as their targets, the keys whose fetch got no answer; return what was answered.

    With the traffic still running, say which `keys`: others that wait may be about to be fetched.
    """
    answers: Counter[str] = Counter()
    applications = {}
    asked = history.waiting if keys is None else history.waiting & set(keys)
    for key_id in sorted(asked):
        initiator, target = history.who[key_id]
        application = applications.setdefault(target, network.application(target))
        deadline = time.monotonic() + 30
        while True:
            code, container = application.dec(initiator, key_id)
            if code != 503 or time.monotonic() > deadline:
                break
            time.sleep(0.2)  # too many unknown IDs at once; the door says to come again
        answers[str(code)] += 1
        if code != 200:
            history.note_refused(key_id, code)
        else:
            history.note_fetched(key_id, bits_of(container)[key_id])
    for application in applications.values():
        application.close()
    history.waiting -= asked
    return answers
