"""Paths and queries of the key delivery interface (ETSI GS QKD 014 V1.1.1, Table 2).

SAE IDs are URL-encoded in the path and decoded here, exactly once; `%2F` is a slash inside an SAE ID and separates
nothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from trenza.base.errors import InvalidRequestError
from trenza.base.names import is_name
from trenza.wire.etsi014.values import Method, Route

_PREFIX: Final = "/api/v1/keys/"
_ROUTE: Final = re.compile(re.escape(_PREFIX) + r"([^/]*)/(status|enc_keys|dec_keys)")
_BROKEN_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LONGEST_REMEMBERED: Final = 256  # characters; no path of this interface needs more


def path_of(method: Method, sae_id: str) -> str:
    """Return the path that calls `method` for `sae_id`."""
    return f"{_PREFIX}{quote(sae_id, safe='')}/{method.value}"


def route(path: str) -> Route | None:
    """Tell what `path` (as received, without its query) calls; None where it is no path of this interface.

    Raises:
        InvalidRequestError: the SAE ID is not percent-encoded UTF-8, or no SAE can have it.
    """
    return _remembered_route(path) if len(path) <= _LONGEST_REMEMBERED else _route(path)


def _route(path: str) -> Route | None:
    match = _ROUTE.fullmatch(path)
    if match is None:
        return None
    sae_id = _percent_decoded(match[1], "the SAE ID of the path")
    if not is_name(sae_id):
        raise InvalidRequestError("the SAE ID of the path shall have 1 to 64 characters of RFC 3986")
    return Route(Method(match[2]), sae_id)


_remembered_route = functools.lru_cache(maxsize=16_384)(_route)
"""An application asks for the same few paths again and again; refusals are worked out anew."""


def read_query(query: str) -> Mapping[str, str]:
    """Return the parameters of a query by name.

    Raises:
        InvalidRequestError: a parameter is given twice, or is not percent-encoded UTF-8.
    """
    parameters: dict[str, str] = {}
    for part in query.split("&"):
        if not part:
            continue
        name, _, value = part.partition("=")
        name = _percent_decoded(name, "a parameter of the query")
        if name in parameters:
            raise InvalidRequestError("a parameter of the query is given twice", details=({"parameter": name},))
        parameters[name] = _percent_decoded(value, "a parameter of the query")
    return parameters


def _percent_decoded(text: str, what: str) -> str:
    if _BROKEN_PERCENT.search(text):
        raise InvalidRequestError(f"{what} is not percent-encoded")
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{what} is not UTF-8") from None
