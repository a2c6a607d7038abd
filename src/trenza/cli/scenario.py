"""`trenza scenario`: which networks come with Trenza, and whether a scenario has mistakes."""

from __future__ import annotations

from typing import Any

import click

from trenza.app.scenario import Scenario, known_scenarios, load_scenario
from trenza.cli import suggest
from trenza.cli.options import json_option
from trenza.cli.output import console, show_json, table


@click.group()
def scenario() -> None:
    """List and check scenarios."""


@scenario.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the scenarios that come with Trenza."""
    found = [{**_summary(load_scenario(str(path))), "file": str(path)} for path in known_scenarios().values()]
    if as_json:
        show_json({"scenarios": found})
        return
    columns = ("name", "title", "nodes ", "links ", "applications ")
    out = console()
    out.print(table(columns, [[one[column.strip()] for column in columns] for one in found]))
    out.print("Start one with: trenza up NAME")


@scenario.command()
@click.argument("scenario", metavar="SCENARIO", shell_complete=suggest.scenarios)
@json_option
def check(scenario: str, as_json: bool) -> None:
    """Check a scenario: a file, or the name of one that comes with Trenza. All its mistakes are listed."""
    summary = _summary(load_scenario(scenario))
    if as_json:
        show_json({**summary, "mistakes": []})
        return
    click.echo(
        f"{summary['name']} has no mistakes: {summary['nodes']} nodes, {summary['links']} links, "
        f"{summary['applications']} applications, {summary['rules']} rules."
    )


def _summary(found: Scenario) -> dict[str, Any]:
    return {
        "name": found.name,
        "title": found.title,
        "nodes": len(found.nodes),
        "links": len(found.links),
        "applications": len(found.saes),
        "rules": len(found.rules),
    }
