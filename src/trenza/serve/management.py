"""The door for operators: HTTP and JSON on a listener of its own, for certificates named `urn:trenza:operator:…`.

Shows what the node knows of itself and of its keys' provenance, takes a policy book (whose signature decides, not who
brings it) and asks for a reload. Never a key bit. Documents: `wire/management`; what they are made from:
`serve/_management_views`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec

from trenza.base.errors import (
    AuthenticationError,
    InvalidDocumentError,
    InvalidRequestError,
    StaleError,
    TrenzaError,
    UnauthorisedError,
    UnavailableError,
    UnknownKeyError,
)
from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds, Seconds
from trenza.core.policy import SignedBook
from trenza.kms.exposed import MOST_KEYS, START, Place
from trenza.kms.node import Node
from trenza.kms.ports import LedgerQuery
from trenza.net.http import JSON, Request, Response
from trenza.net.rpc_frames import MessageCounters
from trenza.net.tls import PeerIdentity, RevocationCheck, TlsStatistics, never_revoked
from trenza.serve import _management_views as views
from trenza.serve.identity import NameKind, certificate_identity
from trenza.wire import management as wire
from trenza.wire.etsi014.answers import moment_of, rfc3339

OPERATOR_PREFIX: Final = "urn:trenza:operator:"
DEADLINE: Final = Seconds(30.0)
_MOST_ENTRIES: Final = 10_000
_LATEST: Final = Nanoseconds(2**63 - 1)
_NO_STORE: Final = (("cache-control", "no-store"),)
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_LOG = logging.getLogger(__name__)

Query = Mapping[str, str]


class ManagementDoor:
    """A handler for net.http_server."""

    def __init__(
        self,
        node: Callable[[], Node],
        *,
        version: str,
        tls: Callable[[], Mapping[str, TlsStatistics]],
        messages: Callable[[], Mapping[NodeId, Sequence[MessageCounters]]],
        reload: Callable[[], Awaitable[Sequence[str]]],
        is_revoked: RevocationCheck = never_revoked,
        instance: Callable[[], wire.InstanceStatus | None] = lambda: None,
    ) -> None:
        """Open the door.

        Args:
            node: the stories whose door it is; others, when the process takes another role.
            version: of the software.
            tls: what happened at each of the node's listeners and clients.
            messages: frames exchanged with each node.
            reload: reads the node's configuration anew; returns what changed.
            is_revoked: tells of certificates that are refused.
            instance: which of the node's processes this is, where it has several.
        """
        self._find_node = node
        self._version = version
        self._tls = tls
        self._messages = messages
        self._reload = reload
        self._is_revoked = is_revoked
        self._instance = instance

    @property
    def _node(self) -> Node:
        return self._find_node()

    @staticmethod
    def error_response(status: int, sentence: str) -> Response:
        """Return what the HTTP server in front of this door answers where it refuses by itself."""
        return _refusal(status, "http", sentence)

    async def __call__(self, request: Request) -> Response:
        """Answer one request; what it raises is a bug, and the server answers 503."""
        try:
            self._check_operator(request.peer)
            async with asyncio.timeout(DEADLINE):
                return await self._answer(request)
        except TrenzaError as error:
            return _answer_to(error)
        except TimeoutError:
            return _refusal(503, "unavailable", "the node did not answer in time")

    def _check_operator(self, peer: PeerIdentity) -> None:
        identity = certificate_identity(peer.certificate, (NameKind.URI,))
        if self._is_revoked(peer.fingerprint) or not identity.startswith(OPERATOR_PREFIX):
            raise UnauthorisedError("not an operator's certificate")

    async def _answer(self, request: Request) -> Response:
        path = request.path.decode("latin-1")
        query = _query(request.query)
        match request.method, path.strip("/").split("/"):
            case b"GET", ["v1", "status"]:
                status = await views.status(
                    self._node,
                    version=self._version,
                    tls=self._tls(),
                    messages=self._messages(),
                    instance=self._instance(),
                )
                return _ok(status)
            case b"GET", ["v1", "health"]:
                health = views.health(self._node)
                return _ok(health, status=200 if health.healthy else 503)
            case b"GET", ["v1", "keys", text]:
                return _ok(await self._key(_uuid(text)))
            case b"GET", ["v1", "exposed"]:
                return _ok(await self._exposed(query))
            case b"GET", ["v1", "ledger"]:
                return _ok(await self._ledger(query))
            case b"GET", ["v1", "checkpoints"]:
                return _ok(views.checkpoints(await self._node.notary.checkpoints()))
            case b"PUT", ["v1", "book"]:
                return _ok(wire.BookTaken(await self._node.books.install(SignedBook.decode(request.body))))
            case b"POST", ["v1", "reload"]:
                return _ok(wire.Reloaded(tuple(await self._reload())))
            case _:
                return _no_such(path)

    async def _key(self, key_id: UUID) -> wire.KeyStatement:
        explain = self._node.explain
        try:
            return views.key(await explain.key(key_id))
        except UnknownKeyError as error:
            until = await explain.pruned_until()
            if until is None:
                raise
            raise UnknownKeyError(f"{error.message} (those of before {rfc3339(until)})") from None

    async def _exposed(self, query: Query) -> wire.Exposure:
        if "node" not in query:
            raise InvalidRequestError("say which node: ?node=NAME&since=TIME&until=TIME")
        node = NodeId(query["node"])
        since, until = _moment(query, "since") or Nanoseconds(0), _moment(query, "until")
        last = self._node.ctx.clock.now() if until is None else until
        most = min(max(_number(query, "limit", MOST_KEYS), 1), MOST_KEYS)
        page = await self._node.exposures.page(node, since=since, until=last, after=_place(query), most_keys=most)
        return views.exposure(node, since, last, page, pruned_until=await self._node.explain.pruned_until())

    async def _ledger(self, query: Query) -> wire.Entries:
        await self._node.journal.flush()  # the ledger as it stands has what is noted until now
        limit = min(max(_number(query, "limit", 1_000), 1), _MOST_ENTRIES)
        wanted = LedgerQuery(
            term=query.get("term"),
            kind=query.get("kind"),
            since=_moment(query, "since"),
            until=_moment(query, "until"),
            after_sequence=_number(query, "after", 0),
            limit=limit,
        )
        store = self._node.ctx.store
        found = await store.entries(wanted)
        start = (await store.extent()).start  # after the entries: what was pruned meanwhile is before it
        return views.entries(found, limit=limit, start=start)


# --- requests ------------------------------------------------------------------------------------------------------


def _query(text: bytes) -> Query:
    try:
        pairs = parse_qsl(text.decode("ascii"), strict_parsing=True, errors="strict") if text else []
    except ValueError:
        raise InvalidRequestError("the query is not NAME=VALUE&…") from None
    if len(dict(pairs)) != len(pairs):
        raise InvalidRequestError("the query names a parameter twice")
    return dict(pairs)


def _number(query: Query, name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise InvalidRequestError(f"{name} is a whole number")
    return int(text)


def _place(query: Query) -> Place:
    """Return where the page before ended, as it said; the beginning where there was none."""
    text = query.get("after")
    if text is None:
        return START
    segment, dot, entry = text.partition(".")
    if not (dot and _NUMBER.fullmatch(segment) and _NUMBER.fullmatch(entry)):
        raise InvalidRequestError("after is what the page before had as next")
    return Place(int(segment), int(entry))


def _moment(query: Query, name: str) -> Nanoseconds | None:
    """Return a moment: RFC 3339, or nanoseconds since 1970."""
    text = query.get(name)
    if text is None:
        return None
    if _NUMBER.fullmatch(text) and len(text) > 8:
        return Nanoseconds(int(text))
    try:
        return min(moment_of(text.replace(" ", "+")), _LATEST)  # an unescaped "+" of an offset arrives as a space
    except (ValueError, OverflowError):
        raise InvalidRequestError(f"{name} is an RFC 3339 time, such as 2030-01-31T12:00:00Z") from None


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidRequestError("a key ID is a UUID") from None


# --- answers -------------------------------------------------------------------------------------------------------


def _ok(document: msgspec.Struct, *, status: int = 200) -> Response:
    return Response(status, wire.encode(document), JSON, _NO_STORE)


def _no_such(path: str) -> Response:
    known = path in {f"/v1/{name}" for name in ("status", "health", "exposed", "ledger", "checkpoints")}
    if known or path.startswith("/v1/keys/"):
        return _refusal(405, "method-not-allowed", "read by GET", allow="GET")
    if path in {"/v1/book", "/v1/reload"}:
        allowed = "PUT" if path == "/v1/book" else "POST"
        return _refusal(405, "method-not-allowed", f"asked for by {allowed}", allow=allowed)
    return _refusal(404, "not-found", "no such path")


def _answer_to(error: TrenzaError) -> Response:
    match error:
        case UnauthorisedError():
            return _refusal(403, error.code, "only operators may")
        case UnknownKeyError():
            return _refusal(404, error.code, error.message)
        case InvalidDocumentError():
            return _refusal(422, error.code, error.message, mistakes=error.mistakes)
        case AuthenticationError():
            return _refusal(422, error.code, error.message)
        case InvalidRequestError():
            return _refusal(400, error.code, error.message)
        case StaleError():
            return _refusal(409, error.code, error.message)
        case UnavailableError():
            return _refusal(503, error.code, error.message)
        case _:
            _LOG.error("the management door failed: %s: %s", error.code, error.message)
            return _refusal(500, error.code, error.message)


def _refusal(status: int, code: str, message: str, *, mistakes: tuple[str, ...] = (), allow: str = "") -> Response:
    headers = (*_NO_STORE, ("allow", allow)) if allow else _NO_STORE
    return Response(status, wire.encode(wire.Refusal(code, message, mistakes)), JSON, headers)
