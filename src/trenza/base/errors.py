"""The error tree. Errors are an interface: each has a stable `code`, listed in docs/reference/errors.md.

    TrenzaError
     +- InvalidRequestError      the caller asked for something that cannot be (standard: 400)
     |   +- UnknownKeyError      one or more key IDs cannot be returned
     |   +- InvalidDocumentError a scenario, policy book or configuration has mistakes, all listed
     +- UnauthorisedError        the caller may not do this (standard: 401)
     +- UnavailableError         try again later (standard: 503)
     |   +- NotEnoughKeyError    no recipe of the policy can be served now
     |   +- LimitedError         a rate, a quota or a door's limit is reached
     |   +- PeerUnavailableError the other node did not answer in time
     |   +- StoreUnavailableError the store could not commit; what it was to record is doubtful
     |   |   +- FencedError      another instance leads the node now, or the database is another; nothing was written
     |   +- DeviceUnavailableError a QKD device did not answer or refused
     |   +- EntropyError         the random generator is not healthy
     +- RemoteProtocolError      another party broke a protocol
     |   +- AuthenticationError  a tag, signature or certificate did not verify
     |   +- RefusedError         another node refused our request, with its code
     |   +- StaleError           the other party speaks of an older incarnation, epoch or version
     +- MissingOriginError       a slot lacks an origin that the recipe demands
     +- ConflictError            the same thing was recorded before (exactly once)

A caller's bug is `assert` or ValueError; anything else crashes and is restarted. Messages name things, never bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class TrenzaError(Exception):
    """Something happened that a caller must know of."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, details: tuple[Mapping[str, Any], ...] = ()) -> None:
        """Explain what happened.

        Args:
            message: one sentence in the words of the interface's standard where it has them.
            details: name/value pairs for the error body (GS QKD 014 Table 13); never key bytes.
        """
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidRequestError(TrenzaError):
    """The request can never be served as it stands."""

    code = "invalid-request"


class UnknownKeyError(InvalidRequestError):
    """One or more of the key IDs asked for cannot be returned."""

    code = "unknown-key"


class InvalidDocumentError(InvalidRequestError):
    """A document has mistakes; `mistakes` lists all of them, each with its line or key."""

    code = "invalid-document"

    def __init__(self, what: str, mistakes: tuple[str, ...]) -> None:
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__("\n".join((f"{what} has {count}:", *(f"  {m}" for m in mistakes))))
        self.mistakes = mistakes


class UnauthorisedError(TrenzaError):
    """The caller is not who may do this; says no more than that."""

    code = "unauthorised"


class UnavailableError(TrenzaError):
    """It cannot be done now; the same request may succeed later.

    `retry_after` says how many seconds it takes at least, where that is known.
    """

    code = "unavailable"
    retryable = True

    def __init__(
        self, message: str, *, details: tuple[Mapping[str, Any], ...] = (), retry_after: float | None = None
    ) -> None:
        super().__init__(message, details=details)
        self.retry_after = retry_after


class NotEnoughKeyError(UnavailableError):
    """No recipe that the policy allows has enough verified slots under a live lease."""

    code = "not-enough-key"


class LimitedError(UnavailableError):
    """The caller has had as much as it may have in this time; what there is does not matter."""

    code = "limited"


class PeerUnavailableError(UnavailableError):
    """The other party did not answer within the deadline.

    `sent` tells whether it may have heard the request: False means it certainly did not, so the request may be
    repeated; True means that what it did is unknown.
    """

    code = "peer-unavailable"

    def __init__(self, message: str, *, sent: bool = True, details: tuple[Mapping[str, Any], ...] = ()) -> None:
        super().__init__(message, details=details)
        self.sent = sent


class StoreUnavailableError(UnavailableError):
    """The store did not confirm a commit; what was to be recorded is doubtful and is never used again."""

    code = "store-unavailable"


class FencedError(StoreUnavailableError):
    """This instance acts under a lead that is no longer the node's: nothing was written, nor will be under it."""

    code = "fenced"


class DeviceUnavailableError(UnavailableError):
    """The QKD device's key door did not answer, or refused."""

    code = "device-unavailable"


class EntropyError(UnavailableError):
    """The random generator failed its health test: no key output."""

    code = "entropy"
    retryable = False


class RemoteProtocolError(TrenzaError):
    """Another party sent what its protocol forbids."""

    code = "remote-protocol"


class AuthenticationError(RemoteProtocolError):
    """A tag, a signature or a certificate did not verify."""

    code = "authentication"


class RefusedError(RemoteProtocolError):
    """Another node understood our request and refused it; `remote_code` is the code of its error."""

    code = "refused"

    def __init__(self, message: str, *, remote_code: str) -> None:
        super().__init__(message)
        self.remote_code = remote_code


class StaleError(RemoteProtocolError):
    """The other party speaks of an older incarnation, epoch or version than one already seen."""

    code = "stale"


class MissingOriginError(TrenzaError):
    """A slot holds no strand of an origin that the recipe demands; what is there is never braided alone."""

    code = "missing-origin"


class ConflictError(TrenzaError):
    """What was to be recorded once is recorded already."""

    code = "conflict"
