"""`trenza audit` and `trenza ledger export`: was anything of a node's ledger deleted, reordered or altered?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from trenza.app.archives import archives_audited, node_of
from trenza.app.config import load_node_config
from trenza.app.state_directory import file_name
from trenza.base.errors import (
    AuthenticationError,
    InvalidDocumentError,
    InvalidRequestError,
    TrenzaError,
    UnavailableError,
)
from trenza.base.names import NodeId
from trenza.cli import suggest
from trenza.cli.doors import Doors
from trenza.cli.ledgers import Export, Verdict, audited, fetch_ledger, public_key_in, read_export
from trenza.cli.options import FindSite, json_option, network_options
from trenza.cli.output import console, show_json, table
from trenza.cli.state import Site, check_writable, write_whole


@dataclass(frozen=True, slots=True)
class NotAudited:
    """There was no ledger to look at, or no key to judge it by: nothing is said of the ledger."""

    error: TrenzaError


_Finding = Verdict | TrenzaError | NotAudited
_FILE = click.Path(dir_okay=False, path_type=Path)
_EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)  # a name mistyped says nothing of a ledger


@click.command()
@click.argument("node", required=False, shell_complete=suggest.nodes)
@click.option("--file", type=_EXISTING, help="A ledger that `trenza ledger export` took away; needs no network.")
@click.option("--certificate", type=_EXISTING, help="That of the node's peer listener, with which it signs (PEM).")
@click.option(
    "--archive",
    "archives",
    type=_EXISTING,
    multiple=True,
    help="An archive of older entries; may be given many times.",
)
@network_options
@json_option
def audit(
    node: str | None,
    file: Path | None,
    certificate: Path | None,
    archives: tuple[Path, ...],
    find_site: FindSite,
    as_json: bool,
) -> None:
    """Check that no ledger entry was deleted or altered.

    Fetches the ledgers (all of the network, or that of NODE) and checks here that each entry follows the one before
    it and that the ledger passes through every checkpoint that the node signed. The certificate must come from
    elsewhere than the ledger; of a network that `trenza up` started here, it is known.

    A ledger whose older entries were pruned is checked from where it starts, which a checkpoint vouches for; with the
    archives of NODE, or of --file, from their first entry. Archives alone need --certificate and nothing else.
    """
    verdicts: dict[NodeId, _Finding]
    if certificate is None and file is not None:
        raise click.UsageError("--file needs --certificate: the key that vouches must come from elsewhere.")
    if archives and file is None and node is None:
        if certificate is None:
            raise click.UsageError("--archive needs --certificate, or the NODE whose archives they are.")
        verdicts = dict([_archives_alone(archives, certificate)])
        _tell(verdicts, as_json=as_json)
        return
    if certificate is not None and (file is None) == (node is None):
        raise click.UsageError("--certificate is that of one node: name NODE or --file.")
    if file is not None and certificate is not None:
        export = read_export(file)
        verdicts = {export.node: _judged(export, _public_key(certificate, export.node), archives)}
    else:
        public_key = _public_key(certificate, NodeId(node)) if certificate and node else None
        verdicts = asyncio.run(_audit(find_site(), node, public_key, archives))
    _tell(verdicts, as_json=as_json)


def _tell(verdicts: Mapping[NodeId, _Finding], *, as_json: bool) -> None:
    """Show what was found, and end with an error unless all is well."""
    if as_json:
        show_json({"nodes": {name: _document(verdict) for name, verdict in verdicts.items()}})
    else:
        _show(verdicts)
    failed = [name for name, verdict in verdicts.items() if isinstance(verdict, TrenzaError)]
    if failed:
        raise AuthenticationError(f"the audit failed for {', '.join(failed)}: keep these ledgers as evidence")
    unseen = [name for name, verdict in verdicts.items() if isinstance(verdict, NotAudited)]
    if unseen:
        raise UnavailableError(f"not audited: {', '.join(unseen)}; nothing is known of these ledgers, so ask again")


@click.group()
def ledger() -> None:
    """Take a node's ledger away."""


@ledger.command()
@click.argument("node", shell_complete=suggest.nodes)
@click.argument("file", type=_FILE)
@network_options
@json_option
def export(node: str, file: Path, find_site: FindSite, as_json: bool) -> None:
    """Write the ledger of NODE and its checkpoints to FILE, for `trenza audit --file`."""
    if file.exists():
        raise InvalidRequestError(f"{file} exists already: evidence is not overwritten, choose another name")
    check_writable(file)

    async def fetch() -> Export:
        async with Doors(find_site().ready()) as doors:
            return await fetch_ledger(doors, doors.check(node))

    taken = asyncio.run(fetch())
    write_whole(file, msgspec.json.encode(taken))
    if as_json:
        show_json({"node": node, "entries": len(taken.entries), "file": str(file)})
    else:
        click.echo(f"{len(taken.entries)} entries of {node}: {file}")


def _public_key(certificate: Path, node: NodeId) -> bytes:
    """Read the certificate that was named; what is wrong with it is no word against a ledger."""
    try:
        return public_key_in(certificate, node)
    except InvalidDocumentError as error:
        raise click.BadParameter("; ".join(error.mistakes), param_hint=f"'--certificate' {certificate}") from None


async def _audit(
    site: Site, node: str | None, public_key: bytes | None, archives: Sequence[Path]
) -> dict[NodeId, _Finding]:
    async with Doors(site.ready()) as doors:
        nodes = doors.nodes if node is None else [doors.check(node)]

        async def one(name: NodeId) -> _Finding:
            try:
                taken = await fetch_ledger(doors, name)
                key = public_key or public_key_in(certificate_of(site, name), name)
            except TrenzaError as error:
                return NotAudited(error)
            return _judged(taken, key, archives)

        return dict(zip(nodes, await asyncio.gather(*map(one, nodes)), strict=True))


def certificate_of(site: Site, node: NodeId) -> Path:
    """Return the file of the certificate with which a node of this machine signs."""
    return load_node_config(site.own_files() / "nodes" / file_name(node) / "config.toml").peers.certificate


def _judged(export: Export, public_key: bytes, archives: Sequence[Path]) -> _Finding:
    try:
        return audited(export, public_key, archives_audited(archives, export.node, public_key))
    except TrenzaError as error:
        return error


def _archives_alone(archives: Sequence[Path], certificate: Path) -> tuple[NodeId, _Finding]:
    """Check archives without the ledger that they come from."""
    node = node_of(archives[0])
    public_key = _public_key(certificate, node)
    try:
        found = archives_audited(archives, node, public_key)
    except TrenzaError as error:
        return node, error
    assert found is not None, "there is at least one"
    last = found.last.sequence
    return node, Verdict(node, found.first, last, found.checkpoints, last, found.vouched_at)


def _document(verdict: _Finding) -> dict[str, Any]:
    if isinstance(verdict, NotAudited):
        return {"whole": None, "error": verdict.error.code, "message": verdict.error.message}
    if isinstance(verdict, TrenzaError):
        return {"whole": False, "error": verdict.code, "message": verdict.message}
    return {
        "whole": True,
        "first": verdict.first,
        "pruned_until": verdict.pruned_until.isoformat() if verdict.pruned_until else None,
        "entries": verdict.entries,
        "checkpoints": verdict.checkpoints,
        "vouched": verdict.vouched,
        "vouched_at": verdict.vouched_at.isoformat() if verdict.vouched_at else None,
    }


def _show(verdicts: Mapping[NodeId, _Finding]) -> None:
    rows: list[tuple[object, ...]] = []
    for name, verdict in verdicts.items():
        if isinstance(verdict, TrenzaError):
            rows.append((name, "NO", "", "", "", "", verdict.message))
            continue
        if isinstance(verdict, NotAudited):
            rows.append((name, "not audited", "", "", "", "", verdict.error.message))
            continue
        until = f"until {verdict.vouched_at:%Y-%m-%d %H:%M:%S}Z" if verdict.vouched_at else "not yet"
        rows.append((name, "yes", verdict.first, verdict.entries, verdict.checkpoints, verdict.vouched, until))
        if verdict.pruned_until is not None:
            click.echo(
                f"{name}: what was written before {verdict.pruned_until:%Y-%m-%d %H:%M:%S}Z was pruned.", err=True
            )
    console().print(table(("node", "whole", "from ", "to ", "checkpoints ", "vouched for ", "signed"), rows))
