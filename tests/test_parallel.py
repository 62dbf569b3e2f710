"""Workers: every item is done once, errors arrive as what they are, and nothing is left behind."""

import copyreg
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor
from contextlib import suppress

import pytest

from geolearn import parallel as _parallel
from geolearn.errors import UnknownNameError
from geolearn.parallel import WORKERS, can_fork, workers

KINDS = [False, pytest.param(True, marks=pytest.mark.skipif(sys.platform != 'linux', reason='forks on Linux only'))]
forks = KINDS[1].marks[0]


class StubbornError(Exception):
    """Pickled, but made again only with two arguments."""

    def __init__(self, one, two):
        super().__init__(f'{one} and {two}')


def processes():
    """Children of this process that are alive."""
    found = subprocess.run(['ps', '--ppid', str(os.getpid()), '-o', 'comm='], capture_output=True, text=True)
    return [name for name in found.stdout.split() if name != 'ps']


def run(code):
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize('fork', KINDS)
def test_every_item_is_done_once(fork):
    known = list(range(100))
    with workers(lambda item: known[item] ** 2, fork=fork) as submit:
        assert [future.result() for future in [submit(item) for item in known]] == [item**2 for item in known]


@forks
def test_processes_are_others_and_end():
    before = processes()
    with workers(lambda item: os.getpid(), fork=True) as submit:
        seen = {submit(item).result() for item in range(20)}
    assert seen
    assert os.getpid() not in seen
    assert processes() == before
    assert can_fork()


@pytest.mark.parametrize('fork', KINDS)
def test_workers_within_workers_keep_their_own_work(fork):
    with workers(lambda item: ('outer', item), fork=fork) as outer:
        with workers(lambda item: ('inner', item), fork=fork) as inner:
            assert inner(1).result() == ('inner', 1)
            assert outer(2).result() == ('outer', 2)
        assert outer(3).result() == ('outer', 3)
    assert not hasattr(_parallel, '_work')


def test_threads_that_work_at_once_keep_their_own_work():
    found, gate = {}, threading.Barrier(2)

    def go(name):
        with workers(lambda item: (name, item), fork=False) as submit:
            gate.wait()
            found[name] = [submit(item).result() for item in range(50)]

    threads = [threading.Thread(target=go, args=(name,)) for name in 'ab']
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [(name, item) for item in range(50)] for name in 'ab'}


@pytest.mark.parametrize('fork', KINDS)
def test_an_error_arrives_and_the_others_go_on(fork):
    def work(item):
        if item == 3:
            raise OSError(28, 'No space left on device')
        return item

    with workers(work, fork=fork) as submit:
        futures = [submit(item) for item in range(6)]
        with pytest.raises(OSError, match='No space left') as caught:
            futures[3].result()
        assert caught.value.errno == 28
        assert [future.result() for future in futures if future is not futures[3]] == [0, 1, 2, 4, 5]


@forks
@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (StubbornError('one', 'two'), 'StubbornError: one and two'),
        (UnknownNameError('format', 'x', ['y']), "UnknownNameError: unknown format 'x'"),
        (ValueError(lambda: 0), 'ValueError: <function'),
    ],
)
def test_an_error_that_cannot_travel_arrives_as_its_text(error, text, monkeypatch):
    def work(item):
        if item:
            raise error
        return item

    monkeypatch.delitem(copyreg.dispatch_table, type(error), raising=False)  # tblib may have been installed before
    with workers(work, fork=True) as submit:
        with pytest.raises(RuntimeError, match=text):
            submit(1).result()
        assert submit(0).result() == 0


@forks
def test_an_error_that_cannot_travel_arrives_as_its_text_where_causes_travel_too():
    support = pytest.importorskip('tblib.pickling_support', reason='tblib (of dask) is not installed')

    def work(item):
        support.install()  # in the forked process alone
        if item:
            raise ValueError(lambda: 0) from KeyError(lambda: 1)
        return item

    with workers(work, fork=True) as submit:
        with pytest.raises(RuntimeError, match='ValueError: <function'):
            submit(1).result()
        assert submit(0).result() == 0


@forks
def test_a_result_that_cannot_travel_is_an_error():
    with workers(lambda item: lambda: item, fork=True) as submit:
        error = submit(1).exception()
        assert isinstance(error, AttributeError | TypeError)
        assert 'pickle' in str(error)


@forks
def test_a_process_that_is_killed_breaks_the_pool_and_not_the_program():
    def work(item):
        if item == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return item

    # with a handler of the program's own, which processes must not take over
    former = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with workers(work, fork=True) as submit:
            errors = [future.exception() for future in [submit(item) for item in range(20)]]
        assert isinstance(errors[5], BrokenExecutor)
        assert {type(error) for error in errors} <= {type(None), type(errors[5])}
    finally:
        signal.signal(signal.SIGTERM, former)


@pytest.mark.parametrize('fork', KINDS)
def test_leaving_drops_what_was_not_begun(fork):
    def work(item):
        time.sleep(0.05)
        return item

    with suppress(KeyError), workers(work, fork=fork) as submit:
        futures = [submit(item) for item in range(20 * WORKERS)]
        raise KeyError
    assert sum(future.cancelled() for future in futures) > 10 * WORKERS


@forks
def test_ctrl_c_is_left_to_the_parent():
    code = (
        'import signal, time\nfrom geolearn.parallel import workers\n'
        # a program that a shell runs in the background begins without Python's handler
        'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
        'try:\n'
        '    with workers(lambda item: time.sleep(0.2), fork=True) as submit:\n'
        '        futures = [submit(item) for item in range(400)]\n'
        '        futures[0].result(); print("begun", flush=True)\n'
        '        [future.result() for future in futures]\n'
        'except KeyboardInterrupt:\n'
        '    print("interrupted", flush=True)\n'
    )
    program = subprocess.Popen(
        [sys.executable, '-c', code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as a terminal does, the signal goes to all of the group
    )
    assert program.stdout.readline() == 'begun\n'
    os.killpg(program.pid, signal.SIGINT)
    out, err = program.communicate(timeout=30)
    assert (out, err, program.returncode) == ('interrupted\n', '', 0)


@forks
def test_processes_end_with_a_killed_parent():
    program = run(
        'import os, time\nfrom geolearn.parallel import workers\n'
        'with workers(lambda item: os.getpid() if item == 0 else time.sleep(600), fork=True) as submit:\n'
        '    print(submit(0).result(), flush=True)\n'
        '    submit(1).result()\n'
    )
    child = int(program.stdout.readline())
    program.kill()
    program.communicate(timeout=30)
    until = time.monotonic() + 10
    while _alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _alive(child), 'a forked process outlived its parent'


def _alive(process):
    try:
        with open(f'/proc/{process}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@forks
def test_forks_only_where_nobody_else_is_at_work():
    assert can_fork()
    inside, done = [], threading.Event()
    thread = threading.Thread(target=lambda: (inside.append(can_fork()), done.wait()))
    thread.start()
    assert not can_fork()
    done.set()
    thread.join()
    assert inside == [False]
    with workers(str, fork=True) as submit:
        submit(1).result()
        assert not can_fork()
    quiet = threading.Thread(target=done.wait, daemon=True)
    quiet.start()
    assert can_fork()


@forks
def test_packing_leaves_the_start_method_to_the_program():
    program = run(
        'import multiprocessing, tempfile\nfrom geolearn.chips.packing.pack import PackWriter\n'
        'PackWriter(tempfile.TemporaryFile(), shared=True)\n'
        'multiprocessing.set_start_method("spawn")\n'
    )
    assert program.communicate(timeout=60)[1] == ''
