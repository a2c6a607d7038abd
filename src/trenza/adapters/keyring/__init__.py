"""Keys at rest: each segment sealed under a key of its own, which one small overwrite destroys (decision 10).

A stolen store, log, replica or backup opens nothing without the keyring and the node key; once a segment's key is
erased, nothing that is copied afterwards opens that segment. Implements kms.ports.Sealer.

What is not promised: where the disk itself keeps old versions (copy-on-write and log-structured file systems,
snapshots, the spare blocks of an SSD, a virtual disk's layers), an overwritten slot may still be found by whoever
reads the medium below the file. Such a slot opens only with the node key: keep that on another medium, or in memory
at start-up, and what was erased stays closed to a thief of the disk.
"""

from trenza.adapters.keyring.node_key import HeldNodeKey, load_node_key
from trenza.adapters.keyring.sealer import KEYRING_NAME, KeyringSealer
from trenza.adapters.keyring.token import TokenNodeKey, make_token_key
from trenza.adapters.keyring.token_uri import TokenKeyUri

__all__ = [
    "KEYRING_NAME",
    "HeldNodeKey",
    "KeyringSealer",
    "TokenKeyUri",
    "TokenNodeKey",
    "load_node_key",
    "make_token_key",
]
