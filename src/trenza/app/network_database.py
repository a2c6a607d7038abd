"""An emulated network's memory in PostgreSQL: a schema for each node, made for this network alone.

A network knows its schemas by a name of its own, drawn at random once and kept in its state directory. So it drops
what it made itself and nothing else, also where two networks share a database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trenza.app.config import NodeConfig
from trenza.app.scenario_model import Scenario
from trenza.app.state_directory import StateDirectory
from trenza.base.entropy import SystemEntropy
from trenza.base.errors import InvalidDocumentError, InvalidRequestError
from trenza.base.names import NodeId

if TYPE_CHECKING:
    from trenza.adapters.postgres import OwnedSchemas

_LONGEST_NAME: Final = 63  # bytes: PostgreSQL would cut a longer one, and two nodes share tables
_MARK: Final = "made by `trenza up` for network"


def schema_of(scenario: str, node: NodeId) -> str:
    """Return the name of a node's schema; others in a network are never the same, as its nodes' names are not."""
    return f"trenza/{scenario}/{node}"


@dataclass(frozen=True, slots=True)
class NetworkDatabase:
    """Where the schemas of a network are: the file with the database's address, as in a node's configuration."""

    address: Path
    scenario: Scenario
    state: StateDirectory

    async def prepare(self) -> None:
        """Make the network's schemas anew; those of its last run are dropped with all they hold.

        Raises:
            InvalidDocumentError: a name is too long, or the address is not acceptable.
            ConflictError: a schema of that name is somebody else's.
            StoreUnavailableError: no driver, no answer, or a server that is not to be trusted with it.
        """
        await self._owned().make_anew(self._schemas())

    async def check_kept(self) -> None:
        """Refuse a database that is not the one of the last run.

        Raises:
            ConflictError, InvalidDocumentError, StoreUnavailableError: see `prepare`.
        """
        await self._owned().check_kept(self._schemas())

    def _schemas(self) -> Sequence[str]:
        names = [schema_of(self.scenario.name, node.name) for node in self.scenario.nodes]
        mistakes = tuple(
            f"{name} has {len(name.encode())} bytes, and PostgreSQL takes {_LONGEST_NAME}: give a shorter name to "
            "the scenario or to the node"
            for name in names
            if len(name.encode()) > _LONGEST_NAME
        )
        if mistakes:
            raise InvalidDocumentError(f"the schemas of {self.scenario.name}", mistakes)
        return names

    def _owned(self) -> OwnedSchemas:
        schemas = self._schemas()
        from trenza.adapters.postgres import OwnedSchemas, PostgresSettings  # most networks do without the driver

        settings = PostgresSettings.load(self.address, schema=schemas[0])
        return OwnedSchemas(settings, mark=f"{_MARK} {self._identity()}")

    def _identity(self) -> str:
        file = self.state.identity
        try:
            return bytes.fromhex(file.read_text(encoding="ascii")).hex()
        except FileNotFoundError:
            identity = SystemEntropy().token(16).hex()
            file.write_text(identity, encoding="ascii")
            return identity
        except ValueError:
            raise InvalidDocumentError(f"{file}", ("it does not hold a network's name",)) from None


def kept_address(configs: Sequence[NodeConfig], asked: Path | None, *, store: str | None) -> Path | None:
    """Return where the memory of a network that goes on is; None for its own disk.

    Raises:
        InvalidRequestError: it was asked for elsewhere than it is.
    """
    kept = next((one.database.address for one in configs if one.database is not None), None)
    if store is not None and (store == "postgres") != (kept is not None):
        where = "on this disk" if kept is None else "in PostgreSQL"
        raise InvalidRequestError(f"the network's memory of its last run is {where}: leave --store out, or --resume")
    if asked is not None and asked != kept:
        raise InvalidRequestError(f"the network's last run was told of its database by {kept}: give it that file")
    return kept
