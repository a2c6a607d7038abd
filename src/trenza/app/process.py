"""What a process that holds key bytes asks of the operating system, before it opens anything."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
from collections.abc import Callable


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
