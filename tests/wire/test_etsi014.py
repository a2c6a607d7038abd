import base64
import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trenza.base.errors import InvalidRequestError, RemoteProtocolError
from trenza.base.secret import Secret
from trenza.wire import etsi014
from trenza.wire.etsi014 import Demands, Error, Key, KeyExtension, KeyRequest, Method, Route, Status

ONE = UUID("bc490419-7d60-487f-adc1-4ddcc177c139")
TWO = UUID("0a782fb5-3434-48fe-aa4d-14f41d46cf92")
NAMES = st.text("ABCdef019-._~:/?#[]@!$&'()*+,;=%", min_size=1, max_size=64)

STATUS = Status("KME-A", "KME-B", "sae-1", "sae-2", 352, 25000, 100000, 128, 1024, 64, 0)

# --- paths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/api/v1/keys/sae-2/status", Route(Method.GET_STATUS, "sae-2")),
        ("/api/v1/keys/sae-2/enc_keys", Route(Method.GET_KEY, "sae-2")),
        ("/api/v1/keys/sae-2/dec_keys", Route(Method.GET_KEY_WITH_IDS, "sae-2")),
        ("/api/v1/keys/urn%3Asae%3A2/status", Route(Method.GET_STATUS, "urn:sae:2")),
        ("/api/v1/keys/urn:sae:2/status", Route(Method.GET_STATUS, "urn:sae:2")),
        ("/api/v1/keys/a%2Fb/status", Route(Method.GET_STATUS, "a/b")),
        ("/api/v1/keys/a%2fb/status", Route(Method.GET_STATUS, "a/b")),
        ("/api/v1/keys/a%252Fb/status", Route(Method.GET_STATUS, "a%2Fb")),  # decoded once
        ("/api/v1/keys/a+b/status", Route(Method.GET_STATUS, "a+b")),
        ("/api/v1/keys/status/status", Route(Method.GET_STATUS, "status")),
        ("/api/v1/keys/a/b/status", None),
        ("/api/v1/keys/sae-2/status/", None),
        ("/api/v1/keys/sae-2/STATUS", None),
        ("/api/v1/keys/sae-2", None),
        ("/api/v2/keys/sae-2/status", None),
        ("/API/v1/keys/sae-2/status", None),
        ("//api/v1/keys/sae-2/status", None),
        ("", None),
    ],
)
def test_a_path_is_routed(path, meant):
    assert etsi014.route(path) == meant


@pytest.mark.parametrize("sae", ["", "%", "%2", "%zz", "a%2", "%C3", "%FF%FE", "%C3%B1", "a%20b", "a%00", "x" * 65])
def test_an_sae_id_that_cannot_be_is_refused(sae):
    with pytest.raises(InvalidRequestError):
        etsi014.route(f"/api/v1/keys/{sae}/status")


@given(method=st.sampled_from(Method), sae=NAMES)
def test_every_name_survives_its_path(method, sae):
    assert etsi014.route(etsi014.path_of(method, sae)) == Route(method, sae)


# --- Get key -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ("", KeyRequest()),
        ("number=3", KeyRequest(number=3)),
        ("size=1024", KeyRequest(size=1024)),
        ("number=3&size=1024", KeyRequest(number=3, size=1024)),
        ("size=1024&number=3&", KeyRequest(number=3, size=1024)),
        ("%6eumber=%33", KeyRequest(number=3)),
        ("colour=blue&number=2", KeyRequest(number=2)),
    ],
)
def test_the_get_form_is_read(query, meant):
    assert etsi014.key_request_from_query(query) == meant


@pytest.mark.parametrize(
    "query",
    [
        "number=",
        "number",
        "number=0",
        "number=-1",
        "number=+1",
        "number=%2B1",
        "number=1.0",
        "number=1e1",
        "number=0x10",
        "number=three",
        "number=%203",
        "number=٣",
        "number=%D9%A3",
        "number=99999999999",
        "number=4294967296",
        "number=1&number=1",
        "colour=blue&colour=blue",
        "size=257",
        "size=0",
        "size=8%",
        "size=%zz",
        "size=%ff",
        "extension_mandatory=%5B%5D",
        "additional_slave_SAE_IDs=sae-3",
        "key_ID=bc490419-7d60-487f-adc1-4ddcc177c139",
    ],
)
def test_a_get_form_without_meaning_is_refused(query):
    with pytest.raises(InvalidRequestError):
        etsi014.key_request_from_query(query)


@pytest.mark.parametrize(
    ("body", "meant"),
    [
        (b"", KeyRequest()),
        (b"{}", KeyRequest()),
        (b'{"number":20,"size":1024}', KeyRequest(number=20, size=1024)),
        (b'{"number":1,"colour":{"a":[1]}}', KeyRequest()),
        (
            b'{"additional_slave_SAE_IDs":["sae-3","urn:sae:4"]}',
            KeyRequest(additional_slave_sae_ids=("sae-3", "urn:sae:4")),
        ),
        (b'{"additional_slave_SAE_IDs":[],"extension_mandatory":[],"extension_optional":[{}]}', KeyRequest()),
        (
            (
                b'{"extension_mandatory":[{"trenza_origins":["qkd","pqc","qkd"]},{"trenza_max_hops":0}],'
                b'"extension_optional":[{"trenza_recipe":"hybrid","trenza_max_age_ms":30000}]}'
            ),
            KeyRequest(
                mandatory=Demands(origins=("qkd", "pqc"), max_hops=0),
                optional=Demands(recipe="hybrid", max_age_ms=30000),
            ),
        ),
        (
            b'{"extension_optional":[{"abc_route_type":"direct"},{"trenza_max_hops":"few"},{"trenza_recipe":"its"}]}',
            KeyRequest(optional=Demands(recipe="its")),
        ),
    ],
)
def test_the_post_form_is_read(body, meant):
    assert etsi014.key_request_from_body(body) == meant


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "the body shall be a JSON object"),
        (b"3", "the body shall be a JSON object"),
        (b"null", "the body shall be a JSON object"),
        (b" ", "the body is not JSON"),
        (b'{"number":1,"number":2}', "twice"),
        (b'{"colour":{"a":1,"a":2}}', "twice"),
        (b'{"size":NaN}', "NaN"),
        (b'{"size":257}', "size shall be a multiple of 8"),
        (b'{"size":1}', "size shall be a multiple of 8"),
        (b'{"size":0}', "size shall be an integer from 1"),
        (b'{"size":-8}', "size shall be an integer from 1"),
        (b'{"size":"256"}', "size shall be an integer from 1"),
        (b'{"size":256.0}', "size shall be an integer from 1"),
        (b'{"size":2.56e2}', "size shall be an integer from 1"),
        (b'{"size":true}', "size shall be an integer from 1"),
        (b'{"size":null}', "size shall be an integer from 1"),
        (b'{"size":[256]}', "size shall be an integer from 1"),
        (b'{"size":99999999999999999999999}', "size shall be an integer from 1"),
        (b'{"number":0}', "number shall be an integer from 1"),
        (b'{"number":-0}', "number shall be an integer from 1"),
        (b'{"number":true}', "number shall be an integer from 1"),
        (b'{"number":{}}', "number shall be an integer from 1"),
        (b'{"additional_slave_SAE_IDs":"sae-3"}', "additional_slave_SAE_IDs shall be an array of strings"),
        (b'{"additional_slave_SAE_IDs":[3]}', "additional_slave_SAE_IDs shall be an array of strings"),
        (b'{"additional_slave_SAE_IDs":null}', "additional_slave_SAE_IDs shall be an array of strings"),
        (b'{"additional_slave_SAE_IDs":[""]}', "additional_slave_SAE_IDs shall hold SAE IDs"),
        (b'{"additional_slave_SAE_IDs":["a","a"]}', "additional_slave_SAE_IDs shall name each SAE once"),
        (b'{"extension_mandatory":{}}', "extension_mandatory shall be an array of objects"),
        (b'{"extension_mandatory":["trenza_recipe"]}', "extension_mandatory shall be an array of objects"),
        (b'{"extension_optional":null}', "extension_optional shall be an array of objects"),
        (
            b'{"extension_mandatory":[{"trenza_max_hops":1},{"trenza_max_hops":2}]}',
            "extension_mandatory shall name each parameter once",
        ),
        (b'{"extension_mandatory":[{"abc_route_type":"direct"}]}', etsi014.MANDATORY_UNSUPPORTED),
        (b'{"extension_mandatory":[{"Trenza_recipe":"its"}]}', etsi014.MANDATORY_UNSUPPORTED),
        (b'{"extension_mandatory":[{"trenza_colour":"blue"}]}', etsi014.MANDATORY_UNSUPPORTED),
        (b'{"extension_mandatory":[{"trenza_origins":"qkd"}]}', etsi014.MANDATORY_UNMET),
        (b'{"extension_mandatory":[{"trenza_origins":["moon"]}]}', etsi014.MANDATORY_UNMET),
        (b'{"extension_mandatory":[{"trenza_origins":[{}]}]}', etsi014.MANDATORY_UNMET),
        (b'{"extension_mandatory":[{"trenza_recipe":""}]}', etsi014.MANDATORY_UNMET),
        (b'{"extension_mandatory":[{"trenza_max_hops":-1}]}', etsi014.MANDATORY_UNMET),
        (b'{"extension_mandatory":[{"trenza_max_hops":1.0}]}', etsi014.MANDATORY_UNMET),
        (b'{"extension_mandatory":[{"trenza_max_hops":true}]}', etsi014.MANDATORY_UNMET),
        (b'{"extension_mandatory":[{"trenza_max_age_ms":0}]}', etsi014.MANDATORY_UNMET),
    ],
)
def test_a_post_form_without_meaning_is_refused(body, message):
    with pytest.raises(InvalidRequestError, match=message) as refusal:
        etsi014.key_request_from_body(body)
    etsi014.encode_error(Error(refusal.value.message, refusal.value.details))  # and can be answered


def test_every_unsupported_mandatory_parameter_is_named():
    body = b'{"extension_mandatory":[{"abc_route_type":"direct"},{"trenza_max_hops":1,"abc_max_age":1}]}'
    with pytest.raises(InvalidRequestError) as refusal:
        etsi014.key_request_from_body(body)
    assert refusal.value.message == "not all extension_mandatory parameters are supported"
    assert refusal.value.details == (
        {"extension_mandatory_unsupported": "abc_route_type is not supported"},
        {"extension_mandatory_unsupported": "abc_max_age is not supported"},
    )


@given(
    st.builds(
        KeyRequest,
        number=st.integers(1, 2**31 - 1),
        size=st.none() | st.integers(1, 1000).map(lambda octets: octets * 8),
        additional_slave_sae_ids=st.lists(NAMES, unique=True).map(tuple),
        mandatory=st.builds(
            Demands,
            origins=st.lists(st.sampled_from(etsi014.ORIGINS), unique=True).map(tuple),
            max_hops=st.none() | st.integers(0, 99),
        ),
        optional=st.builds(Demands, recipe=st.none() | NAMES, max_age_ms=st.none() | st.integers(1, 10**9)),
    )
)
def test_what_an_sae_writes_the_kme_reads(request):
    assert etsi014.key_request_from_body(etsi014.encode_key_request(request)) == request


@given(st.binary(max_size=200))
def test_any_body_is_read_or_refused(body):
    for reader in (etsi014.key_request_from_body, etsi014.key_ids_from_body):
        try:
            reader(body)
        except InvalidRequestError:
            continue


# --- Get key with key IDs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        str(ONE),
        str(ONE).upper(),
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398f",  # version 7 (RFC 9562 appendix A.6)
        "c232ab00-9414-11ec-b3c8-9f6bdeced846",  # version 1 (appendix A.1)
        "bc490419-7d60-087f-0dc1-4ddcc177c139",  # no version at all, as some KMEs make them
    ],
)
def test_any_uuid_is_a_key_id(text):
    assert etsi014.key_ids_from_query(f"key_ID={text}") == (UUID(text),)
    assert etsi014.key_ids_from_body(json.dumps({"key_IDs": [{"key_ID": text}]}).encode()) == (UUID(text),)


def test_the_order_of_key_ids_is_kept_and_extensions_pass():
    body = {
        "key_IDs": [{"key_ID": str(TWO), "key_ID_extension": {"a": 1}}, {"key_ID": str(ONE), "colour": "blue"}],
        "key_IDs_extension": {},
        "colour": "blue",
    }
    assert etsi014.key_ids_from_body(json.dumps(body).encode()) == (TWO, ONE)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "key_ID=",
        "key_ID=3",
        f"key_ID={ONE}&key_ID={TWO}",
        f"key_ID={{{ONE}}}",
        f"key_ID=urn:uuid:{ONE}",
        f"key_ID={ONE.hex}",
        f"key_ID=%20{ONE}",
        f"key_ID={ONE}%0a",
        f"key_ID={ONE}&key_IDs_extension=1",
        f"key_ID={ONE}&number=1",
        f"key_IDs={ONE}",
    ],
)
def test_a_get_form_without_one_key_id_is_refused(query):
    with pytest.raises(InvalidRequestError):
        etsi014.key_ids_from_query(query)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "not JSON"),
        ("{}", "key_IDs is missing"),
        ('{"key_ids":[]}', "key_IDs is missing"),
        ('{"key_IDs":[]}', "at least one"),
        ('{"key_IDs":null}', "at least one"),
        (f'{{"key_IDs":"{ONE}"}}', "array"),
        (f'{{"key_IDs":{{"key_ID":"{ONE}"}}}}', "array"),
        (f'{{"key_IDs":["{ONE}"]}}', "a bare string was sent"),
        ('{"key_IDs":[3]}', "array of objects"),
        ('{"key_IDs":[{}]}', "key_ID shall be a UUID"),
        ('{"key_IDs":[{"key_ID":3}]}', "key_ID shall be a UUID"),
        ('{"key_IDs":[{"key_ID":null}]}', "key_ID shall be a UUID"),
        (f'{{"key_IDs":[{{"key_ID":"{ONE.hex}"}}]}}', "key_ID shall be a UUID"),
        (f'{{"key_IDs":[{{"key_ID":"{ONE}","key_ID_extension":[]}}]}}', "key_ID_extension shall be an object"),
        (f'{{"key_IDs":[{{"key_ID":"{ONE}"}}],"key_IDs_extension":null}}', "key_IDs_extension shall be an object"),
        (f'{{"key_IDs":[{{"key_ID":"{ONE}"}},{{"key_ID":"{str(ONE).upper()}"}}]}}', "each key once"),
        (f'{{"key_IDs":[{{"key_ID":"{ONE}","key_ID":"{TWO}"}}]}}', "twice"),
    ],
)
def test_a_post_form_without_key_ids_is_refused(body, message):
    with pytest.raises(InvalidRequestError, match=message):
        etsi014.key_ids_from_body(body.encode())


@given(st.lists(st.uuids(), min_size=1, max_size=20, unique=True))
def test_key_ids_survive_the_wire(key_ids):
    assert etsi014.key_ids_from_body(etsi014.encode_key_ids(key_ids)) == tuple(key_ids)


@pytest.mark.parametrize("query", ["number=3", "size=256", "key_ID=x", "%73ize=256", "extension_mandatory="])
def test_a_post_with_its_parameters_in_the_query_is_refused(query):
    with pytest.raises(InvalidRequestError, match="body of a POST"):
        etsi014.refuse_query_of_post(query)


def test_a_post_with_a_foreign_query_passes():
    etsi014.refuse_query_of_post("")
    etsi014.refuse_query_of_post("trace=7")


# --- answers -------------------------------------------------------------------------------------------------------


def test_a_status_has_the_names_of_table_9():
    assert json.loads(etsi014.encode_status(STATUS)) == {
        "source_KME_ID": "KME-A",
        "target_KME_ID": "KME-B",
        "master_SAE_ID": "sae-1",
        "slave_SAE_ID": "sae-2",
        "key_size": 352,
        "stored_key_count": 25000,
        "max_key_count": 100000,
        "max_key_per_request": 128,
        "max_key_size": 1024,
        "min_key_size": 64,
        "max_SAE_ID_count": 0,
    }
    assert etsi014.decode_status(etsi014.encode_status(STATUS)) == STATUS


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"source_KME_ID":3}', b"\xff"])
def test_what_is_no_status_is_refused(body):
    with pytest.raises(RemoteProtocolError):
        etsi014.decode_status(body)


def test_a_container_is_as_in_the_standards_example():
    keys = [Key(ONE, Secret(bytearray(b"first key"))), Key(TWO, Secret(bytearray(b"second!")))]
    assert json.loads(etsi014.encode_container(keys)) == {
        "keys": [
            {"key_ID": str(ONE), "key": base64.b64encode(b"first key").decode()},
            {"key_ID": str(TWO), "key": base64.b64encode(b"second!").decode()},
        ]
    }


def test_a_container_tells_what_protected_a_key():
    told = KeyExtension(
        recipe="hybrid",
        origins=("qkd", "pqc", "classical"),
        supply="live",
        strength="256-bit",
        hops=0,
        created=1_790_000_000_123_456_789,
        expires=1_790_000_060_000_000_000,
    )
    body = etsi014.encode_container([Key(ONE, Secret(bytearray(32)), told), Key(TWO, Secret(bytearray(32)))])
    first, second = json.loads(body)["keys"]
    assert first["key_extension"] == {
        "trenza_recipe": "hybrid",
        "trenza_origins": ["qkd", "pqc", "classical"],
        "trenza_supply": "live",
        "trenza_strength": "256-bit",
        "trenza_hops": 0,
        "trenza_created": "2026-09-21T14:13:20.123456Z",
        "trenza_expires": "2026-09-21T14:14:20.000000Z",
    }
    assert "key_extension" not in second


def test_an_empty_container_is_json():
    assert json.loads(etsi014.encode_container([])) == {"keys": []}


@given(
    st.lists(
        st.tuples(
            st.uuids(),
            st.binary(min_size=1, max_size=64),
            st.builds(
                KeyExtension,
                recipe=st.none() | NAMES,
                supply=st.none() | st.just("warm"),
                hops=st.none() | st.integers(0, 9),
                created=st.none() | st.integers(0, 4 * 10**15).map(lambda micros: micros * 1000),
            ),
        ),
        unique_by=lambda key: key[0],
    )
)
def test_keys_survive_the_wire(entries):
    keys = [Key(key_id, Secret(bytearray(material)), told) for key_id, material, told in entries]
    assert etsi014.decode_container(etsi014.encode_container(keys)) == keys


def test_the_spelling_of_table_11_and_foreign_extensions_are_read():
    body = {
        "Keys": [{"key_ID": str(ONE).upper(), "key": "AAEC", "key_extension": {"abc_hops": "many"}}],
        "key_container_extension": {},
    }
    (key,) = etsi014.decode_container(json.dumps(body).encode())
    assert (key.key_id, bytes(key.key.view()), key.extension) == (ONE, b"\0\1\2", KeyExtension())


@pytest.mark.parametrize(
    "body",
    [
        "",
        "3",
        "[]",
        "{}",
        '{"keys":null}',
        '{"keys":[],"Keys":[]}',
        '{"keys":["AAEC"]}',
        '{"keys":[{"key":"AAEC"}]}',
        f'{{"keys":[{{"key_ID":"{ONE}"}}]}}',
        f'{{"keys":[{{"key_ID":"{ONE}","key":3}}]}}',
        f'{{"keys":[{{"key_ID":"{ONE}","key":"AAE"}}]}}',
        f'{{"keys":[{{"key_ID":"{ONE}","key":"AA EC"}}]}}',
        f'{{"keys":[{{"key_ID":"{ONE}","key":"_-8="}}]}}',
        f'{{"keys":[{{"key_ID":"{ONE}","key":"ñ"}}]}}',
        '{"keys":[{"key_ID":"one","key":"AAEC"}]}',
        f'{{"keys":[{{"key_ID":"{ONE}","key":"AAEC"}},{{"key_ID":"{ONE}","key":"AAEC"}}]}}',
        f'{{"keys":[{{"key_ID":"{ONE}","key":"AAEC","key_extension":[]}}]}}',
        f'{{"keys":[{{"key_ID":"{ONE}","key":"AAEC","key_extension":{{"trenza_hops":"1"}}}}]}}',
        f'{{"keys":[{{"key_ID":"{ONE}","key":"AAEC","key_extension":{{"trenza_created":"noon"}}}}]}}',
        f'{{"keys":[{{"key_ID":"{ONE}","key":"AAEC","key_extension":{{"trenza_created":1}}}}]}}',
    ],
)
def test_what_is_no_container_is_refused_without_repeating_it(body):
    with pytest.raises(RemoteProtocolError) as refusal:
        etsi014.decode_container(body.encode())
    assert str(refusal.value) == "the KME's key container cannot be read"


def test_an_error_is_as_in_table_13():
    error = Error("key data access error", ({"available": 3},))
    assert json.loads(etsi014.encode_error(error)) == {
        "message": "key data access error",
        "details": [{"available": 3}],
    }
    assert json.loads(etsi014.encode_error(Error("no"))) == {"message": "no"}
    assert etsi014.decode_error(etsi014.encode_error(error)) == error


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"message":3,"details":{}}', b"[" * 9999])
def test_an_error_that_is_none_is_read_as_far_as_it_goes(body):
    assert etsi014.decode_error(body) == Error("")
