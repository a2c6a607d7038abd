"""What nodes say through their management doors, as JSON documents of `wire/management`."""

from typing import Any

import msgspec

from trenza.wire import management as wire

MOMENT = "2026-02-03T04:05:06.000000Z"


def use(*, recipe: str = "hybrid-catkdf") -> dict[str, Any]:
    """What a ledger says of keys issued or delivered (core.provenance.KeyRecord)."""
    return {
        "version": 1,
        "segment": "01" * 16,
        "peer": "Bob",
        "window": 4,
        "slots": [0, 1],
        "initiator": "sae-alice",
        "target": "sae-bob",
        "recipe": recipe,
        "size": 256,
        "policy": "default",
        "policy_digest": "ab" * 48,
        "tls_group": "X25519MLKEM768",
        "uncertainty": 50_000_000,
    }


def segment() -> dict[str, Any]:
    """Where strands come from (core.provenance.SegmentRecord, and what follows from it)."""
    return {
        "version": 1,
        "segment": "01" * 16,
        "leader": "Alice",
        "follower": "Bob",
        "issuer": "Alice",
        "slots": 64,
        "origins": ["classical", "pqc", "qkd"],
        "lineage": {
            "exchange": "ef" * 16,
            "scheme": "X448+ML-KEM-1024",
            "transcript": "99" * 96,
            "authentication": ["ml-dsa-65", "root-preshared"],
        },
        "hops": [
            _hop("Alice-Relay", "Alice", "Relay", supply="synthetic", bootstrap="preshared", epsilon=None),
            _hop("Relay-Bob", "Relay", "Bob", supply="warm", bootstrap="computational", epsilon=1e-9),
        ],
        "created": MOMENT,
        "created_ns": 1_770_091_506_000_000_000,
        "uncertainty": 50_000_000,
        "known_to": ["Relay"],
        "supply": "synthetic",
        "epsilon": None,
    }


def _hop(link: str, sender: str, receiver: str, **told: Any) -> dict[str, Any]:
    return {"link": link, "sender": sender, "receiver": receiver, "emulated": True, **told}


def key_statement(
    key_id: object,
    node: str,
    kind: str,
    *,
    sequence: int = 7,
    recipe: str = "hybrid-catkdf",
    drawn: bool = False,
    digest: str = "cd" * 48,
    braids: tuple[str, ...] = (),
) -> Any:
    event = wire.Event(kind, MOMENT, sequence, use(recipe=recipe))
    told = None if drawn else segment()
    return msgspec.to_builtins(
        wire.KeyStatement(str(key_id), node, recipe, 256, (event,), told, "" if drawn else digest, braids)
    )


def exposed_keys(*, sequence: int, recipe: str = "hybrid-catkdf") -> Any:
    return msgspec.to_builtins(wire.ExposedKeys("issued", MOMENT, sequence, use(recipe=recipe), segment()))


def node_status(node: str, peer: str) -> Any:
    return msgspec.to_builtins(
        wire.NodeStatus(
            node=node,
            version="0.1.0",
            epoch=1,
            incarnation=2,
            book_version=3,
            time=MOMENT,
            sessions=(wire.SessionStatus(peer, 4.9, 1, 1),),
            pools=(
                wire.PoolStatus(peer, node, "full", 2_048, 100, 0, 1.5),
                wire.PoolStatus(peer, peer, "full", 1_024, 100, 7, 0.0),
            ),
            links=(
                wire.LinkStatus(
                    f"{min(node, peer)}-{max(node, peer)}",
                    peer,
                    True,
                    (wire.StockStatus(node, 2_000_000, 16_384), wire.StockStatus(peer, 1_000_000, 16_384)),
                    wire.ReadingStatus("running", 0.021, 12_345.0, 6.0, ()),
                ),
            ),
            tls=(wire.TlsStatus("peers", {"X25519MLKEM768": 3}, {}, 1),),
            messages=(wire.MessagesStatus(peer, 10, 11),),
            counters={"keys_issued": 5, "keys_delivered": 4},
            troubles={"fill Bob": "not enough link key"} if node == "Alice" else {},
            ledger=wire.Head(42, "ab" * 48),
        )
    )
