"""A PKCS #11 token in software (SoftHSM), for tests of keys in tokens; skips where it is not installed."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/lib/libsofthsm2.so")
_numbers = itertools.count(1)


@dataclass
class SoftToken:
    """A token of its own, and the file with its PIN."""

    label: str
    module: Path
    pin_file: Path
    folder: Path
    away: Path

    def uri(self, key: str = "node-key") -> str:
        return f"pkcs11:token={self.label};object={key}"

    def take_out(self) -> None:
        self.folder.rename(self.away)

    def put_back(self) -> None:
        self.away.rename(self.folder)

    def set_pin(self, pin: str) -> None:
        self.pin_file.write_text(f"{pin}\n")
        self.pin_file.chmod(0o600)


def module() -> Path:
    """Return SoftHSM's library, or skip."""
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed")
    found = next((Path(path) for path in MODULES if Path(path).is_file()), None)
    if found is None or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM is not installed (apt-get install softhsm2)")
    return found


def soft_tokens(home: Path) -> Iterator[None]:
    """Let SoftHSM keep its tokens in `home`, until the generator goes on."""
    library, before = module(), os.environ.get("SOFTHSM2_CONF")
    (home / "tokens").mkdir()
    config = home / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {home / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(config)
    yield
    import pkcs11

    pkcs11.unload(str(library))  # whoever loads it next reads its configuration anew
    if before is None:
        os.environ.pop("SOFTHSM2_CONF", None)
    else:
        os.environ["SOFTHSM2_CONF"] = before


def new_token(home: Path) -> SoftToken:
    """Make a token, which the library sees from now on."""
    library, label = module(), f"token-{next(_numbers)}"
    tokens = home / "tokens"
    before = set(tokens.iterdir())
    command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "5678", "--pin", "1234"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    (folder,) = set(tokens.iterdir()) - before
    import pkcs11

    pkcs11.lib(str(library)).reinitialize()
    token = SoftToken(label, library, home / f"{label}.pin", folder, home / f"{label}.away")
    token.set_pin("1234")
    return token
