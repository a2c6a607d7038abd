"""`trenza node backup`, `restore` and `make-key`: what operators do for a node's memory, on its machine."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from trenza.cli.options import json_option
from trenza.cli.output import console, show_json

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("make-key")
@click.argument("uri")
@click.option("--module", type=_FILE, required=True, help="The token's PKCS #11 library.")
@click.option("--pin-file", type=_FILE, required=True, help="Holds the token's user PIN; mode 0600.")
def make_key(uri: str, module: Path, pin_file: Path) -> None:
    """Make a node key in a PKCS #11 token, which it never leaves.

    URI says where and how it is called: "pkcs11:token=TOKEN;object=KEY" (RFC 7512). The same URI, module and PIN file
    then stand in the node's configuration, under [token].
    """
    from trenza.app.node_key import make_token_key

    try:
        make_token_key(uri, module=module, pin_file=pin_file)
    except ValueError as error:
        raise click.UsageError(f"URI: {error}") from None
    click.echo(f"{uri} is made")


@click.command()
@click.option("--config", "config_file", type=_FILE, required=True, help="What the node is told at its start (TOML).")
@click.option("--to", type=_FOLDER, required=True, help="Where backups are kept; each is a directory there.")
@json_option
def backup(config_file: Path, to: Path, as_json: bool) -> None:
    """Back a node up, while it runs or not.

    Run it on the node's machine, as the node's user. A backup holds the ledger, the policy book and what the node
    knows of itself and its peers. It holds no key, no strand and no link key: a node that is restored from it fills
    its pools anew. The node key and the anchor are never part of it.
    """
    from trenza.app.backup import back_up
    from trenza.app.config import load_node_config
    from trenza.base.clock import SystemClock
    from trenza.base.entropy import SystemEntropy

    config = load_node_config(config_file)
    with _shown(as_json=as_json) as progress:
        place, manifest = back_up(config, to=to, clock=SystemClock(), entropy=SystemEntropy(), progress=progress)
    if as_json:
        show_json({"backup": str(place), "manifest": manifest})
        return
    entries = manifest.ledger_end - manifest.ledger_start
    click.echo(f"{place}: node {manifest.node}, {entries} ledger entries up to {manifest.ledger_end}")


@click.command()
@click.option("--config", "config_file", type=_FILE, required=True, help="What the node is told at its start (TOML).")
@click.option("--from", "source", type=_FOLDER, required=True, help="The backup: a directory with manifest.json.")
@click.option("--without-id-keys", is_flag=True, help="For a lost node key: keys of the past cannot be explained.")
@json_option
def restore(config_file: Path, source: Path, without_id_keys: bool, as_json: bool) -> None:
    """Restore a backup into a node's empty data directory.

    The node must not run. All of the backup is checked first. At its next start the node begins a new epoch without
    strands; its peers notice, and fill pools with it anew. Keep the anchor as it is.
    """
    from trenza.app.config import load_node_config
    from trenza.app.restore import restore as restore_node
    from trenza.base.clock import SystemClock
    from trenza.base.entropy import SystemEntropy

    config = load_node_config(config_file)
    with _shown(as_json=as_json) as progress:
        manifest = restore_node(
            config,
            source=source,
            with_id_keys=not without_id_keys,
            clock=SystemClock(),
            entropy=SystemEntropy(),
            progress=progress,
        )
    if as_json:
        show_json({"data_directory": str(config.data_directory), "manifest": manifest})
        return
    click.echo(f"{config.data_directory}: node {manifest.node} as of {manifest.time}; start it as usual")


@contextlib.contextmanager
def _shown(*, as_json: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show on a terminal how far it is; elsewhere nobody looks."""
    if as_json or not sys.stderr.isatty():
        yield lambda _what, _done, _whole: None
        return
    from rich.progress import Progress, TaskID

    with Progress(console=console(error=True), transient=True) as bars:
        shown: dict[str, TaskID] = {}

        def progress(what: str, done: int, whole: int) -> None:
            if what not in shown:
                shown[what] = bars.add_task(what)
            bars.update(shown[what], completed=done, total=whole)

        yield progress
