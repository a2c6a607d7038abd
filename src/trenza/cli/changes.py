"""What happened in a network between two looks at it, one line per event: for logs, where nothing can be drawn."""

from __future__ import annotations

from collections.abc import Iterator

from trenza.app.view import NetworkView
from trenza.cli.output import amount


def changes_between(before: NetworkView, now: NetworkView) -> Iterator[str]:
    """Yield a line for every link whose state changed, every node that came or went, every new trouble, new keys."""
    links = {link.name: link for link in before.links}
    for link in now.links:
        if link.name in links and link.state != links[link.name].state:
            stock = " and ".join(amount(bits, "bit") for bits in link.stock)
            yield f"link {link.name}: {links[link.name].state} -> {link.state}; {stock} in stock"
    nodes = {node.name: node for node in before.nodes}
    for node in now.nodes:
        old = nodes.get(node.name)
        if old is None:
            continue
        if node.running != old.running:
            yield f"node {node.name}: {'running' if node.running else 'stopped'}"
        for trouble in sorted({*node.troubles} - {*old.troubles}):
            yield f"node {node.name}: {trouble}"
        for trouble in sorted({*old.troubles} - {*node.troubles}):
            yield f"node {node.name}: no longer: {trouble}"
    if (now.keys_issued, now.keys_delivered) != (before.keys_issued, before.keys_delivered):
        yield f"keys issued {now.keys_issued}, delivered {now.keys_delivered}"
