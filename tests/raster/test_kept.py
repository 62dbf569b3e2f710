"""Rasters that stay open between windows: opened once by each thread, never stale, not shared by processes."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from rasterio.windows import Window

from geolearn.errors import RasterError
from geolearn.raster import KeptRasters, kept, read_window

WINDOW = Window(1, 1, 2, 2)


@pytest.fixture
def opened(monkeypatch):
    """Names of what is opened, in order."""
    names, real = [], kept.open_unclosed

    def count(path, **options):
        names.append(path)
        return real(path, **options)

    monkeypatch.setattr(kept, 'open_unclosed', count)
    return names


@pytest.fixture
def files(tmp_path, save):
    return [save(tmp_path / f'{value}.tif', np.full((1, 4, 4), value, np.uint8)) for value in range(1, 41)]


def read(rasters, path):
    with rasters.open(path) as src:
        return int(read_window(src, WINDOW, [1])[0].max())


def test_each_thread_opens_a_raster_once(files, opened):
    rasters = KeptRasters()
    assert [read(rasters, files[number % 3]) for number in range(30)] == [1, 2, 3] * 10
    assert len(opened) == 3
    with ThreadPoolExecutor(1) as other:
        assert [other.submit(read, rasters, files[0]).result() for _ in range(3)] == [1, 1, 1]
    assert len(opened) == 4
    assert read(pickle.loads(pickle.dumps(rasters)), files[0]) == 1  # noqa: S301 - worker processes get it so
    assert len(opened) == 5


def test_few_files_stay_open(files):
    rasters = KeptRasters()
    before = len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else 0
    assert [read(rasters, path) for path in files] == list(range(1, 41))
    if before:
        assert len(os.listdir('/proc/self/fd')) <= before + kept.MOST_FILES
    del rasters
    assert not before or len(os.listdir('/proc/self/fd')) <= before


def test_a_file_that_was_written_anew_is_read_anew(files, save):
    rasters = KeptRasters()
    assert read(rasters, files[0]) == 1
    save(files[0], np.full((1, 5, 5), 99, np.uint8))
    assert read(rasters, files[0]) == 99
    files[0].unlink()
    with pytest.raises(RasterError, match='cannot open raster'):
        read(rasters, files[0])


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_forked_process_opens_its_own(files, opened):
    rasters = KeptRasters()
    assert read(rasters, files[0]) == 1
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(theirs, bytes([read(rasters, files[0]), len(opened)]))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(ours, 2) == bytes([1, 2])
    assert read(rasters, files[0]) == 1
    assert len(opened) == 1
