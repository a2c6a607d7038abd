"""Plans of stories: how long, how many clients, which troubles and how often. Data only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from trenza.kms.context import Settings
from trenza.lab.network import Weather

SMALL: Final = Settings(
    stock_target=48,
    segment_min=16,
    segment_max=48,
    window_slots=12,
    link_target_units=256,
    reserve_units=24,
    block_units=96,
)
"""Small stocks, so that windows, segments and blocks end often."""

TROUBLES: Final = (
    "kill",
    "power loss",
    "death at a commit",
    "death at an await",
    "stop",
    "absence",
    "network cut",
    "network cut one way",
    "device cut",
    "device dead",
    "device mute",
    "slow disk",
    "full disk",
    "clock jump",
    "restore",
    "restore without anchor",
    "clone",
    "whole machine restored",
)
"""What the lab does to a network, beside its weather; each is a method of lab.trouble.Troubles."""

INSTANCE_TROUBLES: Final = (
    "instance killed",
    "instance paused",
    "instance stopped",
    "database cut",
    "database restarted",
    "database failed over",
    "commit answer lost",
)
"""What it does to nodes of several instances; each is a method of lab.instance_trouble.InstanceTroubles."""

FAULTS: Final = (
    *TROUBLES,
    "message lost",
    "message repeated",
    "message late",
    "messages reordered",
    "clock skew",
    "commits lost in a crash",
    "torn group",
)
"""Every kind of fault, as counted when it takes effect."""


INSTANCE_FAULTS: Final = (
    *INSTANCE_TROUBLES,
    *("kill", "power loss", "network cut", "network cut one way", "device cut", "slow disk", "clock jump"),
    *("message lost", "message repeated", "message late", "messages reordered", "clock skew"),
)
"""The same, of a story with such nodes."""

AVOIDABLE: Final = (*TROUBLES, *INSTANCE_TROUBLES, "message lost", "message repeated", "message late")
"""The kinds that a story can do without; the others come of these, or are how networks and clocks are."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a story is and how bad it gets."""

    seconds: float = 30.0
    clients: int = 4
    pause: float = 0.2  # mean seconds between a client's requests
    keys: int = 200  # a story goes on, in calm, until so many are issued
    weather: Weather = field(default_factory=lambda: Weather(lose=0.02, repeat=0.03, late=0.01, delay=(0.0005, 0.05)))
    disk_delay: tuple[float, float] = (0.0, 0.02)
    skew: float = 25.0  # seconds that a node's clock may be off; two nodes must stay within clock_tolerance
    drift: float = 1e-4
    troubles: Mapping[str, float] = field(
        default_factory=lambda: MappingProxyType(
            {**dict.fromkeys(TROUBLES, 0.75), "power loss": 1.2, "device mute": 1.2, "clone": 0.5}
        )
    )
    """How often each kind is begun in a story, on average: a whole number of times, and once more or not."""

    has_instances: bool = False
    """Every second node, in the order of their names, is two instances over one database."""

    def without(self, kinds: Collection[str]) -> Plan:
        """Return the plan without some kinds of trouble, so that it can be seen which of them a find needs."""
        weather = replace(
            self.weather,
            lose=0.0 if "message lost" in kinds else self.weather.lose,
            repeat=0.0 if "message repeated" in kinds else self.weather.repeat,
            late=0.0 if "message late" in kinds else self.weather.late,
        )
        troubles = {kind: times for kind, times in self.troubles.items() if kind not in kinds}
        return replace(self, weather=weather, troubles=MappingProxyType(troubles))


CALM: Final = Plan(seconds=20.0, weather=Weather(), skew=0.0, drift=0.0, troubles=MappingProxyType({}))
STORM: Final = Plan(
    seconds=80.0,
    weather=Weather(lose=0.1, repeat=0.1, late=0.03, delay=(0.0005, 0.5)),
    disk_delay=(0.0, 0.1),
    troubles=MappingProxyType(dict.fromkeys(TROUBLES, 2.5)),
)

INSTANCES: Final = Plan(
    has_instances=True,
    troubles=MappingProxyType(
        {
            **dict.fromkeys(("instance killed", "instance paused", "commit answer lost"), 1.5),
            **dict.fromkeys(("instance stopped", "database cut", "database restarted", "database failed over"), 0.8),
            **dict.fromkeys(("kill", "power loss", "network cut", "network cut one way"), 0.6),
            **dict.fromkeys(("device cut", "slow disk", "clock jump"), 0.5),
        }
    ),
)

PLANS: Final = MappingProxyType({"calm": CALM, "rough": Plan(), "storm": STORM, "instances": INSTANCES})
