"""`trenza key`: fetch keys at both ends, as two applications do.

Speaks ETSI GS QKD 014 to both nodes with the applications' own certificates, over post-quantum TLS only. Key bits
stay here unless --show-key asks for them: comparing is what most people want.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import Any, Final

import click

from trenza.base.errors import InvalidRequestError, RefusedError, RemoteProtocolError
from trenza.base.names import SaeId
from trenza.base.units import bits_of_bytes
from trenza.cli import suggest
from trenza.cli.doors import client_of, context_of
from trenza.cli.options import FindSite, json_option, network_options
from trenza.cli.output import console, show_json, table
from trenza.cli.state import Ready
from trenza.net.http_client import HttpClient
from trenza.wire import etsi014
from trenza.wire.etsi014 import Demands, Key, KeyRequest, Method

_TOLD: Final = ("recipe", "origins", "supply", "strength", "hops")
_TIMEOUT_S: Final = 30.0


@click.group()
def key() -> None:
    """Fetch keys as applications do."""


@key.command()
@click.option(
    "--from", "initiator", metavar="SAE", required=True, help="Who asks for the keys.", shell_complete=suggest.saes
)
@click.option(
    "--to", "target", metavar="SAE", required=True, help="Who fetches them by their IDs.", shell_complete=suggest.saes
)
@click.option("--number", type=click.IntRange(1), default=1, show_default=True, help="How many.")
@click.option("--size", type=click.IntRange(8), metavar="BITS", help="Of each, in bits.  [default: the policy's]")
@click.option("--recipe", metavar="NAME", help="Insist on this recipe: no other is taken.")
@click.option("--show-key", is_flag=True, help="Show the keys themselves (base64). They are secret.")
@network_options
@json_option
def get(
    initiator: str,
    target: str,
    number: int,
    size: int | None,
    recipe: str | None,
    show_key: bool,
    find_site: FindSite,
    as_json: bool,
) -> None:
    """Get keys for two applications, at both ends, and compare them.

    The first application asks its node for new keys, the second asks its own node for the same keys by their IDs.
    """
    request = KeyRequest(number=number, size=size, mandatory=Demands(recipe=recipe))
    fetched = asyncio.run(_fetch(find_site().ready(), SaeId(initiator), SaeId(target), request))
    try:
        document = fetched.document(with_keys=show_key)
        if as_json:
            show_json(document)
        else:
            _show(document)
    finally:
        fetched.wipe()
    if not all(one["equal"] for one in document["keys"]):
        raise RemoteProtocolError("the two ends hold different keys: use none of them, and run `trenza status`")


@dataclass(slots=True)
class _Fetched:
    """The same keys from both ends. Wiped by whoever fetched them."""

    initiator: SaeId
    target: SaeId
    issued: list[Key]
    collected: list[Key]
    tls_groups: tuple[str, str]

    def wipe(self) -> None:
        etsi014.wipe_all(self.issued)
        etsi014.wipe_all(self.collected)

    def document(self, *, with_keys: bool) -> dict[str, Any]:
        far = {key.key_id: key for key in self.collected}
        return {
            "from": self.initiator,
            "to": self.target,
            "tls_group": {"from": self.tls_groups[0], "to": self.tls_groups[1]},
            "keys": [_key_document(key, far.get(key.key_id), with_key=with_keys) for key in self.issued],
        }


def _key_document(key: Key, far: Key | None, *, with_key: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "key_ID": str(key.key_id),
        "bits": bits_of_bytes(len(key.key)),
        "equal": far is not None and far.key == key.key,
    }
    document |= {name: getattr(key.extension, name) for name in _TOLD}
    if with_key:
        document["key"] = base64.b64encode(key.key.view()).decode("ascii")
    return document


async def _fetch(ready: Ready, initiator: SaeId, target: SaeId, request: KeyRequest) -> _Fetched:
    if initiator == target:
        others = ", ".join(sorted(ready.saes.keys() - {initiator}))
        raise InvalidRequestError(
            f"{initiator} needs no keys with itself: let --to be another application ({others})"
        )
    near, far = _client(ready, initiator), _client(ready, target)
    issued: list[Key] = []
    try:
        issued = await _keys(near, Method.GET_KEY, initiator, target, etsi014.encode_key_request(request))
        ids = etsi014.encode_key_ids([key.key_id for key in issued])
        collected = await _keys(far, Method.GET_KEY_WITH_IDS, target, initiator, ids)
    except BaseException:
        etsi014.wipe_all(issued)
        raise
    finally:
        await asyncio.gather(near.aclose(), far.aclose())
    return _Fetched(initiator, target, issued, collected, (_group_of(near), _group_of(far)))


def _client(ready: Ready, sae: SaeId) -> HttpClient:
    files = ready.saes.get(sae)
    if files is None:
        raise InvalidRequestError(f"no application is called {sae}; there are {', '.join(sorted(ready.saes))}")
    return client_of(files.node, ready.nodes[files.node].etsi014, context_of(files))


async def _keys(client: HttpClient, method: Method, caller: SaeId, other: SaeId, body: bytes) -> list[Key]:
    response = await client.request("POST", etsi014.path_of(method, other), body, timeout_s=_TIMEOUT_S)
    if response.status != 200:
        error = etsi014.decode_error(response.body)
        details = "; ".join(f"{name}: {value}" for pair in error.details for name, value in pair.items())
        said = error.message or "without a word"
        raise RefusedError(
            f"the node of {caller} refused ({response.status}): {said}{f' ({details})' if details else ''}",
            remote_code=str(response.status),
        )
    return etsi014.decode_container(response.body)


def _group_of(client: HttpClient) -> str:
    return ", ".join(sorted(client.statistics.completed))


def _show(document: dict[str, Any]) -> None:
    columns = ["key_ID", "equal", "bits ", *_TOLD, *(["key"] if "key" in document["keys"][0] else [])]
    rows = [[_cell(one[column.strip()]) for column in columns] for one in document["keys"]]
    out = console()
    out.print(table(columns, rows))
    groups = sorted(set(document["tls_group"].values()))
    out.print(f"{document['from']} and {document['to']} fetched these over TLS with {' and '.join(groups)}.")
    out.print(f"What protected one: trenza explain {document['keys'][0]['key_ID']}")


def _cell(value: object) -> str:
    match value:
        case None:
            return "not told"
        case bool():
            return "yes" if value else "NO"
        case tuple() | list():
            return " + ".join(map(str, value))
        case _:
            return str(value)
