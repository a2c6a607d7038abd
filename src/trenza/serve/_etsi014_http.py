"""GS QKD 014 over HTTP, whoever answers: the part that the doors of a node and of a device share.

Recognises the caller, decodes, asks `Answers` once, encodes. A request that is wrong in several ways gets the first
of: 401 for the caller; 404, 405, 413, 415 (transport guards, outside the standard); 401 for the pair; 400; 503. Every
error has the standard's Error body, 401 too, since common clients read one.

Standard: ETSI GS QKD 014 V1.1.1, Tables 2 to 8 and 13.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Awaitable, Iterator, Sequence
from typing import Final, Protocol
from uuid import UUID

from trenza.base.errors import (
    ConflictError,
    InvalidRequestError,
    TrenzaError,
    UnauthorisedError,
    UnavailableError,
    UnknownKeyError,
)
from trenza.base.names import SaeId
from trenza.base.units import Seconds
from trenza.net.deadlines import Deadlines
from trenza.net.http import Request, Response
from trenza.serve.identity import Callers
from trenza.wire import etsi014
from trenza.wire.etsi014 import Error, Key, KeyRequest, Method, Route, Status

MOST_BODY_BYTES: Final = 65_536  # a thousand key IDs, many times what any limit of ours admits
DEADLINE: Final = Seconds(10.0)

_MEDIA_TYPE: Final = etsi014.MEDIA_TYPE.encode()
_TRUE_PARAMETERS: Final = frozenset({b"", b"charset=utf-8", b'charset="utf-8"'})
_NO_STORE: Final = ("cache-control", "no-store")
_LONGEST_ORDER_BYTES: Final = 128
_MOST_ORDERS: Final = 32_768
_Asked = tuple[SaeId, str, bytes, bytes, bytes, bytes, bytes, bytes]
_UNANSWERED: Final = Response(503)
_LOG = logging.getLogger(__name__)


class Answers(Protocol):
    """Who has the keys. Raises only TrenzaErrors; the keys it returns are the door's to wipe."""

    async def status(self, caller: SaeId, other: SaeId) -> Status:
        """Tell what the two may expect; raises UnauthorisedError if they may share nothing."""
        ...

    async def get_key(self, caller: SaeId, other: SaeId, request: KeyRequest, *, tls_group: str) -> list[Key]: ...

    async def get_key_with_ids(
        self, caller: SaeId, other: SaeId, key_ids: Sequence[UUID], *, tls_group: str
    ) -> list[Key]: ...

    def order(self, caller: SaeId, other: SaeId, request: KeyRequest, *, tls_group: str) -> StandingOrder | None:
        """Return what answers this very request from now on, as long as nothing must be waited for; None: nothing."""
        ...


class StandingOrder(Protocol):
    """A request that is made again and again."""

    @property
    def is_good(self) -> bool:
        """Tell whether it may still be served; if not, it is forgotten."""
        ...

    def containers(self, number: int) -> Sequence[bytes]:
        """Return the bodies of `number` answers, each a container of one fresh key.

        Fewer, or none: this time the others must go the long way.
        """
        ...


class KeyDoor:
    """A handler for net.http_server that speaks GS QKD 014."""

    def __init__(self, answers: Answers, callers: Callers, *, deadline: Seconds = DEADLINE) -> None:
        self._answers = answers
        self._callers = callers
        self._deadlines = Deadlines(deadline)
        self._orders: dict[_Asked, StandingOrder] = {}

    @staticmethod
    def error_response(status: int, sentence: str) -> Response:
        """Return what the HTTP server in front of this door answers where it refuses by itself."""
        return refusal(status, sentence)

    def __call__(self, request: Request) -> Response | Awaitable[Response]:
        """Answer one request, at once where nothing must be waited for; what it raises is a bug (503)."""
        return self.together((request,))[0]

    def together(self, requests: Sequence[Request]) -> Sequence[Response | Awaitable[Response]]:
        """Answer requests that came together: those for the same keys out of one look at what allows them."""
        answers: list[Response | Awaitable[Response]] = [_UNANSWERED] * len(requests)
        waiting: list[tuple[int, SaeId]] = []
        alike: dict[StandingOrder, list[tuple[int, SaeId]]] = {}
        for index, request in enumerate(requests):
            try:
                caller = self._callers.sae(request.peer)
            except TrenzaError as error:
                answers[index] = answer_to(error)
                continue
            order = self._orders.get(_asked(caller, request))
            (waiting if order is None else alike.setdefault(order, [])).append((index, caller))
        for order, asked in alike.items():
            try:
                bodies = order.containers(len(asked))
            except TrenzaError as error:
                for index, _ in asked:
                    answers[index] = answer_to(error)
                continue
            except Exception:  # noqa: BLE001 - a mistake of ours; the keys of the other orders are made, and leave
                _LOG.exception("an order cannot be served")
                for index, _ in asked:
                    answers[index] = refusal(503, "key management entity error")
                continue
            for (index, _), body in zip(asked, bodies, strict=False):
                answers[index] = ok(body)
            waiting += asked[len(bodies) :]
        for index, caller in waiting:
            answers[index] = self._later(caller, requests[index])
        return answers

    async def _later(self, caller: SaeId, request: Request) -> Response:
        try:
            return await self._deadlines.within(self._answer(caller, request))
        except TrenzaError as error:
            return answer_to(error)
        except TimeoutError:
            return refusal(503, "the key management entity did not answer in time")

    async def _answer(self, caller: SaeId, request: Request) -> Response:
        route = etsi014.route(request.path.decode("latin-1"))
        if route is None:
            return refusal(404, "no such path in ETSI GS QKD 014")
        if guarded := _guard(route, request):
            return guarded
        match route.method:
            case Method.GET_STATUS:
                return ok(etsi014.encode_status(await self._answers.status(caller, SaeId(route.sae_id))))
            case Method.GET_KEY:
                return _container(await self._get_key(caller, SaeId(route.sae_id), request))
            case Method.GET_KEY_WITH_IDS:
                return _container(await self._get_key_with_ids(caller, SaeId(route.sae_id), request))

    async def _get_key(self, caller: SaeId, slave: SaeId, request: Request) -> list[Key]:
        try:
            wanted = _key_request(request)
            _check_multicast(caller, slave, wanted)
        except InvalidRequestError:
            await self._refuse_forbidden(caller, slave)
            raise
        keys = await self._answers.get_key(caller, slave, wanted, tls_group=request.peer.group)
        self._remember(caller, slave, wanted, request)
        return keys

    def _remember(self, caller: SaeId, slave: SaeId, wanted: KeyRequest, request: Request) -> None:
        """Answer the same request at once from now on, if that can be: it was right, and it was served."""
        asked = _asked(caller, request)
        known = self._orders.pop(asked, None)
        if known is not None and known.is_good:
            self._orders[asked] = known
            return
        if len(request.body) > _LONGEST_ORDER_BYTES:
            return
        with contextlib.suppress(TrenzaError):  # the book has changed meanwhile
            order = self._answers.order(caller, slave, wanted, tls_group=request.peer.group)
            if order is not None:
                if len(self._orders) >= _MOST_ORDERS:
                    del self._orders[next(iter(self._orders))]
                self._orders[asked] = order

    async def _get_key_with_ids(self, caller: SaeId, master: SaeId, request: Request) -> list[Key]:
        try:
            key_ids = _key_ids(request)
        except InvalidRequestError:
            await self._refuse_forbidden(caller, master)
            raise
        return await self._answers.get_key_with_ids(caller, master, key_ids, tls_group=request.peer.group)

    async def _refuse_forbidden(self, caller: SaeId, other: SaeId) -> None:
        """Let 401 go before the 400 of a malformed request, which the stories never see."""
        with contextlib.suppress(UnavailableError):
            await self._answers.status(caller, other)


def _asked(caller: SaeId, request: Request) -> _Asked:
    """Return all that the answer to a request depends on."""
    headers = request.headers
    encoding = headers.get(b"content-encoding", b"")
    kind = headers.get(b"content-type", b"")
    return caller, request.peer.group, request.method, request.path, request.query, kind, encoding, request.body


# --- requests ------------------------------------------------------------------------------------------------------


def _guard(route: Route, request: Request) -> Response | None:
    """Refuse what is not a request of the standard at all."""
    if request.method.decode("latin-1") not in route.method.verbs:
        allowed = ", ".join(route.method.verbs)
        return refusal(405, f"{route.method.value} is asked for by {allowed}", allow=allowed)
    if len(request.body) > MOST_BODY_BYTES:
        return refusal(413, f"the body is longer than {MOST_BODY_BYTES} bytes")
    if request.body and not _is_json(request):
        return refusal(415, "the body shall be application/json in UTF-8, not encoded otherwise")
    return None


def _is_json(request: Request) -> bool:
    """Tell whether the body is what Table 1 asks for; a charset parameter is tolerated if it says the truth."""
    if request.headers.get(b"content-encoding", b"identity").lower() != b"identity":
        return False
    media_type, *parameters = (part.strip() for part in request.content_type.lower().split(b";"))
    return media_type == _MEDIA_TYPE and _TRUE_PARAMETERS.issuperset(parameters)


def _key_request(request: Request) -> KeyRequest:
    query = request.query.decode("latin-1")
    if request.method == b"GET":
        _refuse_body_of_get(request)
        return etsi014.key_request_from_query(query)
    etsi014.refuse_query_of_post(query)
    return etsi014.key_request_from_body(request.body)


def _key_ids(request: Request) -> tuple[UUID, ...]:
    query = request.query.decode("latin-1")
    if request.method == b"GET":
        _refuse_body_of_get(request)
        return etsi014.key_ids_from_query(query)
    etsi014.refuse_query_of_post(query)
    return etsi014.key_ids_from_body(request.body)


def _refuse_body_of_get(request: Request) -> None:
    if request.body:
        raise InvalidRequestError("a GET has no body; what it says would be overlooked")


def _check_multicast(caller: SaeId, slave: SaeId, request: KeyRequest) -> None:
    if slave in request.additional_slave_sae_ids or caller in request.additional_slave_sae_ids:
        raise InvalidRequestError("additional_slave_SAE_IDs shall name neither the master nor the slave of the path")


# --- answers -------------------------------------------------------------------------------------------------------


def answer_to(error: TrenzaError) -> Response:
    """Return what the standard answers to `error`."""
    match error:
        case UnauthorisedError():
            return refusal(401, "unauthorised")  # and not why: an unknown SAE and a forbidden one look the same
        case UnknownKeyError():
            return _error(400, Error(etsi014.KEYS_NOT_FOUND, error.details))
        case InvalidRequestError() | ConflictError():
            return _error(400, Error(error.message, error.details))
        case UnavailableError():
            return _error(503, Error(error.message, error.details), *_retry_after(error))
        case _:
            _LOG.error("the key delivery door failed: %s: %s", error.code, error.message)
            return refusal(503, "key management entity error")


def _container(keys: Sequence[Key]) -> Response:
    try:
        return ok(etsi014.encode_container(keys))
    finally:
        etsi014.wipe_all(keys)


def ok(body: bytes) -> Response:
    """Return a 200 with a JSON body that nobody may keep."""
    return Response(200, body, etsi014.MEDIA_TYPE, (_NO_STORE,))


def refusal(status: int, message: str, *, allow: str = "") -> Response:
    """Return an Error body with nothing but its sentence."""
    return _error(status, Error(message), *((("allow", allow),) if allow else ()))


def _error(status: int, error: Error, *fields: tuple[str, str]) -> Response:
    return Response(status, etsi014.encode_error(error), etsi014.MEDIA_TYPE, (_NO_STORE, *fields))


def _retry_after(error: UnavailableError) -> Iterator[tuple[str, str]]:
    """Yield the field that says when to come again, in whole seconds, where that is known (RFC 9110, 10.2.3)."""
    if error.retry_after is not None:
        yield "retry-after", str(max(1, math.ceil(error.retry_after)))
