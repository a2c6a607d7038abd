"""JSON from strangers: RFC 8259 text with exactly one meaning, or a refusal.

Two readers of the same text must never see different requests, so what parsers are known to disagree on is refused:
a member named twice in one object (also when one spelling is escaped), NaN and Infinity, text that is not UTF-8,
half a surrogate pair. Deep nesting and endless digits are refused as well, never crashed on.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

_MAYBE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """The text is not JSON with exactly one meaning; the message says why and holds nothing of the text's values."""


def read(body: bytes | bytearray | memoryview) -> Any:
    """Return what `body` says, in Python's types.

    Raises:
        JsonError: see the module.
    """
    try:
        text = str(body, "utf-8")
    except UnicodeDecodeError:
        raise JsonError("the body is not UTF-8") from None
    try:
        value = _DECODER.decode(text)
        if _MAYBE_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # half a pair cannot be encoded
    except JsonError:
        raise
    except RecursionError:
        raise JsonError("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except UnicodeEncodeError:
        raise JsonError("a string of the body holds half a surrogate pair") from None
    except ValueError:
        raise JsonError("a number of the body has too many digits") from None  # Python reads 4300 at most
    return value


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise JsonError("an object of the body names a member twice")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise JsonError(f"the body is not JSON: {name} is no number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_members, parse_constant=_refuse_constant)
"""Made once: `json.loads` with hooks makes one for every text."""
