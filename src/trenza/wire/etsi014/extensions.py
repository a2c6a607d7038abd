"""Extension parameters of Get key (ETSI GS QKD 014 V1.1.1, Table 10): the names we know and the values they take.

A mandatory parameter that we do not know, or that no value could satisfy, refuses the request: nothing that a caller
insists on is dropped silently. An optional one that we cannot make sense of is ignored, as the standard allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from trenza.base.errors import InvalidRequestError
from trenza.wire.etsi014.values import LARGEST_INTEGER, MANDATORY_UNMET, MANDATORY_UNSUPPORTED, Demands

VENDOR_PREFIX: Final = "trenza_"
ORIGINS: Final = ("qkd", "pqc", "classical")


def mandatory_demands(parameters: Mapping[str, object]) -> Demands:
    """Return what the request insists on.

    Raises:
        InvalidRequestError: with the standard's sentence; the details name every parameter that is wrong.
    """
    unsupported = [name for name in parameters if name not in _READERS]
    if unsupported:
        raise InvalidRequestError(
            MANDATORY_UNSUPPORTED,
            details=tuple({"extension_mandatory_unsupported": f"{name} is not supported"} for name in unsupported),
        )
    demands, unmet = _read(parameters)
    if unmet:
        raise InvalidRequestError(
            MANDATORY_UNMET, details=tuple({"extension_mandatory_unmet": sentence} for sentence in unmet)
        )
    return demands


def optional_demands(parameters: Mapping[str, object]) -> Demands:
    """Return what the request would like, as far as we understand it."""
    demands, _ignored = _read(parameters)
    return demands


def extension_array(demands: Demands) -> list[dict[str, Any]]:
    """Return `demands` as the array of name/value pairs that a request carries."""
    return [
        {VENDOR_PREFIX + field: getattr(demands, field)}
        for field in demands.__struct_fields__
        if getattr(demands, field) not in (None, ())
    ]


def _read(parameters: Mapping[str, object]) -> tuple[Demands, list[str]]:
    """Return what could be understood, and a sentence for each known parameter whose value could not."""
    understood: dict[str, Any] = {}
    mistakes: list[str] = []
    for name, value in parameters.items():
        reader = _READERS.get(name)
        if reader is None:
            continue
        try:
            understood[name.removeprefix(VENDOR_PREFIX)] = reader(value)
        except ValueError as error:
            mistakes.append(f"{name} {error}")
    return Demands(**understood), mistakes


def _origins(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or any(origin not in ORIGINS for origin in value):
        raise ValueError(f"shall be an array of {', '.join(ORIGINS)}")
    return tuple(dict.fromkeys(value))


def _recipe(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 64:
        raise ValueError("shall be the name of a recipe")
    return value


def _integer_from(least: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if type(value) is not int or not least <= value <= LARGEST_INTEGER:
            raise ValueError(f"shall be an integer from {least} to {LARGEST_INTEGER}")
        return value

    return read


_READERS: Final[Mapping[str, Callable[[object], Any]]] = {
    VENDOR_PREFIX + "origins": _origins,
    VENDOR_PREFIX + "recipe": _recipe,
    VENDOR_PREFIX + "max_hops": _integer_from(0),
    VENDOR_PREFIX + "max_age_ms": _integer_from(1),
}
