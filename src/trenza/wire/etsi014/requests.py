"""Requests of the key delivery interface: read by a KME, written by an SAE (ETSI GS QKD 014 V1.1.1, Tables 10, 12).

A request either has one meaning or is refused with InvalidRequestError (400). What the standard leaves open:
- Integers are JSON integers: `1.0`, `"1"`, `true` and `null` are refused, since readers differ on what they mean.
- Unknown members and query parameters are ignored (room for later editions). Those that the standard knows are
  refused where it does not allow them: an `extension_mandatory` in a query must not be dropped silently.
- Any RFC 9562 UUID is a key ID, of any version, in upper or lower case: other KMEs' IDs are not version 4.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn
from uuid import UUID

import msgspec

from trenza.base.errors import InvalidRequestError
from trenza.base.names import is_name
from trenza.wire import strict_json
from trenza.wire.etsi014.extensions import extension_array, mandatory_demands, optional_demands
from trenza.wire.etsi014.paths import read_query
from trenza.wire.etsi014.values import LARGEST_INTEGER, SIZE_NOT_WHOLE_BYTES, KeyRequest

_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_DIGITS: Final = re.compile(r"[0-9]{1,10}")
_LONGEST_REMEMBERED: Final = 128  # bytes of a body
_ADDITIONAL: Final = "additional_slave_SAE_IDs"
_GET_KEY_NAMES: Final = frozenset({"number", "size", _ADDITIONAL, "extension_mandatory", "extension_optional"})
_WITH_IDS_NAMES: Final = frozenset({"key_ID", "key_IDs", "key_IDs_extension"})
_STANDARD_NAMES: Final = _GET_KEY_NAMES | _WITH_IDS_NAMES

# --- read by a KME -------------------------------------------------------------------------------------------------


def key_request_from_query(query: str) -> KeyRequest:
    """Read a Get key in its GET form: `number` and `size`, and nothing else that the standard knows."""
    if not query:
        return KeyRequest()
    parameters = read_query(query)
    _refuse_names(parameters, _STANDARD_NAMES - {"number", "size"}, "is not allowed in a query of Get key")
    return _key_request({name: _decimal(name, parameters[name]) for name in ("number", "size") if name in parameters})


def key_request_from_body(body: bytes) -> KeyRequest:
    """Read a Get key in its POST form; an empty body asks for one key of the default size."""
    if len(body) <= _LONGEST_REMEMBERED:
        return _remembered_request(body)
    return _key_request(_object_of(body))


@functools.lru_cache(maxsize=1024)
def _remembered_request(body: bytes) -> KeyRequest:
    """Read a short body; an application sends the same one again and again. Refusals are worked out anew."""
    return _key_request(_object_of(body)) if body else KeyRequest()


def key_ids_from_query(query: str) -> tuple[UUID, ...]:
    """Read a Get key with key IDs in its GET form: exactly one `key_ID`."""
    parameters = read_query(query)
    _refuse_names(parameters, _STANDARD_NAMES - {"key_ID"}, "is not allowed in a query of Get key with key IDs")
    if "key_ID" not in parameters:
        _refuse("key_ID", "is missing")
    return (_uuid(parameters["key_ID"]),)


def key_ids_from_body(body: bytes) -> tuple[UUID, ...]:
    """Read a Get key with key IDs in its POST form; the order is kept."""
    members = _object_of(body)
    _expect_object(members, "key_IDs_extension")
    if "key_IDs" not in members:
        _refuse("key_IDs", "is missing")
    entries = members["key_IDs"]
    if not isinstance(entries, list) or not entries:
        _refuse("key_IDs", "shall be an array of at least one object with key_ID")
    key_ids = tuple(_key_id_of(entry) for entry in entries)
    if len(set(key_ids)) != len(key_ids):
        _refuse("key_IDs", "shall name each key once")
    return key_ids


def refuse_query_of_post(query: str) -> None:
    """Refuse a POST that puts into its query what belongs into its body, where it would be overlooked."""
    if query:
        _refuse_names(read_query(query), _STANDARD_NAMES, "belongs into the body of a POST")


# --- written by an SAE ---------------------------------------------------------------------------------------------


def encode_key_request(request: KeyRequest) -> bytes:
    """Return the body of a Get key."""
    members: dict[str, Any] = {"number": request.number}
    if request.size is not None:
        members["size"] = request.size
    if request.additional_slave_sae_ids:
        members[_ADDITIONAL] = request.additional_slave_sae_ids
    if mandatory := extension_array(request.mandatory):
        members["extension_mandatory"] = mandatory
    if optional := extension_array(request.optional):
        members["extension_optional"] = optional
    return msgspec.json.encode(members)


def encode_key_ids(key_ids: Sequence[UUID]) -> bytes:
    """Return the body of a Get key with key IDs."""
    return msgspec.json.encode({"key_IDs": [{"key_ID": key_id} for key_id in key_ids]})


# --- one member at a time ------------------------------------------------------------------------------------------


def _key_request(members: Mapping[str, object]) -> KeyRequest:
    number = _positive(members, "number")
    size = _positive(members, "size")
    if size is not None and size % 8:
        raise InvalidRequestError(SIZE_NOT_WHOLE_BYTES, details=({"size": size},))
    return KeyRequest(
        number=1 if number is None else number,
        size=size,
        additional_slave_sae_ids=_sae_ids(members.get(_ADDITIONAL, [])),
        mandatory=mandatory_demands(_parameters(members, "extension_mandatory")),
        optional=optional_demands(_parameters(members, "extension_optional")),
    )


def _positive(members: Mapping[str, object], name: str) -> int | None:
    if name not in members:
        return None
    value = members[name]
    if type(value) is not int or not 1 <= value <= LARGEST_INTEGER:  # type(): a bool is an int to isinstance
        _refuse(name, f"shall be an integer from 1 to {LARGEST_INTEGER}")
    return value


def _decimal(name: str, text: str) -> int:
    if not _DIGITS.fullmatch(text):
        _refuse(name, f"shall be an integer from 1 to {LARGEST_INTEGER}")
    return int(text)


def _sae_ids(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(sae_id, str) for sae_id in value):
        _refuse(_ADDITIONAL, "shall be an array of strings")
    if not all(is_name(sae_id) for sae_id in value):
        _refuse(_ADDITIONAL, "shall hold SAE IDs of 1 to 64 characters of RFC 3986")
    if len(set(value)) != len(value):
        _refuse(_ADDITIONAL, "shall name each SAE once")
    return tuple(value)


def _parameters(members: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return the name/value pairs of an extension array; each name may stand once in all of it."""
    value = members.get(name, [])
    if not isinstance(value, list) or not all(isinstance(pair, dict) for pair in value):
        _refuse(name, "shall be an array of objects with name/value pairs")
    parameters: dict[str, object] = {}
    for pair in value:
        if not parameters.keys().isdisjoint(pair):
            _refuse(name, "shall name each parameter once")
        parameters.update(pair)
    return parameters


def _key_id_of(entry: object) -> UUID:
    if isinstance(entry, str):  # the commonest mistake of clients
        _refuse("key_IDs", 'shall be an array of objects {"key_ID": "..."}; a bare string was sent')
    if not isinstance(entry, dict):
        _refuse("key_IDs", 'shall be an array of objects {"key_ID": "..."}')
    _expect_object(entry, "key_ID_extension")
    return _uuid(entry.get("key_ID"))


def _uuid(value: object) -> UUID:
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        _refuse("key_ID", "shall be a UUID such as 550e8400-e29b-41d4-a716-446655440000")
    return UUID(value)


def _object_of(body: bytes) -> Mapping[str, Any]:
    try:
        value = strict_json.read(body)
    except strict_json.JsonError as error:
        raise InvalidRequestError(str(error)) from None
    if not isinstance(value, dict):
        raise InvalidRequestError("the body shall be a JSON object")
    return value


def _expect_object(members: Mapping[str, object], name: str) -> None:
    if name in members and not isinstance(members[name], dict):
        _refuse(name, "shall be an object")


def _refuse_names(given: Mapping[str, str], refused: frozenset[str], why: str) -> None:
    for name in given:
        if name in refused:
            _refuse(name, why)


def _refuse(name: str, why: str) -> NoReturn:
    raise InvalidRequestError(f"{name} {why}", details=({name: why},))
