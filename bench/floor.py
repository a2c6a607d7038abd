"""The floor: what an answer costs before there is any key in it.

The same TLS transport, HTTP server, parser, routing and JSON as a node's application door: the path is read, the
request's body is read and checked, and a constant key is written as any key is. No caller is looked up, no policy
asked, nothing taken from a pool, nothing stored.
"""

from __future__ import annotations

import constant

from trenza.net.http import Request, Response
from trenza.net.http_server import HttpServer
from trenza.net.tls import TlsContext
from trenza.serve._etsi014_http import KeyDoor, ok
from trenza.wire import etsi014
from trenza.wire.etsi014 import Method

_KEY = constant.constant_key()


def answer(request: Request) -> Response:
    """Answer the constant to each request for a key."""
    route = etsi014.route(request.path.decode("latin-1"))
    if route is None:
        return KeyDoor.error_response(404, "no such path in ETSI GS QKD 014")
    if route.method is Method.GET_KEY:
        etsi014.key_request_from_body(request.body)
    else:
        etsi014.key_ids_from_body(request.body)
    return ok(etsi014.encode_container([_KEY]))


async def listen(context: TlsContext) -> int:
    return await HttpServer(answer, lambda: context, KeyDoor.error_response).start(constant.HOST)


if __name__ == "__main__":
    constant.run("floor", listen, __doc__)
