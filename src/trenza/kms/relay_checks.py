"""What a relay message must satisfy before any key is touched for it: its place on a route that the book knows.

Pure. These checks keep honest nodes from being confused, not dishonest relays from lying about links they did not
use: a strand's two ends compare what they got, and the provenance they agree on, when the segment is committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from trenza.base.errors import RemoteProtocolError
from trenza.base.names import LinkId, NodeId
from trenza.core.pads import UNIT_BYTES
from trenza.core.policy import Book
from trenza.wire.peer import HopRecord, Relay

_ROUTE_NODES_MAX = 33


def check_place(message: Relay, *, sender: NodeId, receiver: NodeId, book: Book) -> None:
    """Raise RemoteProtocolError unless the message is for `receiver` at this place of a possible route."""
    route, position = message.route, message.position
    if not 1 <= position < len(route) <= _ROUTE_NODES_MAX or len(set(route)) != len(route):
        raise RemoteProtocolError("a relay names no possible route")
    if route[position] != receiver or route[position - 1] != sender:
        raise RemoteProtocolError(f"a relay from node {sender} is for another place of its route")
    if message.key.count != 1 or not message.pads:
        raise RemoteProtocolError("a relay names one unit as its MAC key and at least one as its pad")
    length = 0 if position == 1 else sum(named.count for named in message.pads) * UNIT_BYTES
    if len(message.ciphertext) != length:
        raise RemoteProtocolError("a relayed strand does not have the length of its pad")
    if len(message.hops) != position or message.hops[-1].link != message.link:
        raise RemoteProtocolError("a relay does not say over which links it came")
    check_hops(message.hops, route[: position + 1], book)
    neighbours = {frozenset(link.ends) for link in book.links}
    if any(frozenset(pair) not in neighbours for pair in pairwise(route)):
        raise RemoteProtocolError("a relay's route follows no links of the book")


def check_hops(hops: Sequence[HopRecord], route: Sequence[str], book: Book) -> None:
    """Raise RemoteProtocolError unless the hops follow the route, each over a link of the book."""
    if [(hop.sender, hop.receiver) for hop in hops] != list(pairwise(route)):
        raise RemoteProtocolError("the hops are not those of the route")
    for hop in hops:
        link = book.link_by_name.get(LinkId(hop.link))
        if link is None or {hop.sender, hop.receiver} != set(link.ends):
            raise RemoteProtocolError("a hop crosses a link that the book does not know")
