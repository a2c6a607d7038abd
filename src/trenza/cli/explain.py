"""`trenza explain` and `trenza exposed`: what protected a key, and which keys a node's trust touches."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol, TypeAlias
from uuid import UUID

import click
import msgspec

from trenza.base.errors import PeerUnavailableError, RefusedError, TrenzaError, UnknownKeyError
from trenza.base.names import NodeId
from trenza.cli import suggest
from trenza.cli.doors import Doors, Query
from trenza.cli.options import FindSite, json_option, network_options
from trenza.cli.output import console, show_json, table
from trenza.cli.records import UseTold, told
from trenza.cli.state import Site
from trenza.cli.story import told_of
from trenza.core.recipe import recipe_named
from trenza.core.strand import Origin
from trenza.wire.management import ExposedKeys, Exposure, KeyStatement

Told: TypeAlias = tuple[NodeId, ExposedKeys]
"""Keys, and the node whose ledger tells of them."""


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
    asyncio.run(_show_exposed(find_site(), node, *within, show=_AsJson(node) if as_json else _AsTables(node)))


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


class _Shows(Protocol):
    """Prints what was exposed while it comes: there may be more of it than fits into memory."""

    def begin(self, pruned: Mapping[NodeId, str]) -> None:
        """Say which nodes no longer know all of that time."""

    def add(self, keys: Sequence[Told]) -> None:
        """Show some more."""

    def end(self) -> None:
        """Say that this was all."""


class _AsTables:
    """For people: one table, as long as every node's answer is one page."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._any = False

    def begin(self, pruned: Mapping[NodeId, str]) -> None:
        for teller, moment in pruned.items():
            click.echo(f"{teller} has pruned its records of before {moment}: what is older is in its archives only.")

    def add(self, keys: Sequence[Told]) -> None:
        if not keys:
            return
        self._any = True
        columns = ("told by", "what", "when", "between", "recipe", "keys ", "still rests on")
        console().print(table(columns, [_row(teller, one) for teller, one in keys]))

    def end(self) -> None:
        if not self._any:
            click.echo(f"No key's QKD bits crossed {self._node} in that time.")


class _AsJson:
    """For programs: one document, which is not whole unless all of it was told."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._pruned: Mapping[NodeId, str] = {}
        self._separator = ""

    def begin(self, pruned: Mapping[NodeId, str]) -> None:
        self._pruned = pruned
        click.echo(f'{{"node": {_json(self._node)}, "exposed": [', nl=False)

    def add(self, keys: Sequence[Told]) -> None:
        for teller, one in keys:
            told_by = {"told_by": teller, **msgspec.to_builtins(one)}
            click.echo(f"{self._separator}\n{_json(told_by)}", nl=False)
            self._separator = ","

    def end(self) -> None:
        click.echo(f'\n], "pruned_until": {_json(self._pruned)}}}')


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


async def _show_exposed(site: Site, node: str, since: str | None, until: str | None, *, show: _Shows) -> None:
    """Ask every node, then page by page those that have more to tell.

    Raises:
        TrenzaError: a node did not answer. A list that may lack keys is worse than none: nothing is shown, or it does
            not end as a whole one does.
    """
    async with Doors(site.ready()) as doors:
        query: Query = {"node": doors.check(node), "since": since, "until": until}
        answers: dict[NodeId, Exposure] = {}
        for teller, answer in (await doors.ask_all("/v1/exposed", Exposure, query=query)).items():
            if isinstance(answer, TrenzaError):
                raise answer
            answers[teller] = answer
        show.begin({teller: one.pruned_until for teller, one in answers.items() if one.pruned_until is not None})
        first = [(teller, one) for teller, answer in answers.items() for one in answer.exposed]
        show.add(sorted(first, key=lambda pair: (pair[1].time, pair[0], pair[1].sequence)))
        for teller, answer in answers.items():
            within, page = {**query, "until": until or answer.until}, answer
            while page.next is not None:
                page = await doors.ask(teller, "/v1/exposed", Exposure, query={**within, "after": page.next})
                show.add([(teller, one) for one in page.exposed])
        show.end()


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
