"""Data directories that earlier releases wrote (`old/make.py` made them), and the lab's network they belong to."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.networks import network

from trenza.base.names import NodeId
from trenza.lab.story import SMALL
from trenza.lab.world import World

OLD = Path(__file__).with_name("old")
SEED = 1_848
NODES = (NodeId("A"), NodeId("B"))


@dataclass(frozen=True)
class OldNodes:
    """What one release left: two nodes' data directories, and keys that A1 had issued for B1."""

    files: dict[NodeId, dict[str, bytes]]
    fetched: list[str]
    waiting: list[str]
    sha384_of_keys: dict[str, str]


def two_nodes() -> World:
    return World(network("AB", "AB", {"A1 B1": "default"}), seed=SEED, settings=SMALL)


def old_nodes(version: int) -> OldNodes:
    folder = OLD / f"version-{version}"
    known = json.loads((folder / "keys.json").read_text())
    files = {
        name: {file: gzip.decompress((folder / f"{name}.{file}.gz").read_bytes()) for file in ("store.db", "keyring")}
        for name in NODES
    }
    return OldNodes(files, known["fetched"], known["waiting"], known["sha384_of_keys"])
