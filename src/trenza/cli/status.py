"""`trenza status`: what the nodes say of themselves, all asked at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import click
import msgspec
from rich.console import Console

from trenza.base.errors import PeerUnavailableError, TrenzaError
from trenza.base.names import NodeId
from trenza.cli import suggest
from trenza.cli.doors import Doors
from trenza.cli.options import FindSite, json_option, network_options
from trenza.cli.output import amount, console, show_json, table
from trenza.cli.state import Site
from trenza.wire.management import LinkStatus, NodeStatus


@click.command()
@click.argument("node", required=False, shell_complete=suggest.nodes)
@network_options
@json_option
def status(node: str | None, find_site: FindSite, as_json: bool) -> None:
    """Show nodes, pools, links and troubles.

    Asks every node at once, or NODE alone, which then tells its connections and counters too.
    """
    site = find_site()
    answers = asyncio.run(_ask(site, node))
    if as_json:
        show_json({"network": site.name, "nodes": {name: _document(answer) for name, answer in answers.items()}})
    else:
        _show(console(), answers, detailed=node is not None)
    silent = [name for name, answer in answers.items() if isinstance(answer, TrenzaError)]
    if silent:
        raise PeerUnavailableError(f"{', '.join(silent)} did not answer: look at what that process prints")


async def _ask(site: Site, node: str | None) -> Mapping[NodeId, NodeStatus | TrenzaError]:
    async with Doors(site.ready()) as doors:
        nodes = None if node is None else [doors.check(node)]
        return await doors.ask_all("/v1/status", NodeStatus, nodes=nodes)


def _document(answer: NodeStatus | TrenzaError) -> Any:
    if isinstance(answer, TrenzaError):
        return {"error": answer.code, "message": answer.message}
    return msgspec.to_builtins(answer)


def _show(out: Console, answers: Mapping[NodeId, NodeStatus | TrenzaError], *, detailed: bool) -> None:
    told = [answer for answer in answers.values() if isinstance(answer, NodeStatus)]
    columns: tuple[str, ...] = (
        "node",
        "book ",
        "sessions ",
        "links ",
        "ledger ",
        "issued ",
        "delivered ",
        "troubles ",
    )
    rows: list[tuple[object, ...]] = [_node_row(one) for one in told]
    if any(one.instance is not None for one in told):
        columns += ("instance",)
        rows = [(*row, _instance_of(one)) for row, one in zip(rows, told, strict=True)]
    out.print(table(columns, rows))
    out.print(table(("pool", "issued by", "kind", "ready ", "not granted ", "keys/s "), _pool_rows(told)))
    links = {link.link: (one.node, link) for one in reversed(told) for link in one.links}
    columns = ("link", "ends", "state", "rate ", "QBER ", "stock →", "stock ←", "emulated")
    out.print(table(columns, [_link_row(end, link) for _, (end, link) in sorted(links.items())]))
    troubles = [(one.node, task, trouble) for one in told for task, trouble in one.troubles.items()]
    out.print(table(("node", "task", "trouble"), troubles) if troubles else "No troubles.")
    if detailed:
        for one in told:
            _show_details(out, one)


def _node_row(one: NodeStatus) -> tuple[object, ...]:
    issued, delivered = one.counters.get("keys_issued", 0), one.counters.get("keys_delivered", 0)
    ledger, troubles = one.ledger.sequence, len(one.troubles)
    return (one.node, one.book_version, len(one.sessions), len(one.links), ledger, issued, delivered, troubles)


def _instance_of(one: NodeStatus) -> str:
    return "" if one.instance is None else f"{one.instance.name} ({one.instance.role})"


def _pool_rows(told: list[NodeStatus]) -> list[tuple[object, ...]]:
    """Return each pool once: as its issuer sees it, who alone knows what it has left; else as the peer does."""
    rows: dict[tuple[str, str, str], tuple[object, ...]] = {}
    for one in told:
        for pool in one.pools:
            key = (" - ".join(sorted((one.node, pool.peer))), pool.issuer, pool.kind)
            if pool.issuer == one.node or key not in rows:
                rows[key] = (*key, pool.issuable, pool.ungranted, f"{pool.per_second:g}")
    return [row for _, row in sorted(rows.items())]


def _link_row(node: str, link: LinkStatus) -> tuple[object, ...]:
    stock = {one.sender: amount(one.traffic_bits, "bit") for one in link.stock}
    reading = link.reading
    state = reading.state if reading else "mute"
    rate = reading.secret_bits_per_second if reading else None
    qber = reading.qber if reading else None
    return (
        link.link,
        f"{node} → {link.peer}",
        state,
        "" if rate is None else amount(rate, "bit/s"),
        "" if qber is None else f"{qber:.1%}",
        stock.get(node, ""),
        stock.get(link.peer, ""),
        "yes" if link.emulated else "no",
    )


def _show_details(out: Console, one: NodeStatus) -> None:
    sessions = [(s.peer, f"{s.lease_s:.1f} s", s.epoch, s.incarnation) for s in one.sessions]
    out.print(table(("session with", "lease ", "epoch ", "incarnation "), sessions))
    tls = [(t.door, _counts(t.handshakes), _counts(t.failed), _counts(t.refused), t.connections) for t in one.tls]
    out.print(table(("TLS at", "handshakes", "failed", "refused", "open "), tls))
    out.print(table(("counter", "value "), list(one.counters.items())))


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(found.items())) or "none"
