"""Jobs end, expire and leave no files."""

import time
from contextlib import suppress

import pytest

from geolearn.progress import ProgressBar, report_progress
from geolearn.serve.jobs import JobQueue, State
from geolearn.serve.rasters import Limits, RefusedError


def until_over(job):
    for _ in range(500):
        if job.state.is_over:
            return job
        time.sleep(0.01)
    raise AssertionError(job.state)


def write(job):
    (job.folder / 'map.tif').write_bytes(b'x')
    return job.folder / 'map.tif'


def submit(queue):
    with queue.reserve() as job:
        queue.submit(job)
    return job


def test_results_expire_after_a_stated_time():
    now = [0.0]
    with JobQueue([write], Limits(keep_seconds=100), clock=lambda: now[0]) as queue:
        job = until_over(submit(queue))
        now[0] = 99
        assert queue.get(job.id).result.read_bytes() == b'x'
        now[0] = 101
        with pytest.raises(RefusedError, match='no such job; jobs are removed 100 s after their end'):
            queue.get(job.id)
        assert not job.folder.exists()


def test_the_oldest_of_many_results_makes_way():
    with JobQueue([write], Limits(kept=2)) as queue:
        jobs = [until_over(submit(queue)) for _ in range(3)]
        assert [job.id for job in queue.jobs()] == [job.id for job in jobs[1:]]
        assert [job.folder.exists() for job in jobs] == [False, True, True]
    assert not any(job.folder.exists() for job in jobs)


def test_an_upload_that_fails_leaves_its_place_and_no_files():
    with JobQueue([write], Limits(waiting=1)) as queue:
        for _ in range(3):
            with suppress(OSError), queue.reserve() as job:
                (job.folder / 'source-0.tif').write_bytes(b'x')
                raise OSError('broken')
            assert not job.folder.exists()
        with queue.reserve(), pytest.raises(RefusedError, match='1 jobs wait already'), queue.reserve():
            pass


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (MemoryError(), 'memory of the server'),
        (OSError(28, 'No space left on device', '/secret'), 'cannot read or write a file: No space left on device'),
        (KeyError('secret'), 'an error of the server'),
    ],
)
def test_failures_are_said_and_leave_no_files(error, words):
    def fail(job):
        write(job)
        raise error

    with JobQueue([fail], Limits()) as queue:
        job = until_over(submit(queue))
        assert job.state == State.FAILED
        assert words in job.message
        assert 'secret' not in job.message
        assert not job.folder.exists()


def test_progress_goes_to_a_listener_instead_of_the_terminal(capsys):
    seen = []
    with report_progress(lambda bar: seen.append((bar.label, bar.share))), ProgressBar(4, 'mapping', 'tile') as bar:
        bar.update()
        bar.update(3)
    assert seen == [('mapping', 0.25), ('mapping', 1.0)]
    assert capsys.readouterr().err == ''


def test_limits_are_positive():
    with pytest.raises(ValueError, match='keep_seconds must be above 0'):
        Limits(keep_seconds=0)
