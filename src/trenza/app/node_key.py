"""The node key, wherever the configuration says it is: in a file, or in a PKCS #11 token."""

from __future__ import annotations

from pathlib import Path

from trenza.adapters.keyring import HeldNodeKey, TokenKeyUri, TokenNodeKey, load_node_key
from trenza.adapters.keyring import make_token_key as _make_token_key
from trenza.app.config import NodeConfig
from trenza.base.entropy import Entropy
from trenza.kms.ports import NodeKey


def open_node_key(config: NodeConfig, entropy: Entropy | None) -> NodeKey:
    """Open the key under which a node's keys at rest are wrapped; the caller closes it.

    Args:
        config: of the node.
        entropy: makes the file where it is absent; None: nothing is made.

    Raises:
        InvalidDocumentError: the file or the token does not hold such a key, or may not be used so.
        StoreUnavailableError: it cannot be read now.
    """
    if config.token is not None:
        token = config.token
        return TokenNodeKey(token.uri, module=token.module, pin_file=token.pin_file)
    assert config.node_key is not None, "the configuration was checked"
    key = load_node_key(config.node_key, entropy)
    try:
        return HeldNodeKey(key)
    finally:
        key.wipe()


def make_token_key(uri: str, *, module: Path, pin_file: Path) -> None:
    """Make a node key in a token.

    Raises:
        ValueError: `uri` is no name of a key.
        ConflictError, InvalidDocumentError, StoreUnavailableError: see `adapters.keyring.make_token_key`.
    """
    _make_token_key(TokenKeyUri.parse(uri), module=module, pin_file=pin_file)
