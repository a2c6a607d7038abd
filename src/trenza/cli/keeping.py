"""`trenza node make-key`: what an operator does for a node's memory on its own machine."""

from __future__ import annotations

from pathlib import Path

import click

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
