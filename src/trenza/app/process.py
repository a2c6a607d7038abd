"""What a process that holds key bytes asks of the operating system, before it opens anything."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import sys
import threading
from collections.abc import Callable
from typing import Final

ABANDONED: Final = 70
"""Exit status of a process that ended because whoever had started it was gone."""

_OBJECTS_BETWEEN_WALKS: Final = 10_000


def forbid_core_dumps() -> None:
    """Let no crash write this process's memory to a disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def raise_file_limit(wanted: int) -> int:
    """Allow as many open files as are wanted or as the system lets us; return how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may refuse; what there is must do
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def end_with_input() -> None:
    """End this process at once, as a kill would, when its standard input ends: whoever started it is gone.

    Its own thread looks, so that even a busy event loop leaves no orphan behind.
    """

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4_096):
                pass
        os._exit(ABANDONED)

    threading.Thread(target=wait, name="input", daemon=True).start()


def spare_what_stays() -> None:
    """Let the garbage collector walk no more over what is there now, and walk less often over what comes.

    Call it when everything is loaded: modules, certificates and stock stay for long, and a walk over all of them is a
    pause for every request. What a request leaves behind is freed at once, since it has no cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_WALKS, 10, 10)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's maker of loops where it is installed, else None for asyncio's own."""
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
