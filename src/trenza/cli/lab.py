"""`trenza lab`: whole networks of the real code in virtual time, in trouble that a seed decides, judged by histories.

Ends with one JSON line on the output stream; everything else is said on the error stream, where `--trace -` does not
ask for it. A seed that breaks a rule is told with its sentences and with the one command that shows it again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import click
import msgspec
from click.shell_completion import CompletionItem

from trenza.cli import suggest
from trenza.cli.output import plain

if TYPE_CHECKING:  # what it imports takes longer than answering --help
    from trenza.lab.campaign import Tally, Verdict

_SEEDS = re.compile(r"(\d{1,15})(?:-(\d{1,15}))?")
_MOST_SEEDS: Final = 10_000_000
_EVERY: Final = 5.0  # seconds between two lines of progress that nobody watches
_SENTENCES: Final = 5  # of a failing seed
_LIST: Final = "list"
_PLANS: Final = ("rough", "calm", "storm", "instances")


class Seeds(click.ParamType[range]):
    """A seed, or a range with both ends in it."""

    name = "A-B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        if isinstance(value, range):
            return value
        named = _SEEDS.fullmatch(value)
        if named is None:
            self.fail(f"{value!r} is not a seed or a range of seeds like 0-99", param, ctx)
        first, last = int(named[1]), int(named[2] or named[1])
        if last < first:
            self.fail(f"{value!r} ends before it begins", param, ctx)
        if last - first >= _MOST_SEEDS:
            self.fail(f"{value!r} has more than {_MOST_SEEDS} seeds", param, ctx)
        return range(first, last + 1)


class Kind(click.ParamType[str]):
    """A kind of trouble; `list` prints all of them."""

    name = "KIND"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from trenza.lab.plan import AVOIDABLE

        if value == _LIST and ctx is not None:
            click.echo("\n".join(AVOIDABLE))
            ctx.exit()
        if value not in AVOIDABLE:
            self.fail(f"{value!r} is none of: {', '.join(AVOIDABLE)}", param, ctx)
        return str(value)

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        from trenza.lab.plan import AVOIDABLE

        return [CompletionItem(kind) for kind in AVOIDABLE if kind.startswith(incomplete)]


@click.group()
def lab() -> None:
    """Run networks in virtual time, and look for a history that must not be."""


@lab.command("run")
@click.argument("scenario", shell_complete=suggest.scenarios)
@click.option("--seeds", type=Seeds(), required=True, help="Which stories to live through, as 0-99.")
@click.option("--jobs", type=click.IntRange(1, 512), help="Processes at once.  [default: one for each processor]")
@click.option(
    "--plan",
    type=click.Choice(_PLANS),
    default=_PLANS[0],
    show_default=True,
    help="How bad it gets: with every fault, with none, twice as long and worse, or to nodes of two instances.",
)
@click.option(
    "--without",
    type=Kind(),
    multiple=True,
    help="Leave a kind of trouble out, as 'message lost'; may be given several times. `list` tells all kinds.",
)
@click.option("--stop-at-first", is_flag=True, help="Begin no more stories once one has failed.")
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Write every event of every story to this file, in order; - is the output stream.",
)
@click.option("--json", "as_json", is_flag=True, help="Print nothing but the JSON line.")
def run_(
    scenario: str,
    seeds: range,
    jobs: int | None,
    plan: str,
    without: tuple[str, ...],
    stop_at_first: bool,
    trace: Path | None,
    as_json: bool,
) -> None:
    """Live through seeded stories of a whole network and judge their histories.

    SCENARIO is a file, or the name of one that comes with Trenza; `lab-ring` was made for this. Its nodes are the
    real code on a virtual clock, and their network, disks, devices, clocks and processes fail as the seed has it.
    The last line of output is one JSON document. Exit status 1 when a rule was broken or a story could not be told.
    """
    from trenza.app.scenario import load_scenario
    from trenza.lab.campaign import Tally, campaign

    load_scenario(scenario)  # its mistakes are told here, not by every process
    tally, began = Tally(), time.monotonic()
    progress = _Progress(len(seeds), quiet=as_json)
    verdicts = (
        campaign(scenario, seeds, plan=plan, jobs=jobs or os.cpu_count() or 1, without=without)
        if trace is None
        else _traced(scenario, seeds, plan, without, trace)
    )
    try:
        with contextlib.closing(verdicts):
            for verdict in verdicts:
                tally.add(verdict)
                if not as_json:
                    _tell(verdict, scenario, plan, without)
                progress.show(tally)
                if stop_at_first and tally.failing:
                    break
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True  # what the stories told until then is worth reading
    document = tally.document(scenario=scenario, plan=plan, seconds=time.monotonic() - began)
    click.echo(msgspec.json.encode(document).decode())
    if interrupted:
        raise click.Abort
    if tally.failing:
        sys.exit(1)


def _traced(
    scenario: str, seeds: range, plan: str, without: tuple[str, ...], trace: Path
) -> Generator[Verdict, None, None]:
    """Live through the seeds here, one after another, and write down every event."""
    from trenza.app.scenario import load_scenario
    from trenza.lab.campaign import judged

    found = load_scenario(scenario)
    with _nodes_silent(), click.open_file(str(trace), "w", encoding="utf-8") as file:
        for seed in seeds:
            verdict, outcome = judged(found, seed, plan, without)
            if outcome is not None:
                _write(file, seed, outcome.history.trace())
            yield verdict


@contextlib.contextmanager
def _nodes_silent() -> Iterator[None]:
    """Let nodes complain to nobody: what they meet is in the trace."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _write(file: IO[Any], seed: int, lines: Iterator[str]) -> None:
    file.write(f"# seed {seed}\n")
    file.writelines(f"{line}\n" for line in lines)
    file.flush()


def _tell(verdict: Verdict, scenario: str, plan: str, without: tuple[str, ...]) -> None:
    """Say what is wrong with a seed, if anything is."""
    if not verdict.violations and not verdict.harness:
        return
    again = f"trenza lab run {shlex.quote(scenario)} --seeds {verdict.seed}-{verdict.seed}"
    if plan != _PLANS[0]:
        again += f" --plan {plan}"
    again += "".join(f" --without {shlex.quote(kind)}" for kind in without)
    lines = [f"seed {verdict.seed} breaks {len(verdict.violations)} rules:" if verdict.violations else ""]
    lines += [f"  {sentence}" for sentence in verdict.violations[:_SENTENCES]]
    if len(verdict.violations) > _SENTENCES:
        lines.append(f"  and {len(verdict.violations) - _SENTENCES} more")
    if verdict.harness:
        lines.append(f"seed {verdict.seed}: the lab itself failed:\n{verdict.harness.rstrip()}")
    lines.append(f"  to see it again: {again} --trace -")
    click.echo("\n".join(plain(line) for line in lines if line), err=True)


class _Progress:
    """A line now and then; on a terminal, one line that changes."""

    def __init__(self, seeds: int, *, quiet: bool) -> None:
        self._seeds = seeds
        self._quiet = quiet
        self._began = self._told = time.monotonic()

    def show(self, tally: Tally) -> None:
        now, last = time.monotonic(), tally.seeds == self._seeds
        watched = sys.stderr.isatty()
        if self._quiet or not (last or now - self._told > (0.2 if watched else _EVERY)):
            return
        self._told = now
        rate = tally.seeds / max(0.001, now - self._began)
        line = f"{tally.seeds} of {self._seeds} seeds, {tally.keys} keys, {tally.violations} violations, {rate:.1f}/s"
        click.echo(f"\r{line}\x1b[K" if watched and not last else line, err=True, nl=last or not watched)
