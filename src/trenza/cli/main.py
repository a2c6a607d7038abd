"""The command `trenza`: which command is meant, and what people read when it fails.

Commands are imported when they are called, so that help and completion answer at once. A failure is one sentence
that says what to do next, on the error stream; with --json it is one JSON document there. Exit status: 0 done,
1 refused or failed, 2 not understood, 130 interrupted.
"""

from __future__ import annotations

import sys

try:  # a Ctrl-C that comes this early is answered like any other
    import difflib
    import traceback
    from collections.abc import Sequence
    from importlib import import_module
    from typing import Any, Final, NamedTuple, NoReturn

    import click
    from click.shell_completion import CompletionItem

    from trenza import __version__
    from trenza.base.errors import InvalidDocumentError, RefusedError, TrenzaError
    from trenza.cli.output import show_error
except KeyboardInterrupt:
    sys.stderr.write("Error: interrupted\n")
    sys.exit(130)


class Entry(NamedTuple):
    """Where a command is, and its line in the list of commands."""

    module: str
    help: str


COMMANDS: Final = {
    "up": Entry("up", "Start a whole emulated network, and keep it until Ctrl-C."),
    "ps": Entry("networks", "List the networks that run on this machine."),
    "down": Entry("networks", "Stop a network that `trenza up` started, and wait until it has."),
    "status": Entry("status", "Show nodes, pools, links and troubles."),
    "key": Entry("key", "Fetch keys as applications do."),
    "explain": Entry("explain", "Tell what protected a key."),
    "exposed": Entry("explain", "List the keys whose QKD bits crossed a node."),
    "audit": Entry("audit", "Check that no ledger entry was deleted or altered."),
    "ledger": Entry("audit", "Take a node's ledger away."),
    "sae": Entry("sae", "Add and remove applications of a demo network."),
    "book": Entry("book", "Read, sign and install the policy book."),
    "scenario": Entry("scenario", "List and check scenarios."),
    "lab": Entry("lab", "Run networks in virtual time, and look for a history that must not be."),
    "node": Entry("node", "Run one node from its configuration."),
    "devices": Entry("node", "Run emulated QKD devices from their configuration."),
    "completion": Entry("completion", "Print the completion script of a shell."),
}
"""In the order in which they are learnt."""

FAILED: Final = 1
INTERRUPTED: Final = 130


class Commands(click.Group):
    """The commands, imported when called; and the one place where errors become words."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        found = getattr(import_module(f"trenza.cli.{entry.module}"), cmd_name)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [CompletionItem(name, help=one.help) for name, one in COMMANDS.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else "'trenza --help' lists the commands."
            ctx.fail(f"No such command '{args[0]}'. {hint}")
        return super().resolve_command(ctx, args)

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **extra: Any
    ) -> NoReturn:
        """Run the command that `args` name, and exit with its status."""
        words = list(sys.argv[1:] if args is None else args)
        extra.pop("standalone_mode", None)
        as_json = "--json" in words
        try:
            status = super().main(words, prog_name or "trenza", standalone_mode=False, **extra)
        except TrenzaError as error:
            if "--debug" in words:
                traceback.print_exc()
            show_error(error.code, error.message, as_json=as_json, **_for_programs(error))
            status = FAILED
        except click.UsageError as error:
            if as_json:
                show_error("usage", error.format_message(), as_json=True)
            else:
                error.show()
            status = error.exit_code
        except click.ClickException as error:
            show_error("input", error.format_message(), as_json=as_json)
            status = error.exit_code
        except click.Abort:
            show_error("interrupted", "interrupted", as_json=as_json)
            status = INTERRUPTED
        except BrokenPipeError:  # the reader of our output has gone, as `head` does
            sys.stdout = None  # nothing is flushed into it at exit
            status = FAILED
        except OSError as error:
            if "--debug" in words:
                traceback.print_exc()
            show_error("system", _of_the_system(error), as_json=as_json)
            status = FAILED
        sys.exit(status if isinstance(status, int) else 0)


def _for_programs(error: TrenzaError) -> dict[str, object]:
    match error:
        case RefusedError():
            return {"remote_code": error.remote_code}
        case InvalidDocumentError():
            return {"mistakes": error.mistakes}
        case _:
            return {}


def _of_the_system(error: OSError) -> str:
    """Return which file it is, and what the operating system says of it."""
    files = [str(file) for file in (error.filename, error.filename2) if file is not None]
    return ": ".join((" -> ".join(files), error.strerror or str(error))) if files else error.strerror or str(error)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", prog_name="trenza", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
def main(debug: bool) -> None:  # `debug` is read from the words themselves, where errors are shown
    """Keys for applications, braided of quantum, post-quantum and classical secrets.

    \b
    Begin with:
      trenza up two-nodes                             a small network (trenza up spain: a national one)
      trenza key get --from sae-alice --to sae-bob    in another terminal: a key, fetched at both ends
      trenza explain KEY_ID                           what protected it
    """
