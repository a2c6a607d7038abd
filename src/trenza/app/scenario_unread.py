"""Stand-ins for required values that could not be read, so that the other mistakes of their entry are found as well.

A stand-in says of itself what it is. Whatever a check says of one is no further mistake: the value was told already.
"""

from __future__ import annotations

import re
from typing import Final

from trenza.app.scenario_lines import Place
from trenza.app.scenario_model import Evidence

_MARK: Final = "⟨unread"  # no name and no recipe has such a character
_LABEL: Final = re.compile(rf"^(nodes|links|saes|policies|rules|tenants)[. ]{_MARK}[^⟩]*⟩(?: - {_MARK}[^⟩]*⟩)?(?=:)")


def stand_in(key: str, index: int) -> object:
    """Return what stands for the value of `key` in an entry; `index` is the entry's in its section."""
    unread = f"{_MARK} {index + 1}⟩"
    match key:
        case "ends" | "between":
            return (unread, f"{unread[:-1]}, other⟩")  # the two differ: nothing is to be said of them
        case "ladder":
            return (unread,)
        case "evidence" | "loss_evidence":
            return Evidence.INVENTED
        case "length_km" | "loss_db" | "time_factor":
            return 1.0
        case "initial_stock_bits":
            return 0
        case _:
            return unread


def is_unread(text: str) -> bool:
    """Tell whether `text` speaks of a stand-in."""
    return _MARK in text


def without_its_name(place: Place, mistake: str) -> str:
    """Return `mistake` with its entry called by its number where its name could not be read."""
    if len(place) < 2 or not isinstance(place[1], int):
        return mistake
    return _LABEL.sub(rf"\1[{place[1] + 1}]", mistake)
