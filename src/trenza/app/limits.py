"""What a listener may be asked for, as its configuration says: the `limits` table of a door."""

from __future__ import annotations

from typing import Annotated

import msgspec

from trenza.app.scenario_model import Positive
from trenza.net.gate import GateLimits
from trenza.net.http import HttpLimits

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
_PerSecond = Annotated[float, msgspec.Meta(gt=0, le=10**6)]
_TO_BE_TOLD_WHY = 4
"""One connection in so many more than the limit is let in to be told that there are too many."""


class DoorLimits(msgspec.Struct, frozen=True):
    """Limits of one listener; the defaults suit a node with some thousands of applications."""

    max_connections: Positive = 10_000
    max_connections_per_address: Positive = 1_024
    max_connections_per_client: Positive = 256
    max_handshakes: Positive = 256
    max_handshakes_per_address: Positive = 192
    handshakes_per_second: _PerSecond = 200.0
    handshake_burst: Positive = 1_000
    handshake_timeout_s: _Seconds = 10.0
    request_timeout_s: _Seconds = 10.0
    idle_timeout_s: _Seconds = 75.0
    max_pipelined: Positive = 16

    @property
    def gate(self) -> GateLimits:
        return GateLimits(
            max_connections=self.max_connections + self.max_connections // _TO_BE_TOLD_WHY + 1,
            max_connections_per_address=self.max_connections_per_address,
            max_connections_per_client=self.max_connections_per_client,
            max_handshakes=self.max_handshakes,
            max_handshakes_per_address=self.max_handshakes_per_address,
            handshakes_per_second=self.handshakes_per_second,
            handshake_burst=self.handshake_burst,
            handshake_timeout_s=self.handshake_timeout_s,
        )

    def http(self, *, max_body_bytes: int) -> HttpLimits:
        """Return the limits of an HTTP door."""
        return HttpLimits(
            max_body_bytes=max_body_bytes,
            max_connections=self.max_connections,
            max_pipelined=self.max_pipelined,
            idle_timeout_s=self.idle_timeout_s,
            request_timeout_s=self.request_timeout_s,
        )
