"""A running network drawn on a terminal: links and pools with what they hold, and what was issued so far.

A screen is small and a network may be large: what is in trouble comes first, and what does not fit is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trenza.app.view import LinkView, NetworkView, PoolView
from trenza.base.units import Seconds
from trenza.cli.output import amount, plain, table

RUNNING: Final = "running"
_BAR_WIDTH: Final = 12
_FULL_LINK_BITS: Final = 2_000_000  # a link's bar is full here: some 8000 keys
_LINES_BESIDE_ROWS: Final = 13  # headings, rules, counts and the prompt
_FEWEST_ROWS: Final = 3


def picture_of(view: NetworkView, *, height: int) -> RenderableType:
    """Return the picture of a network at one moment.

    Args:
        view: the network.
        height: of the screen, in lines.
    """
    rows = max(height - _LINES_BESIDE_ROWS, 2 * _FEWEST_ROWS)
    of_pools = min(len(view.pools), rows // 2)
    of_links = min(len(view.links), rows - of_pools)
    troubles = sorted({f"{node.name}: {trouble}" for node in view.nodes for trouble in node.troubles})
    parts: list[RenderableType] = [
        Text(f"{plain(view.title)} — running for {_clock(view.elapsed)}; Ctrl-C stops it", style="bold"),
        _links(view.links, of_links),
        _pools(view.pools, of_pools),
        Text(_counts(view)),
    ]
    if troubles:
        more = f" (and {len(troubles) - 1} more: trenza status)" if len(troubles) > 1 else ""
        parts.append(Text(f"{plain(troubles[0])}{more}", style="yellow", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _links(links: Sequence[LinkView], most: int) -> Table:
    drawn = table(("link", "between", "state", "rate ", "stock →", "", "stock ←", ""), ())
    for link in sorted(links, key=lambda link: (link.state == RUNNING, min(link.stock)))[:most]:
        style = "green" if link.state == RUNNING else "red"
        cells: list[RenderableType] = [
            link.name,
            " - ".join(link.ends),
            Text(link.state, style=style),
            amount(link.rate, "bit/s"),
        ]
        for bits in link.stock:
            cells += [_bar(bits, _FULL_LINK_BITS), amount(bits, "bit")]
        drawn.add_row(*cells)
    return _with_rest(drawn, len(links) - most, "links")


def _pools(pools: Sequence[PoolView], most: int) -> Table:
    drawn = table(("pool", "recipe", "keys →", "", "keys ←", ""), ())
    for pool in sorted(pools, key=lambda pool: min(pool.stock) / max(pool.target, 1))[:most]:
        cells: list[RenderableType] = [" - ".join(pool.nodes), pool.recipe]
        for slots in pool.stock:
            cells += [_bar(slots, pool.target), f"{slots:,}"]
        drawn.add_row(*cells)
    return _with_rest(drawn, len(pools) - most, "pools")


def _with_rest(drawn: Table, left_out: int, what: str) -> Table:
    if left_out > 0:
        drawn.caption, drawn.caption_justify = f"and {left_out} more {what}", "left"
    return drawn


def _bar(value: float, full: float) -> ProgressBar:
    return ProgressBar(total=max(full, 1), completed=min(value, full), width=_BAR_WIDTH)


def _counts(view: NetworkView) -> str:
    again = sum(node.restarts for node in view.nodes)
    restarts = f"; restarts {again:,}" if again else ""
    handshakes = ", ".join(f"{group}: {count}" for group, count in sorted(view.handshakes.items()))
    return (
        f"keys issued {view.keys_issued:,}, delivered {view.keys_delivered:,}; relays {view.relays:,}; "
        f"messages {view.messages:,}; TLS handshakes {handshakes or 'none'}{restarts}"
    )


def _clock(elapsed: Seconds) -> str:
    minutes, seconds = divmod(int(elapsed), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
