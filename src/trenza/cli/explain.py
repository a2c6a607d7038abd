"""`trenza explain` and `trenza exposed`: what protected a key, and which keys a node's trust touches."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import click
import msgspec

from trenza.base.errors import PeerUnavailableError, RefusedError, TrenzaError, UnknownKeyError
from trenza.base.names import NodeId
from trenza.cli import suggest
from trenza.cli.doors import Doors
from trenza.cli.options import FindSite, json_option, network_options
from trenza.cli.output import console, show_json, table
from trenza.cli.records import UseTold, told
from trenza.cli.state import Site
from trenza.cli.story import told_of
from trenza.core.recipe import recipe_named
from trenza.core.strand import Origin
from trenza.wire.management import ExposedKeys, Exposure, KeyStatement


@click.command()
@click.argument("key_id", type=click.UUID)
@network_options
@json_option
def explain(key_id: UUID, find_site: FindSite, as_json: bool) -> None:
    """Tell what protected a key.

    Asks every node; those that issued or delivered the key answer: recipe and strands, links crossed and who saw the
    QKD bits, how the exchange was authenticated, when, and where in which ledger.
    """
    statements = asyncio.run(_statements(find_site(), key_id))
    if as_json:
        show_json({"key_ID": str(key_id), "statements": statements})
        return
    out = console()
    for part in told_of(statements):
        out.print(part)


@click.command()
@click.argument("node", shell_complete=suggest.nodes)
@click.option("--since", metavar="TIME", help="From this moment on (2026-02-03T04:05:06Z).  [default: the beginning]")
@click.option("--until", metavar="TIME", help="Before this moment.  [default: now]")
@network_options
@json_option
def exposed(node: str, since: str | None, until: str | None, find_site: FindSite, as_json: bool) -> None:
    """List the keys whose QKD bits crossed a node.

    Whoever controlled NODE as a relay in that time saw these keys' QKD strands. Their other strands it did not see,
    so the list says what each key still rests on.
    """
    within = _moment(since, "--since"), _moment(until, "--until")
    found, pruned = asyncio.run(_exposed(find_site(), node, *within))
    if as_json:
        told_by = [{"told_by": teller, **msgspec.to_builtins(one)} for teller, one in found]
        show_json({"node": node, "exposed": told_by, "pruned_until": pruned})
        return
    for teller, moment in pruned.items():
        click.echo(f"{teller} has pruned its records of before {moment}: what is older is in its archives only.")
    if not found:
        click.echo(f"No key's QKD bits crossed {node} in that time.")
        return
    columns = ("told by", "what", "when", "between", "recipe", "keys ", "still rests on")
    console().print(table(columns, [_row(teller, one) for teller, one in found]))


async def _statements(site: Site, key_id: UUID) -> list[KeyStatement]:
    async with Doors(site.ready()) as doors:
        answers = await doors.ask_all(f"/v1/keys/{key_id}", KeyStatement)
    known = [answer for answer in answers.values() if isinstance(answer, KeyStatement)]
    if known:
        return sorted(known, key=lambda one: [event.time for event in one.events] or ["~"])
    silent = [node for node, answer in answers.items() if not isinstance(answer, RefusedError)]
    if silent:
        raise PeerUnavailableError(f"no node that answered knows key {key_id}; {', '.join(silent)} did not answer")
    why = f"no node knows key {key_id}: look at its digits, and at `trenza ps` if several networks run"
    refusals = [answer.message for answer in answers.values() if isinstance(answer, RefusedError)]
    raise UnknownKeyError("; ".join([why, *(one for one in refusals if "pruned" in one)]))


async def _exposed(
    site: Site, node: str, since: str | None, until: str | None
) -> tuple[list[tuple[NodeId, ExposedKeys]], dict[NodeId, str]]:
    """Return what was exposed, and which nodes no longer know all of that time."""
    async with Doors(site.ready()) as doors:
        relay = doors.check(node)
        query = {"node": relay, "since": since, "until": until}
        answers = await doors.ask_all("/v1/exposed", Exposure, query=query)
    found: list[tuple[NodeId, ExposedKeys]] = []
    pruned: dict[NodeId, str] = {}
    for teller, answer in answers.items():
        if isinstance(answer, TrenzaError):
            raise answer  # a list that may lack keys is worse than none
        found += [(teller, one) for one in answer.exposed]
        if answer.pruned_until is not None:
            pruned[teller] = answer.pruned_until
    return sorted(found, key=lambda pair: (pair[1].time, pair[0], pair[1].sequence)), pruned


def _row(teller: NodeId, one: ExposedKeys) -> tuple[object, ...]:
    use = told(one.record, UseTold)
    rest = sorted(origin.name for origin in recipe_named(use.recipe).origins if origin is not Origin.QKD)
    pair = f"{use.initiator}, {use.target}"
    return (teller, one.kind, one.time, pair, use.recipe, len(use.slots), " + ".join(rest) or "NOTHING")


def _moment(text: str | None, option: str) -> str | None:
    """Return a moment in UTC as the doors read it."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter("write it like 2026-02-03T04:05:06Z", param_hint=option) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
