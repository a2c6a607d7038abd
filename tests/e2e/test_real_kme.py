"""Nodes pointed at real devices by configuration alone: a vendor's KME pair behind HTTPS, without telemetry."""

from contextlib import ExitStack

import pytest
from msgspec.structs import replace
from tests.e2e import product
from tests.e2e.foreign_kme import MOST_KEYS, End, Fibre, listening

from trenza.app.config import Identity, LinkConfig
from trenza.app.pki import CertificateAuthority, KeyType

ENDS = {"Alice": ("KME-NORTH", "sae.north_1", "keys", True), "Bob": ("KME-SOUTH", "sae.south_1", "Keys", False)}


@pytest.fixture(scope="module")
def vendor(tmp_path_factory):
    """The vendor's own PKI: ECDSA, because its devices know nothing newer."""
    folder = tmp_path_factory.mktemp("vendor")
    authority = CertificateAuthority.create("A vendor", KeyType.ECDSA_P256)
    authority.save(folder / "ca.pem", folder / "ca.key")
    for kme, sae, _, _ in ENDS.values():
        authority.issue(kme, dns_names=[kme.lower()], client=False).save(folder / f"{kme}.pem", folder / f"{kme}.key")
        authority.issue(sae, dns_names=[sae], server=False).save(folder / f"{sae}.pem", folder / f"{sae}.key")
    return folder


@pytest.fixture(scope="module")
def running(vendor, tmp_path_factory):
    """Two nodes whose only link is the vendor's; gives (sites, the two ends)."""
    fibre, ends = Fibre(), {}
    (a, b) = ENDS.values()
    with ExitStack() as stack:
        addresses = {}
        for node, (kme, sae, array, backwards), far in (("Alice", a, b), ("Bob", b, a)):
            ends[node] = End(kme, sae, far[0], far[1], fibre, array, backwards)
            files = (vendor / f"{kme}.pem", vendor / f"{kme}.key", vendor / "ca.pem")
            addresses[node] = stack.enter_context(listening(ends[node], *files))
        sites = stack.enter_context(product.sites("two-nodes", tmp_path_factory.mktemp("real")))
        for node, far in (("Alice", "Bob"), ("Bob", "Alice")):
            configure(sites, node, far, ends[node], addresses[node], vendor)
        sites.start("Alice", "Bob")
        sites.until_issuable("sae-alice", "sae-bob")
        sites.until_issuable("sae-bob", "sae-alice")
        yield sites, ends


def configure(sites, node, far, end, address, vendor):
    link = LinkConfig(
        name="Alice-Bob",
        peer=far,
        device=address,
        device_identity=end.kme.lower(),
        far_sae=end.far_sae,
        classical_tls=True,
    )
    shown = Identity(vendor / f"{end.sae}.pem", vendor / f"{end.sae}.key", vendor / "ca.pem")
    few = {"stock_target": 64, "segment_min": 16, "segment_max": 64, "link_target_units": 512, "reserve_units": 32}
    sites.configure(node, lambda config: replace(config, links=(link,), devices=shown, settings=few))


def test_keys_are_braided_of_its_bits_and_said_to_be_real(running):
    sites, _ = running
    network = sites.network
    given = network.application("sae-alice").keys("sae-bob", number=3)
    assert network.application("sae-bob").fetch("sae-alice", *given) == given
    for key_id in given:
        code, statement = network.manage("Bob", f"/v1/keys/{key_id}")
        assert code == 200, statement
        segment = statement["segment"]
        assert segment["origins"] == ["classical", "pqc", "qkd"]
        assert [(hop["link"], hop["emulated"]) for hop in segment["hops"]] == [("Alice-Bob", False)]
        assert segment["supply"] == "live"


def test_the_answer_says_that_the_supply_is_live(running):
    sites, _ = running
    code, container = sites.network.application("sae-alice").enc("sae-bob")
    assert code == 200
    told = container["keys"][0]["key_extension"]
    assert (told["trenza_recipe"], told["trenza_supply"]) == ("hybrid-catkdf", "live")
    assert set(told["trenza_origins"]) == {"qkd", "pqc", "classical"}


def test_the_vendors_limits_are_kept(running):
    _, ends = running
    assert ends["Alice"].asked["enc_keys", 200] > 0
    assert ends["Bob"].asked["dec_keys", 200] > 0
    refused = [(end.kme, what) for end in ends.values() for what in end.asked if what[1] != 200]
    assert refused == [], f"of {MOST_KEYS} keys at most"


def test_what_one_end_was_given_the_other_has_fetched(running):
    sites, ends = running
    fibre = ends["Alice"].fibre

    def nothing_waits() -> bool:
        with fibre.lock:
            return not fibre.waiting

    product.until("every drawn key fetched at the other end", nothing_waits)
    for node in ENDS:
        assert sites.network.status(node)["counters"].get("link_blocks_altered", 0) == 0


def test_the_device_is_mute_and_the_handshakes_with_it_are_classical(running):
    sites, _ = running
    status = sites.network.status("Alice")
    (link,) = status["links"]
    assert link["reading"] is None
    assert not link["emulated"]
    handshakes = {one["door"]: one["handshakes"] for one in status["tls"]}
    assert set(handshakes["to devices"]) <= {"x25519", "secp256r1"}
    assert set(handshakes["to peers"]) | set(handshakes["peers"]) == {product.HYBRID}
