import profiling
from pairs import Round, Tables, faults_of, server_cpu_us
from scenarios import HUB, hub_and, sae_pairs
from tests.bench.test_load import result


def rounds(server: str, cpu_s: float, *, connections: int = 16, **changed) -> list[Round]:
    process = server if server in {"bare", "floor"} else HUB
    kind = "constant" if process == server else "issue"
    one = result(kind=kind, connections=connections, cpu_s={process: cpu_s}, **changed)
    return [Round(server, 0, one, filled=500, issued=1000)]


def test_the_table_relates_a_request_to_bare_and_floor_of_the_same_round():
    tables = Tables([*rounds("bare", 0.02), *rounds("floor", 0.03), *rounds("issue", 0.06), *rounds("refill", 0.09)])
    lines = {cells[2].strip(): cells for line in tables.requests().splitlines() if (cells := line.split("|"))[1:]}
    assert [lines[name][4].strip() for name in ("bare", "floor", "issue", "refill")] == [
        "20.0",
        "30.0",
        "60.0",
        "90.0",
    ]
    assert lines["floor"][5].strip() == "1.50"
    assert lines["issue"][6].strip() == "2.00"
    assert lines["refill"][6].strip() == "3.00"
    assert lines["refill"][9].strip() == "0.50"


def test_only_the_process_that_answers_is_counted_for_a_request():
    (one,) = rounds("issue", 0.05)
    one.result.cpu_s["Bob"] = 9.0
    assert server_cpu_us([one]) == [50.0]


def test_a_constant_that_repeats_is_no_fault_and_a_key_that_does_is():
    constant, issued = rounds("floor", 0.1, repeated=7), rounds("issue", 0.1, repeated=2, missing=1)
    found = faults_of(one.result for one in [*constant, *issued])
    assert found == {"missing": 1, "different": 0, "repeated": 2, "failed": 0}


def test_the_gain_on_a_slow_disk_is_many_over_one():
    few = rounds("slow", 0.1, connections=1, pairs=100)
    many = rounds("slow", 0.1, connections=64, pairs=900)
    assert "9.00 times the pairs of 1" in Tables([*few, *many]).slow_gain()


def test_a_hub_has_a_link_and_a_rule_for_each_neighbour():
    scenario = hub_and(31)
    assert (len(scenario.nodes), len(scenario.links), len(scenario.rules)) == (32, 31, 31)


def test_every_application_of_one_end_may_share_keys_with_every_one_of_the_other():
    scenario, asked = hub_and(1, near=16, far=625), sae_pairs(16, 625)
    allowed = {rule.between for rule in scenario.rules}
    assert len(allowed) == 10_000
    assert {(near, far) for near, targets in asked for far in targets} == allowed


def test_a_profile_sums_own_and_inherited_samples_by_function_and_thread():
    below = "thread (7): MainThread;main (a.py:1);work"
    main = f"{below} (b.py:10) 3\n{below} (b.py:11);deep (c.py:5) 1\n"
    first, second = profiling.summary(main + "thread (8): store;sync (d.py:2) 9\n").split("## ")[1:]
    assert first.startswith("thread (8): store: 9 samples")
    assert second.startswith("thread (7): MainThread: 4 samples")
    assert "| work (b.py) | 75.0 | 100.0 |" in second
    assert "| main (a.py) | 0.0 | 100.0 |" in second
