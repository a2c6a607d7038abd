"""What travels over the key delivery interface, as values (ETSI GS QKD 014 V1.1.1, Tables 9 to 13).

Only here and in this package the standard's words master and slave are used; everyone else says initiator and target.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import msgspec

from trenza.base.secret import Secret
from trenza.base.units import Nanoseconds

MEDIA_TYPE: Final = "application/json"
LARGEST_INTEGER: Final = 2**31 - 1  # of a request; real limits are far below and are the story's to name

# Sentences that the standard prescribes.
SIZE_NOT_WHOLE_BYTES: Final = "size shall be a multiple of 8"
MANDATORY_UNSUPPORTED: Final = "not all extension_mandatory parameters are supported"
MANDATORY_UNMET: Final = "not all extension_mandatory request options could be met"
KEYS_NOT_FOUND: Final = "one or more keys specified are not found on KME"


class Method(enum.Enum):
    """The three methods of Table 2, by the last segment of their path."""

    GET_STATUS = "status"
    GET_KEY = "enc_keys"
    GET_KEY_WITH_IDS = "dec_keys"

    @property
    def verbs(self) -> tuple[str, ...]:
        return ("GET",) if self is Method.GET_STATUS else ("GET", "POST")


class Route(msgspec.Struct, frozen=True):
    """Which method is called, and the SAE that the path names: the other one, never the caller."""

    method: Method
    sae_id: str


class Status(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    rename={
        "source_kme_id": "source_KME_ID",
        "target_kme_id": "target_KME_ID",
        "master_sae_id": "master_SAE_ID",
        "slave_sae_id": "slave_SAE_ID",
        "max_sae_id_count": "max_SAE_ID_count",
    },
):
    """Table 9. Sizes are in bits."""

    source_kme_id: str
    target_kme_id: str
    master_sae_id: str
    slave_sae_id: str
    key_size: int
    stored_key_count: int
    max_key_count: int
    max_key_per_request: int
    max_key_size: int
    min_key_size: int
    max_sae_id_count: int
    status_extension: dict[str, Any] | None = None


class Demands(msgspec.Struct, frozen=True):
    """Our extension parameters of Get key, as far as a request names them; what they mean is the story's."""

    origins: tuple[str, ...] = ()  # "qkd", "pqc", "classical": each of them must be in the key
    recipe: str | None = None  # by name
    max_hops: int | None = None  # QKD links crossed
    max_age_ms: int | None = None  # of the secret bits the key is made of


class KeyRequest(msgspec.Struct, frozen=True):
    """Table 10. Unknown members pass, as the standard leaves room for them; unknown mandatory extensions do not."""

    number: int = 1
    size: int | None = None  # bits; None: the KME's default
    additional_slave_sae_ids: tuple[str, ...] = ()
    mandatory: Demands = Demands()
    optional: Demands = Demands()


class KeyExtension(msgspec.Struct, frozen=True):
    """What we tell of one key in its `key_extension`, under our vendor prefix; a foreign KME tells none of it."""

    recipe: str | None = None
    origins: tuple[str, ...] = ()
    supply: str | None = None
    strength: str | None = None
    hops: int | None = None
    created: Nanoseconds | None = None
    expires: Nanoseconds | None = None


class Key(msgspec.Struct, frozen=True):
    """One key of a container (Table 11). Whoever holds it wipes `key`."""

    key_id: UUID
    key: Secret
    extension: KeyExtension = KeyExtension()


class Error(msgspec.Struct, frozen=True, omit_defaults=True):
    """Table 13: a sentence, and name/value pairs."""

    message: str
    details: tuple[Mapping[str, Any], ...] = ()
