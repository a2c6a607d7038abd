import stat

import pytest

from trenza.adapters.keyring import load_node_key
from trenza.base.entropy import SystemEntropy
from trenza.base.errors import InvalidDocumentError, StoreUnavailableError


def test_a_node_key_is_made_once_and_read_ever_after(tmp_path) -> None:
    path = tmp_path / "etc" / "node.key"
    first = load_node_key(path, SystemEntropy())
    assert len(first) == 32
    assert load_node_key(path, SystemEntropy()) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["node.key"]


def test_a_node_key_that_others_may_read_is_refused(tmp_path) -> None:
    path = tmp_path / "node.key"
    load_node_key(path, SystemEntropy())
    path.chmod(0o640)
    with pytest.raises(InvalidDocumentError, match="chmod 600"):
        load_node_key(path, SystemEntropy())


def test_a_node_key_of_another_size_is_refused(tmp_path) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(bytes(31))
    path.chmod(0o600)
    with pytest.raises(InvalidDocumentError, match="31 bytes"):
        load_node_key(path, SystemEntropy())


def test_a_place_that_cannot_be_written_is_said(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailableError):
        load_node_key(tmp_path / "file" / "node.key", SystemEntropy())
