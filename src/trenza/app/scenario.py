"""Scenarios: networks and who may share keys in them, written as TOML, read whole or refused whole.

A scenario with mistakes is refused with all of them, each with its line and key, never with the first alone.
The keys of the format are the fields of `app/scenario_model.py`; those of policies, of `core/policy.Policy`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

import trenza
from trenza.app.scenario_checks import SECTIONS, Draft, Entry, did_you_mean, mistakes_between
from trenza.app.scenario_lines import Lines, Place
from trenza.app.scenario_model import Defaults, Evidence, Link, Node, Sae, Scenario
from trenza.app.scenario_unread import stand_in
from trenza.base.errors import InvalidDocumentError
from trenza.qkd.physics.devices import DEVICE_CLASSES, DeviceClass

__all__ = [
    "Defaults",
    "Evidence",
    "Link",
    "Node",
    "Sae",
    "Scenario",
    "find_scenario",
    "known_scenarios",
    "load_scenario",
    "read_scenario",
]

_T = TypeVar("_T", bound=msgspec.Struct)
_SYNTAX = re.compile(r"(.*) \(at (?:(line \d+, column \d+)|end of document)\)", re.DOTALL)
_OF_LINKS = ("device_class", "initial_stock_bits", "time_factor")


def known_scenarios() -> Mapping[str, Path]:
    """Return the scenarios that come with Trenza, by name."""
    package = Path(trenza.__file__).parent
    for folder in (package / "scenarios", package.parents[1] / "scenarios"):  # installed; in a checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def find_scenario(name_or_path: str) -> Path:
    """Return the file of a scenario: a path, or the name of one that comes with Trenza.

    Raises:
        InvalidDocumentError: there is none; says which was perhaps meant, or all there are.
    """
    known = known_scenarios()
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    mistake = f"it is neither a file nor a scenario that comes with Trenza{did_you_mean(name_or_path, known)}"
    raise InvalidDocumentError(f"scenario {name_or_path}", (mistake,))


def load_scenario(name_or_path: str, *, known_device_classes: Mapping[str, DeviceClass] = DEVICE_CLASSES) -> Scenario:
    """Return the scenario in a file, or of that name.

    Raises:
        InvalidDocumentError: there is none, or it has mistakes; all are listed.
    """
    path = find_scenario(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDocumentError(f"scenario {path}", (f"it cannot be read: {error}",)) from None
    return read_scenario(text, source=str(path), known_device_classes=known_device_classes)


def read_scenario(
    text: str, *, source: str = "given", known_device_classes: Mapping[str, DeviceClass] = DEVICE_CLASSES
) -> Scenario:
    """Return the scenario that `text` describes.

    Args:
        text: TOML.
        source: what mistakes call it.
        known_device_classes: what links may name.

    Raises:
        InvalidDocumentError: it has mistakes; all are listed, in the order of their lines.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidDocumentError(f"scenario {source}", (_syntax_mistake(str(error), text),)) from None
    reader = _Reader(document)
    draft = reader.draft()
    found = reader.found + list(mistakes_between(draft, known_device_classes))
    if found:
        lines = Lines(text)
        told_at = sorted({(lines.line_of(place), mistake) for place, mistake in found})
        raise InvalidDocumentError(f"scenario {source}", tuple(f"line {line}: {told}" for line, told in told_at))
    return draft.scenario


def _syntax_mistake(told: str, text: str) -> str:
    """Return what `tomllib` says of a text, its place first as in all our mistakes."""
    parts = _SYNTAX.fullmatch(told)
    return f"{parts[2] or f'line {len(text.splitlines())}'}: {parts[1]}" if parts else told


class _Reader:
    """Reads entry by entry and goes on after a mistake."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self.found: list[tuple[Place, str]] = []
        self._unread: set[str] = set()

    def draft(self) -> Draft:
        """Return what could be read; `found` then holds what could not."""
        plain = {key: value for key, value in self._document.items() if key not in {*SECTIONS, "defaults"}}
        self._unread |= {key for key, value in plain.items() if isinstance(value, (list, dict))}  # perhaps a section
        head = self._struct(Scenario, {**plain, "nodes": ()}, (), "")
        assert head is not None, "a document is a table"
        defaults = (
            self._struct(Defaults, self._document.get("defaults", {}), ("defaults",), "defaults.") or Defaults()
        )
        of_links = {key: getattr(defaults, key) for key in _OF_LINKS}
        read = {section: self._section(section, of_links if section == "links" else {}) for section in SECTIONS}
        if not read["nodes"] and "nodes" not in {place[0] for place, _ in self.found if place}:
            self.found.append(((), "nodes: a network has at least one node"))
        sections: dict[str, Any] = {section: tuple(entry for _, entry in pairs) for section, pairs in read.items()}
        return Draft(
            scenario=msgspec.structs.replace(head, defaults=defaults, **sections),
            places={section: [place for place, _ in pairs] for section, pairs in read.items()},
            unread=self._unread,
        )

    def _section(self, section: str, defaults: Mapping[str, Any]) -> list[tuple[Place, Entry]]:
        tables = self._document.get(section, [])
        if not isinstance(tables, list):
            self.found.append(((section,), f"{section}: write each entry under [[{section}]]"))
            self._unread.add(section)
            return []
        entries: list[tuple[Place, Entry]] = []
        for index, table in enumerate(tables):
            place: Place = (section, index)
            merged = {**defaults, **table} if isinstance(table, dict) else table
            entry = self._struct(SECTIONS[section], merged, place, _label(section, index, table))
            if entry is None:
                self._unread.add(section)
            else:
                entries.append((place, entry))
        return entries

    def _struct(self, kind: type[_T], table: object, place: Place, label: str) -> _T | None:
        """Return `table` as a `kind`: a wrong optional value left out, stand-ins for what else is amiss."""
        if not isinstance(table, dict):
            self.found.append((place, f"{label.rstrip('.')}: expected a table"))
            return None
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key not in fields:
                self.found.append(((*place, key), f"{label}{key}: no such key{did_you_mean(key, fields)}"))
                continue
            try:
                values[key] = msgspec.convert(value, fields[key].type)
            except msgspec.ValidationError as error:
                choices = f": {', '.join(Evidence)}" if fields[key].type is Evidence else ""
                self.found.append(((*place, key), f"{label}{key}: {error}{choices}"))
        required = [field.name for field in fields.values() if field.required]
        self.found += [(place, f"{label}{key}: is missing") for key in required if key not in table]
        index = next((part for part in place if isinstance(part, int)), 0)
        return kind(**{key: stand_in(key, index) for key in required} | values)


def _label(section: str, index: int, table: object) -> str:
    name = table.get("name") if isinstance(table, dict) else None
    return f"{section}.{name}." if isinstance(name, str) else f"{section}[{index + 1}]."
