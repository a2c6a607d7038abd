"""Who leads: one row in the database, by the database's clock.

An instance that leads renews its lease; when it does not, for two seconds by the server's clock, another may take
over. Each new lead gets a token that is larger than any before. The lease decides who *tries*; the token decides who
*may*: every commit names the one it stands under, and is refused once another is in force (transaction.py). So a
clock that jumps, a process that was frozen or a lease that ended unnoticed cost time, never a key issued twice.

A process that follows another in the same place, and knows that one to have ended, need not wait for its lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trenza.adapters.postgres.line import Line
from trenza.adapters.postgres.server import Server
from trenza.base.clock import Clock
from trenza.base.entropy import Entropy
from trenza.base.errors import FencedError
from trenza.base.units import Seconds

if TYPE_CHECKING:
    from asyncpg import Connection, Record

TTL: Final = Seconds(2.0)
_SEEN_RECENTLY: Final = Seconds(10.0)
_LIFE_BYTES: Final = 16

_GROWN = "greatest(token + 1, floor(extract(epoch FROM statement_timestamp()) * 1000)::bigint)"
"""At least the time in milliseconds (one time throughout a statement): a database restored to an earlier state gives
no token a second time."""

_TAKE = f"""
UPDATE lead SET token = {_GROWN}, reign = {_GROWN},
                holder = $1, name = $2, until = clock_timestamp() + make_interval(secs => $3)
WHERE holder IS NULL OR holder = $1 OR until <= clock_timestamp() OR (holder = $4 AND NOT EXISTS (
    SELECT FROM instance WHERE life NOT IN ($1, $4) AND seen > clock_timestamp() - make_interval(secs => $3)
))
RETURNING token
"""  # noqa: S608 - our own words
_SEEN = """
INSERT INTO instance VALUES ($1, $2, clock_timestamp()) ON CONFLICT (life) DO UPDATE SET seen = excluded.seen
"""
# One statement: an instance that is frozen right after it holds no lock.
_RENEW = f"""
WITH seen AS ({_SEEN})
UPDATE lead SET until = clock_timestamp() + make_interval(secs => $4)
WHERE holder = $1 AND token = $3 RETURNING token
"""  # noqa: S608
_RELEASE = f"""
UPDATE lead SET token = {_GROWN}, holder = NULL, name = NULL, until = NULL WHERE holder = $1 AND token = $2
"""  # noqa: S608
_LOOK = """
SELECT token, reign, holder = $1 AS mine, name, extract(epoch FROM until - clock_timestamp())::float8 AS remaining,
       ARRAY(SELECT name FROM instance WHERE seen > clock_timestamp() - make_interval(secs => $2) ORDER BY name, life)
       AS instances,
       ARRAY(SELECT life FROM instance WHERE seen > clock_timestamp() - make_interval(secs => $2)) AS lives
FROM lead
"""
_FORGET = "DELETE FROM instance WHERE seen < clock_timestamp() - make_interval(secs => $1)"


@dataclass(frozen=True, slots=True)
class Lead:
    """Who leads the node, as the database says."""

    token: int  # under which commits stand now; 0: nobody ever led
    reign: int  # the token of the last lead, also when it has given it up
    name: str | None  # None: nobody does
    is_mine: bool
    remaining: Seconds  # of its lease; not above 0 when it may be taken over
    instances: tuple[str, ...]  # seen in the last ten seconds
    lives: frozenset[bytes] = frozenset()  # of these; a process that is started again is another

    @property
    def is_free(self) -> bool:
        """Tell whether `Lease.acquire` is worth trying."""
        return self.name is None or self.remaining <= 0


class Lease:
    """One instance's claim to lead its node. A process makes one; a restarted process is another instance."""

    def __init__(self, server: Server, *, name: str, clock: Clock, entropy: Entropy, ttl: Seconds = TTL) -> None:
        """Describe this instance.

        Args:
            server: of a store that was opened already.
            name: by which operators know this instance.
            clock: of this machine; tells only how long the last answer may be relied on.
            entropy: tells this process from every other, whatever its name.
            ttl: seconds that a lease holds unless it is renewed; renew three times as often.
        """
        self._line = Line(server, deadline=min(server.deadline, ttl))  # later an answer is of no use
        self._name = name
        self._clock = clock
        self._ttl = ttl
        self._former = b""
        self.life = bytes(entropy.token(_LIFE_BYTES))
        """Names this process among all that ever had a claim."""
        self._until = Seconds(0)
        self.token = 0
        """Under which this instance leads; 0 if it does not."""
        self.succeeded = 0
        """The token of the lead before; 0 if there was none."""

    @property
    def until(self) -> Seconds:
        """Until when, on `Clock.elapsed`, the lead is surely this instance's if it has it at all."""
        return self._until

    def inherit(self, former: bytes) -> None:
        """Take over at once what a process has left that is known to have ended, unless other instances are there.

        They serve meanwhile and one of them takes over: a process that keeps ending must not keep the lead from them.
        """
        self._former = former

    async def acquire(self) -> bool:
        """Take the lead if nobody has it; `token` is then larger than any before.

        Raises:
            StoreUnavailableError: outcome unknown; if the lead was taken, it ends by itself or with the next call.
        """
        asked = self._clock.elapsed()
        async with self._line.connection() as connection, connection.transaction():
            # The lock of all commits: those under the earlier token are finished, or will find the new one.
            await connection.execute("SELECT 1 FROM store_state FOR UPDATE")
            await self._note_seen(connection)
            await connection.execute(_FORGET, 360 * _SEEN_RECENTLY)
            former = await connection.fetchval("SELECT reign FROM lead")
            token = await connection.fetchval(_TAKE, self.life, self._name, self._ttl, self._former)
        self.token, self.succeeded = token or 0, former
        self._until = Seconds(asked + self._ttl)
        return token is not None

    async def renew(self) -> None:
        """Lead for longer; also after the lease has ended, if nobody has taken over.

        Raises:
            FencedError: another instance leads, or led since; this one begins a new life before it leads again.
            StoreUnavailableError: outcome unknown; try again before the lease ends.
        """
        asked = self._clock.elapsed()
        async with self._line.connection() as connection:
            renewed = await connection.fetchval(_RENEW, self.life, self._name, self.token, self._ttl)
        if renewed is None:
            self.token = 0
            raise FencedError("another instance leads this node now")
        self._until = Seconds(asked + self._ttl)

    async def release(self) -> None:
        """Give the lead up at once, for whoever comes first; from now on commits under its token are refused.

        Raises:
            StoreUnavailableError: outcome unknown; it ends by itself.
        """
        token, self.token = self.token, 0
        async with self._line.connection() as connection, connection.transaction():
            await connection.execute("SELECT 1 FROM store_state FOR UPDATE")
            await connection.execute(_RELEASE, self.life, token)

    async def look(self) -> Lead:
        """Say who leads, and note that this instance was here."""
        async with self._line.connection() as connection:
            await self._note_seen(connection)
            row = await connection.fetchrow(_LOOK, self.life, _SEEN_RECENTLY)
        assert row is not None
        return Lead(
            token=row["token"],
            reign=row["reign"],
            name=row["name"],
            is_mine=bool(row["mine"]),
            remaining=Seconds(row["remaining"] or 0.0),
            instances=tuple(row["instances"]),
            lives=frozenset(row["lives"]),
        )

    async def close(self) -> None:
        await self._line.close()

    async def _note_seen(self, connection: Connection[Record]) -> None:
        await connection.execute(_SEEN, self.life, self._name)
