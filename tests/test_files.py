"""Files are written whole or not at all, and what killed runs leave is removed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from geolearn.errors import CheckpointError, FileWriteError, GeoLearnError, RasterError
from geolearn.files import PART, STALE_AFTER_S, atomic_write, atomic_write_all

KILLED = """
import sys, time
from geolearn.files import atomic_write, atomic_write_all
write = atomic_write if sys.argv[2] == 'one' else atomic_write_all
with write(sys.argv[1]) as part:
    part.write_text('half')
    print(part, flush=True)
    time.sleep(60)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_part_has_the_suffix_of_the_target_and_lies_in_its_folder(tmp_path):
    with atomic_write(tmp_path / 'a.dlpk') as part:
        assert (part.parent, part.suffix) == (tmp_path, '.dlpk')
        part.write_text('whole')
        assert not (tmp_path / 'a.dlpk').exists()
    assert (tmp_path / 'a.dlpk').read_text() == 'whole'
    assert names(tmp_path) == ['a.dlpk']


@pytest.mark.parametrize('write', [atomic_write, atomic_write_all])
@pytest.mark.parametrize('error', [KeyboardInterrupt, ZeroDivisionError, SystemExit])
def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path, write, error):
    (tmp_path / 'a.txt').write_text('old')
    with pytest.raises(error), write(tmp_path / 'a.txt') as part:  # noqa: PT012
        part.write_text('new')
        raise error
    assert names(tmp_path) == ['a.txt']
    assert (tmp_path / 'a.txt').read_text() == 'old'


@pytest.mark.parametrize('write', [atomic_write, atomic_write_all])
@pytest.mark.parametrize('error', [FileWriteError, RasterError, CheckpointError])
def test_a_full_disk_is_the_error_of_what_is_written(tmp_path, write, error):
    words = r'cannot write .*a\.txt: No space left on device. Nothing was left behind'
    with pytest.raises(error, match=words) as told, write(tmp_path / 'a.txt', error=error):
        raise OSError(28, 'No space left on device')
    assert isinstance(told.value, GeoLearnError)
    assert isinstance(told.value, OSError)
    assert names(tmp_path) == []


def test_what_has_nothing_to_do_with_rasters_is_no_raster_error(tmp_path):
    with pytest.raises(FileWriteError, match='does not exist; create it first') as told, atomic_write(tmp_path / 'a/b'):
        pass
    assert not isinstance(told.value, RasterError)


def test_a_file_and_its_sidecars_appear_together(tmp_path):
    for name in ('a.shp', 'a.dbf', 'a.qix'):
        (tmp_path / name).write_text('old')
    with atomic_write_all(tmp_path / 'a.shp', replaces=['a.dbf', 'a.qix']) as part:
        assert part.name == 'a.shp'
        part.write_text('new')
        part.with_suffix('.dbf').write_text('new')
        assert (tmp_path / 'a.dbf').read_text() == 'old'
    assert names(tmp_path) == ['a.dbf', 'a.shp']
    assert {path.read_text() for path in tmp_path.iterdir()} == {'new'}


def test_a_folder_in_the_place_of_the_target_leaves_its_sidecars_alone(tmp_path):
    (tmp_path / 'a.shp').mkdir()
    (tmp_path / 'a.qix').write_text('old')
    writing = atomic_write_all(tmp_path / 'a.shp', replaces=['a.qix'])
    with pytest.raises(FileWriteError, match=r'a\.shp is a folder'), writing as part:
        part.write_text('new')
    assert names(tmp_path) == ['a.qix', 'a.shp']


@pytest.mark.skipif(sys.platform != 'linux', reason='asks whether a process lives')
@pytest.mark.parametrize('kind', ['one', 'all'])
def test_the_next_run_removes_what_a_killed_one_left_and_not_what_a_living_one_writes(tmp_path, kind):
    target = tmp_path / 'map.tif'
    runs = [subprocess.Popen([sys.executable, '-c', KILLED, target, kind], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for run in runs:
            run.stdout.readline()
        assert len(names(tmp_path)) == 2
        runs[0].send_signal(signal.SIGKILL)
        runs[0].wait()
        with atomic_write(target) as part:
            part.write_text('whole')
        left = names(tmp_path)
        assert len(left) == 2
        assert 'map.tif' in left
        assert f'-{runs[1].pid:x}-' in left[0]
    finally:
        for run in runs:
            run.kill()
            run.wait()
            run.stdout.close()
    with atomic_write(target) as part:
        part.write_text('whole')
    assert names(tmp_path) == ['map.tif']


def test_a_number_of_a_process_that_another_one_has_now_does_not_protect_a_file(tmp_path):
    with atomic_write(tmp_path / 'a.txt') as part:
        part.write_text('whole')
        stem, machine, process, _, token = part.name.split(PART)[0].rsplit('-', 4)
    stale = tmp_path / f'{stem}-{machine}-{process}-1-{token}{PART}.txt'
    stale.touch()
    if sys.platform == 'linux':
        with atomic_write(tmp_path / 'a.txt') as part:
            part.write_text('whole')
        assert names(tmp_path) == ['a.txt']


def test_parts_of_other_machines_and_of_older_versions_are_removed_when_they_are_old(tmp_path):
    parts = ['.a-00-1-1-00.part.txt', '.a-x8_k2m1q.part.txt']
    others = ['.b-x8_k2m1q.part.txt', 'a-00-1-1-00.part.txt', '.config', '.apartment']
    for name in (*parts, *others):
        (tmp_path / name).touch()
    with atomic_write(tmp_path / 'a.txt') as part:
        part.touch()
    assert len(names(tmp_path)) == 7
    past = time.time() - STALE_AFTER_S - 10
    for path in tmp_path.iterdir():
        os.utime(path, (past, past))
    with atomic_write(tmp_path / 'a.txt') as part:
        part.touch()
    assert names(tmp_path) == sorted([*others, 'a.txt'])


@pytest.mark.parametrize(
    'name', ['ä' * 100 + '.txt', 'x' * 250 + '.txt', os.fsdecode(b'caf\xe9.txt'), 'a b-c-d.part.x']
)
def test_any_name_that_the_system_takes_can_be_written(tmp_path, name):
    with atomic_write(tmp_path / name) as part:
        part.write_text('whole')
    with atomic_write_all(tmp_path / name) as part:
        part.write_text('again')
    assert names(tmp_path) == [name]
