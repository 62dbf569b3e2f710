"""Opening chips: what a pack gives is what the files give, whatever happens to the cache or the files."""

import errno
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from geolearn.chips.formats import open_chips
from geolearn.chips.label import ChipSource, Label, Listing, Task
from geolearn.chips.packing import store
from geolearn.chips.packing import store as cache
from geolearn.chips.packing.pack import Pack, PackWriter
from geolearn.chips.packing.read_chip import read_chip
from geolearn.chips.packing.store import DirectChips, JoinedChips, open_store
from geolearn.errors import ChipFolderError, RasterError
from geolearn.files import PART


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('GEOLEARN_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2)


@pytest.fixture
def folder(tmp_path, rng, write_export) -> Path:
    shapes = [(8, 8), (8, 8), (7, 9), (8, 8), (3, 5)]
    images = [rng.integers(1, 60_000, (3, *shape), np.uint16) for shape in shapes]
    labels = [rng.integers(0, 3, shape, np.uint8) for shape in shapes]
    images[1][1, 2:5] = 0
    return write_export(tmp_path / 'chips', images, labels, image_profile={'nodata': 0})


def reopen(folder, *, pack=True):
    opened = open_chips(folder)
    return open_store(opened.folder, opened.dataset_type, opened.listing, pack=pack)


def packs(cache_folder):
    return sorted(path for path in cache_folder.rglob('*') if path.is_file()) if cache_folder.exists() else []


def assert_equal_stores(one, two):
    assert one.table.names == two.table.names
    for name, column in one.table.to_arrays().items():
        np.testing.assert_array_equal(column, two.table.to_arrays()[name], err_msg=name)
    for position in range(len(one.table)):
        a, b = one.chip(position), two.chip(position)
        np.testing.assert_array_equal(a.pixels, b.pixels)
        assert (a.mask is None) == (b.mask is None)
        assert a.mask is None or (a.mask == b.mask).all()
        np.testing.assert_array_equal(a.label.raster, b.label.raster)
        assert a.geobox == b.geobox


def test_a_pack_gives_what_the_files_give(folder):
    packed, notes = reopen(folder)
    direct, _ = reopen(folder, pack=False)
    assert isinstance(packed, Pack)
    assert isinstance(direct, DirectChips)
    assert notes == []
    assert packed.table.nodata_varies.tolist() == [False, True, False, False, False]
    assert_equal_stores(packed, direct)


def test_a_pack_is_made_once(folder, own_cache, monkeypatch):
    reopen(folder)
    (made,) = packs(own_cache)
    monkeypatch.setattr(store, 'read_chip', lambda source: pytest.fail('read again'))
    again, _ = reopen(folder)
    assert again.path == made


def test_the_key_does_not_depend_on_how_the_folder_is_named(folder, own_cache, monkeypatch):
    reopen(folder)
    monkeypatch.chdir(folder.parent)
    reopen(Path('chips'))
    reopen(Path('chips/images'))
    assert len(packs(own_cache)) == 1


def touch(path):
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def grow(folder):
    shutil.copy(folder / 'images/000000000000.tif', folder / 'images/000000000009.tif')
    shutil.copy(folder / 'labels/000000000000.tif', folder / 'labels/000000000009.tif')


def rename_class(folder):
    path = folder / 'esri_model_definition.emd'
    path.write_text(path.read_text().replace('"one"', '"two hundred"'))


CHANGES = {
    'image': lambda folder: touch(folder / 'images/000000000002.tif'),
    'label': lambda folder: touch(folder / 'labels/000000000002.tif'),
    'gone': lambda folder: [(folder / part / '000000000003.tif').unlink() for part in ('images', 'labels')],
    'added': grow,
    'class': rename_class,
}


@pytest.mark.parametrize('change', list(CHANGES))
def test_a_change_makes_a_new_pack_and_removes_the_old_one(folder, own_cache, change):
    reopen(folder)
    (before,) = packs(own_cache)
    CHANGES[change](folder)
    found, _ = reopen(folder)
    assert packs(own_cache) == [found.path] != [before]


def test_a_label_that_moves_to_another_class_makes_a_new_pack(tmp_path, save, own_cache):
    image = save(tmp_path / '1.tif', np.ones((1, 4, 4), np.uint8))
    for name in ('ash', 'elm'):
        (tmp_path / name).mkdir()
    label = save(tmp_path / 'ash/1.tif', np.ones((1, 4, 4), np.uint8))
    moved = tmp_path / 'elm/1.tif'

    def key(path):
        source = ChipSource('1', ((image,),), (path,), partial(_value_of_folder, path=path))
        return cache.pack_path(tmp_path, 'RCNN_Masks', Listing(Task.LABEL, (source,), None), version=1)

    before = key(label)
    label.rename(moved)
    assert key(moved) != before


def _value_of_folder(shape, *, path):
    return Label(class_ids=np.array([['ash', 'elm'].index(path.parent.name)]))


def test_packs_of_other_folders_and_formats_are_left_alone(folder, tmp_path, own_cache):
    shutil.copytree(folder, tmp_path / 'other')
    reopen(folder)
    reopen(tmp_path / 'other')
    opened = open_chips(folder)
    open_store(opened.folder, 'Another', opened.listing)
    touch(folder / 'images/000000000002.tif')
    reopen(folder)
    assert len(packs(own_cache)) == 3


@pytest.mark.parametrize('content', [b'', b'geopack1', b'x' * 1000])
def test_a_damaged_pack_is_made_again(folder, own_cache, caplog, content):
    reopen(folder)
    (path,) = packs(own_cache)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, 'geolearn'):
        found, notes = reopen(folder)
    assert 'packing again' in caplog.text
    assert notes == []
    assert_equal_stores(found, reopen(folder, pack=False)[0])
    assert packs(own_cache) == [path]


def test_a_pack_cut_short_is_made_again(folder, own_cache):
    reopen(folder)
    (path,) = packs(own_cache)
    path.write_bytes(path.read_bytes()[:-100])
    found, _ = reopen(folder)
    assert_equal_stores(found, reopen(folder, pack=False)[0])


@pytest.mark.parametrize('room', [0, 500, 3000])
def test_a_disk_that_fills_up_means_direct_reading(folder, own_cache, monkeypatch, caplog, room):
    left, write = [room], os.pwrite

    def small(handle, data, offset):
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return write(handle, data, offset)

    monkeypatch.setattr(os, 'pwrite', small)
    with caplog.at_level(logging.WARNING, 'geolearn'):
        found, notes = reopen(folder)
    assert isinstance(found, DirectChips)
    assert 'No space left on device' in caplog.text
    assert len(notes) == 1
    assert 'free some room or set GEOLEARN_CACHE' in notes[0]
    assert packs(own_cache) == []
    assert_equal_stores(found, reopen(folder, pack=False)[0])


def test_a_disk_known_to_be_full_is_not_written_to(folder, own_cache, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=100)
    monkeypatch.setattr(store.shutil, 'disk_usage', lambda path: usage)
    found, (note,) = reopen(folder)
    assert isinstance(found, DirectChips)
    assert 'MB are needed in' in note
    assert packs(own_cache) == []


def test_an_older_pack_makes_room_for_its_successor(folder, own_cache, monkeypatch):
    reopen(folder)
    (old,) = packs(own_cache)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(store.shutil, 'disk_usage', lambda path: usage._replace(free=100 if old.exists() else 10**9))
    touch(folder / 'images/000000000002.tif')
    found, notes = reopen(folder)
    assert isinstance(found, Pack)
    assert notes == []
    assert packs(own_cache) == [found.path]


def test_a_cache_that_is_a_file_means_direct_reading(folder, own_cache):
    own_cache.write_text('in the way')
    found, (note,) = reopen(folder)
    assert isinstance(found, DirectChips)
    assert 'the cache cannot hold a copy' in note
    assert own_cache.read_text() == 'in the way'


def test_a_cache_that_may_not_be_written_means_direct_reading(folder, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(store, 'atomic_write', refuse)
    found, (note,) = reopen(folder)
    assert isinstance(found, DirectChips)
    assert 'Permission denied' in note


def test_a_pack_that_vanishes_at_once_means_direct_reading(folder, monkeypatch):
    write = store.atomic_write

    @contextmanager
    def lose(path, **options):
        with write(path, **options) as part:
            yield part
        path.unlink()

    monkeypatch.setattr(store, 'atomic_write', lose)
    found, (note,) = reopen(folder)
    assert 'slow' in note
    assert_equal_stores(found, reopen(folder, pack=False)[0])


def test_the_platforms_cache_serves_where_none_is_named(monkeypatch):
    monkeypatch.delenv('GEOLEARN_CACHE')
    monkeypatch.setattr(cache.platformdirs, 'user_cache_dir', lambda name: f'/caches/{name}')
    assert cache.cache_folder() == Path('/caches/geolearn').absolute()


def test_a_read_only_export_is_packed_and_not_written_to(folder, own_cache):
    paths = [folder, *folder.rglob('*')]
    before = {path: path.stat().st_mtime_ns for path in paths}
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        found, _ = reopen(folder)
        found.chip(0)
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob('*')]} == before
    assert len(packs(own_cache)) == 1


SLOW_PACKING = """
import sys, time
from geolearn.chips.formats import open_chips
from geolearn.chips.packing import store

keep = store.PackWriter.keep

def slowly(self, places):
    keep(self, places)
    print('written', flush=True)
    time.sleep(float(sys.argv[2]))

store.PackWriter.keep = slowly
store.FEW_CHIPS = int(sys.argv[3])
opened = open_chips(sys.argv[1])
found, notes = store.open_store(opened.folder, opened.dataset_type, opened.listing)
print(type(found).__name__, notes, len(found.table), int(found.chip(0).pixels.sum()), flush=True)
"""


def start_packing(folder, delay_s, *, fork=False):
    command = [sys.executable, '-c', SLOW_PACKING, str(folder), str(delay_s), '1' if fork else '1000']
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform != 'linux', reason='asks Linux for the processes of a process')
@pytest.mark.parametrize('fork', [False, True])
def test_what_a_killed_packing_leaves_is_removed_by_the_next(folder, own_cache, fork):
    process = start_packing(folder, 30, fork=fork)
    assert process.stdout.readline() == 'written\n'
    children = _children(process.pid)
    assert bool(children) == fork
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert all(PART in path.name for path in packs(own_cache))
    deadline = time.monotonic() + 10
    while any(map(_runs, children)):  # forked workers end with the process that they work for
        assert time.monotonic() < deadline
    found, _ = reopen(folder)
    assert packs(own_cache) == [found.path]
    assert_equal_stores(found, reopen(folder, pack=False)[0])


def _children(pid):
    return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def _runs(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().split(') ')[-1][0] not in 'ZX'
    except OSError:
        return False


@pytest.mark.parametrize('fork', [False, True])
def test_two_processes_may_pack_at_once(folder, own_cache, fork):
    if fork and sys.platform != 'linux':
        pytest.skip('processes are forked on Linux only')
    processes = [start_packing(folder, 0.05, fork=fork) for _ in range(2)]
    outputs = [process.communicate()[0].splitlines()[-1] for process in processes]
    total = int(reopen(folder, pack=False)[0].chip(0).pixels.sum())
    assert outputs == [f'Pack [] 5 {total}'] * 2
    assert len(packs(own_cache)) == 1


def test_an_interrupted_packing_leaves_nothing(folder, own_cache, monkeypatch):
    monkeypatch.setattr(PackWriter, 'keep', lambda self, places: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        reopen(folder)
    assert packs(own_cache) == []
    assert not [thread for thread in threading.enumerate() if 'ThreadPool' in thread.name]


def test_a_failed_packing_leaves_nothing(folder, own_cache, monkeypatch):
    monkeypatch.setattr(PackWriter, 'finish', lambda self, table: (_ for _ in ()).throw(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        reopen(folder)
    assert packs(own_cache) == []


@pytest.mark.parametrize('pack', [True, False])
def test_chips_that_cannot_be_read_are_left_out_and_told(folder, pack):
    (folder / 'images/000000000001.tif').write_bytes(b'')
    cut = folder / 'images/000000000003.tif'
    cut.write_bytes(cut.read_bytes()[:200])
    found, _ = reopen(folder, pack=pack)
    assert len(found.table) == 3
    assert len(found.table.unreadable) == 2
    assert '000000000001.tif' in found.table.unreadable[0]
    assert found.chip(1).pixels.shape == (3, 7, 9)


@pytest.mark.parametrize('pack', [True, False])
def test_a_file_that_vanishes_after_listing_is_left_out(folder, pack):
    opened = open_chips(folder)
    (folder / 'images/000000000001.tif').unlink()
    (folder / 'labels/000000000002.tif').unlink()
    found, _ = open_store(opened.folder, opened.dataset_type, opened.listing, pack=pack)
    assert len(found.table) == 3
    assert all('00000000000' in reason for reason in found.table.unreadable)


def test_a_label_that_cannot_be_opened_is_no_fault_of_the_cache(folder):
    opened = open_chips(folder)

    def refuse(shape):
        raise PermissionError(errno.EACCES, 'Permission denied', 'labels/1.xml')

    broken = replace(opened.listing.chips[1], read_label=refuse)
    chips = (opened.listing.chips[0], broken, *opened.listing.chips[2:])
    found, notes = open_store(folder, 'Classified_Tiles', replace(opened.listing, chips=chips))
    assert isinstance(found, Pack)
    assert notes == []
    assert 'labels/1.xml' in found.table.unreadable[0]


@pytest.mark.parametrize('pack', [True, False])
def test_a_folder_without_a_readable_chip_is_refused(folder, pack, own_cache):
    for path in (folder / 'images').iterdir():
        path.write_bytes(b'')
    with pytest.raises(ChipFolderError, match=r'none of 5 chips can be read; the first: .*000000000000\.tif'):
        reopen(folder, pack=pack)
    assert packs(own_cache) == []


@pytest.mark.parametrize(
    ('other', 'says'),
    [(np.ones((2, 8, 8), np.uint16), '3 bands but .*2.tif 2'), (np.ones((3, 8, 8), np.int16), 'units')],
)
def test_chips_of_other_bands_or_type_are_refused(folder, save, other, says, own_cache):
    save(folder / 'images/000000000003.tif', other)
    with pytest.raises(ChipFolderError, match=says.replace('2.tif', r'000000000003\.tif')):
        reopen(folder)
    assert packs(own_cache) == []


def test_a_direct_chip_that_vanishes_is_named(folder):
    found, _ = reopen(folder, pack=False)
    (folder / 'images/000000000003.tif').unlink()
    with pytest.raises(RasterError, match=r'000000000003\.tif'):
        found.chip(3)


@pytest.mark.parametrize(
    'other', [np.ones((3, 9, 9), np.uint16), np.ones((2, 8, 8), np.uint16), np.ones((3, 8, 8), np.float32)]
)
def test_a_direct_chip_that_has_changed_is_refused(folder, save, other):
    found, _ = reopen(folder, pack=False)
    save(folder / 'images/000000000003.tif', other)
    save(folder / 'labels/000000000003.tif', np.ones(other.shape[1:], np.uint8))
    with pytest.raises(ChipFolderError, match=r'000000000003\.tif has changed: it held 3 bands of 8x8 uint16'):
        found.chip(3)


def test_direct_and_joined_chips_go_to_worker_processes(folder):
    direct, packed = reopen(folder, pack=False)[0], reopen(folder)[0]
    joined = JoinedChips([direct, packed], ['a', 'b'])
    again = pickle.loads(pickle.dumps(joined))  # noqa: S301  our own
    for position in range(10):
        np.testing.assert_array_equal(again.chip(position).pixels, packed.chip(position % 5).pixels)


def test_dates_of_other_types_are_refused(tmp_path, save):
    one = save(tmp_path / '1.tif', np.ones((2, 4, 4), np.uint8))
    two = save(tmp_path / '2.tif', np.ones((2, 4, 4), np.uint16))
    with pytest.raises(ChipFolderError, match=r'2\.tif holds uint16 pixels but .*1\.tif uint8'):
        read_chip(ChipSource('1', ((one,), (two,)), (), lambda shape: Label()))


def test_complex_chips_are_refused(tmp_path, save):
    path = save(tmp_path / '1.tif', np.ones((1, 4, 4), np.complex64))
    with pytest.raises(ChipFolderError, match='complex64 numbers; export amplitude'):
        read_chip(ChipSource('1', ((path,),), (), lambda shape: Label()))


def test_dates_keep_their_own_masks(tmp_path, save, own_cache):
    pixels = np.ones((2, 4, 5), np.uint8)
    one = save(tmp_path / '1.tif', pixels)
    pixels[1, 2] = 0
    two = save(tmp_path / '2.tif', pixels, nodata=0)
    source = ChipSource('1', ((one,), (two,)), (), partial(_value_of_all))
    listing = Listing(Task.LABEL, (source,), None)
    found, _ = open_store(tmp_path, 'Two', listing)
    chip = found.chip(0)
    assert chip.dates == 2
    assert chip.mask.sum(axis=(1, 2)).tolist() == [20, 20, 20, 15]
    assert found.table.band_count == 2


def _value_of_all(shape):
    return Label(class_ids=np.array([7]))


def test_labels_of_sixteen_bits_survive(tmp_path, rng, write_export):
    labels = [rng.integers(0, 60_000, (8, 8), np.uint16), np.ones((8, 8), np.uint16)]
    folder = write_export(tmp_path / 'chips', [np.ones((3, 8, 8), np.uint8)] * 2, labels)
    found, _ = reopen(folder)
    np.testing.assert_array_equal(found.chip(0).label.raster, labels[0])
    assert found.chip(1).label.raster.dtype == np.uint8


def test_a_bar_shows_for_many_chips_only(folder, monkeypatch, capsys):
    reopen(folder)
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(store, 'FEW_CHIPS', 2)
    reopen(folder, pack=False)
    assert 'reading chips' in capsys.readouterr().err


# --- sidecars


@pytest.fixture
def bare(tmp_path, save):
    """The key of a chip with a label, as a function of what lies beside them."""
    image, label = tmp_path / 'images/a.tif', tmp_path / 'labels/a.png'
    for path in (image, label):
        path.parent.mkdir()
        path.write_bytes(b'x')
    source = ChipSource('a', ((image,),), (label,), partial(Label))
    return lambda: cache.pack_path(tmp_path, 'x', Listing(Task.PIXELS, (source,), None), version=1)


SIDECARS = ['images/a.tif.aux.xml', 'images/a.aux.xml', 'images/a.tfw', 'images/a.TFW', 'images/a.tif.msk']
SIDECARS += ['images/a.wld', 'images/a.idx', 'labels/a.pgw', 'labels/a.png.aux.xml']


@pytest.mark.parametrize('name', SIDECARS)
def test_a_sidecar_that_comes_changes_or_goes_makes_a_new_pack(bare, tmp_path, name):
    before, path = bare(), tmp_path / name
    path.write_text('one')
    one = bare()
    touch(path)
    two = bare()
    assert len({before, one, two, bare()}) == 3
    path.unlink()
    assert bare() == before


@pytest.mark.parametrize('name', ['images/b.tfw', 'images/ba.tif.aux.xml', 'images/a.txt', 'images/a.tif.ovr', 'a.tfw'])
def test_other_files_are_no_sidecars(bare, tmp_path, name):
    before = bare()
    (tmp_path / name).write_text('one')
    assert bare() == before


def test_nodata_from_a_sidecar_is_seen_after_packing(folder):
    before, _ = reopen(folder)
    sidecar = '<PAMDataset><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>'
    (folder / 'images/000000000000.tif.aux.xml').write_text(sidecar)
    after, _ = reopen(folder)
    assert before.path != after.path
