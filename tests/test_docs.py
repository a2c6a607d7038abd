"""The documents keep their promises: links lead somewhere, commands exist, lists are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import msgspec
import pytest

from trenza.app import config
from trenza.app.scenario_model import Defaults, Link, Node, Sae, Scenario
from trenza.base import errors
from trenza.cli.main import COMMANDS
from trenza.core.policy import Policy, TenantEntry
from trenza.core.recipe import RECIPES
from trenza.kms.context import Settings
from trenza.wire import peer
from trenza.wire.etsi014 import Demands, KeyExtension

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
REFERENCE = ROOT / "docs" / "reference"

LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def text_of(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    return FENCE.sub("", text_of(page))


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that hosts make of a page's headings."""
    words = (re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()) for heading in HEADING.findall(prose_of(page)))
    return {heading.replace(" ", "-") for heading in words}


def named(page: str | Path) -> set[str]:
    """Return everything that a page puts between backticks."""
    return set(re.findall(r"`([^`\n]+)`", text_of(page)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    broken = []
    for target in LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in anchors_of(found)):
            broken.append(target)
    assert not broken


def test_every_make_command_that_a_page_names_is_in_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    for page in PAGES:
        spelled = re.findall(r"(?:^|`)make ([a-z-]+)", text_of(page), re.MULTILINE)
        assert set(spelled) <= targets, page


def test_every_trenza_command_that_a_page_names_exists():
    for page in PAGES:
        spelled = re.findall(r"(?:^\$? ?|`)trenza ([a-z]+)", text_of(page), re.MULTILINE)
        assert set(spelled) <= COMMANDS.keys(), page


def test_the_readme_names_the_two_commands_of_the_first_hour():
    assert {"make demo", "make test"} <= {
        line.partition("#")[0].strip() for line in text_of("README.md").splitlines()
    }


def test_every_decision_is_in_the_index_under_its_own_title():
    index = text_of("docs/adr/README.md")
    records = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        number, title = re.match(r"# (\d+)\. (.+)", text_of(record)).groups()
        assert int(number) == int(record.name[:4])
        assert f"| [{number}]({record.name}) | {title} |" in index


def test_every_error_code_is_listed_and_no_other():
    def codes(kind: type[errors.TrenzaError]) -> set[str]:
        return {kind.code}.union(*(codes(below) for below in kind.__subclasses__()))

    listed = set(re.findall(r"^\| `([a-z-]+)` \| `\w+` \|", text_of(REFERENCE / "errors.md"), re.MULTILINE))
    assert listed == codes(errors.TrenzaError)


def test_every_counter_is_listed_and_no_other():
    source = "\n".join(text_of(path) for path in sorted((ROOT / "src/trenza").rglob("*.py")))
    subscripts = re.findall(r"ctx\.counters\[([^]]*)\]", source)
    counted = {name for subscript in subscripts for name in re.findall(r'(?<!f)"([a-z_]+)"', subscript)}
    tasks = set(re.findall(r'wanted\["([a-z]+)"', source))
    assert counted
    assert tasks
    first_cells = re.findall(r"^\| (`[^|]+`) \|", text_of(REFERENCE / "metrics.md"), re.MULTILINE)
    listed = {name for cell in first_cells for name in re.findall(r"`([a-z_]+)`", cell)}
    assert listed == counted | {f"failed_{task}_turns" for task in tasks}


def test_every_peer_message_is_described():
    described = named(REFERENCE / "peer-protocol.md")
    messages = {message.__struct_config__.tag for message in peer.PeerMessage.__args__}
    assert messages <= described


@pytest.mark.parametrize("fields", [Demands, KeyExtension])
def test_every_vendor_extension_is_described(fields):
    assert {f"trenza_{name}" for name in fields.__struct_fields__} <= named(REFERENCE / "etsi014.md")


@pytest.mark.parametrize(
    "part", [Scenario, Defaults, Node, Link, Sae, Policy, TenantEntry], ids=lambda part: part.__name__
)
def test_every_key_of_a_scenario_is_described(part):
    sections = {"nodes", "links", "saes", "policies", "rules", "tenants", "defaults"}
    assert set(part.__struct_fields__) - sections <= named(REFERENCE / "scenario.md")


def test_every_recipe_is_described():
    assert {recipe.name for recipe in RECIPES} <= named(REFERENCE / "scenario.md")


def test_every_key_of_a_configuration_is_described():
    described = named(REFERENCE / "node-config.md")
    parts = (
        config.NodeConfig,
        config.TokenConfig,
        config.DatabaseConfig,
        config.ApplicationListener,
        config.DoorLimits,
        config.LinkConfig,
        config.Preshared,
        config.DeviceHostConfig,
        config.DevicePairConfig,
        config.DeviceEndConfig,
    )
    tables = {"application", "peers", "management", "devices", "links", "preshared", "settings", "pairs", "limits"}
    tables |= {"token", "database"}
    for part in parts:
        assert {field.encode_name for field in msgspec.structs.fields(part)} - tables <= described, part
    assert {
        f"[{name}]" for name in ("application", "peers", "management", "devices", "settings", "token", "database")
    } <= described
    assert {f"[[{name}]]" for name in ("links", "preshared", "pairs")} <= described


def test_every_setting_is_listed_with_its_default():
    rows = re.findall(r"^\| `([a-z_]+)` \| ([0-9.]+) \|", text_of(REFERENCE / "node-config.md"), re.MULTILINE)
    defaults = Settings()
    listed = {name: float(value) for name, value in rows}
    assert listed == {name: float(getattr(defaults, name)) for name in Settings.__slots__}


def test_the_pictures_are_as_their_script_draws_them(tmp_path):
    images = ROOT / "docs/img"
    script = tmp_path / "draw.py"
    script.write_text(text_of(images / "draw.py"), encoding="utf-8")
    subprocess.run([sys.executable, script], check=True, timeout=60)
    for picture in images.glob("*.svg"):
        assert (tmp_path / picture.name).read_text(encoding="utf-8") == text_of(picture)


def test_the_house_is_drawn_with_the_rooms_that_the_linter_knows():
    layers = re.search(r"^layers =\n((?:    .+\n)+)", text_of(".importlinter"), re.MULTILINE)[1]
    rooms = set(re.findall(r"\w+", layers))
    drawn = set(re.findall(r'font-weight="600">([^<]+)<', text_of("docs/img/layers.svg")))
    assert drawn == rooms
