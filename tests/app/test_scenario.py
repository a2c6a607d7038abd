"""Scenarios: what ours say, and what happens to those with mistakes."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest

from trenza.app.scenario import Evidence, Scenario, find_scenario, known_scenarios, load_scenario, read_scenario
from trenza.base.errors import InvalidDocumentError
from trenza.core.policy import mistakes_in
from trenza.qkd.physics.devices import DEVICE_CLASSES

MADQCI = {  # Martin et al., npj Quantum Information 10, 80 (2024), Figures 2 and 3: km, dB
    ("Quiron", "Quijote"): (24.5, 8.72),
    ("Quijote", "Quintin"): (24.1, 7.47),
    ("Quijote", "Quevedo"): (7.8, 1.40),
    ("Quevedo", "Norte"): (3.9, 3.0),
    ("Concepcion", "Distrito"): (15.3, 14.3),
    ("Norte", "Distrito"): (15.0, 8.3),
    ("Norte", "Concepcion"): (8.1, 2.9),
    ("Quevedo", "Quijano"): (33.1, 11.8),
    ("Quijano", "Quinto"): (1.9, 2.0),
}
NINE = {name for ends in MADQCI for name in ends}
RING = {"Norte", "Concepcion", "Distrito"}


@pytest.fixture(scope="module")
def spain() -> Scenario:
    return load_scenario("spain")


def mistakes_of(text: str) -> tuple[str, ...]:
    with pytest.raises(InvalidDocumentError) as caught:
        read_scenario(text, source="test")
    return caught.value.mistakes


def reachable(start: str, links: Iterable[tuple[str, str]]) -> set[str]:
    seen = {start}
    links = list(links)
    for _ in links:
        seen |= {name for ends in links if seen & set(ends) for name in ends}
    return seen


# What our scenarios say


def test_madqci_is_exactly_as_published(spain: Scenario) -> None:
    links = {link.ends: link for link in spain.links if set(link.ends) <= NINE}
    assert {ends: (link.length_km, link.loss_db) for ends, link in links.items()} == MADQCI
    assert [link.name for link in links.values()] == [f"L{number}" for number in range(1, 10)]
    assert {(link.evidence, link.loss_evidence) for link in links.values()} == {
        (Evidence.PUBLISHED, Evidence.PUBLISHED)
    }
    assert sum(link.length_km for link in links.values()) == pytest.approx(133.7)


@pytest.mark.parametrize("cut", MADQCI)
def test_within_the_nine_only_the_ring_survives_a_cut(spain: Scenario, cut: tuple[str, str]) -> None:
    left = [link.ends for link in spain.links if set(link.ends) <= NINE and link.ends != cut]
    assert (reachable(cut[0], left) == NINE) == (set(cut) <= RING)


def test_the_network_has_the_published_size(spain: Scenario) -> None:
    regions = [node.region for node in spain.nodes]
    assert regions.count("Madrid") == 30
    assert regions.count("Barcelona") == 3
    assert 35 <= len(regions) <= 40


def test_barcelona_is_a_ring_of_three(spain: Scenario) -> None:
    barcelona = {node.name for node in spain.nodes if node.region == "Barcelona"}
    sides = [set(link.ends) for link in spain.links if set(link.ends) <= barcelona]
    assert barcelona == {"ICFO", "CTTI", "i2CAT"}
    assert len(sides) == 3
    assert all(set(pair) in sides for pair in itertools.combinations(barcelona, 2))


def test_the_network_is_one(spain: Scenario) -> None:
    assert reachable("Torrejon", (link.ends for link in spain.links)) == {node.name for node in spain.nodes}


@pytest.mark.parametrize(
    ("ends", "evidence", "length_km"),
    [
        (("Torrejon", "Alcobendas"), Evidence.ESTIMATED, 26),
        (("Alcobendas", "UPM-Rectorado"), Evidence.ESTIMATED, 18),
        (("El-Escorial", "Canillas"), Evidence.ESTIMATED, 65),
        (("INTA-1", "INTA-2"), Evidence.ESTIMATED, 80),
        (("CSIC-A", "CSIC-B"), Evidence.PUBLISHED, 0.3),
        (("ICFO", "CTTI"), Evidence.PUBLISHED, 30),
        (("ICFO", "i2CAT"), Evidence.PUBLISHED, 44),
        (("CTTI", "i2CAT"), Evidence.INVENTED, 15),
    ],
)
def test_other_links_are_labelled_as_their_sources_allow(
    spain: Scenario, ends: tuple[str, str], evidence: Evidence, length_km: float
) -> None:
    (link,) = (link for link in spain.links if link.ends == ends)
    assert (link.evidence, link.length_km) == (evidence, length_km)
    assert link.loss_evidence is not Evidence.PUBLISHED  # only MadQCI's losses are


def test_what_touches_an_invented_node_is_invented(spain: Scenario) -> None:
    invented = {node.name for node in spain.nodes if node.evidence is Evidence.INVENTED}
    assert {link.evidence for link in spain.links if invented & set(link.ends)} == {Evidence.INVENTED}


def test_losses_that_are_ours_are_those_of_fibre_and_patching(spain: Scenario) -> None:
    fibre = [link for link in spain.links if link.loss_evidence is not Evidence.PUBLISHED and link.name != "FSO1"]
    assert len(fibre) > 30
    for link in fibre:
        assert 0.20 * link.length_km + 1 <= link.loss_db <= 0.25 * link.length_km + 3, link.name


def test_the_free_space_link_gives_its_published_mean_rate(spain: Scenario) -> None:
    assert [link.fixed_rate_bps for link in spain.links if link.fixed_rate_bps] == [500_000]


def test_the_chain_between_the_cities_gives_a_usable_rate(spain: Scenario) -> None:
    corridor = {node.name for node in spain.nodes if node.region == "corridor"}
    spans = [link for link in spain.links if corridor & set(link.ends)]
    assert len(spans) == len(corridor) + 1
    assert all(link.length_km <= 90 for link in spans)
    for link in spans:
        assert DEVICE_CLASSES[link.device_class].expected(link.loss_db).secret_bits_per_second > 50_000, link.name


def test_every_link_starts_with_key_to_give(spain: Scenario) -> None:
    assert all(8_000_000 <= link.initial_stock_bits <= 25_600_000 for link in spain.links)


def test_the_policies_for_the_stories_are_there(spain: Scenario) -> None:
    ladders = {policy.name: policy.ladder for policy in spain.policies}
    assert ladders["bank"] == ("hybrid-catkdf",)
    assert ladders["emergency"] == ("hybrid-catkdf", "exchange-catkdf")
    assert ladders["ministry"][0] == "its"
    assert ladders["local-desk"] == ("local",)
    assert [name for name, ladder in ladders.items() if "qkd-only" in ladder] == ["qkd-only-lab"]


def test_the_bank_can_give_one_key_to_two_targets(spain: Scenario) -> None:
    book = spain.book(1, {node.name: "localhost:1" for node in spain.nodes})
    bank = [sae.name for sae in spain.saes if sae.name.startswith("bank-")]
    assert len(bank) == 3
    for one, other in itertools.combinations(bank, 2):
        policy = book.policy_between(one, other)
        assert policy is not None
        assert policy.name == "bank"


def test_the_emergency_centre_loses_its_shortest_way_with_one_cut_of_the_ring(spain: Scenario) -> None:
    def hops(without: str) -> int:
        links = [link.ends for link in spain.links if link.name != without]
        seen, count = {"Emergencias-112"}, 0
        while "Concepcion" not in seen:
            seen |= {name for ends in links if seen & set(ends) for name in ends}
            count += 1
        return count

    assert hops(without="L7") == hops(without="none") + 1


@pytest.mark.parametrize("name", ["spain", "two-nodes", "three-nodes"])
def test_each_scenario_becomes_a_book_without_contradictions(name: str) -> None:
    scenario = load_scenario(name)
    book = scenario.book(7, {node.name: f"{node.name}.example:7000" for node in scenario.nodes})
    assert mistakes_in(book) == ()
    assert book.version == 7
    assert [node.peer_address for node in book.nodes] == [f"{node.name}.example:7000" for node in scenario.nodes]
    assert [(link.name, link.ends) for link in book.links] == [(link.name, link.ends) for link in scenario.links]
    assert {link.evidence for link in book.links} <= {"published", "estimated", "invented"}
    assert scenario.name == name


def test_alice_and_bob_of_three_nodes_have_no_link() -> None:
    assert [link.ends for link in load_scenario("three-nodes").links] == [("Alice", "Relay"), ("Relay", "Bob")]


# Finding and reading


def test_our_scenarios_are_known_by_name() -> None:
    assert {"spain", "two-nodes", "three-nodes"} <= set(known_scenarios())
    assert find_scenario("spain").name == "spain.toml"


def test_a_scenario_may_be_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SMALL, encoding="utf-8")
    assert load_scenario(str(path)).title == "Small"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InvalidDocumentError, match="did you mean spain"):
        find_scenario("spian")
    with pytest.raises(InvalidDocumentError, match="there are lab-ring, spain, three-nodes, two-nodes") as caught:
        find_scenario("elsewhere")
    assert len(caught.value.mistakes) == 1


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(InvalidDocumentError, match="cannot be read"):
        load_scenario(str(path))


SMALL = """\
name = "small"
title = "Small"

[defaults]
device_class = "cow-class"
initial_stock_bits = 1_000

[[nodes]]
name = "A"
operator = "o"
region = "r"
evidence = "invented"

[[nodes]]
name = "B"
operator = "o"
region = "r"
evidence = "invented"

[[links]]
name = "AB"
ends = ["A", "B"]
length_km = 1
loss_db = 2
evidence = "invented"
loss_evidence = "invented"

[[saes]]
name = "a"
node = "A"

[[saes]]
name = "b"
node = "B"

[[policies]]
name = "p"
ladder = ["hybrid-catkdf"]

[[rules]]
between = ["a", "b"]
policy = "p"
"""


def test_a_link_takes_what_it_does_not_say_from_the_defaults() -> None:
    (link,) = read_scenario(SMALL).links
    assert (link.device_class, link.initial_stock_bits, link.time_factor) == ("cow-class", 1_000, 1.0)
    (link,) = read_scenario(SMALL.replace("loss_db = 2\n", "loss_db = 2\ntime_factor = 5\n")).links
    assert link.time_factor == 5.0


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("x = ", "line 1: Invalid value"),
        ('name = "x"\nb = "', "line 2: Unterminated string"),
        ("\n[[nodes]", "line 2, column 8: Expected"),
        ("a = 1\na = 2\n", "line 2, column 6: Cannot overwrite a value"),
    ],
)
def test_a_syntax_error_is_told_with_its_place(text: str, mistake: str) -> None:
    (told,) = mistakes_of(text)
    assert told.startswith(mistake)


BROKEN = """\
name = "broken"
titel = "Broken"
[[nodes]]
name = "A"
operator = 3
region = "r"
evidence = "guessed"
[[nodes]]
name = "B"
operator = "o"
region = "r"
evidence = "invented"
colour = "red"
[[nodes]]
name = "B"
operator = "o"
region = "r"
evidence = "invented"
[[links]]
name = "AB"
ends = ["A", "Bee"]
length_km = -1
loss_db = nan
evidence = "invented"
loss_evidence = "invented"
[[links]]
name = "BBB"
ends = ["B", "Bx"]
length_km = 1
loss_db = 60
evidence = "invented"
loss_evidence = "invented"
device_class = "cow-clas"
[[links]]
name = "BBBB"
ends = ["B", "B"]
length_km = 1
loss_db = 60
evidence = "invented"
loss_evidence = "invented"
initial_stock_bits = 1.5
[[saes]]
name = "not a name"
node = "B"
[[saes]]
name = "b"
node = "A"
[[policies]]
name = "p"
ladder = []
[[policies]]
name = "q"
ladder = ["hybrid"]
max_key_size = 100
[[rules]]
between = ["b", "nobody"]
policy = "pp"
[[rules]]
between = ["b"]
policy = "p"
"""


def test_all_mistakes_are_told_at_once_with_their_lines() -> None:
    mistakes = mistakes_of(BROKEN)
    expected = [
        "line 1: title: is missing",
        "line 2: titel: no such key; did you mean title?",
        "line 5: nodes.A.operator: Expected `str`, got `int`",
        "line 7: nodes.A.evidence: Invalid enum value 'guessed': published, estimated, invented",
        "line 13: nodes.B.colour: no such key",
        "line 15: nodes: B appears more than once",
        "line 21: links.AB: no node is called Bee; there are A, B",
        "line 22: links.AB.length_km: Expected `float` >= 0.0",
        "line 23: links.AB.loss_db: Expected `float` >= 0.0",
        "line 28: links.BBB: no node is called Bx; did you mean B?",
        "line 33: links.BBB: no device class is called 'cow-clas'; did you mean cow-class?",
        "line 34: links.BBBB: both ends are B",
        "line 38: links.BBBB: decoy-bb84-1ghz makes no key over 60 dB",
        "line 41: links.BBBB.initial_stock_bits: Expected `int`, got `float`",
        "line 43: saes: 'not a name' is not a name",
        "line 50: policies.p: the ladder is empty",
        "line 51: policies.q: sizes are multiples of 8",
        "line 53: policies.q: no recipe is called 'hybrid'",
        "line 56: rules b - nobody: no SAE is called nobody",
        "line 57: rules b - nobody: no policy is called pp",
        "line 59: rules[2].between: Expected `array` of length 2, got 1",
    ]
    missed = [want for want in expected if not any(told.startswith(want) for told in mistakes)]
    assert missed == [], "\n".join(mistakes)
    lines = [int(mistake.split()[1].rstrip(":")) for mistake in mistakes]
    assert lines == sorted(lines)
    assert len(mistakes) == len(expected), "\n".join(mistakes)


def test_what_refers_to_an_unreadable_entry_is_no_second_mistake() -> None:
    assert mistakes_of(SMALL.replace('region = "r"', "region = 1", 1)) == (
        "line 11: nodes.A.region: Expected `str`, got `int`",
    )


def test_a_value_that_cannot_be_read_hides_no_other_mistake_of_its_entry() -> None:
    link = SMALL.replace("loss_db = 2", 'loss_db = "a"').replace('["A", "B"]', '["A", "Bop"]')
    assert mistakes_of(link) == (
        "line 22: links.AB: no node is called Bop; there are A, B",
        "line 24: links.AB.loss_db: Expected `float`, got `str`",
    )
    node = SMALL.replace('name = "B"\noperator = "o"\nregion = "r"', 'name = "A"\noperator = "o"', 1)
    assert [told.partition(": ")[2] for told in mistakes_of(node.replace('"B"', '"A"'))] == [
        "nodes.A.region: is missing",
        "nodes: A appears more than once",
        "links.AB: both ends are A",
        "rules a - b: both are served by A, and policy p does not name the recipe local",
    ]


def test_an_entry_without_a_name_is_called_by_its_number() -> None:
    remedy = "choose other devices, put a node between, or set fixed_rate_bps"
    text = SMALL.replace('name = "AB"\nends = ["A", "B"]', 'ends = ["A", "Bop"]').replace(
        "loss_db = 2", "loss_db = 45"
    )
    assert mistakes_of(text) == (
        "line 20: links[1].name: is missing",
        "line 21: links[1]: no node is called Bop; there are A, B",
        f"line 23: links[1]: cow-class makes no key over 45 dB; {remedy}",
    )
    assert mistakes_of(
        SMALL.replace('between = ["a", "b"]', "between = 3").replace('policy = "p"', 'policy = "q"')
    ) == (
        "line 41: rules[1].between: Expected `array`, got `int`",
        "line 42: rules[1]: no policy is called q; there are p",
    )


@pytest.mark.parametrize("line", SMALL.splitlines()[9:])
def test_a_line_that_is_left_out_is_told_as_that_and_not_as_its_consequences(line: str) -> None:
    if not line or line.startswith("["):
        return
    gone = SMALL.replace(f"{line}\n", "", 1)
    assert any("is missing" in told for told in mistakes_of(gone))
    assert not any("unread" in told for told in mistakes_of(gone))


@pytest.mark.parametrize(
    ("right", "wrong", "mistake"),
    [
        ("loss_db = 2", "loss_db = 45", "line 24: links.AB: cow-class makes no key over 45 dB; choose other devices"),
        (
            'node = "B"',
            'node = "A"',
            "line 42: rules a - b: both are served by A, and policy p does not name the rec",
        ),
        (
            '["hybrid-catkdf"]',
            '["local"]',
            "line 42: rules a - b: policy p is for SAEs of one node, these are of two",
        ),
        ("initial_stock_bits = 1_000", "target_stock_keys = 99", "line 4: defaults: min_segment_keys <= max_segment"),
        (
            "initial_stock_bits = 1_000",
            "max_segment_keys = 1025",
            "line 6: defaults.max_segment_keys: Expected `int`",
        ),
        ("initial_stock_bits = 1_000", "time_factor = 0", "line 6: defaults.time_factor: Expected `float` > 0.0"),
        ('between = ["a", "b"]', 'between = ["a", "a"]', "line 40: rules a - a: an SAE shares no key with itself"),
        ("[[links]]", "[[link]]", "line 20: link: no such key; did you mean links?"),
    ],
)
def test_one_mistake_is_told_once_and_where_it_is(right: str, wrong: str, mistake: str) -> None:
    (told,) = mistakes_of(SMALL.replace(right, wrong))
    assert told.startswith(mistake)


def test_a_fixed_rate_excuses_a_loss_no_device_bridges() -> None:
    text = SMALL.replace("loss_db = 2\n", "loss_db = 45\nfixed_rate_bps = 1000\n")
    assert read_scenario(text).links[0].fixed_rate_bps == 1000


def test_a_network_of_two_parts_is_refused() -> None:
    island = "".join(
        f'[[nodes]]\nname = "{name}"\noperator = "o"\nregion = "r"\nevidence = "invented"\n' for name in "CD"
    )
    bridge = SMALL[SMALL.index("[[links]]") : SMALL.index("[[saes]]")].replace('"AB"', '"CD"')
    text = SMALL + island + bridge.replace('["A", "B"]', '["C", "D"]')
    assert mistakes_of(text) == ("line 43: nodes.C: no link leads from C, D to A",)


def test_a_network_without_nodes_is_refused() -> None:
    assert mistakes_of('name = "x"\ntitle = "x"\n') == ("line 1: nodes: a network has at least one node",)


@pytest.mark.parametrize("text", ["nodes = 3", "nodes = [3]", "defaults = 3", "[nodes]\nname = 'x'"])
def test_a_section_of_another_shape_is_a_mistake(text: str) -> None:
    assert len(mistakes_of(text)) >= 2


def test_a_mistake_in_one_value_names_the_scenario() -> None:
    with pytest.raises(InvalidDocumentError, match=r"^scenario test has 1 mistake:\n  line 24: links\.AB\.loss_db"):
        read_scenario(SMALL.replace("loss_db = 2", 'loss_db = "2"'), source="test")


# Who gets how much


TENANTS = SMALL.replace('node = "B"', 'node = "B"\ntenant = "bank"') + (
    '\n[[tenants]]\nname = "bank"\nmax_keys_per_second = 2.5\nmax_bits_per_day = 1_000_000\nweight = 3\n'
)


def test_classes_and_tenants_go_into_the_book() -> None:
    text = TENANTS.replace('name = "p"\n', 'name = "p"\npriority = 7\nmax_keys_per_second = 10\nburst = 20\n')
    book = read_scenario(text).book(1, {"A": "a:1", "B": "b:1"})
    assert (book.policies[0].priority, book.policies[0].burst) == (7, 20)
    assert [book.tenant_of(sae).weight for sae in book.saes] == [1, 3]


@pytest.mark.parametrize(
    ("right", "wrong", "mistake"),
    [
        ('tenant = "bank"', 'tenant = "bnak"', "line 35: saes.b: no tenant is called bnak; did you mean bank?"),
        ("weight = 3", "weight = 0", "line 45: tenants.bank: weight is 1 to 1000"),
        ('name = "p"\n', 'name = "p"\npriority = 9\n', "line 37: policies.p: priority is one of 0 (best-effort)"),
        ('name = "p"\n', 'name = "p"\nburst = 9\n', "line 37: policies.p: burst without max_keys_per_second"),
    ],
)
def test_a_mistake_in_who_gets_how_much_is_told_with_its_line(right: str, wrong: str, mistake: str) -> None:
    (told,) = mistakes_of(TENANTS.replace(right, wrong))
    assert told.startswith(mistake)
