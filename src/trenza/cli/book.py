"""`trenza book`: read, sign and install the policy book, the network's only authority on who may share keys.

Signing needs the key officer's private key and no network: it may happen on another machine. Installing needs no
private key of the officer: each node checks the signature and that the version grows.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
import msgspec

from trenza.app.pki import load_officer_key
from trenza.base.errors import InvalidDocumentError, RefusedError, StaleError, TrenzaError
from trenza.base.names import NodeId
from trenza.cli.doors import Doors
from trenza.cli.options import FindSite, json_option, network_options
from trenza.cli.output import console, counted, show_json, table
from trenza.cli.state import Ready, Site, write_whole
from trenza.core.policy import Book, Policy, SignedBook, TenantEntry, bytes_to_sign, message_of, mistakes_in
from trenza.core.priority import Priority
from trenza.wire.management import BookTaken

BOOK_FILE = "book.json"
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def book() -> None:
    """Read, sign and install the policy book.

    \b
    To change it:
      trenza book show --json > book.json
      (edit book.json)
      trenza book sign book.json --bump --key officer.key -o signed.json
      trenza book install signed.json
    """


@book.command()
@click.option("--file", type=_FILE, help="A book in a file, signed or not, in place of the network's.")
@network_options
@json_option
def show(file: Path | None, find_site: FindSite, as_json: bool) -> None:
    """Show who may share keys with whom. With --json: the book as it can be edited and signed."""
    source = file or find_site().own_files() / BOOK_FILE
    found = read_book(source)
    if as_json:
        show_json(found)
        return
    out = console()
    nodes, links = counted(len(found.nodes), "node"), counted(len(found.links), "link")
    out.print(f"Policy book version {found.version}: {nodes}, {links}.")
    saes = [(sae.name, sae.node, sae.tenant, sae.certificate_identity) for sae in found.saes]
    out.print(table(("application", "node", "tenant", "certificate"), saes))
    policies = {policy.name: policy for policy in found.policies}
    rules = [(*rule.between, *_terms(policies[rule.policy])) for rule in found.rules]
    out.print(table(("may share", "with", "policy", "recipes", "class", "keys/s"), rules))
    if found.tenants:
        tenants = [(one.name, _rate(one), one.max_bits_per_day or "any", one.weight) for one in found.tenants]
        out.print(table(("tenant", "keys/s at a node", "bits a day", "weight"), tenants))
    out.print(f"Revoked certificates: {len(found.revoked)}.")


@book.command()
@click.argument("file", type=_FILE)
@click.option("--key", "key_file", type=_FILE, required=True, help="The key officer's private key (PEM).")
@click.option("-o", "--output", type=_FILE, required=True, help="Where to write the signed book.")
@click.option("--bump", is_flag=True, help="Raise the version by one first: nodes take only newer books.")
@json_option
def sign(file: Path, key_file: Path, output: Path, bump: bool, as_json: bool) -> None:
    """Check a book and sign it as the key officer."""
    found = read_book(file)
    if bump:
        found = msgspec.structs.replace(found, version=found.version + 1)
    write_whole(output, signed_by(key_file, found).encode())
    if as_json:
        show_json({"version": found.version, "file": str(output)})
    else:
        click.echo(f"Signed version {found.version}: {output}. Install it with: trenza book install {output}")


@book.command()
@click.argument("file", type=_FILE)
@network_options
@json_option
def install(file: Path, find_site: FindSite, as_json: bool) -> None:
    """Hand a signed book to every node of a network, without a restart."""
    signed, site = read_signed(file), find_site()
    installed = install_everywhere(site, signed)
    if as_json:
        show_json({"version": installed, "nodes": sorted(site.ready().nodes)})
    else:
        click.echo(f"Every node follows version {installed} of the policy book.")


def _terms(policy: Policy) -> tuple[str, str, str, str]:
    priority = Priority(policy.priority)
    return policy.name, " then ".join(policy.ladder), f"{priority.value} {priority}", _rate(policy)


def _rate(limited: Policy | TenantEntry) -> str:
    if not limited.max_keys_per_second:
        return "any"
    burst = f", {limited.burst} at once" if limited.burst else ""
    return f"{limited.max_keys_per_second:g}{burst}"


def read_book(file: Path) -> Book:
    """Return the book in a file, signed or not; whoever signed it is for the nodes to check.

    Raises:
        InvalidDocumentError: the file holds none, or the book has mistakes; all are listed.
    """
    text = _read(file)
    try:
        members = msgspec.json.decode(text)
        if isinstance(members, dict) and "signature" in members:
            text = SignedBook.decode(text).body
        found = msgspec.json.decode(text, type=Book)
    except msgspec.DecodeError as error:
        raise InvalidDocumentError(f"the policy book {file}", (str(error),)) from None
    if mistakes := mistakes_in(found):
        raise InvalidDocumentError(f"the policy book {file}", mistakes)
    return found


def read_signed(file: Path) -> SignedBook:
    """Return the signed book in a file.

    Raises:
        InvalidDocumentError: the file holds none.
    """
    return SignedBook.decode(_read(file))


def signed_by(key_file: Path, found: Book) -> SignedBook:
    """Return the book, checked and signed with the key officer's private key.

    Raises:
        InvalidDocumentError: the book has mistakes, or the file holds no such key.
    """
    if mistakes := mistakes_in(found):
        raise InvalidDocumentError(f"version {found.version} of the policy book", mistakes)
    try:
        officer = load_officer_key(key_file)
    except (OSError, ValueError) as error:
        raise InvalidDocumentError("the key officer's private key", (str(error),)) from None
    body = bytes_to_sign(found)
    return SignedBook(body, officer.sign(message_of(body)))


def install_everywhere(site: Site, signed: SignedBook) -> int:
    """Hand a signed book to every node, and keep it in a network's own files; return its version.

    Raises:
        RefusedError: nodes refused it; nodes that did not will tell their peers all the same.
    """
    answers = asyncio.run(_put(site.ready(), signed))
    failed = {node: error for node, error in answers.items() if isinstance(error, TrenzaError)}
    if len(failed) < len(answers):
        if site.state is not None:
            write_whole(site.state / BOOK_FILE, signed.encode())
        # A peer that took it a moment ago may have handed it on before we asked.
        failed = {node: error for node, error in failed.items() if not _is_stale(error)}
    if failed:
        told = "; ".join(dict.fromkeys(_said(node, error) for node, error in failed.items()))
        first = next(iter(failed.values()))
        code = first.remote_code if isinstance(first, RefusedError) else first.code
        raise RefusedError(f"{len(failed)} of {len(answers)} nodes did not take the book: {told}", remote_code=code)
    return msgspec.json.decode(signed.body, type=Book).version


async def _put(ready: Ready, signed: SignedBook) -> dict[NodeId, BookTaken | TrenzaError]:
    async with Doors(ready) as doors:
        return await doors.ask_all("/v1/book", BookTaken, method="PUT", body=signed.encode())


def _is_stale(error: TrenzaError) -> bool:
    return isinstance(error, RefusedError) and error.remote_code == StaleError.code


def _said(node: NodeId, error: TrenzaError) -> str:
    return error.message if isinstance(error, RefusedError) else f"node {node}: {error.message}"


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidDocumentError(f"the policy book {file}", (f"it cannot be read: {error.strerror}",)) from None
