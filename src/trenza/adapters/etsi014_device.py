"""A QKD device, or any KME, behind ETSI GS QKD 014: one end of a link for the ingest story.

Takes keys and checks that they are what was asked for; judges nothing else. A call that may have consumed keys is
never repeated: what was on its way is lost at both ends and the far end's copies expire.
Standard: ETSI GS QKD 014 V1.1.1, as a client.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

from trenza.base.errors import DeviceUnavailableError, RemoteProtocolError, TrenzaError
from trenza.base.units import Bits, Seconds, bits_of_bytes
from trenza.core.strand import Supply
from trenza.kms.ports import DeviceLimits, RawKey
from trenza.net.http_client import HttpClient
from trenza.wire import etsi014
from trenza.wire.etsi014 import Key, KeyRequest, Method

_TIMEOUT: Final = Seconds(10.0)
_OTHER_KEYS: Final = "the device gave other keys than were asked for"
_LONGEST_QUOTE: Final = 200  # of what a device says in its refusals


class Etsi014Device:
    """LinkDevice over a client that is connected to the device's key door."""

    def __init__(
        self, client: HttpClient, *, slave_sae_id: str, master_sae_id: str, timeout: Seconds = _TIMEOUT
    ) -> None:
        """Speak to a device.

        Args:
            client: connections to its door, with the certificate that names this node there.
            slave_sae_id: how the device calls the far node when we draw.
            master_sae_id: how the device calls the far node when we fetch what it drew; mostly the same.
            timeout: for one call.
        """
        self._client = client
        self._status_path = etsi014.path_of(Method.GET_STATUS, slave_sae_id)
        self._draw_path = etsi014.path_of(Method.GET_KEY, slave_sae_id)
        self._fetch_path = etsi014.path_of(Method.GET_KEY_WITH_IDS, master_sae_id)
        self._timeout = timeout
        self._limits: DeviceLimits | None = None

    async def limits(self) -> DeviceLimits:
        """Ask the device's status.

        Raises:
            DeviceUnavailableError: no answer, or not that of a KME.
        """
        body = await self._call("GET", self._status_path)
        try:
            status = etsi014.decode_status(body)
        except RemoteProtocolError as error:
            raise DeviceUnavailableError(error.message) from None
        if status.max_key_per_request < 1 or status.stored_key_count < 0:
            raise DeviceUnavailableError("the device's status contradicts itself")
        self._limits = DeviceLimits(
            stored_bits=Bits(status.stored_key_count * status.key_size),
            max_keys_per_request=status.max_key_per_request,
            max_key_size=Bits(status.max_key_size),
            min_key_size=Bits(status.min_key_size),
        )
        return self._limits

    async def draw(self, *, number: int, size: Bits) -> list[RawKey]:
        """Take fresh keys, in as many calls as the device's limit makes necessary; see `LinkDevice.draw`."""
        most = await self._most_per_request()
        drawn: list[Key] = []
        try:
            while (missing := number - len(drawn)) > 0:
                request = KeyRequest(number=min(missing, most), size=size)
                keys = await self._keys(self._draw_path, etsi014.encode_key_request(request))
                drawn += keys
                if len(keys) != request.number or any(bits_of_bytes(len(key.key)) != size for key in keys):
                    raise DeviceUnavailableError(_OTHER_KEYS)
            if len({key.key_id for key in drawn}) != number:
                raise DeviceUnavailableError(_OTHER_KEYS)
            return _raw(drawn)
        except BaseException:
            etsi014.wipe_all(drawn)
            raise

    async def fetch(self, key_ids: Sequence[UUID]) -> list[RawKey]:
        """Take the keys that the far end drew, in the order of `key_ids`; see `LinkDevice.fetch`."""
        most = await self._most_per_request()
        fetched: list[Key] = []
        try:
            for first in range(0, len(key_ids), most):
                batch = key_ids[first : first + most]
                keys = await self._keys(self._fetch_path, etsi014.encode_key_ids(batch))
                fetched += keys
                if len(keys) != len(batch) or {key.key_id for key in keys} != set(batch):
                    raise DeviceUnavailableError(_OTHER_KEYS)
            place = {key_id: index for index, key_id in enumerate(key_ids)}
            return _raw(sorted(fetched, key=lambda key: place[key.key_id]))
        except BaseException:
            etsi014.wipe_all(fetched)
            raise

    async def _most_per_request(self) -> int:
        return (self._limits or await self.limits()).max_keys_per_request

    async def _keys(self, path: str, body: bytes) -> list[Key]:
        try:
            return etsi014.decode_container(await self._call("POST", path, body))
        except RemoteProtocolError as error:
            raise DeviceUnavailableError(error.message) from None

    async def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Return the body of a 200; never asks twice."""
        try:
            response = await self._client.request(method, path, body, timeout_s=self._timeout)
        except TrenzaError as error:
            raise DeviceUnavailableError(f"the device's key door did not answer: {error.message}") from error
        if response.status != 200:
            said = etsi014.decode_error(response.body).message[:_LONGEST_QUOTE]
            raise DeviceUnavailableError(f"the device refused with {response.status}: {said!r}")
        return response.body


def _raw(keys: Iterable[Key]) -> list[RawKey]:
    return [RawKey(key.key_id, key.key, _supply(key)) for key in keys]


def _supply(key: Key) -> Supply:
    """Return what the device says of the key; real devices say nothing and give live key."""
    if key.extension.supply is None:
        return Supply.LIVE
    try:
        return Supply(key.extension.supply)
    except ValueError:
        raise DeviceUnavailableError("the device names a supply that does not exist") from None
