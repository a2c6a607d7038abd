"""Who may share keys with whom, made of what: the policy book, signed by the key officer (decisions 3 and 13).

The book is the network's only authority on nodes, links, SAEs and policies. A node takes a book only if the officer
it trusts signed it and its version is greater than the one it has; the controller and the registry's host can
withhold a book but not alter one. Pure: where the book comes from and where it is kept is another's concern.

Nothing degrades silently: a pair's policy is a ladder of recipes, tried from the first to the last, and the recipe
used is told to the application. A pair without a rule may share nothing. The book also says who gets how much where
there is too little: classes, rates, tenants (docs/adr/0016-shares.md).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from trenza.base.errors import AuthenticationError, InvalidDocumentError, InvalidRequestError, StaleError
from trenza.base.names import LinkId, NodeId, SaeId, TenantId, is_name
from trenza.core.priority import DEFAULT, Priority
from trenza.core.recipe import LOCAL, WRAPPED, Recipe, recipe_named

_SIGNATURE_CONTEXT = b"trenza policy book v1"

DEFAULT_TENANT = TenantId("default")
"""Whose an SAE is if nothing is said; it need not be listed."""

_HOW_MUCH = frozenset({"priority", "max_keys_per_second", "burst"})
"""Fields of a policy that say who gets how much, and nothing of what a key is made of."""

_RATE_MAX = 1e9


class NodeEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node of the network and where its peers' listener is."""

    name: NodeId
    peer_address: str  # host:port
    operator: str = ""
    certificate_uri: str = ""  # SAN URI of its certificate; empty: urn:trenza:node:NAME

    @property
    def uri(self) -> str:
        return self.certificate_uri or f"urn:trenza:node:{self.name}"


class LinkEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A QKD link between two adjacent nodes."""

    name: LinkId
    ends: tuple[NodeId, NodeId]
    device_class: str = ""
    evidence: str = "invented"  # "published" | "estimated" | "invented"
    emulated: bool = True


class SaeEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An application: which certificate identity it has and which node serves it."""

    name: SaeId
    node: NodeId
    identity: str = ""  # the one identity its certificate must carry; empty: urn:trenza:sae:NAME
    tenant: TenantId = DEFAULT_TENANT

    @property
    def certificate_identity(self) -> str:
        return self.identity or f"urn:trenza:sae:{self.name}"


class TenantEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A customer: how much its SAEs may ask for as initiators, together, at each node. 0 stands for no limit."""

    name: TenantId
    max_keys_per_second: float = 0.0
    burst: int = 0  # keys at once; 0: one second's worth
    max_bits_per_day: int = 0  # key bits issued between two UTC midnights
    weight: int = 1  # of its share of scarce key, beside other tenants


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """What keys of a pair must be made of, how far that may degrade, and who goes first."""

    name: str
    ladder: tuple[str, ...]  # recipe names, best first; the first that can be served is used
    max_hops: int = 16
    allowed_nodes: tuple[NodeId, ...] = ()  # relays a QKD strand may cross; empty: any node of the book
    max_age_s: int = 86_400  # strands older than this are not used
    key_lifetime_s: int = 3_600  # a key not fetched within this time is destroyed
    min_key_size: int = 64
    max_key_size: int = 4_096
    default_key_size: int = 256
    priority: int = DEFAULT.value  # core.priority.Priority
    max_keys_per_second: float = 0.0  # of each pair, in each direction; 0: no limit
    burst: int = 0  # keys at once; 0: one second's worth

    @cached_property
    def recipes(self) -> tuple[Recipe, ...]:
        return tuple(recipe_named(name) for name in self.ladder)

    @cached_property
    def digest(self) -> bytes:
        """Return the 48 bytes that bind into every key all that this policy says of what keys are made of.

        Who gets how much is left out: it may change while keys wait to be fetched.
        """
        said = {name: getattr(self, name) for name in self.__struct_fields__ if name not in _HOW_MUCH}
        return hashlib.sha384(b"trenza policy v1" + msgspec.json.encode(said, order="sorted")).digest()


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two SAEs may share keys, in both directions, under a policy."""

    between: tuple[SaeId, SaeId]
    policy: str


class Book(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """All that the key officer signs. Lists hold each name once."""

    version: int
    nodes: tuple[NodeEntry, ...]
    links: tuple[LinkEntry, ...]
    saes: tuple[SaeEntry, ...]
    policies: tuple[Policy, ...]
    rules: tuple[Rule, ...]
    revoked: tuple[str, ...] = ()  # SHA-256 fingerprints (hex) of certificates that are refused
    tenants: tuple[TenantEntry, ...] = ()  # those not listed have no limits and the weight 1

    @cached_property
    def node_by_name(self) -> Mapping[NodeId, NodeEntry]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def node_by_uri(self) -> Mapping[str, NodeEntry]:
        return {node.uri: node for node in self.nodes}

    @cached_property
    def link_by_name(self) -> Mapping[LinkId, LinkEntry]:
        return {link.name: link for link in self.links}

    @cached_property
    def sae_by_name(self) -> Mapping[SaeId, SaeEntry]:
        return {sae.name: sae for sae in self.saes}

    @cached_property
    def sae_by_identity(self) -> Mapping[str, SaeEntry]:
        return {sae.certificate_identity: sae for sae in self.saes}

    @cached_property
    def tenant_by_name(self) -> Mapping[TenantId, TenantEntry]:
        return {tenant.name: tenant for tenant in self.tenants}

    def tenant_of(self, sae: SaeEntry) -> TenantEntry:
        """Return the terms of an SAE's tenant. Of a pair across two tenants, those of the initiator's count."""
        return self.tenant_by_name.get(sae.tenant) or TenantEntry(sae.tenant)

    @cached_property
    def revoked_fingerprints(self) -> frozenset[str]:
        return frozenset(self.revoked)

    @cached_property
    def longest_key_lifetime_s(self) -> int:
        """Return how long any key may wait to be fetched, in seconds."""
        return max((policy.key_lifetime_s for policy in self.policies), default=3_600)

    @cached_property
    def _policy_by_pair(self) -> Mapping[frozenset[SaeId], Policy]:
        policies = {policy.name: policy for policy in self.policies}
        return {frozenset(rule.between): policies[rule.policy] for rule in self.rules}

    def policy_between(self, one: SaeId, other: SaeId) -> Policy | None:
        """Return the pair's policy, or None where the book lets them share nothing."""
        return self._policy_by_pair.get(frozenset((one, other)))

    def pairs_of_node(self, node: NodeId) -> Sequence[tuple[SaeEntry, SaeEntry, Policy]]:
        """Return (SAE served by `node`, its partner, their policy) for every rule that names an SAE of `node`."""
        return self._pairs_by_node.get(node, ())

    @cached_property
    def _pairs_by_node(self) -> Mapping[NodeId, Sequence[tuple[SaeEntry, SaeEntry, Policy]]]:
        found: dict[NodeId, list[tuple[SaeEntry, SaeEntry, Policy]]] = {}
        for rule in self.rules:
            policy = self._policy_by_pair[frozenset(rule.between)]
            first, second = (self.sae_by_name[name] for name in rule.between)
            found.setdefault(first.node, []).append((first, second, policy))
            found.setdefault(second.node, []).append((second, first, policy))
        return found

    def partners_of(self, node: NodeId) -> tuple[NodeId, ...]:
        """Return the other nodes with whose SAEs those of `node` may share braided keys; asked all the time."""
        found = self._partners.get(node)
        if found is None:
            others = {
                other.node
                for _, other, policy in self.pairs_of_node(node)
                if other.node != node and any(recipe is not LOCAL for recipe in policy.recipes)
            }
            found = self._partners[node] = tuple(sorted(others))
        return found

    @cached_property
    def _partners(self) -> dict[NodeId, tuple[NodeId, ...]]:
        return {}


class SignedBook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A book as it travels: the exact bytes that were signed, and the officer's ML-DSA-65 signature."""

    body: bytes
    signature: bytes

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @staticmethod
    def decode(text: bytes) -> SignedBook:
        try:
            return msgspec.json.decode(text, type=SignedBook)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidDocumentError("the signed policy book", (str(error),)) from None


def bytes_to_sign(book: Book) -> bytes:
    """Return the body of `book`; sign `message_of(body)`."""
    return msgspec.json.encode(book, order="sorted")


def message_of(body: bytes) -> bytes:
    """Return what the officer's signature covers: the context and the body."""
    return _SIGNATURE_CONTEXT + b"\0" + body


def open_book(signed: SignedBook, *, officer: bytes, newer_than: int) -> Book:
    """Return the book if the officer signed it and it is newer than the one we have.

    Args:
        signed: as it arrived.
        officer: the officer's ML-DSA-65 public key, 1952 raw bytes, pinned in the node's configuration.
        newer_than: the version we have; 0 when we have none.

    Raises:
        AuthenticationError: the signature is not the officer's.
        StaleError: the version does not grow.
        InvalidDocumentError: signed, but it contradicts itself; all mistakes are listed.
    """
    try:
        MLDSA65PublicKey.from_public_bytes(officer).verify(signed.signature, message_of(signed.body))
    except InvalidSignature:
        raise AuthenticationError("the policy book is not signed by the key officer this node trusts") from None
    try:
        book = msgspec.json.decode(signed.body, type=Book)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidDocumentError("the policy book", (str(error),)) from None
    if book.version <= newer_than:
        raise StaleError(f"policy book version {book.version} is not newer than version {newer_than}")
    if mistakes := mistakes_in(book):
        raise InvalidDocumentError(f"policy book version {book.version}", mistakes)
    return book


def mistakes_in(book: Book) -> tuple[str, ...]:
    """Return every contradiction of the book, each naming its entry; empty when there is none."""
    found: list[str] = []
    nodes = _unique(found, "nodes", [node.name for node in book.nodes])
    _unique(found, "links", [link.name for link in book.links])
    saes = _unique(found, "saes", [sae.name for sae in book.saes])
    policies = _unique(found, "policies", [policy.name for policy in book.policies])
    _unique(found, "identities", [sae.certificate_identity for sae in book.saes])
    for link in book.links:
        found += [f"links.{link.name}: no node is called {end}" for end in link.ends if end not in nodes]
        if link.ends[0] == link.ends[1]:
            found.append(f"links.{link.name}: both ends are {link.ends[0]}")
    found += [f"saes.{sae.name}: no node is called {sae.node}" for sae in book.saes if sae.node not in nodes]
    found += _mistakes_in_tenants(book)
    for policy in book.policies:
        found += _mistakes_in_policy(policy, nodes)
    for rule in book.rules:
        one, other = rule.between
        found += [f"rules {one} - {other}: no SAE is called {name}" for name in rule.between if name not in saes]
        if one == other:
            found.append(f"rules {one} - {other}: an SAE shares no key with itself")
        if rule.policy not in policies:
            found.append(f"rules {one} - {other}: no policy is called {rule.policy}")
    _unique(found, "rules", [" - ".join(sorted(rule.between)) for rule in book.rules])
    return tuple(found)


def _mistakes_in_policy(policy: Policy, nodes: frozenset[str]) -> list[str]:
    where = f"policies.{policy.name}"
    found = [f"{where}: no node is called {node}" for node in policy.allowed_nodes if node not in nodes]
    if not policy.ladder:
        found.append(f"{where}: the ladder is empty; a policy names at least one recipe")
    for name in policy.ladder:
        try:
            recipe = recipe_named(name)
        except InvalidRequestError as error:
            found.append(f"{where}: {error}")
        else:
            if recipe is WRAPPED:
                found.append(f"{where}: wrapped is how a key reaches several targets, not a rung of a ladder")
    sizes = (policy.min_key_size, policy.default_key_size, policy.max_key_size)
    if any(size % 8 or size <= 0 for size in sizes) or not sizes[0] <= sizes[1] <= sizes[2] <= 8192:
        found.append(f"{where}: sizes are multiples of 8 with 0 < min <= default <= max <= 8192 bits")
    if policy.max_hops < 1 or policy.max_age_s < 1 or policy.key_lifetime_s < 1:
        found.append(f"{where}: max_hops, max_age_s and key_lifetime_s are at least 1")
    if policy.priority not in set(Priority):
        found.append(f"{where}: priority is one of {', '.join(f'{one.value} ({one})' for one in Priority)}")
    return found + _mistakes_in_rate(where, policy)


def _mistakes_in_tenants(book: Book) -> list[str]:
    found: list[str] = []
    tenants = _unique(found, "tenants", [tenant.name for tenant in book.tenants])
    for tenant in book.tenants:
        where = f"tenants.{tenant.name}"
        found += _mistakes_in_rate(where, tenant)
        if tenant.max_bits_per_day < 0:
            found.append(f"{where}: max_bits_per_day is at least 0; 0 stands for no limit")
        if not 1 <= tenant.weight <= 1_000:
            found.append(f"{where}: weight is 1 to 1000")
    if tenants:
        known = {*tenants, DEFAULT_TENANT}
        unknown = [sae for sae in book.saes if sae.tenant not in known]
        found += [f"saes.{sae.name}: no tenant is called {sae.tenant}" for sae in unknown]
    return found


def _mistakes_in_rate(where: str, limited: Policy | TenantEntry) -> list[str]:
    rate = limited.max_keys_per_second
    if not (math.isfinite(rate) and 0 <= rate <= _RATE_MAX and 0 <= limited.burst <= _RATE_MAX):
        return [f"{where}: max_keys_per_second and burst are 0 (no limit; one second's worth) to {_RATE_MAX:.0f}"]
    if limited.burst and not rate:
        return [f"{where}: burst without max_keys_per_second means nothing"]
    return []


def _unique(found: list[str], what: str, names: list[str]) -> frozenset[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            found.append(f"{what}: {name} appears more than once")
        if what in {"nodes", "links", "saes", "tenants"} and not is_name(name):
            found.append(f"{what}: {name!r} is not a name (1 to 64 characters of RFC 3986)")
        seen.add(name)
    return frozenset(seen)
