"""TOML files read into msgspec Structs whole, or refused with all their mistakes, each with its line and key.

Knows no particular document: `app/config` says what is in one and what must hold between its values.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from trenza.app.scenario_checks import did_you_mean
from trenza.app.scenario_lines import Lines, Place
from trenza.base.errors import InvalidDocumentError

_T = TypeVar("_T", bound=msgspec.Struct)


class _ToldError(Exception):
    """A value cannot be used, and its mistakes are noted already."""


Mistake = tuple[Place, str]
"""Where a mistake is, and a sentence that names its key."""


class Document:
    """One TOML text being read; `refuse_mistakes` ends the reading."""

    def __init__(self, text: str, *, what: str, folder: Path) -> None:
        """Parse the text.

        Args:
            text: TOML.
            what: what mistakes call it.
            folder: where relative paths in it begin.

        Raises:
            InvalidDocumentError: it is not TOML.
        """
        self._text = text
        self._what = what
        self._folder = folder
        self._found: list[Mistake] = []
        try:
            self._table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InvalidDocumentError(what, (str(error),)) from None

    def read(self, kind: type[_T]) -> _T:
        """Return the document as a `kind`.

        Raises:
            InvalidDocumentError: what cannot be left out is missing or amiss; all mistakes are listed.
        """
        read = self._struct(kind, self._table, ())
        if read is None:
            self.refuse_mistakes()
        assert read is not None
        return read

    def add(self, mistakes: Sequence[Mistake]) -> None:
        """Note mistakes between values."""
        self._found += mistakes

    def refuse_mistakes(self) -> None:
        """Raise InvalidDocumentError if there were any, in the order of their lines."""
        if not self._found:
            return
        lines = Lines(self._text)
        told_at = sorted({(lines.line_of(place), mistake) for place, mistake in self._found})
        raise InvalidDocumentError(self._what, tuple(f"line {line}: {told}" for line, told in told_at))

    def _struct(self, kind: type[_T], table: object, place: Place) -> _T | None:
        """Return `table` as a `kind`, a wrong optional value left out; None where a required one is amiss."""
        label = "".join(f"{part}." if isinstance(part, str) else f"{part + 1}." for part in place)
        if not isinstance(table, dict):
            self._found.append((place, f"{label.rstrip('.')}: expected a table"))
            return None
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key not in fields:
                self._found.append(((*place, key), f"{label}{key}: no such key{did_you_mean(key, fields)}"))
                continue
            try:
                values[fields[key].name] = self._value(fields[key].type, value, (*place, key))
            except _ToldError:
                pass  # its own keys say what is wrong
            except msgspec.ValidationError as error:
                self._found.append(((*place, key), f"{label}{key}: {error}{_choices(fields[key].type)}"))
        required = [field for field in fields.values() if field.required]
        missing = [field.encode_name for field in required if field.encode_name not in table]
        self._found += [(place, f"{label}{key}: is missing") for key in missing]
        return kind(**values) if all(field.name in values for field in required) else None

    def _value(self, kind: Any, value: object, place: Place) -> Any:
        """Return one value; raises _ToldError, the mistakes noted, where a table in it is amiss."""
        struct = _struct_in(kind)
        if struct is None:
            return msgspec.convert(value, kind, dec_hook=self._path)
        if get_origin(kind) is not tuple:
            return self._kept(self._struct(struct, value, place))
        if not isinstance(value, list):
            raise msgspec.ValidationError(f"write each entry under [[{place[-1]}]]")
        return tuple([self._kept(self._struct(struct, entry, (*place, at))) for at, entry in enumerate(value)])

    @staticmethod
    def _kept(read: _T | None) -> _T:
        if read is None:
            raise _ToldError
        return read

    def _path(self, kind: type, value: object) -> object:
        if kind is not Path or not isinstance(value, str) or not value:
            raise msgspec.ValidationError("expected the path of a file")
        return self._folder / value


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, msgspec.Struct):
            return one
    return None


def _choices(kind: Any) -> str:
    enums = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, Enum)]
    return f": {', '.join(str(choice.value) for choice in enums[0])}" if enums else ""


def toml_text(document: msgspec.Struct, *, folder: Path) -> str:
    """Return the TOML text that reads back as `document`; what has its default value is left out.

    Args:
        document: strings, numbers, booleans, paths, Structs and tuples of these.
        folder: where the text is going to lie; paths are written relative to it.
    """
    return "\n".join(_lines(document, "", folder)) + "\n"


def _lines(document: msgspec.Struct | Mapping[str, object], prefix: str, folder: Path) -> list[str]:
    scalars: list[str] = []
    tables: list[str] = []
    for key, value in _items(document):
        name = f"{prefix}{key}"
        match value:
            case msgspec.Struct() | dict():
                tables += ["", f"[{name}]", *_lines(value, f"{name}.", folder)]
            case tuple() if value and all(isinstance(one, msgspec.Struct) for one in value):
                for one in value:
                    tables += ["", f"[[{name}]]", *_lines(one, f"{name}.", folder)]
            case _:
                scalars.append(f"{key} = {_scalar(value, folder)}")
    return scalars + tables


def _items(document: msgspec.Struct | Mapping[str, object]) -> list[tuple[str, Any]]:
    if not isinstance(document, msgspec.Struct):
        return list(document.items())
    fields = msgspec.structs.fields(type(document))
    pairs = [(field, getattr(document, field.name)) for field in fields]
    return [(field.encode_name, value) for field, value in pairs if field.required or value != _default(field)]


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _scalar(value: object, folder: Path) -> str:
    match value:
        case Enum():
            return json.dumps(value.value, ensure_ascii=False)
        case Path():
            return json.dumps(os.path.relpath(value, folder), ensure_ascii=False)
        case tuple():
            return f"[{', '.join(_scalar(one, folder) for one in value)}]"
        case str() | bool() | int() | float():
            return json.dumps(value, ensure_ascii=False)  # a JSON scalar is a TOML scalar
        case _:
            raise ValueError(f"TOML has no way to say {type(value).__name__}")
