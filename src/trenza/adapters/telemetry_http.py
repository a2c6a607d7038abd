"""The telemetry port of a device that speaks our small JSON over HTTP, as emulated ones do.

Reads, and judges nothing. A device that says nothing raises DeviceUnavailableError, and its keys go on being used.
"""

from __future__ import annotations

from typing import Final

from trenza.base.errors import DeviceUnavailableError, RemoteProtocolError, TrenzaError
from trenza.base.units import Seconds
from trenza.kms.ports import LinkReading
from trenza.net.http_client import HttpClient
from trenza.wire.telemetry import TelemetryReading, TelemetryState, decode_reading

_PATH: Final = "/telemetry/v1/reading"
_TIMEOUT: Final = Seconds(5.0)


class TelemetryHttp:
    """LinkTelemetry over a client that is connected to the device's telemetry port."""

    def __init__(self, client: HttpClient, *, timeout: Seconds = _TIMEOUT) -> None:
        self._client = client
        self._timeout = timeout

    async def read(self) -> LinkReading:
        """Return the last reading; see `LinkTelemetry.read`."""
        try:
            response = await self._client.request("GET", _PATH, timeout_s=self._timeout)
        except TrenzaError as error:
            raise DeviceUnavailableError(f"the device's telemetry did not answer: {error.message}") from error
        if response.status != 200:
            raise DeviceUnavailableError(f"the device's telemetry refused with {response.status}")
        try:
            return _reading(decode_reading(response.body))
        except RemoteProtocolError as error:
            raise DeviceUnavailableError(error.message) from None


def _reading(told: TelemetryReading) -> LinkReading:
    return LinkReading(
        # So many errors that no secret bit remains: to a node that is an attack, whatever the reason.
        state="attacked" if told.state is TelemetryState.QBER_HIGH else told.state.value,
        qber=told.qber,
        secret_bits_per_second=told.secret_bits_per_second,
        loss_db=told.loss_db,
        alarms=tuple(alarm.code for alarm in told.alarms),
    )
