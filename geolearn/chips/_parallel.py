"""Do one thing to many items on all cores: in forked processes where that is safe, else in threads."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

WORKERS = max(2, os.cpu_count() or 1)

_PR_SET_PDEATHSIG = 1

_work: Callable[[Any], Any]
"""What forked processes do; they inherit it, so that it need not be picklable."""


def can_fork() -> bool:
    """Whether processes may be forked: on Linux, from the main thread, while nobody else is at work.

    Opening a file with rasterio holds Python's lock, so threads keep two cores busy by three quarters only. A fork
    copies locks that other threads hold; daemon threads (progress bars, notebooks) hold none that reading needs.
    """
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    return (
        sys.platform == 'linux'
        and threading.current_thread() is threading.main_thread()
        and all(thread.daemon for thread in others)
        and not multiprocessing.current_process().daemon
    )


@contextmanager
def workers(work: Callable[[Any], Any], *, fork: bool) -> Iterator[Callable[[Any], Future[Any]]]:
    """Open workers: the function that is given hands them an item; leaving drops what was not begun.

    Args:
        work: What to do; with `fork` items and results must be picklable.
        fork: Use processes, which end with this one, even if it is killed.
    """
    global _work
    _work = work
    pool: Executor
    if fork:
        context = multiprocessing.get_context('fork')
        pool = ProcessPoolExecutor(WORKERS, mp_context=context, initializer=_begin, initargs=(os.getpid(),))
    else:
        pool = ThreadPoolExecutor(WORKERS)

    def submit(item: Any) -> Future[Any]:
        with warnings.catch_warnings() if fork else nullcontext():
            if fork:  # Python warns of forks beside threads, which `can_fork` has looked at
                warnings.simplefilter('ignore', DeprecationWarning)
            return pool.submit(_do, item)

    try:
        yield submit
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _do(item: Any) -> Any:
    return _work(item)


def _begin(parent: int) -> None:
    """Let a forked process end with its parent, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os._exit(1)
