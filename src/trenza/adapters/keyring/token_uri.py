"""The name of a key in a token: a PKCS #11 URI (RFC 7512), as far as it names a secret key.

The module and the PIN are not taken from it: they have settings of their own, and a PIN in a URI ends in logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import unquote_to_bytes

_SCHEME: Final = "pkcs11:"
_KNOWN: Final = ("token", "serial", "object", "id", "type")


@dataclass(frozen=True, slots=True)
class TokenKeyUri:
    """`pkcs11:token=…;object=…`: in which token the key is, by label or serial number, and its label or ID there."""

    text: str
    token: str | None = None
    serial: str | None = None
    object: str | None = None
    id: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URI.

        Raises:
            ValueError: it is none, or does not say which token and which key.
        """
        if not text.startswith(_SCHEME):
            raise ValueError(f"not a PKCS #11 URI, such as {_SCHEME}token=TOKEN;object=KEY")
        path, question, _ = text.removeprefix(_SCHEME).partition("?")
        if question:
            raise ValueError("nothing may follow a '?': the module and the PIN's file have settings of their own")
        attributes: dict[str, bytes] = {}
        for part in path.split(";"):
            name, equals, value = part.partition("=")
            if not equals or name not in _KNOWN:
                raise ValueError(f"{part!r} is not understood: it may hold {', '.join(_KNOWN)}")
            if name in attributes:
                raise ValueError(f"{name} appears twice")
            attributes[name] = unquote_to_bytes(value)
        if attributes.pop("type", b"secret-key") != b"secret-key":
            raise ValueError("type: a node key is a secret-key")
        if not attributes.keys() & {"token", "serial"}:
            raise ValueError("which token? It needs token=LABEL or serial=NUMBER")
        if not attributes.keys() & {"object", "id"}:
            raise ValueError("which key? It needs object=LABEL or id=BYTES")
        key_id = attributes.pop("id", None)
        return cls(text, id=key_id, **{name: _text(name, value) for name, value in attributes.items()})


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8") from None
