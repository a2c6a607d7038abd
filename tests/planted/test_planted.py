"""The lab finds what is planted: bugs in the code of production, some of which need two faults that come together.

What is hunted takes minutes and is slow; that every patch still applies is looked at with every run of the tests.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from tests.planted.planting import (
    PROJECT,
    SEEDS,
    DoesNotApplyError,
    Hunt,
    Planted,
    all_planted,
    hunt,
    is_found,
    patched,
)

from trenza.lab.plan import AVOIDABLE

ALL = all_planted()
DOCS = (PROJECT / "docs" / "lab.md").read_text(encoding="utf-8")


def names(one: Planted) -> str:
    return one.name


@pytest.mark.parametrize("one", ALL, ids=names)
def test_a_planted_bug_still_applies_and_is_told_of(one: Planted) -> None:
    files = patched(one.diff, PROJECT)
    assert files
    for path, text in files.items():
        compile(text, str(path), "exec")
        assert text != path.read_text(encoding="utf-8")
    re.compile(one.found_by)
    assert {kind for kinds in one.apart for kind in kinds} <= set(AVOIDABLE)
    assert f"| `{one.name}` |" in DOCS


def test_there_are_enough_of_them_and_some_need_two_faults() -> None:
    assert len(ALL) >= 12
    assert sum(bool(one.apart) for one in ALL) >= 3


def test_a_patch_that_does_not_fit_is_refused(tmp_path) -> None:
    diff = "--- a/one.py\n+++ b/one.py\n@@ -1,2 +1,2 @@\n a = 1\n-b = 2\n+b = 3\n"
    (tmp_path / "one.py").write_text("a = 1\nb = 2\n")
    assert patched(diff, tmp_path) == {tmp_path / "one.py": "a = 1\nb = 3\n"}
    for changed in ("a = 1\nb = 4\n", "a = 1\nb = 2\na = 1\nb = 2\n"):
        (tmp_path / "one.py").write_text(changed)
        with pytest.raises(DoesNotApplyError):
            patched(diff, tmp_path)
    with pytest.raises(DoesNotApplyError):
        patched(diff.replace("+b = 3\n", ""), tmp_path)


@pytest.fixture(scope="module")
def hunts() -> Iterator[dict[str, Future[Hunt]]]:
    """Hunt all of them, as many at a time as there are processors."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield {one.name: pool.submit(hunt, one) for one in ALL}
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize("one", ALL, ids=names)
def test_the_lab_finds_a_planted_bug(one: Planted, hunts: dict[str, Future[Hunt]]) -> None:
    result = hunts[one.name].result()
    sys.stdout.write(f"{one.name}: after {result.stories} stories, {result.seconds:.0f} s of a processor\n")
    assert is_found(one, result), f"not in {len(SEEDS)} stories, or by another rule:\n{result.said[-3000:]}"
