"""The writer thread: all commits that wait become one group, one transaction, one sync.

While a group is being synced the next one gathers, so the cost of a sync is shared by whoever waits and a lone caller
never waits for company, beyond those of its own turn of the loop: waking the thread for each of them would cost more
than their rows. An answer is released only after its group's COMMIT, all of a group at one turn of the loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

import apsw

from trenza.adapters.sqlite.engine import Engine, Outcome
from trenza.base.errors import StoreUnavailableError
from trenza.base.units import Seconds
from trenza.kms.ports import Change

_log = logging.getLogger(__name__)

_LARGE_GROUP = 512  # takes no more company
_IDLE = Seconds(0.25)  # after which the log is moved into the main file
_BUSY_PAGES = 2_000  # 8 MB logged: move them now; the log then starts over
_LARGE_PAGES = 16_000  # 64 MB: something held the log up; cut the file down

Waiting = tuple["asyncio.Future[None]", Sequence[Change]]


class Writer:
    """Owns the engine and its thread. `submit` and `hand_over` belong to one event loop's thread."""

    def __init__(
        self, engine: Engine, *, reopen: Callable[[], Engine], on_group: Callable[[int], None] | None = None
    ) -> None:
        """Start the thread.

        Args:
            engine: from now on this thread's own.
            reopen: makes an engine anew after a failure that the old one cannot get over.
            on_group: told the store's counter after each COMMIT, before any of the group's answers is released.
        """
        self._engine = engine
        self._reopen = reopen
        self._on_group = on_group
        self._submitted: list[Waiting] = []  # in this turn of the loop
        self._queue: SimpleQueue[list[Waiting] | None] = SimpleQueue()
        self._ended = False
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="trenza-store", daemon=True)
        self._thread.start()

    @property
    def engine(self) -> Engine:
        return self._engine

    def submit(self, future: asyncio.Future[None], changes: Sequence[Change]) -> None:
        """Queue a commit at the end of this turn of the loop; `future` gets its outcome."""
        self._submitted.append((future, changes))
        if len(self._submitted) == 1:
            future.get_loop().call_soon(self.hand_over)

    def hand_over(self) -> None:
        """Queue what was submitted and is not queued yet; before `stop`, or it comes too late."""
        if not self._submitted:
            return
        submitted, self._submitted = self._submitted, []
        self._queue.put(submitted)
        if self._ended:  # looked at after the put: either the thread's last look at the queue finds it, or we do
            self._refuse_waiting()

    def stop(self) -> None:
        """Finish what is queued, then let go of the file; blocks for as long as that takes.

        Raises:
            RuntimeError: the thread had died of a defect, which is the cause.
        """
        self._queue.put(None)
        self._thread.join()
        if self._death is not None:
            raise RuntimeError("the store's writer died of a defect") from self._death

    def _run(self) -> None:
        group: list[Waiting] = []
        try:
            while self._gather(group):
                self._commit(group)
                group.clear()
            self._engine.close()
        except BaseException as error:  # noqa: BLE001 - it surfaces at every waiting and later commit, and at `stop`
            _log.critical("the store's writer died; nothing can be committed", exc_info=True)
            self._death = error
            _release([(future, _ended()) for future, _ in group])
        finally:
            self._ended = True
            self._refuse_waiting()

    def _gather(self, group: list[Waiting]) -> bool:
        """Wait for commits and take all there are into `group`; tell whether to go on."""
        first = self._wait()
        if first is None:
            return False
        group += first
        while len(group) < _LARGE_GROUP:
            try:
                more = self._queue.get_nowait()
            except Empty:
                break
            if more is None:
                self._queue.put(None)  # after this group
                break
            group += more
        return True

    def _wait(self) -> list[Waiting] | None:
        if self._engine.is_usable and self._engine.logged_pages:
            try:
                return self._queue.get(timeout=_IDLE)
            except Empty:
                self._engine.checkpoint()
        return self._queue.get()

    def _commit(self, group: list[Waiting]) -> None:
        outcomes = self._outcomes([changes for _, changes in group])
        if self._on_group is not None:
            self._on_group(self._engine.counter)
        _release([(future, outcome) for (future, _), outcome in zip(group, outcomes, strict=True)])
        if self._engine.logged_pages >= _BUSY_PAGES:
            self._engine.checkpoint(truncate=self._engine.logged_pages >= _LARGE_PAGES)

    def _outcomes(self, group: list[Sequence[Change]]) -> list[Outcome]:
        if not self._engine.is_usable:
            try:
                self._engine.close()
                self._engine = self._reopen()
            except (apsw.Error, StoreUnavailableError) as error:
                return [StoreUnavailableError(f"the store could not be opened again: {error}") for _ in group]
        return self._engine.apply(group)

    def _refuse_waiting(self) -> None:
        refused: list[tuple[asyncio.Future[None], Outcome]] = []
        while True:
            try:
                waiting = self._queue.get_nowait()
            except Empty:
                break
            refused += [(future, _ended()) for future, _ in waiting or ()]
        _release(refused)


def _ended() -> StoreUnavailableError:
    return StoreUnavailableError("the store is closed: its writer has ended")


def _release(answers: list[tuple[asyncio.Future[None], Outcome]]) -> None:
    """Hand the outcomes to the loop that waits for them; one that was closed meanwhile waits no more."""
    if not answers:
        return
    try:
        answers[0][0].get_loop().call_soon_threadsafe(_answer, answers)
    except RuntimeError:
        _log.warning("%d commits were answered after their loop was closed", len(answers))


def _answer(answers: list[tuple[asyncio.Future[None], Outcome]]) -> None:
    for future, outcome in answers:
        if future.done():  # its caller was cancelled: to them the outcome is unknown
            continue
        if outcome is None:
            future.set_result(None)
        else:
            future.set_exception(outcome)
