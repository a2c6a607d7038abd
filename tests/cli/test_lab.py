"""`trenza lab run`: one JSON line at the end; where a rule is broken, status 1 and the command to see it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from trenza.app.scenario import Scenario
from trenza.cli.main import main
from trenza.lab import campaign, story
from trenza.lab.plan import FAULTS, PLANS
from trenza.lab.story import Outcome

PROGRAM = "from trenza.cli.main import main; main()"
CALM = ("--plan", "calm")


def ran(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["lab", "run", *words])
    return int(ended.value.code or 0)


def test_it_ends_with_one_json_line(capsys) -> None:
    assert ran("lab-ring", "--seeds", "3-4", "--jobs", "1", *CALM) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert out.count("\n") == 1
    assert (told["seeds"], told["violations"], told["harness_failures"]) == (2, 0, 0)
    assert told["keys"] >= 400
    assert told["fewest_keys"] >= PLANS["calm"].keys
    assert set(told["faults"]) == set(FAULTS)
    slots = told["slots"]
    assert slots["filled"] == slots["issued"] + slots["doubtful"] + slots["left"]
    assert "2 of 2 seeds" in err


def test_a_trace_is_the_same_whatever_the_hash_seed_and_the_number_of_processes_changes_nothing(tmp_path) -> None:
    traces, documents = [], []
    command = [sys.executable, "-c", PROGRAM, "lab", "run", "lab-ring", "--seeds", "7-8", "--json"]
    for hash_seed in ("1", "2"):
        trace = tmp_path / hash_seed
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        for more in (["--trace", str(trace)], ["--jobs", hash_seed]):
            done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=True)
            told = json.loads(done.stdout)
            documents.append({key: told[key] for key in told if "seconds" not in key or key == "virtual_seconds"})
        traces.append(trace.read_text())
    assert traces[0] == traces[1]
    assert traces[0].count("# seed") == 2
    assert documents[0]["keys"] > 0
    assert all(document == documents[0] for document in documents)


def test_a_broken_rule_is_told_with_the_command_that_shows_it_again(capsys, monkeypatch) -> None:
    monkeypatch.setattr(story, "broken", lambda *_, **__: ["key 1 was delivered twice"])
    assert ran("lab-ring", "--seeds", "12", "--trace", os.devnull, *CALM) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["violations"] == 1
    assert json.loads(out)["failing_seeds"] == [12]
    assert "key 1 was delivered twice" in err
    assert "trenza lab run lab-ring --seeds 12-12 --plan calm --trace -" in err


def test_it_stops_at_the_first_story_that_fails_where_it_is_told_to(capsys, monkeypatch) -> None:
    monkeypatch.setattr(story, "broken", lambda *_, **__: ["key 1 was delivered twice"])
    assert ran("lab-ring", "--seeds", "12-90", "--trace", os.devnull, "--stop-at-first", *CALM) == 1
    assert json.loads(capsys.readouterr().out)["failing_seeds"] == [12]


def test_a_kind_of_trouble_can_be_left_out(capsys, monkeypatch) -> None:
    monkeypatch.setattr(story, "broken", lambda *_, **__: ["key 1 was delivered twice"])
    kinds = ("kill", "message lost")
    without = [word for kind in kinds for word in ("--without", kind)]
    assert ran("lab-ring", "--seeds", "0-0", "--trace", os.devnull, *without) == 1
    out, err = capsys.readouterr()
    assert [json.loads(out)["faults"][kind] for kind in kinds] == [0.0, 0.0]
    assert json.loads(out)["faults"]["message repeated"] == 1.0
    assert "--seeds 0-0 --without kill --without 'message lost' --trace -" in err


def test_a_kind_of_trouble_that_there_is_not_is_refused(capsys) -> None:
    assert ran("lab-ring", "--seeds", "0-0", "--without", "rain") == 2
    assert "'rain' is none of: kill" in capsys.readouterr().err


def test_the_kinds_of_trouble_are_listed_without_a_story(capsys) -> None:
    assert ran("--without", "list") == 0
    assert {"kill", "message lost"} < {*capsys.readouterr().out.splitlines()}


def test_a_harness_that_falls_over_is_a_failure(capsys, monkeypatch) -> None:
    def falls_over(*_: object) -> None:
        raise ZeroDivisionError("the lab")

    monkeypatch.setattr(campaign, "lived", falls_over)
    assert ran("lab-ring", "--seeds", "1-1", "--trace", os.devnull) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["harness_failures"] == 1
    assert "ZeroDivisionError" in err


def test_what_was_told_before_ctrl_c_is_not_lost(capsys, monkeypatch) -> None:
    real = campaign.lived

    def until_ctrl_c(scenario: Scenario, seed: int, *rest: object) -> Outcome:
        if seed:
            raise KeyboardInterrupt
        return real(scenario, seed, *rest)

    monkeypatch.setattr(campaign, "lived", until_ctrl_c)
    assert ran("lab-ring", "--seeds", "0-1", "--plan", "calm", "--trace", os.devnull) == 130
    out, err = capsys.readouterr()
    assert json.loads(out)["seeds"] == 1
    assert err.endswith("interrupted\n")


def test_a_process_of_the_campaign_that_is_killed_is_a_failure_of_its_seeds(monkeypatch) -> None:
    monkeypatch.setattr(campaign, "_chunk", _killed)
    verdicts = list(campaign.campaign("lab-ring", range(3), plan="calm", jobs=1))
    assert sorted(one.seed for one in verdicts) == [0, 1, 2]
    assert all("was killed" in one.harness for one in verdicts)


def _killed(*_: object) -> None:
    os._exit(9)


@pytest.mark.parametrize("seeds", ["x", "5-4", "-1", "0-99999999", ""])
def test_seeds_that_are_none_are_not_understood(seeds, capsys) -> None:
    assert ran("lab-ring", "--seeds", seeds) == 2
    assert "seed" in capsys.readouterr().err


def test_a_scenario_that_is_not_there_is_told_before_anything_runs(capsys) -> None:
    assert ran("lab-rong", "--seeds", "0-1") == 1
    assert "lab-ring" in capsys.readouterr().err
