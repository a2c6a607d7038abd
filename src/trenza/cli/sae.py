"""`trenza sae`: add an application to a demo network, or take one away, while everything runs.

Uses what only a demo keeps in one place: the application CA's key and the key officer's. On a real network the
officer edits and signs the book (`trenza book`), and the applications' own PKI issues the certificate.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click
import msgspec

from trenza.app.pki import CertificateAuthority, sae_uri
from trenza.app.state_directory import change_ready, file_name
from trenza.base.errors import InvalidDocumentError, InvalidRequestError
from trenza.base.names import NodeId, SaeId, TenantId, is_name
from trenza.cli import suggest
from trenza.cli.book import BOOK_FILE, install_everywhere, read_book, signed_by
from trenza.cli.options import FindSite, json_option, network_options
from trenza.cli.output import show_json
from trenza.core.policy import DEFAULT_TENANT, Book, Rule, SaeEntry

AUTHORITY: Final = ("pki/application-ca.pem", "pki/application-ca.key")
OFFICER_KEY: Final = "officer.key"


@click.group()
def sae() -> None:
    """Add and remove applications of a demo network."""


@sae.command()
@click.argument("name")
@click.option("--node", required=True, metavar="NODE", help="The node that serves it.", shell_complete=suggest.nodes)
@click.option(
    "--with",
    "partners",
    required=True,
    multiple=True,
    metavar="SAE",
    help="With whom it may share keys; may be repeated.",
    shell_complete=suggest.saes,
)
@click.option("--policy", metavar="NAME", help="Under which policy.  [default: the book's first]")
@click.option("--tenant", metavar="NAME", default=DEFAULT_TENANT, show_default=True, help="On whose account.")
@network_options
@json_option
def new(
    name: str,
    node: str,
    partners: tuple[str, ...],
    policy: str | None,
    tenant: str,
    find_site: FindSite,
    as_json: bool,
) -> None:
    """Add an application: its certificate, its entry in the policy book, its rules.

    Nothing restarts. `trenza key get --from NAME --to SAE` works as soon as the nodes have filled its pool.
    """
    site = find_site()
    own = site.own_files()
    before = read_book(own / BOOK_FILE)
    entry = SaeEntry(SaeId(name), NodeId(node), tenant=TenantId(tenant))
    after = with_sae(before, entry, [SaeId(one) for one in partners], policy)
    files = _issue(own, SaeId(name))
    version = install_everywhere(site, signed_by(own / OFFICER_KEY, after))
    told = {"node": node, **{key: str(path) for key, path in files.items()}}
    change_ready(site.ready_file, lambda document: document["saes"].update({name: told}))
    if as_json:
        show_json({"sae": name, "book_version": version, **told})
        return
    click.echo(f"{name} is an application of node {node}, since version {version} of the policy book.")
    click.echo(f"Its certificate: {files['certificate']}")
    click.echo(f"Its first key: trenza key get --from {name} --to {partners[0]}")


@sae.command()
@click.argument("name", shell_complete=suggest.saes)
@network_options
@json_option
def revoke(name: str, find_site: FindSite, as_json: bool) -> None:
    """Take an application away: its rules, its entry, and its certificate's validity."""
    site = find_site()
    own = site.own_files()
    told = site.ready().saes.get(SaeId(name))
    certificate = told.certificate if told else None
    after = without_sae(read_book(own / BOOK_FILE), SaeId(name), certificate)
    version = install_everywhere(site, signed_by(own / OFFICER_KEY, after))
    change_ready(site.ready_file, lambda document: document["saes"].pop(name, None))
    if as_json:
        show_json({"sae": name, "book_version": version, "revoked": True})
    else:
        click.echo(f"{name} shares no more keys, since version {version} of the policy book.")


def with_sae(book: Book, entry: SaeEntry, partners: Iterable[SaeId], policy: str | None) -> Book:
    """Return the next version of the book, with an application more.

    Raises:
        InvalidRequestError: the name is taken or is none, or the book names its tenants and this is none of them.
    """
    name = entry.name
    if not is_name(name):
        raise InvalidRequestError(f"{name!r} is not a name: 1 to 64 characters of RFC 3986")
    if name in book.sae_by_name:
        raise InvalidRequestError(f"the policy book has an application {name} already: choose another name")
    tenants = {DEFAULT_TENANT, *book.tenant_by_name}
    if book.tenants and entry.tenant not in tenants:
        raise InvalidRequestError(f"no tenant is called {entry.tenant}; there are {', '.join(sorted(tenants))}")
    if not book.policies:
        raise InvalidRequestError("the policy book has no policy: add one first (trenza book --help)")
    chosen = policy or book.policies[0].name
    return msgspec.structs.replace(
        book,
        version=book.version + 1,
        saes=(*book.saes, entry),
        rules=(*book.rules, *(Rule((name, partner), chosen) for partner in dict.fromkeys(partners))),
    )


def without_sae(book: Book, name: SaeId, certificate: Path | None) -> Book:
    """Return the next version of the book, without an application; its certificate is refused from then on.

    Raises:
        InvalidRequestError: the book has no such application.
    """
    if name not in book.sae_by_name:
        raise InvalidRequestError(f"no application is called {name}; there are {', '.join(sorted(book.sae_by_name))}")
    revoked = book.revoked if certificate is None else (*book.revoked, _fingerprint(certificate))
    return msgspec.structs.replace(
        book,
        version=book.version + 1,
        saes=tuple(one for one in book.saes if one.name != name),
        rules=tuple(rule for rule in book.rules if name not in rule.between),
        revoked=tuple(dict.fromkeys(revoked)),
    )


def _fingerprint(certificate: Path) -> str:
    from cryptography import x509

    from trenza.net.tls import fingerprint_of

    try:
        return fingerprint_of(x509.load_pem_x509_certificate(certificate.read_bytes()))
    except (OSError, ValueError) as error:
        raise InvalidDocumentError(f"the certificate {certificate}", (str(error),)) from None


def _issue(state: Path, name: SaeId) -> dict[str, Path]:
    certificate, key = (state / file for file in AUTHORITY)
    try:
        authority = CertificateAuthority.load(certificate, key)
    except (OSError, ValueError) as error:
        raise InvalidDocumentError("the application CA of this network", (str(error),)) from None
    folder = state / "pki" / "saes"
    folder.mkdir(mode=0o700, exist_ok=True)
    stem = file_name(name)
    issued = {"certificate": folder / f"{stem}.pem", "private_key": folder / f"{stem}.key", "ca": certificate}
    for file in (issued["certificate"], issued["private_key"]):
        file.unlink(missing_ok=True)  # of an application of that name that the book no longer has
    authority.issue(name, uris=[sae_uri(name)], server=False).save(issued["certificate"], issued["private_key"])
    return issued
