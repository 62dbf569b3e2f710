"""A queue of jobs: a few run, some wait, finished ones are kept for a while; each has progress and can be cancelled."""

import logging
import queue
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from geolearn.errors import GeoLearnError
from geolearn.progress import ProgressBar, report_progress
from geolearn.serve.rasters import Limits, RefusedError, as_shown_to_clients

log = logging.getLogger('geolearn')

INTERNAL = 'this is an error of the server, not of the request; its log says more'


class State(StrEnum):
    """Where a job is."""

    QUEUED = 'queued'
    RUNNING = 'running'
    DONE = 'done'
    FAILED = 'failed'
    CANCELLED = 'cancelled'

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens."""
        return self in (State.DONE, State.FAILED, State.CANCELLED)


class _CancelledError(Exception):
    """Ends the work of a job."""


class Job:
    """One request: rasters, options, and in time a result.

    Args:
        folder: Of its own; removed with the job.
        keep_seconds: How long it is kept after its end.
    """

    def __init__(self, folder: Path, keep_seconds: float) -> None:
        self.id, self.folder, self.keep_seconds = folder.name, folder, keep_seconds
        self.sources: tuple[Path, ...] = ()
        self.names: tuple[str, ...] = ()
        self.options: Mapping[str, Any] = {}
        self.state, self.progress, self.message = State.QUEUED, 0.0, ''
        self.internal = False
        """Whether it failed by a mistake that is not the client's."""
        self.result: Path | None = None
        self.cancelled = False
        self.started = self.ended = 0.0
        self.seconds_left: float | None = None

    def report(self, bar: ProgressBar) -> None:
        """Take in how far the work is.

        Raises:
            _CancelledError: If the job is not wanted any more.
        """
        self.progress, self.seconds_left = bar.share, bar.seconds_left
        if self.cancelled:
            raise _CancelledError

    @property
    def places(self) -> list[tuple[Path, str]]:
        """Paths that messages may hold, and what the client knows them as."""
        return [*zip(self.sources, self.names), (self.folder, 'the result')]


Work = Callable[[Job], Path]
"""Does a job and returns the file of its result."""


class JobQueue:
    """Jobs of all clients. A context manager: leaving it ends the jobs and removes their files.

    Args:
        workers: One function for each job that runs at a time.
        limits: How many may wait, how many are kept and how long.
        clock: Seconds that never go back.
    """

    def __init__(self, workers: Sequence[Work], limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers, self._limits, self._clock = workers, limits, clock
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._reserved = 0
        self._todo: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> 'JobQueue':
        self._folder = tempfile.TemporaryDirectory(prefix='geolearn-serve-')
        targets = [(self._serve, (work,)) for work in self._workers]
        self._threads = [threading.Thread(target=run, args=rest, daemon=True) for run, rest in targets]
        self._threads.append(threading.Thread(target=self._clean, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        with self._lock:
            for job in self._jobs.values():
                job.cancelled = True
        for _ in self._workers:
            self._todo.put(None)
        for thread in self._threads:
            thread.join(timeout=30)
        if self._folder is not None:
            self._folder.cleanup()

    @contextmanager
    def reserve(self) -> Iterator[Job]:
        """Take a place in the queue for a job whose rasters are on their way; it is free again unless submitted.

        Raises:
            RefusedError: If all are taken.
        """
        with self._lock:
            waiting = sum(job.state == State.QUEUED for job in self._jobs.values())
            if waiting + self._reserved >= self._limits.waiting:
                raise RefusedError(f'{self._limits.waiting} jobs wait already; try again later', 503)
            self._reserved += 1
        assert self._folder is not None
        folder = Path(self._folder.name) / secrets.token_hex(12)
        folder.mkdir(mode=0o700)
        job = Job(folder, self._limits.keep_seconds)
        try:
            yield job
        finally:
            with self._lock:
                self._reserved -= 1
                submitted = job.id in self._jobs
            if not submitted:
                shutil.rmtree(folder, ignore_errors=True)

    def submit(self, job: Job) -> None:
        """Let a job wait for a worker; to be called inside `reserve`."""
        with self._lock:
            self._jobs[job.id] = job
        self._todo.put(job)

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            RefusedError: If there is none of this id, or it has expired.
        """
        self.remove_expired()
        with self._lock:
            job = self._jobs.get(job_id)
        if job is None:
            hours = f'{self._limits.keep_seconds:g} s after their end'
            raise RefusedError(f'there is no such job; jobs are removed {hours}', 404)
        return job

    def jobs(self) -> list[Job]:
        """Return all jobs, the oldest first."""
        self.remove_expired()
        with self._lock:
            return [*self._jobs.values()]

    def cancel(self, job_id: str) -> Job:
        """End a job that waits or runs, which takes until its next tile; remove one that is over, with its files."""
        job = self.get(job_id)
        with self._lock:
            job.cancelled = True
            if job.state == State.QUEUED:
                self._end(job, State.CANCELLED)
            elif job.state.is_over:
                self._jobs.pop(job_id, None)
                shutil.rmtree(job.folder, ignore_errors=True)
        return job

    def count(self, state: State) -> int:
        """Return how many jobs are in a state."""
        with self._lock:
            return sum(job.state == state for job in self._jobs.values())

    @property
    def workers(self) -> int:
        """How many jobs run at a time."""
        return len(self._workers)

    def remove_expired(self) -> None:
        """Remove jobs that ended long ago, and the oldest of too many, with their files."""
        with self._lock:
            over = [job for job in self._jobs.values() if job.state.is_over]
            over.sort(key=lambda job: job.ended)
            surplus = over[: max(len(over) - self._limits.kept, 0)]
            expired = [job for job in over if self._clock() - job.ended >= self._limits.keep_seconds]
            for job in {job.id: job for job in [*surplus, *expired]}.values():
                del self._jobs[job.id]
                shutil.rmtree(job.folder, ignore_errors=True)

    def _clean(self) -> None:
        while not self._closed.wait(min(self._limits.keep_seconds / 2, 60)):
            self.remove_expired()

    def _serve(self, work: Work) -> None:
        while (job := self._todo.get()) is not None:
            with self._lock:
                if job.state != State.QUEUED:
                    continue
                job.state, job.started = State.RUNNING, self._clock()
            state, message = self._run(work, job)
            with self._lock:
                self._end(job, state, message)

    def _run(self, work: Work, job: Job) -> tuple[State, str]:
        try:
            with report_progress(job.report):
                job.result = work(job)
        except _CancelledError:
            return State.CANCELLED, ''
        except MemoryError:
            return State.FAILED, 'the memory of the server does not suffice; send a smaller raster'
        except (GeoLearnError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.strerror and not isinstance(error, GeoLearnError):
                log.exception('job %s failed', job.id)
                return State.FAILED, f'the server cannot read or write a file: {error.strerror}'
            return State.FAILED, as_shown_to_clients(str(error), job.places)
        except Exception:
            log.exception('job %s failed', job.id)
            job.internal = True
            return State.FAILED, INTERNAL
        return (State.CANCELLED, '') if job.cancelled else (State.DONE, '')

    def _end(self, job: Job, state: State, message: str = '') -> None:
        """Set the last state; what nobody can fetch is removed."""
        job.state, job.message, job.ended = state, message, self._clock()
        if state == State.DONE:
            job.progress = 1.0
        else:
            job.result = None
            shutil.rmtree(job.folder, ignore_errors=True)
