"""A key management entity that shares no line with ours: the standard library, classical TLS, a vendor's habits.

Both ends of a QKD link as ETSI GS QKD 014 V1.1.1 lets a vendor build them: few keys in a request, sizes that are no
power of two, `Keys` with a capital letter at one end, answers in another order than asked for at the other.
"""

import base64
import contextlib
import json
import re
import secrets
import ssl
import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY_SIZE = 352
MIN_SIZE = 64
MOST_KEYS = 7
STORED = 500


@dataclass
class Fibre:
    """What the two ends share: keys that one end gave and the other has not yet."""

    waiting: dict[tuple[str, str], bytes] = field(default_factory=dict)  # by (the end that may fetch it, key ID)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class End:
    """One KME and the SAE beside it."""

    kme: str
    sae: str
    far_kme: str
    far_sae: str
    fibre: Fibre
    array: str = "keys"
    backwards: bool = False
    asked: Counter = field(default_factory=Counter)

    def status(self):
        return 200, {
            "source_KME_ID": self.kme,
            "target_KME_ID": self.far_kme,
            "master_SAE_ID": self.sae,
            "slave_SAE_ID": self.far_sae,
            "key_size": KEY_SIZE,
            "stored_key_count": STORED,
            "max_key_count": STORED,
            "max_key_per_request": MOST_KEYS,
            "max_key_size": KEY_SIZE,
            "min_key_size": MIN_SIZE,
            "max_SAE_ID_count": 0,
            "status_extension": {"vendor": "somebody else"},
        }

    def enc_keys(self, request):
        number, size = request.get("number", 1), request.get("size", KEY_SIZE)
        if not 1 <= number <= MOST_KEYS or not MIN_SIZE <= size <= KEY_SIZE or size % 8:
            return 400, {"message": "number or size is out of range"}
        drawn = {str(uuid.uuid4()).upper(): secrets.token_bytes(size // 8) for _ in range(number)}
        with self.fibre.lock:
            self.fibre.waiting |= {(self.far_sae, key_id): key for key_id, key in drawn.items()}
        return 200, self._container(drawn)

    def dec_keys(self, request):
        wanted = [one["key_ID"].upper() for one in request["key_IDs"]]
        if len(wanted) > MOST_KEYS:
            return 400, {"message": "too many key_IDs"}
        with self.fibre.lock:
            if any((self.sae, key_id) not in self.fibre.waiting for key_id in wanted):
                return 400, {"message": "one or more keys specified are not found on KME"}
            found = {key_id: self.fibre.waiting.pop((self.sae, key_id)) for key_id in wanted}
        return 200, self._container(found)

    def _container(self, keys):
        entries = [{"key_ID": key_id, "key": base64.b64encode(key).decode()} for key_id, key in keys.items()]
        return {self.array: entries[::-1] if self.backwards else entries, "key_container_extension": {"lot": 7}}


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for every connection

    def __init__(self, end: End, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.end = end
        self.context = context

    def get_request(self):
        connection, address = super().get_request()
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is nobody's mistake."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30

    def setup(self) -> None:
        self.request.settimeout(self.timeout)
        self.request.do_handshake()
        super().setup()

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, request) -> None:
        end: End = self.server.end
        subject = dict(pair[0] for pair in self.request.getpeercert()["subject"])
        path = re.fullmatch(r"/api/v1/keys/([^/]+)/(status|enc_keys|dec_keys)", self.path)
        if path is None or subject["commonName"] != end.sae or path[1] != end.far_sae:
            code, document = 401, {"message": "who are you?"}
        elif path[2] == "status":
            code, document = end.status()
        else:
            code, document = getattr(end, path[2])(request)
        end.asked[path[2] if path else "?", code] += 1
        body = json.dumps(document, indent=1).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args) -> None:  # noqa: A002 - as the library calls it
        pass


@contextlib.contextmanager
def listening(end: End, certificate: Path, private_key: Path, trust: Path):
    """Serve one end until the block ends; its clients must have gone by then. Gives host:port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private_key)
    context.load_verify_locations(trust)
    context.verify_mode = ssl.CERT_REQUIRED
    server = _Server(end, context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
