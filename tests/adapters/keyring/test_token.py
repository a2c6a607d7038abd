"""A node key that stays in its token, against SoftHSM."""

import asyncio
import functools
import os

import pytest
from tests.adapters.keyring import softhsm
from tests.contract import sealer_contract

from trenza.adapters.keyring import KeyringSealer, TokenKeyUri, TokenNodeKey, make_token_key, token
from trenza.base.entropy import SystemEntropy
from trenza.base.errors import AuthenticationError, ConflictError, InvalidDocumentError, StoreUnavailableError
from trenza.base.secret import Secret

NONCE, CONTEXT = bytes(range(12)), b"keyring and handle"
SEGMENT = b"bits that only two nodes know" * 4

MANY_SEALS = sealer_contract.erasing_an_old_handle_spares_whoever_came_after
CLAUSES = [
    pytest.param(clause, marks=[pytest.mark.slow] * (clause is MANY_SEALS)) for clause in sealer_contract.CLAUSES
]


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("softhsm")
    tokens = softhsm.soft_tokens(folder)
    next(tokens)
    yield folder
    next(tokens, None)


@pytest.fixture
def soft(home):
    return softhsm.new_token(home)


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(token, "_AGAIN_AFTER_S", 0.0)


def make(soft, key="node-key") -> None:
    make_token_key(TokenKeyUri.parse(soft.uri(key)), module=soft.module, pin_file=soft.pin_file)


def opened(soft, key="node-key") -> TokenNodeKey:
    return TokenNodeKey(TokenKeyUri.parse(soft.uri(key)), module=soft.module, pin_file=soft.pin_file)


@pytest.fixture
def node_key(soft):
    make(soft)
    made = opened(soft)
    yield made
    made.close()


def test_what_the_token_wrapped_it_unwraps_under_the_same_nonce_and_context_only(node_key) -> None:
    key = bytearray(os.urandom(32))
    wrapped = node_key.wrap(key, nonce=NONCE, context=CONTEXT)
    assert len(wrapped) == 48
    assert node_key.unwrap(wrapped, nonce=NONCE, context=CONTEXT) == key
    altered = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
    for box, nonce, context in ((altered, NONCE, CONTEXT), (wrapped, bytes(12), CONTEXT), (wrapped, NONCE, b"")):
        with pytest.raises(AuthenticationError):
            node_key.unwrap(box, nonce=nonce, context=context)
    assert node_key.unwrap(wrapped, nonce=NONCE, context=CONTEXT) == key


def test_the_key_may_not_leave_its_token(node_key) -> None:
    from pkcs11 import Attribute, AttributeSensitive

    key = node_key._key
    assert (key[Attribute.EXTRACTABLE], key[Attribute.SENSITIVE], key[Attribute.PRIVATE]) == (False, True, True)
    with pytest.raises(AttributeSensitive):
        key[Attribute.VALUE]


@pytest.mark.parametrize("clause", CLAUSES, ids=sealer_contract.name)
def test_a_keyring_under_a_token_keeps_the_contract_of_a_sealer(clause, node_key, tmp_path) -> None:
    make_sealer = functools.partial(
        KeyringSealer.open, tmp_path / "keyring", node_key=node_key, entropy=SystemEntropy()
    )
    asyncio.run(clause(make_sealer, KeyringSealer.close))


def test_a_keyring_made_under_a_token_opens_under_no_other_key(node_key, soft, tmp_path) -> None:
    async def story() -> None:
        sealer = KeyringSealer.open(tmp_path / "keyring", node_key=node_key, entropy=SystemEntropy())
        await sealer.seal(SEGMENT, associated=b"p")
        await sealer.close()
        make(soft, "another")
        other = opened(soft, "another")
        for wrong in (other, Secret(bytearray(32))):
            with pytest.raises(AuthenticationError, match="another node key"):
                KeyringSealer.open(tmp_path / "keyring", node_key=wrong, entropy=SystemEntropy())
        other.close()

    asyncio.run(story())


def test_the_loop_goes_on_while_the_token_thinks(node_key) -> None:
    async def story() -> None:
        sealer = KeyringSealer.in_memory(node_key=node_key, entropy=SystemEntropy())
        with node_key._lock:  # a token that does not answer
            sealing = asyncio.create_task(sealer.seal(SEGMENT, associated=b"p"))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not sealing.done()
        sealed = await sealing
        assert len(await sealer.unseal(sealed, associated=b"p")) == len(SEGMENT)
        await sealer.close()

    asyncio.run(story())


def test_a_token_that_is_taken_out_is_told_and_used_again_when_it_is_back(node_key, soft) -> None:
    async def story() -> None:
        sealer = KeyringSealer.in_memory(node_key=node_key, entropy=SystemEntropy())
        sealed, other = [await sealer.seal(SEGMENT, associated=b"p") for _ in range(2)]
        soft.take_out()
        for _ in range(3):
            with pytest.raises(StoreUnavailableError, match=f"token={soft.label}"):
                await sealer.unseal(sealed, associated=b"p")
            with pytest.raises(StoreUnavailableError, match=f"token={soft.label}"):
                await sealer.seal(SEGMENT, associated=b"p")
        await sealer.erase([other.handle])  # which asks no token
        soft.put_back()
        assert len(await sealer.unseal(sealed, associated=b"p")) == len(SEGMENT)
        again = await sealer.seal(SEGMENT, associated=b"p")
        assert len(await sealer.unseal(again, associated=b"p")) == len(SEGMENT)
        assert len(sealer._free) == 4_096 - 2  # what failed has cost no slot
        await sealer.close()

    asyncio.run(story())


def test_two_keys_of_one_process_do_not_log_each_other_out(node_key, soft) -> None:
    make(soft, "another")
    other = opened(soft, "another")
    wrapped = node_key.wrap(bytearray(32), nonce=NONCE, context=CONTEXT)
    other.close()  # which ends the login of the whole process
    assert node_key.unwrap(wrapped, nonce=NONCE, context=CONTEXT) == bytearray(32)


def test_a_wrong_pin_is_told_and_never_shown_to_the_token_twice(soft) -> None:
    make(soft)
    node_key = opened(soft)
    wrapped = node_key.wrap(bytearray(32), nonce=NONCE, context=CONTEXT)
    node_key.close()
    soft.set_pin("9999")
    with pytest.raises(InvalidDocumentError, match=r"refuses the PIN in .*\.pin"):
        opened(soft)
    shown = []
    session_of = node_key._session_of
    node_key._session_of = lambda pin: (shown.append(pin), session_of(pin))[1]
    for _ in range(5):
        with pytest.raises(StoreUnavailableError, match="not tried again"):
            node_key.unwrap(wrapped, nonce=NONCE, context=CONTEXT)
    assert shown == ["9999"]
    soft.set_pin("1234")
    assert node_key.unwrap(wrapped, nonce=NONCE, context=CONTEXT) == bytearray(32)
    node_key.close()


def test_what_is_missing_is_said(soft, tmp_path) -> None:
    with pytest.raises(InvalidDocumentError, match="make-key"):
        opened(soft)
    nowhere = TokenKeyUri.parse("pkcs11:token=nowhere;object=k")
    with pytest.raises(StoreUnavailableError, match=f"not there .*{soft.label}"):
        TokenNodeKey(nowhere, module=soft.module, pin_file=soft.pin_file)
    here = TokenKeyUri.parse(soft.uri())
    with pytest.raises(InvalidDocumentError, match="cannot be loaded"):
        TokenNodeKey(here, module=tmp_path / "none.so", pin_file=soft.pin_file)
    with pytest.raises(InvalidDocumentError, match="cannot be read"):
        TokenNodeKey(here, module=soft.module, pin_file=tmp_path / "none.pin")
    soft.pin_file.chmod(0o644)
    with pytest.raises(InvalidDocumentError, match="chmod 600"):
        opened(soft)
    soft.set_pin("")
    with pytest.raises(InvalidDocumentError, match="one line"):
        opened(soft)


def test_a_key_is_made_once(soft) -> None:
    make(soft)
    with pytest.raises(ConflictError, match="there already"):
        make(soft)
    soft.set_pin("9999")
    with pytest.raises(InvalidDocumentError, match="refuses the PIN"):
        make(soft, "another")


def test_a_key_that_may_leave_its_token_is_refused(soft) -> None:
    import pkcs11

    library = pkcs11.lib(str(soft.module))
    with library.get_token(token_label=soft.label).open(rw=True, user_pin="1234") as session:
        extractable = {pkcs11.Attribute.EXTRACTABLE: True}
        session.generate_key(pkcs11.KeyType.AES, 256, label="loose", store=True, template=extractable)
        session.generate_key(
            pkcs11.KeyType.AES, 128, label="short", store=True, template={pkcs11.Attribute.EXTRACTABLE: False}
        )
    with pytest.raises(InvalidDocumentError, match="may leave its token"):
        opened(soft, "loose")
    with pytest.raises(InvalidDocumentError, match="256 bits"):
        opened(soft, "short")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("node.key", "not a PKCS #11 URI"),
        ("pkcs11:object=k", "which token"),
        ("pkcs11:token=t", "which key"),
        ("pkcs11:token=t;object=k;colour=red", "'colour=red' is not understood"),
        ("pkcs11:token=t;object=k;token=u", "token appears twice"),
        ("pkcs11:token=t;object=k;type=private", "secret-key"),
        ("pkcs11:token=t;object=k?pin-value=1234", "settings of their own"),
        ("pkcs11:token=%FF;object=k", "not UTF-8"),
    ],
)
def test_what_is_no_name_of_a_key_is_refused(text, why) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        TokenKeyUri.parse(text)
    assert "1234" not in str(raised.value)


def test_a_name_is_read_as_the_standard_writes_it() -> None:
    uri = TokenKeyUri.parse("pkcs11:token=The%20Software%20Token;object=node%3Akey;id=%00%ff;type=secret-key")
    assert (uri.token, uri.object, uri.id, uri.serial) == ("The Software Token", "node:key", b"\x00\xff", None)
