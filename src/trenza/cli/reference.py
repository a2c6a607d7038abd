"""docs/reference/cli.md: the help of every command as one page. A test compares the page with what this returns."""

from __future__ import annotations

from collections.abc import Iterator

import click

from trenza.cli.main import main

_WIDTH = 100
_PREFACE = """\
# The command `trenza`

What `--help` says of every command, and nothing else: `python -m trenza.cli.reference` wrote this page, and a test
compares the two.

- `--json` prints one JSON document on the output stream. A failure is then one JSON document on the error stream,
  `{"error": CODE, "message": SENTENCE}`; the codes are those of [errors.md](errors.md).
- Exit status: 0 done, 1 refused or failed, 2 not understood, 130 interrupted.
- Key bits are printed by `trenza key get --show-key` and by nothing else.
- Where one network runs on this machine, no command needs to be told which.
"""


def page() -> str:
    """Return the whole page."""
    parts = [_PREFACE]
    for path, help_text in _helps(main, None, "trenza"):
        parts.append(f"## {path}\n\n```text\n{help_text}\n```\n")
    return "\n".join(parts)


def _helps(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, str]]:
    settings = {**command.context_settings, "terminal_width": _WIDTH, "max_content_width": _WIDTH}
    ctx = click.Context(command, parent=parent, info_name=name, **settings)
    yield ctx.command_path, command.get_help(ctx).rstrip()
    if isinstance(command, click.Group):
        for sub in command.list_commands(ctx):
            found = command.get_command(ctx, sub)
            assert found is not None
            yield from _helps(found, ctx, sub)


if __name__ == "__main__":
    click.echo(page(), nl=False)
