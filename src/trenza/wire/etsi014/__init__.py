"""ETSI GS QKD 014 V1.1.1 (2019-02), the REST key delivery interface: bytes to values and back, for both sides.

Touches no socket and knows no story: serve/etsi014 and adapters/etsi014_device put it to work. The unpublished
edition 2 has other paths and words and will be a package of its own.
"""

from trenza.wire.etsi014.answers import (
    container_of_one,
    decode_container,
    decode_error,
    decode_status,
    encode_container,
    encode_error,
    encode_status,
    key_tail,
    moment_of,
    rfc3339,
    wipe_all,
)
from trenza.wire.etsi014.extensions import ORIGINS, VENDOR_PREFIX
from trenza.wire.etsi014.paths import path_of, route
from trenza.wire.etsi014.requests import (
    encode_key_ids,
    encode_key_request,
    key_ids_from_body,
    key_ids_from_query,
    key_request_from_body,
    key_request_from_query,
    refuse_query_of_post,
)
from trenza.wire.etsi014.values import (
    KEYS_NOT_FOUND,
    MANDATORY_UNMET,
    MANDATORY_UNSUPPORTED,
    MEDIA_TYPE,
    SIZE_NOT_WHOLE_BYTES,
    Demands,
    Error,
    Key,
    KeyExtension,
    KeyRequest,
    Method,
    Route,
    Status,
)

__all__ = [
    "KEYS_NOT_FOUND",
    "MANDATORY_UNMET",
    "MANDATORY_UNSUPPORTED",
    "MEDIA_TYPE",
    "ORIGINS",
    "SIZE_NOT_WHOLE_BYTES",
    "VENDOR_PREFIX",
    "Demands",
    "Error",
    "Key",
    "KeyExtension",
    "KeyRequest",
    "Method",
    "Route",
    "Status",
    "container_of_one",
    "decode_container",
    "decode_error",
    "decode_status",
    "encode_container",
    "encode_error",
    "encode_key_ids",
    "encode_key_request",
    "encode_status",
    "key_ids_from_body",
    "key_ids_from_query",
    "key_request_from_body",
    "key_request_from_query",
    "key_tail",
    "moment_of",
    "path_of",
    "refuse_query_of_post",
    "rfc3339",
    "route",
    "wipe_all",
]
