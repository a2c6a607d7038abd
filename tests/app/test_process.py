"""What a process that holds keys asks of the system; each in a process of its own, since it cannot be undone."""

import asyncio
import subprocess
import sys

import uvloop

from trenza.app.process import loop_factory


def answer_of(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_no_crash_writes_memory_to_a_disk():
    program = "import resource; from trenza.app.process import forbid_core_dumps; forbid_core_dumps(); "
    assert answer_of(program + "print(resource.getrlimit(resource.RLIMIT_CORE))") == "(0, 0)"


def test_as_many_files_are_allowed_as_are_wanted_and_the_system_lets_us():
    program = (
        "import resource; from trenza.app.process import raise_file_limit; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200)); print(raise_file_limit({wanted}))"
    )
    assert answer_of(program.format(wanted=150)) == "150"
    assert answer_of(program.format(wanted=5_000)) == "200"
    assert answer_of(program.format(wanted=50)) == "100"  # never lowered


def test_uvloop_is_used_where_it_is_installed():
    factory = loop_factory()
    assert factory is uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        assert isinstance(runner.get_loop(), uvloop.Loop)


def test_the_garbage_collector_walks_no_more_over_what_was_loaded():
    program = (
        "import gc; from trenza.app.process import spare_what_stays; kept = [[] for _ in range(50_000)]; "
        "spare_what_stays(); print(gc.get_freeze_count() > 50_000 and not any(gc.get_objects(2)))"
    )
    assert answer_of(program) == "True"
