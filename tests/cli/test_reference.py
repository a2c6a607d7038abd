"""The page about the command line says what the command line says of itself."""

from pathlib import Path

from trenza.cli.reference import page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


def test_the_page_is_the_help_of_every_command():
    told = "write it anew: python -m trenza.cli.reference > docs/reference/cli.md"
    assert PAGE.read_text(encoding="utf-8") == page(), told
