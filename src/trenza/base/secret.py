"""Key bytes that can be wiped and cannot be printed.

Key bytes live only here: never in a log, an f-string, an exception or a pickle. Whoever holds a Secret wipes it.
Wiping is best effort in Python: the allocator and the libraries below may keep copies (docs/threat-model.md).
"""

from __future__ import annotations

import hmac
from typing import NoReturn, final


@final
class Secret:
    """Key bytes with an owner. Owns `buffer`: the caller keeps no copy."""

    __slots__ = ("_buffer",)

    def __init__(self, buffer: bytearray) -> None:
        self._buffer = buffer

    @classmethod
    def of(cls, material: bytes | memoryview) -> Secret:
        """Take a copy of `material`; used where a library hands out immutable bytes."""
        return cls(bytearray(material))

    def __len__(self) -> int:
        return len(self._buffer)

    def __repr__(self) -> str:
        return f"<Secret {len(self._buffer)} bytes>"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        """Compare in constant time. There is no hash: a Secret is never a dictionary key."""
        return isinstance(other, Secret) and hmac.compare_digest(self._buffer, other._buffer)

    __hash__ = None  # type: ignore[assignment]

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a Secret is never pickled or copied")

    def view(self) -> memoryview:
        """Return the bytes, read-only, without a copy; valid until `wipe`."""
        return memoryview(self._buffer).toreadonly()

    def find(self, part: bytes, first: int = 0) -> int:
        """Return where `part` begins for the first time, from `first` on; -1 if it is not there."""
        return self._buffer.find(part, first)

    def cut(self, first: int, length: int) -> Secret:
        """Return a copy of `length` bytes from `first`; the caller wipes it.

        Raises:
            ValueError: the range is not inside the secret.
        """
        if first < 0 or length < 0 or first + length > len(self._buffer):
            raise ValueError("the cut is outside the secret")
        return Secret(self._buffer[first : first + length])

    def release(self) -> bytearray:
        """Hand the bytes over to the caller, who wipes them; what is left of this Secret is empty."""
        buffer, self._buffer = self._buffer, bytearray()
        return buffer

    def wipe(self) -> None:
        """Overwrite the bytes with zeros; may be called twice."""
        self._buffer[:] = bytes(len(self._buffer))
