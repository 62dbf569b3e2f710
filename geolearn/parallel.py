"""Do one thing to many items on all cores: in forked processes where that is safe, else in threads.

joblib's loky starts fresh interpreters and pickles the work, and its processes outlive a parent that is killed. Here a
process inherits what the work holds, such as the open file without a name that a pack is written into, starts in
milliseconds, and ends with its parent.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from multiprocessing.reduction import ForkingPickler
from pickle import PickleError
from typing import Any

MOST_WORKERS = 32
"""More do not make a disk faster, and forking a large process takes its time."""


def _count_workers() -> int:
    # what this process may use, which in a container is less than what there is
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(2, min(MOST_WORKERS, cores))


WORKERS = _count_workers()

_PR_SET_PDEATHSIG = 1

_work: Callable[[Any], Any]
"""What this forked process does; it is inherited, so that it need not be picklable. The parent has none."""


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
        work: What to do; with `fork` items, results and errors travel, so they must be picklable. An error that is not
            arrives as a RuntimeError with its text.
        fork: Use processes, which end with this one, even if it is killed; only where `can_fork` says so.
    """
    pool: Executor
    if fork:
        context = multiprocessing.get_context('fork')
        # given to each process and not kept in this one: workers within workers would take each other's
        pool = ProcessPoolExecutor(WORKERS, mp_context=context, initializer=_begin, initargs=(os.getpid(), work))
    else:
        pool = ThreadPoolExecutor(WORKERS)

    def submit(item: Any) -> Future[Any]:
        if not fork:
            return pool.submit(work, item)
        # the first call forks: no Ctrl-C may reach a process before it knows to leave that to this one
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with warnings.catch_warnings():  # Python warns of forks beside threads, which `can_fork` has looked at
                warnings.simplefilter('ignore', DeprecationWarning)
                return pool.submit(_do, item)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    try:
        yield submit
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _do(item: Any) -> Any:
    try:
        return _work(item)
    except BaseException as error:
        # one that cannot be made again over there would break the pool, as if this process had died
        if _travels(error):
            raise
        text = f'{type(error).__name__}: {error}'
    # out of the handler, so that it has no cause: where tblib is installed (by dask), causes travel with an error
    raise RuntimeError(text)


def _travels(error: BaseException) -> bool:
    try:
        ForkingPickler.dumps(error)
        copy(error)  # made again in the way of unpickling
    except (TypeError, AttributeError, ValueError, LookupError, RuntimeError, OSError, PickleError):
        return False
    return True


def _begin(parent: int, work: Callable[[Any], Any]) -> None:
    """Let a forked process end with its parent or at its word, and leave Ctrl-C to it."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler may do anything but end this process
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os._exit(1)
