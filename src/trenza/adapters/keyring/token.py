"""The node key in a PKCS #11 token, which wraps and unwraps there: the key itself never leaves it.

AES-256-GCM (PKCS #11 v3.1 clause 6.13) with nonces of this process's own generator, 12 random bytes for each segment:
NIST SP 800-38D clause 8.3 allows 2^32 of them under one key. Tokens that insist on making the nonce themselves are
not served. A token that fails is left and tried again with the next call, so a node recovers when it is back; a PIN
that it refused is not shown to it again, or three attempts would lock it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from trenza.adapters.keyring.token_uri import TokenKeyUri
from trenza.base.entropy import SystemEntropy
from trenza.base.errors import AuthenticationError, ConflictError, InvalidDocumentError, StoreUnavailableError

_TAG_BITS: Final = 128
_NONCE: Final = 12
_KEY_BITS: Final = 256
_AGAIN_AFTER_S: Final = 5.0  # between two fresh starts of the module, which may take long and disturb other users
_LONGEST_PIN: Final = 256

_Answer = TypeVar("_Answer")


class TokenNodeKey:
    """A key in a token. Implements kms.ports.NodeKey."""

    is_at_hand = False

    def __init__(self, uri: TokenKeyUri, *, module: Path, pin_file: Path) -> None:
        """Log in to the token and find the key.

        Args:
            uri: which key in which token.
            module: the token's PKCS #11 library.
            pin_file: holds the user PIN, readable by its owner only.

        Raises:
            InvalidDocumentError: there is no such module or key, the PIN is wrong, or the key is not fit.
            StoreUnavailableError: the token is not there or does not answer.
        """
        self._uri = uri
        self._module = module
        self._pin_file = pin_file
        self._pkcs11 = _library()
        self._lock = threading.Lock()
        self._session: Any = None
        self._key: Any = None
        self._refused_pin: str | None = None
        self._begun_anew = 0.0
        with self._lock:
            self._open()

    def wrap(self, key: bytearray, *, nonce: bytes, context: bytes) -> bytes:
        wrapped: bytes = self._use(lambda: self._encrypt(bytes(key), nonce, context))
        return wrapped

    def unwrap(self, wrapped: bytes, *, nonce: bytes, context: bytes) -> bytearray:
        return self._use(lambda: self._decrypt(wrapped, nonce, context))

    def close(self) -> None:
        with self._lock:
            self._leave()

    # --- in the token

    def _use(self, deed: Callable[[], _Answer]) -> _Answer:
        with self._lock, contextlib.suppress(self._pkcs11.PKCS11Error):
            return self._attempt(deed)
        with self._lock:  # a session that had ended is not worth a failure: once more, in a new one
            try:
                return self._attempt(deed)
            except self._pkcs11.PKCS11Error as error:
                raise self._unavailable(error) from error

    def _attempt(self, deed: Callable[[], _Answer]) -> _Answer:
        try:
            if self._key is None:
                self._open()
            return deed()
        except InvalidDocumentError as error:  # what was sound at the start: the token has changed
            raise StoreUnavailableError(error.message) from error
        except self._pkcs11.PKCS11Error:
            self._leave()
            raise

    def _encrypt(self, clear: bytes, nonce: bytes, context: bytes) -> bytes:
        return bytes(self._key.encrypt(clear, **self._gcm(nonce, context)))

    def _decrypt(self, wrapped: bytes, nonce: bytes, context: bytes) -> bytearray:
        try:
            return bytearray(self._key.decrypt(wrapped, **self._gcm(nonce, context)))
        except self._pkcs11.PKCS11Error:
            # Tokens tell a wrong tag in many ways, some as they tell a failure: if this one still encrypts, it was
            # the tag.
            self._encrypt(bytes(_NONCE), bytes(SystemEntropy().token(_NONCE)), b"")
            raise AuthenticationError("wrapped under another node key, or altered") from None

    def _gcm(self, nonce: bytes, context: bytes) -> dict[str, Any]:
        parameters = self._pkcs11.GCMParams(nonce, context, _TAG_BITS)
        return {"mechanism": self._pkcs11.Mechanism.AES_GCM, "mechanism_param": parameters}

    # --- coming and going

    def _open(self) -> None:
        try:
            self._session = self._logged_in()
            self._key = _the_key(self._pkcs11, self._session, self._uri)
        except BaseException:
            self._leave()
            raise

    def _logged_in(self) -> Any:
        pin = _pin(self._pin_file)
        if pin == self._refused_pin:
            raise self._wrong_pin()
        try:
            return self._session_of(pin)
        except (self._pkcs11.PinIncorrect, self._pkcs11.PinInvalid, self._pkcs11.PinLenRange):
            self._refused_pin = pin
            raise self._wrong_pin() from None
        except self._pkcs11.PinLocked:
            self._refused_pin = pin
            why = "the token has locked its user PIN after wrong ones; its security officer unlocks it"
            raise InvalidDocumentError(f"the token of {self._uri.text}", (why,)) from None

    def _session_of(self, pin: str) -> Any:
        try:
            return _session(self._pkcs11, _loaded(self._pkcs11, self._module), self._uri, pin, writes=False)
        except (self._pkcs11.PinIncorrect, self._pkcs11.PinInvalid, self._pkcs11.PinLenRange, self._pkcs11.PinLocked):
            raise
        except (self._pkcs11.PKCS11Error, StoreUnavailableError):
            if time.monotonic() - self._begun_anew < _AGAIN_AFTER_S:
                raise
        self._begun_anew = time.monotonic()
        library = _loaded(self._pkcs11, self._module)
        try:
            library.reinitialize()  # only so do modules see a token that was taken out and put back
            return _session(self._pkcs11, library, self._uri, pin, writes=False)
        except self._pkcs11.PKCS11Error as error:
            if isinstance(error, self._pkcs11.PinIncorrect | self._pkcs11.PinLocked):
                raise
            raise self._unavailable(error) from error

    def _leave(self) -> None:
        session, self._session, self._key = self._session, None, None
        if session is not None:
            with contextlib.suppress(self._pkcs11.PKCS11Error):
                session.close()

    def _wrong_pin(self) -> InvalidDocumentError:
        why = f"the token refuses the PIN in {self._pin_file}; it is not tried again until the file has another"
        return InvalidDocumentError(f"the token of {self._uri.text}", (why,))

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(f"the token of {self._uri.text} cannot be used: {_words(error)}")


def make_token_key(uri: TokenKeyUri, *, module: Path, pin_file: Path) -> None:
    """Make a node key in a token: AES-256, never to leave it.

    Raises:
        ConflictError: there is such a key already.
        InvalidDocumentError: there is no such module, the PIN is wrong, or the token cannot hold such a key.
        StoreUnavailableError: the token is not there or does not answer.
    """
    pkcs11 = _library()
    try:
        with _session(pkcs11, _loaded(pkcs11, module), uri, _pin(pin_file), writes=True) as session:
            if list(session.get_objects(_template(pkcs11, uri))):
                raise ConflictError(f"{uri.text} is there already: a node key is made once")
            session.generate_key(
                pkcs11.KeyType.AES,
                _KEY_BITS,
                label=uri.object,
                id=uri.id,
                store=True,
                capabilities=pkcs11.MechanismFlag.ENCRYPT | pkcs11.MechanismFlag.DECRYPT,
                template={
                    pkcs11.Attribute.SENSITIVE: True,
                    pkcs11.Attribute.EXTRACTABLE: False,
                    pkcs11.Attribute.PRIVATE: True,
                },
            )
    except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange, pkcs11.PinLocked) as error:
        raise InvalidDocumentError(
            f"the token of {uri.text}", (f"it refuses the PIN in {pin_file}: {_words(error)}",)
        ) from None
    except pkcs11.PKCS11Error as error:
        raise StoreUnavailableError(f"no key could be made as {uri.text}: {_words(error)}") from error


# --- the library ---------------------------------------------------------------------------------------------------


def _library() -> Any:
    try:
        import pkcs11
    except ImportError:
        why = "python-pkcs11 is not installed: pip install 'trenza[pkcs11]'"
        raise InvalidDocumentError("the node key in a token", (why,)) from None
    return pkcs11


def _loaded(pkcs11: Any, module: Path) -> Any:
    try:
        return pkcs11.lib(str(module))
    except (pkcs11.PKCS11Error, OSError) as error:
        raise InvalidDocumentError(f"the PKCS #11 module {module}", (f"it cannot be loaded: {error}",)) from None


def _session(pkcs11: Any, library: Any, uri: TokenKeyUri, pin: str, *, writes: bool) -> Any:
    token = _the_token(pkcs11, library, uri)
    try:
        return token.open(rw=writes, user_pin=pin)
    except pkcs11.UserAlreadyLoggedIn:  # another node of this process is: a login is the whole process's
        return token.open(rw=writes)


def _the_token(pkcs11: Any, library: Any, uri: TokenKeyUri) -> Any:
    wanted: dict[str, Any] = {}
    if uri.token is not None:
        wanted["token_label"] = uri.token
    if uri.serial is not None:
        wanted["token_serial"] = uri.serial.encode()
    try:
        return library.get_token(**wanted)
    except pkcs11.NoSuchToken:
        labels = sorted(token.label for token in library.get_tokens(token_flags=pkcs11.TokenFlag.TOKEN_INITIALIZED))
        there = f"there are {', '.join(labels)}" if labels else "there is none"
        raise StoreUnavailableError(f"the token of {uri.text} is not there ({there})") from None
    except pkcs11.MultipleTokensReturned:
        why = "several tokens are called so: name the one that is meant by serial=NUMBER"
        raise InvalidDocumentError(f"the token of {uri.text}", (why,)) from None


def _template(pkcs11: Any, uri: TokenKeyUri) -> dict[Any, Any]:
    wanted: dict[Any, Any] = {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY}
    if uri.object is not None:
        wanted[pkcs11.Attribute.LABEL] = uri.object
    if uri.id is not None:
        wanted[pkcs11.Attribute.ID] = uri.id
    return wanted


def _the_key(pkcs11: Any, session: Any, uri: TokenKeyUri) -> Any:
    found = list(session.get_objects(_template(pkcs11, uri)))
    if not found:
        why = "the token has no such secret key; `trenza node make-key` makes one"
        raise InvalidDocumentError(f"the node key {uri.text}", (why,))
    if len(found) > 1:
        why = f"the token has {len(found)} such keys: name the one that is meant by its id as well"
        raise InvalidDocumentError(f"the node key {uri.text}", (why,))
    (key,) = found
    mistakes = []
    if key.key_type is not pkcs11.KeyType.AES or key.key_length != _KEY_BITS:
        mistakes.append(f"it is not an AES key of {_KEY_BITS} bits")
    if key[pkcs11.Attribute.EXTRACTABLE]:
        mistakes.append("it may leave its token; `trenza node make-key` makes one that may not")
    if mistakes:
        raise InvalidDocumentError(f"the node key {uri.text}", tuple(mistakes))
    return key


def _pin(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            mode, text = file.stat().st_mode, opened.read(_LONGEST_PIN + 1)
    except OSError as error:
        raise InvalidDocumentError(f"the PIN file {file}", (f"it cannot be read: {error.strerror}",)) from None
    pin = text.decode("utf-8", errors="replace").rstrip("\r\n")
    mistakes = []
    if mode & 0o077:
        mistakes.append("others than its owner may read it: chmod 600")
    if not 0 < len(text) <= _LONGEST_PIN or not pin or "\n" in pin:
        mistakes.append("it does not hold one line, the PIN")
    if mistakes:
        raise InvalidDocumentError(f"the PIN file {file}", tuple(mistakes))
    return pin


def _words(error: Exception) -> str:
    """Return what the token said: the library's errors are the standard's return values by name."""
    return str(error) or type(error).__name__
