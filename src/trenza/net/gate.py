"""The gate in front of a door: how many connections and handshakes strangers and clients may hold or begin.

Asked before any TLS work is done for an address, and once more when the client's certificate is known. Counts only;
what is refused, and how that is told, is the door's. Addresses of IPv6 count by their /64, which one host can have.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass, field

from trenza.base.rate import TokenBucket
from trenza.base.units import Seconds

_IPV6_HOST_BITS = 64


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What strangers may hold and begin, all of them and each."""

    max_connections: int = 12_500  # of which a door may tell the last why it does not serve them
    max_connections_per_address: int = 1_024
    max_connections_per_client: int = 256  # by the name in its certificate
    max_handshakes: int = 256  # under way
    max_handshakes_per_address: int = 192
    handshakes_per_second: float = 200.0
    handshake_burst: int = 1_000
    handshake_timeout_s: float = 10.0


@dataclass(slots=True)
class Gate:
    """Counts who is in, and who is coming in."""

    limits: GateLimits = field(default_factory=GateLimits)
    connections: int = 0
    handshakes: int = 0
    _connections_of: Counter[str] = field(default_factory=Counter)  # by address
    _handshakes_of: Counter[str] = field(default_factory=Counter)
    _clients: Counter[str] = field(default_factory=Counter)
    _bucket: TokenBucket = field(default_factory=lambda: TokenBucket(1.0, 1.0))

    def arrive(self, address: str, now: float) -> str | None:
        """Count a connection that wants to shake hands; return why it may not, if it may not."""
        reason = self._refusal(address, Seconds(now))
        if reason is None:
            self._bucket.spend(1, Seconds(now))
            self.connections += 1
            self.handshakes += 1
            self._connections_of[address] += 1
            self._handshakes_of[address] += 1
        return reason

    def _refusal(self, address: str, now: Seconds) -> str | None:
        limits = self.limits
        self._bucket.per_second, self._bucket.burst = limits.handshakes_per_second, float(limits.handshake_burst)
        if self.connections >= limits.max_connections:
            return "too many connections"
        if self._connections_of[address] >= limits.max_connections_per_address:
            return "too many connections from one address"
        if self.handshakes >= limits.max_handshakes:
            return "too many handshakes"
        if self._handshakes_of[address] >= limits.max_handshakes_per_address:
            return "too many handshakes from one address"
        if not self._bucket.allows(now):
            return "too many handshakes in a second"
        return None

    def shaken(self, address: str) -> None:
        """Count a handshake as over, however it ended."""
        self.handshakes -= 1
        _less(self._handshakes_of, address)

    def depart(self, address: str) -> None:
        """Count a connection as over."""
        self.connections -= 1
        _less(self._connections_of, address)

    def enter(self, client: str) -> bool:
        """Count a connection of a known client; tell whether it may have that many. `leave` in any case."""
        self._clients[client] += 1
        return self._clients[client] <= self.limits.max_connections_per_client

    def leave(self, client: str) -> None:
        """Count a connection of a known client as over."""
        _less(self._clients, client)


def host_of(peername: object) -> str:
    """Return by what an address is counted, given a socket's peer name; empty where it has none."""
    if not isinstance(peername, tuple) or not peername:
        return ""
    host = str(peername[0]).partition("%")[0]
    if ":" not in host:
        return host
    return str(int(ipaddress.IPv6Address(host)) >> _IPV6_HOST_BITS)


def _less(counts: Counter[str], name: str) -> None:
    """Count one less, and keep no name whose count is nothing: strangers could make too many."""
    counts[name] -= 1
    if counts[name] <= 0:
        del counts[name]
