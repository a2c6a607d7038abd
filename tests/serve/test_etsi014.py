"""The application door over stories kept in memory: what every wrong request gets, and that nothing is lost by it."""

import asyncio
import base64
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from etsi_qkd_014_client import QKD014Client

from trenza.app.pki import CertificateAuthority, KeyType
from trenza.base.errors import (
    ConflictError,
    InvalidRequestError,
    LimitedError,
    MissingOriginError,
    NotEnoughKeyError,
    PeerUnavailableError,
    StoreUnavailableError,
    UnauthorisedError,
    UnknownKeyError,
)
from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Bits, Nanoseconds, Seconds
from trenza.core.delivery import DeliveredKey, IssueRequest, KeyFacts, PairStatus
from trenza.core.strand import Origin, Supply
from trenza.net.http import Request, Response
from trenza.net.http_server import HttpServer
from trenza.net.tls import Groups, OldestTls, PeerIdentity, TlsIdentity, server_context
from trenza.serve.etsi014 import application_door
from trenza.serve.identity import Callers
from trenza.wire import etsi014
from trenza.wire.etsi014 import Demands, KeyRequest, Method

MADE = Nanoseconds(1_790_000_000_000_000_000)
RECIPES = {
    "hybrid": (Origin.QKD, Origin.PQC, Origin.CLASSICAL),
    "pqc": (Origin.PQC, Origin.CLASSICAL),
}
LEAST, DEFAULT, MOST, MOST_KEYS, MOST_ADDITIONAL = 64, 256, 1024, 128, 2


class MemoryDelivery:
    """Keys of 256 different bytes' worth of pattern, counted up; each right to fetch is used once."""

    def __init__(self, pairs: Sequence[tuple[str, str]], *, stock: int = 10_000) -> None:
        self._pairs = {frozenset(pair) for pair in pairs}
        self.stock = stock  # keys left
        self.hybrid_stock = stock  # of these, with QKD bits
        self.rights: dict[tuple[UUID, SaeId], tuple[SaeId, bytes]] = {}  # (key, who may fetch): (initiator, bytes)
        self.issued: list[IssueRequest] = []
        self.handed_out: list[DeliveredKey] = []
        self._count = 0

    def _authorise(self, caller: SaeId, other: SaeId) -> None:
        if frozenset((caller, other)) not in self._pairs:
            raise UnauthorisedError(f"{caller} and {other} may share nothing")

    async def status(self, caller: SaeId, target: SaeId) -> PairStatus:
        self._authorise(caller, target)
        return PairStatus(
            source_node=NodeId("norte"),
            target_node=NodeId("sur"),
            initiator=caller,
            target=target,
            default_size=Bits(DEFAULT),
            stored_key_count=self.stock,
            max_key_count=10_000,
            max_keys_per_request=MOST_KEYS,
            max_key_size=Bits(MOST),
            min_key_size=Bits(LEAST),
            max_additional_targets=MOST_ADDITIONAL,
        )

    async def issue(self, caller: SaeId, request: IssueRequest) -> Sequence[DeliveredKey]:
        targets = (request.target, *request.additional_targets)
        for target in targets:
            self._authorise(caller, target)
        size = DEFAULT if request.size is None else request.size
        if not LEAST <= size <= MOST:
            raise InvalidRequestError(f"size shall be from {LEAST} to {MOST}", details=({"max_key_size": MOST},))
        if request.number > MOST_KEYS:
            raise InvalidRequestError(f"number shall be at most {MOST_KEYS}")
        if len(request.additional_targets) > MOST_ADDITIONAL:
            raise InvalidRequestError(f"max_SAE_ID_count is {MOST_ADDITIONAL}")
        recipe = self._recipe(request)
        available = min(self.stock, self.hybrid_stock) if recipe == "hybrid" else self.stock
        if request.number > available:
            raise NotEnoughKeyError("not enough key", details=({"available": available},))
        self.issued.append(request)
        return [self._fresh(caller, targets, size // 8, recipe) for _ in range(request.number)]

    def order(self, caller, request):
        return None

    async def fetch(
        self, caller: SaeId, initiator: SaeId, key_ids: Sequence[UUID], *, tls_group: str
    ) -> Sequence[DeliveredKey]:
        assert tls_group
        self._authorise(caller, initiator)
        if len(key_ids) > MOST_KEYS:
            raise InvalidRequestError(f"at most {MOST_KEYS} keys are delivered at once")
        for key_id in key_ids:
            holders = {sae for held, sae in self.rights if held == key_id}
            right = self.rights.get((key_id, caller))
            if (holders and right is None) or (right and right[0] != initiator):
                raise UnauthorisedError("another pair's key")
        missing = [key_id for key_id in key_ids if (key_id, caller) not in self.rights]
        if missing:
            raise UnknownKeyError("unknown here", details=tuple({"key_ID": str(key_id)} for key_id in missing))
        return [self._out(key_id, self.rights.pop((key_id, caller))[1], "hybrid") for key_id in key_ids]

    def _recipe(self, request: IssueRequest) -> str:
        wishes = request.wishes
        for name, origins in RECIPES.items():
            named = wishes.recipe in (None, name)
            hops = wishes.max_hops is None or wishes.max_hops >= 2 or Origin.QKD not in origins
            if named and hops and wishes.origins <= set(origins):
                return name
        raise InvalidRequestError(etsi014.MANDATORY_UNMET)

    def _fresh(self, caller: SaeId, targets: Sequence[SaeId], length: int, recipe: str) -> DeliveredKey:
        self._count += 1
        self.stock -= 1
        self.hybrid_stock -= recipe == "hybrid"
        key_id, material = UUID(int=self._count << 64), (self._count % 251 + 1).to_bytes() * length
        for target in targets:
            self.rights[key_id, target] = (caller, material)
        return self._out(key_id, material, recipe)

    def _out(self, key_id: UUID, material: bytes, recipe: str) -> DeliveredKey:
        origins = RECIPES[recipe]
        facts = KeyFacts(
            recipe=recipe,
            origins=origins,
            supply=Supply.LIVE if Origin.QKD in origins else None,
            strength="256-bit",
            hops=2 if Origin.QKD in origins else 0,
            created=MADE,
            expires=Nanoseconds(MADE + 60_000_000_000),
        )
        self.handed_out.append(DeliveredKey(key_id, Secret(bytearray(material)), facts))
        return self.handed_out[-1]


# --- the table -----------------------------------------------------------------------------------------------------

MALLORY = "mallory"  # a valid certificate, and no SAE of the book
TO_BOB = "/api/v1/keys/bob/enc_keys"
FROM_ALICE = "/api/v1/keys/alice/dec_keys"
JSON = {"content-type": "application/json"}
AGREED = UUID(int=1 << 64)  # issued by alice for bob before each case
CAROLS = UUID(int=2 << 64)  # issued by alice for carol
NEVER = "0a782fb5-3434-48fe-aa4d-14f41d46cf92"


def post(path, body, caller="alice", headers=JSON):
    return ("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), caller, headers)


def get(target, caller="alice"):
    return ("GET", target, b"", caller, {})


def ids(*key_ids):
    return {"key_IDs": [{"key_ID": str(key_id)} for key_id in key_ids]}


BAD = [
    # sizes and numbers
    *[
        (f"size {size}", post(TO_BOB, b'{"size":%s}' % size.encode()), 400)
        for size in (
            "0",
            "-8",
            "257",
            "1",
            '"abc"',
            '"256"',
            "1000000000",
            "1.5",
            "256.0",
            "true",
            "null",
            "1e3",
            "[]",
        )
    ],
    *[
        (f"number {number}", post(TO_BOB, b'{"number":%s}' % number.encode()), 400)
        for number in ("0", "-1", "1000000000", "129", '"3"', "1.0", "false", "null", "{}", "NaN", "9" * 5000)
    ],
    *[
        (f"query {query}", get(f"{TO_BOB}?{query}"), 400)
        for query in (
            "number=0",
            "number=-1",
            "number=abc",
            "number=1.0",
            "number=",
            "number=1000000000",
            "size=257",
            "size=56",
            "size=1032",
            "number=1&number=2",
            "size=%zz",
            "size=%ff",
            "extension_mandatory=%5B%5D",
            "additional_slave_SAE_IDs=carol",
            f"key_ID={NEVER}",
        )
    ],
    # what is not JSON, or has two meanings
    ("no JSON", post(TO_BOB, b"number=3"), 400),
    ("a space", post(TO_BOB, b" "), 400),
    ("half a body", post(TO_BOB, b'{"number":'), 400),
    ("two bodies", post(TO_BOB, b"{}{}"), 400),
    ("an array", post(TO_BOB, []), 400),
    ("a duplicate member", post(TO_BOB, b'{"number":1,"number":2}'), 400),
    ("an escaped duplicate", post(TO_BOB, rb'{"number":1,"n\u0075mber":2}'), 400),
    ("a duplicate deep inside", post(TO_BOB, b'{"x":[{"a":1,"a":2}]}'), 400),
    ("a nested bomb", post(TO_BOB, b'{"x":' + b"[" * 60_000), 400),
    ("latin-1", post(TO_BOB, b'{"x":"\xf1"}'), 400),
    ("utf-16", post(TO_BOB, "{}".encode("utf-16")), 400),
    ("half a surrogate pair", post(TO_BOB, rb'{"extension_mandatory":[{"\ud800_x":1}]}'), 400),
    # several targets
    ("additional as string", post(TO_BOB, {"additional_slave_SAE_IDs": "carol"}), 400),
    ("additional numbers", post(TO_BOB, {"additional_slave_SAE_IDs": [3]}), 400),
    ("additional twice", post(TO_BOB, {"additional_slave_SAE_IDs": ["carol", "carol"]}), 400),
    ("additional is the slave", post(TO_BOB, {"additional_slave_SAE_IDs": ["bob"]}), 400),
    ("additional is the master", post(TO_BOB, {"additional_slave_SAE_IDs": ["alice"]}), 400),
    ("too many additional", post(TO_BOB, {"additional_slave_SAE_IDs": ["carol", "erin", "frank"]}), 400),
    ("additional is forbidden", post(TO_BOB, {"additional_slave_SAE_IDs": ["dave"]}), 401),
    ("additional is unknown", post(TO_BOB, {"additional_slave_SAE_IDs": ["nobody"]}), 401),
    # extensions
    ("extension as object", post(TO_BOB, {"extension_mandatory": {"abc_x": 1}}), 400),
    ("extension unsupported", post(TO_BOB, {"extension_mandatory": [{"abc_route_type": "direct"}]}), 400),
    ("extension malformed", post(TO_BOB, {"extension_mandatory": [{"trenza_max_hops": -1}]}), 400),
    ("extension unmet", post(TO_BOB, {"extension_mandatory": [{"trenza_recipe": "its"}]}), 400),
    ("extension optional null", post(TO_BOB, {"extension_optional": None}), 400),
    # key IDs
    ("ids missing", post(FROM_ALICE, {}, "bob"), 400),
    ("ids with no body", post(FROM_ALICE, b"", "bob", {}), 400),
    ("ids empty", post(FROM_ALICE, {"key_IDs": []}, "bob"), 400),
    ("ids as strings", post(FROM_ALICE, {"key_IDs": [str(AGREED)]}, "bob"), 400),
    ("ids as object", post(FROM_ALICE, {"key_IDs": {"key_ID": str(AGREED)}}, "bob"), 400),
    ("id no UUID", post(FROM_ALICE, ids("one"), "bob"), 400),
    ("id without hyphens", post(FROM_ALICE, ids(AGREED.hex), "bob"), 400),
    ("id a number", post(FROM_ALICE, {"key_IDs": [{"key_ID": 1}]}, "bob"), 400),
    ("id extension no object", post(FROM_ALICE, {"key_IDs": [{"key_ID": NEVER, "key_ID_extension": 1}]}, "bob"), 400),
    ("the same id twice", post(FROM_ALICE, ids(AGREED, str(AGREED).upper()), "bob"), 400),
    ("an unknown id", post(FROM_ALICE, ids(NEVER), "bob"), 400),
    ("a good and an unknown id", post(FROM_ALICE, ids(AGREED, NEVER), "bob"), 400),
    ("too many ids", post(FROM_ALICE, ids(*(UUID(int=n) for n in range(500))), "bob"), 400),
    ("an unknown id by GET", get(f"{FROM_ALICE}?key_ID={NEVER}", "bob"), 400),
    ("no id by GET", get(FROM_ALICE, "bob"), 400),
    ("two ids by GET", get(f"{FROM_ALICE}?key_ID={AGREED}&key_ID={NEVER}", "bob"), 400),
    ("an id in braces", get(f"{FROM_ALICE}?key_ID=%7B{AGREED}%7D", "bob"), 400),
    ("a query on POST", post(f"{TO_BOB}?number=3", {}), 400),
    ("a body on GET", ("GET", TO_BOB, b'{"number":3}', "alice", JSON), 400),
    # SAE IDs of the path
    ("a broken percent", get("/api/v1/keys/b%6/status"), 400),
    ("no UTF-8", get("/api/v1/keys/%FF/status"), 400),
    ("no ASCII", get("/api/v1/keys/%C3%B1/status"), 400),
    ("a space in the name", get("/api/v1/keys/b%20b/status"), 400),
    ("an empty name", get("/api/v1/keys//status"), 400),
    ("a long name", get(f"/api/v1/keys/{'b' * 65}/status"), 400),
    # who may
    ("nobody the book knows", get(TO_BOB, MALLORY), 401),
    ("nobody, malformed", post(TO_BOB, b"{", MALLORY), 401),
    ("nobody, unknown path", get("/", MALLORY), 401),
    ("an unknown slave", get("/api/v1/keys/nobody/enc_keys"), 401),
    ("a forbidden slave", get("/api/v1/keys/dave/enc_keys"), 401),
    ("a forbidden slave, malformed", post("/api/v1/keys/dave/enc_keys", b"{"), 401),
    ("a forbidden slave, bad size", post("/api/v1/keys/dave/enc_keys", {"size": 257}), 401),
    ("a forbidden master, malformed", post("/api/v1/keys/dave/dec_keys", b"{"), 401),
    ("a forbidden status", get("/api/v1/keys/dave/status"), 401),
    ("oneself", get("/api/v1/keys/alice/enc_keys"), 401),
    ("another pair's key", post(FROM_ALICE, ids(CAROLS), "bob"), 401),
    ("a good and another pair's key", post(FROM_ALICE, ids(AGREED, CAROLS), "bob"), 401),
    ("the master's own key", post("/api/v1/keys/bob/dec_keys", ids(AGREED)), 401),
    ("the wrong master", post("/api/v1/keys/carol/dec_keys", ids(AGREED), "bob"), 401),
    ("an unknown master", post("/api/v1/keys/nobody/dec_keys", ids(AGREED), "bob"), 401),
    # transport guards
    ("no such path", get("/api/v1/keys/bob"), 404),
    ("a trailing slash", get("/api/v1/keys/bob/status/"), 404),
    ("edition 2", get("/kdapi/v2/status"), 404),
    ("a slash in the name", get("/api/v1/keys/bob/carol/status"), 404),
    ("status by POST", post("/api/v1/keys/bob/status", {}), 405),
    ("enc_keys by PUT", ("PUT", TO_BOB, b"{}", "alice", JSON), 405),
    ("enc_keys by HEAD", ("HEAD", TO_BOB, b"", "alice", {}), 405),
    ("dec_keys by DELETE", ("DELETE", FROM_ALICE, b"", "bob", {}), 405),
    ("two megabytes", post(TO_BOB, b" " * 2_000_000), 413),
    ("a form", post(TO_BOB, b"number=3", headers={"content-type": "application/x-www-form-urlencoded"}), 415),
    ("text", post(TO_BOB, {}, headers={"content-type": "text/plain"}), 415),
    ("no media type", post(TO_BOB, {}, headers={}), 415),
    ("latin-1 declared", post(TO_BOB, {}, headers={"content-type": "application/json; charset=iso-8859-1"}), 415),
    ("problem+json", post(TO_BOB, {}, headers={"content-type": "application/problem+json"}), 415),
    ("gzip", post(TO_BOB, {}, headers={**JSON, "content-encoding": "gzip"}), 415),
]


@pytest.mark.parametrize(("asked", "status"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_wrong_request_is_refused_and_consumes_nothing(asked, status):
    door, delivery = a_door()  # given keys that wait for bob and carol
    before = (delivery.stock, dict(delivery.rights))

    response = ask(door, *asked)  # when something wrong is asked for

    assert response.status == status  # then it is refused in the standard's form
    error = json.loads(bytes(response.body))
    assert isinstance(error["message"], str)
    assert error["message"]
    assert all(isinstance(pair, dict) for pair in error.get("details", []))
    assert response.content_type == "application/json"
    assert header(response, "cache-control") == "no-store"
    assert (header(response, "allow") is not None) == (status == 405)
    assert (delivery.stock, delivery.rights) == before  # and every key is where it was


def test_the_prescribed_sentences_are_used():
    door, _ = a_door()
    for asked, message in [
        (post(TO_BOB, {"size": 257}), "size shall be a multiple of 8"),
        (get(f"{TO_BOB}?size=257"), "size shall be a multiple of 8"),
        (
            post(TO_BOB, {"extension_mandatory": [{"abc_x": 1}]}),
            "not all extension_mandatory parameters are supported",
        ),
        (
            post(TO_BOB, {"extension_mandatory": [{"trenza_recipe": "its"}]}),
            "not all extension_mandatory request options could be met",
        ),
        (post(FROM_ALICE, ids(NEVER), "bob"), "one or more keys specified are not found on KME"),
    ]:
        assert json.loads(ask(door, *asked).body)["message"] == message


def test_an_unknown_and_a_forbidden_sae_get_the_same_answer():
    door, _ = a_door()
    answers = {
        bytes(ask(door, *get(f"/api/v1/keys/{sae}/{method.value}?key_ID={NEVER}", caller)).body)
        for method in (Method.GET_STATUS, Method.GET_KEY_WITH_IDS)
        for sae, caller in [("nobody", "alice"), ("dave", "alice"), ("bob", MALLORY)]
    }
    assert len(answers) == 1


# --- what is right -------------------------------------------------------------------------------------------------


def test_a_key_is_issued_to_one_and_fetched_by_the_other_once():
    door, _ = a_door()
    issued = keys_of(ask(door, *post(TO_BOB, {"number": 2, "size": 512})))
    assert [len(base64.b64decode(key["key"])) for key in issued] == [64, 64]

    wanted = [issued[1]["key_ID"].upper(), issued[0]["key_ID"]]
    fetched = keys_of(ask(door, *post(FROM_ALICE, ids(*wanted), "bob")))
    assert [key["key"] for key in fetched] == [issued[1]["key"], issued[0]["key"]]  # in the order asked for

    assert ask(door, *post(FROM_ALICE, ids(wanted[0]), "bob")).status == 400


@pytest.mark.parametrize(
    "asked",
    [
        get(TO_BOB),
        get(f"{TO_BOB}?number=1"),
        post(TO_BOB, b"", headers={}),
        post(TO_BOB, b"", headers={"content-type": "text/plain"}),
        post(TO_BOB, {}),
        post(TO_BOB, {}, headers={"content-type": "Application/JSON; charset=UTF-8"}),
        post(TO_BOB, {}, headers={"content-type": 'application/json;charset="utf-8"'}),
        post(TO_BOB, {"colour": {"deep": [1, 2]}}),
        get("/api/v1/keys/%62ob/enc_keys?trace=7"),
    ],
)
def test_the_simplest_requests_give_one_key_of_the_default_size(asked):
    door, _ = a_door()
    response = ask(door, *asked)
    assert response.status == 200
    assert header(response, "cache-control") == "no-store"
    (key,) = keys_of(response)
    assert len(base64.b64decode(key["key"])) * 8 == DEFAULT


def test_a_key_for_several_targets_is_fetched_by_each():
    door, _ = a_door()
    (issued,) = keys_of(ask(door, *post(TO_BOB, {"additional_slave_SAE_IDs": ["carol", "erin"]})))
    for target in ("bob", "carol", "erin"):
        (fetched,) = keys_of(ask(door, *get(f"{FROM_ALICE}?key_ID={issued['key_ID']}", target)))
        assert fetched["key"] == issued["key"]


def test_an_application_is_told_what_protected_its_key():
    door, _ = a_door()
    (key,) = keys_of(ask(door, *get(TO_BOB)))
    assert key["key_extension"] == {
        "trenza_recipe": "hybrid",
        "trenza_origins": ["qkd", "pqc", "classical"],
        "trenza_supply": "live",
        "trenza_strength": "256-bit",
        "trenza_hops": 2,
        "trenza_created": "2026-09-21T14:13:20.000000Z",
        "trenza_expires": "2026-09-21T14:14:20.000000Z",
    }


def test_what_is_demanded_reaches_the_story():
    door, delivery = a_door()
    demands = [{"trenza_origins": ["pqc"], "trenza_max_hops": 5}, {"trenza_max_age_ms": 1500}]
    assert ask(door, *post(TO_BOB, {"extension_mandatory": demands})).status == 200
    wishes = delivery.issued[-1].wishes
    assert (wishes.origins, wishes.recipe, wishes.max_hops, wishes.max_age) == ({Origin.PQC}, None, 5, 1.5)
    assert delivery.issued[-1].tls_group == "X25519MLKEM768"


def test_an_optional_extension_is_honoured_where_it_can_be():
    door, _ = a_door()
    (key,) = keys_of(ask(door, *post(TO_BOB, {"extension_optional": [{"trenza_recipe": "pqc"}, {"abc_x": 1}]})))
    assert key["key_extension"]["trenza_recipe"] == "pqc"


@pytest.mark.parametrize("wish", [{"trenza_recipe": "its"}, {"trenza_max_hops": "few"}, {"trenza_origins": ["qkd"]}])
def test_an_optional_extension_never_costs_the_key(wish):
    door, delivery = a_door()
    delivery.hybrid_stock = 0  # given that QKD bits have run out
    body = {"extension_optional": [wish], "extension_mandatory": [{"trenza_recipe": "pqc"}]}
    (key,) = keys_of(ask(door, *post(TO_BOB, body)))
    assert key["key_extension"]["trenza_recipe"] == "pqc"


def test_the_status_is_that_of_the_caller_as_master():
    door, _ = a_door()
    status = etsi014.decode_status(bytes(ask(door, *get("/api/v1/keys/alice/status", "bob")).body))
    assert (status.master_sae_id, status.slave_sae_id, status.key_size) == ("bob", "alice", DEFAULT)


def test_what_is_handed_out_is_wiped_behind_it():
    door, delivery = a_door()
    (key,) = keys_of(ask(door, *get(TO_BOB)))
    ask(door, *post(FROM_ALICE, ids(key["key_ID"]), "bob"))
    assert all(one.key == Secret(bytearray(len(one.key))) for one in delivery.handed_out[2:])


def test_the_client_codec_and_the_door_understand_each_other():
    door, _ = a_door()
    request = KeyRequest(number=3, size=128, mandatory=Demands(origins=("pqc", "qkd"), recipe="hybrid"))
    path = etsi014.path_of(Method.GET_KEY, "bob")
    issued = etsi014.decode_container(ask(door, *post(path, etsi014.encode_key_request(request))).body)
    wanted = etsi014.encode_key_ids([key.key_id for key in issued])
    fetched = etsi014.decode_container(ask(door, *post(FROM_ALICE, wanted, "bob")).body)
    assert fetched == issued
    assert issued[0].extension.created == MADE


# --- what goes wrong behind the door -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "status", "message"),
    [
        (NotEnoughKeyError("not enough key", details=({"available": 3},)), 503, "not enough key"),
        (PeerUnavailableError("node sur did not answer"), 503, "node sur did not answer"),
        (StoreUnavailableError("the store could not commit"), 503, "the store could not commit"),
        (ConflictError("recorded before"), 400, "recorded before"),
        (MissingOriginError("the slot holds no qkd strand"), 503, "key management entity error"),
        (UnauthorisedError("dave and alice are rivals"), 401, "unauthorised"),
    ],
)
def test_trouble_is_told_in_the_standards_codes(trouble, status, message):
    class Troubled(MemoryDelivery):
        async def issue(self, caller, request):
            raise trouble

    response = ask(a_door(Troubled)[0], *get(TO_BOB))
    assert response.status == status
    assert json.loads(bytes(response.body)) == (
        {"message": message, "details": [{"available": 3}]} if "enough" in message else {"message": message}
    )


@pytest.mark.parametrize(("seconds", "told"), [(0.2, ("1",)), (7.1, ("8",)), (None, ())])
def test_who_has_had_its_share_is_told_when_to_come_again(seconds, told):
    class Limited(MemoryDelivery):
        async def issue(self, caller, request):
            raise LimitedError("more keys were asked for than may be had in this time", retry_after=seconds)

    response = ask(a_door(Limited)[0], *get(TO_BOB))
    assert response.status == 503
    assert tuple(value for name, value in response.headers if name == "retry-after") == told


def test_a_story_that_does_not_end_is_answered_in_time():
    class Stuck(MemoryDelivery):
        async def issue(self, caller, request):
            await asyncio.Event().wait()

    response = ask(a_door(Stuck, deadline=Seconds(0.0))[0], *get(TO_BOB))
    assert (response.status, response.content_type) == (503, "application/json")


# --- on the wire, with a client that others wrote ------------------------------------------------------------------


def test_a_client_that_others_wrote_gets_its_keys(tmp_path):
    authority = CertificateAuthority.create("Test network", KeyType.ECDSA_P256)
    authority.save(tmp_path / "ca.pem", tmp_path / "ca.key")

    def party(name, **names):
        files = (tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        authority.issue(name, **names).save(*files)
        return TlsIdentity(*files, tmp_path / "ca.pem")

    def speak(port):
        alice, bob = (
            QKD014Client(
                f"127.0.0.1:{port}", str(own.certificate_file), str(own.private_key_file), str(own.trust_file)
            )
            for own in (party(name, uris=[f"urn:trenza:sae:{name}"]) for name in ("alice", "bob"))
        )
        assert alice.get_status("bob")[1].key_size == DEFAULT
        code, issued = alice.get_key("bob", number=2, size=128, extension_mandatory=[{"trenza_max_hops": 4}])
        assert (code, len(issued.keys)) == (200, 2)
        key_ids = [key.key_id for key in issued.keys]
        code, fetched = bob.get_key_with_key_IDs("alice", key_ids)
        assert (code, [key.key for key in fetched.keys]) == (200, [key.key for key in issued.keys])
        code, error = bob.get_key_with_key_IDs("alice", key_ids)
        assert (code, error.message) == (400, etsi014.KEYS_NOT_FOUND)
        code, error = alice.get_key("dave")
        assert (code, error.message) == (401, "unauthorised")
        code, error = alice.get_key("bob", size=257)
        assert (code, error.message) == (400, etsi014.SIZE_NOT_WHOLE_BYTES)

    async def story():
        door, _ = a_door(given=())
        context = server_context(
            party("node", ips=["127.0.0.1"]), groups=Groups.HYBRID_PREFERRED, oldest=OldestTls.TLS_1_2
        )
        server = HttpServer(door, lambda: context, door.error_response)
        port = await server.start("127.0.0.1")
        try:
            await asyncio.to_thread(speak, port)
        finally:
            await server.stop()

    asyncio.run(story())


# --- given ---------------------------------------------------------------------------------------------------------


def certificate(name):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2027, 1, 1, tzinfo=UTC))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"urn:trenza:sae:{name}")]), critical=False
        )
        .sign(key, hashes.SHA256())
    )


SAES = ("alice", "bob", "carol", "dave", "erin", "frank")
PEERS = {
    name: PeerIdentity(certificate(name), f"fingerprint of {name}", (), "X25519MLKEM768", "TLSv1.3")
    for name in (*SAES, MALLORY)
}


def a_door(stories=MemoryDelivery, given=("bob", "carol"), **settings):
    """Return a door, and its stories with a key waiting for each of `given`: AGREED for bob and CAROLS for carol."""
    delivery = stories(
        [("alice", "bob"), ("alice", "carol"), ("alice", "erin"), ("alice", "frank"), ("bob", "carol")]
    )
    for target in given:
        asyncio.run(MemoryDelivery.issue(delivery, SaeId("alice"), IssueRequest(SaeId(target))))
    registry = {f"urn:trenza:sae:{name}": SaeId(name) for name in SAES}
    return application_door(delivery, Callers(registry.get), **settings), delivery


def ask(door, method, target, body, caller, headers):
    request = request_of(method, target, body, caller, headers)

    async def answered():
        answer = door(request)
        return answer if isinstance(answer, Response) else await answer

    return asyncio.run(answered())


def header(response, name):
    return dict(response.headers).get(name)


def keys_of(response):
    assert response.status == 200
    return json.loads(bytes(response.body))["keys"]


# --- requests that came together -----------------------------------------------------------------------------------


class OrderedDelivery(MemoryDelivery):
    """Has so many keys in hand for orders; whatever is asked beyond goes the long way."""

    in_hand = 0

    def order(self, caller, request):
        return MemoryOrder(self, caller, request)


class MemoryOrder:
    is_good = True

    def __init__(self, delivery, caller, request):
        self._delivery, self._caller, self._request = delivery, caller, request
        self.made = []

    def serve(self, number):
        number = min(number, self._delivery.in_hand)
        self._delivery.in_hand -= number
        out = [asyncio.run(self._delivery.issue(self._caller, self._request))[0] for _ in range(number)]
        some = [MemoryKey(one.key_id.int, bytearray(one.key.view()), one.facts) for one in out]
        self.made += some
        return some


@dataclass
class MemoryKey:
    number: int
    key: bytearray
    facts: KeyFacts


def test_requests_that_came_together_get_their_own_keys_and_their_own_refusals():
    door, delivery = a_door(OrderedDelivery)
    to_bob, to_carol = post(TO_BOB, b"{}"), post(TO_BOB.replace("bob", "carol"), b"{}")
    for known in (to_bob, to_carol):
        assert ask(door, *known).status == 200  # from now on an order
    delivery.in_hand = 3
    row = [to_bob, post(TO_BOB, b"{}", caller=MALLORY), to_bob, to_carol, post(TO_BOB, b'{"size":257}'), to_bob]
    answers = door.together([request_of(*one) for one in row])
    assert [isinstance(one, Response) for one in answers] == [True, True, True, False, False, True]
    answers = [one if isinstance(one, Response) else asyncio.run(one) for one in answers]
    assert [one.status for one in answers] == [200, 401, 200, 200, 400, 200]
    keys = [keys_of(one)[0]["key_ID"] for one in answers if one.status == 200]
    assert len(set(keys)) == 4
    assert {SaeId("bob"), SaeId("carol")} == {sae for key, sae in delivery.rights if str(key) in keys}


def test_a_mistake_in_one_order_costs_the_keys_of_no_other(caplog):
    door, delivery = a_door(OrderedDelivery)
    to_bob, to_carol = post(TO_BOB, b"{}"), post(TO_BOB.replace("bob", "carol"), b"{}")
    for known in (to_bob, to_carol):
        assert ask(door, *known).status == 200

    def broken(_number):
        raise ValueError("a strand is all zeros")

    (order,) = (one._order for one in door._orders.values() if one._order._request.target == "carol")
    order.serve = broken
    delivery.in_hand = 2
    with caplog.at_level(logging.CRITICAL):
        answers = door.together([request_of(*one) for one in (to_bob, to_carol, to_bob)])
    assert [one.status for one in answers] == [200, 503, 200]


def test_keys_that_were_written_into_answers_are_wiped():
    door, delivery = a_door(OrderedDelivery)
    assert ask(door, *post(TO_BOB, b"{}")).status == 200
    (order,) = (standing._order for standing in door._orders.values())
    delivery.in_hand = 2
    door.together([request_of(*post(TO_BOB, b"{}"))] * 2)
    assert len(order.made) == 2
    assert not any(any(one.key) for one in order.made)


def request_of(method, target, body, caller, headers):
    path, _, query = target.partition("?")
    fields = {name.encode(): value.encode() for name, value in headers.items()}
    return Request(method.encode(), path.encode(), query.encode(), fields, body, PEERS[caller])
