import os
import stat
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geolearn import files
from geolearn.errors import RasterError
from geolearn.raster import GeoBox, RasterWriter, read_image, write_raster

PLACE = {'transform': Affine(10, 0, 500000, 0, -10, 5400000), 'crs': 'EPSG:32633'}
BOX = GeoBox((4, 3), **PLACE)
MAP = np.arange(12, dtype=np.uint8).reshape(4, 3)
DTYPES = ['uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'float32', 'float64']


@given(st.data())
def test_what_is_written_is_read_back_with_its_place(tmp_path_factory, data):
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)))
    # beyond that lies what software writes for NoData
    numbers = {'min_value': -(2.0**127), 'max_value': 2.0**127} if dtype.startswith('float') else {}
    pixels = data.draw(arrays(dtype, shape, elements=numbers or None))
    path = write_raster(tmp_path_factory.getbasetemp() / 'round.tif', pixels, **PLACE)
    found, mask, geobox = read_image(path)
    assert found.dtype == pixels.dtype
    assert (found == pixels).all()
    assert mask is None
    assert (geobox.shape, geobox.transform) == (shape[1:], PLACE['transform'])
    assert rasterio.crs.CRS.from_wkt(geobox.crs) == rasterio.crs.CRS.from_epsg(32633)


@pytest.mark.parametrize('count', [1, 2, 3, 4, 5])
def test_no_band_of_bytes_is_taken_for_opacity(tmp_path, count):
    path = write_raster(tmp_path / 'a.tif', np.zeros((count, 2, 2), np.uint8), **PLACE)
    with rasterio.open(path) as src:
        assert 'alpha' not in [kind.name for kind in src.colorinterp]
    assert read_image(path)[1] is None


def test_rows_written_one_after_the_other_make_the_whole(tmp_path):
    with RasterWriter(tmp_path / 'a.tif', BOX, dtype='uint8') as writer:
        for row in range(4):
            writer.write(row, MAP[row : row + 1])
    assert (read_image(tmp_path / 'a.tif')[0][0] == MAP).all()


def test_colours_nodata_names_and_tags_are_kept(tmp_path):
    colors = {0: (0, 0, 0), 1: (255, 0, 0), 7: (1, 2, 3)}
    writer = RasterWriter(
        tmp_path / 'a.tif',
        BOX,
        dtype='uint8',
        nodata=255,
        band_names=['class'],
        colors=colors,
        class_names={1: 'water', 7: 'forêt'},
        tags={'MODEL': 'deeplab'},
    )
    with writer:
        writer.write(0, MAP)
    with rasterio.open(tmp_path / 'a.tif') as src:
        assert src.nodata == 255
        assert src.descriptions == ('class',)
        palette = src.colormap(1)
        assert [palette[value][:3] for value in colors] == list(colors.values())
        assert src.tags(1).items() >= {'class_1': 'water', 'class_7': 'forêt'}.items()
        assert src.tags()['MODEL'] == 'deeplab'


def test_a_map_of_two_bytes_keeps_its_colours(tmp_path):
    path = write_raster(tmp_path / 'a.tif', MAP.astype(np.uint16), colors={300: (9, 8, 7)}, **PLACE)
    with rasterio.open(path) as src:
        assert src.colormap(1)[300][:3] == (9, 8, 7)


def test_a_large_raster_is_stored_in_blocks(tmp_path):
    path = write_raster(tmp_path / 'a.tif', np.zeros((256, 300), np.uint8), **PLACE)
    with rasterio.open(path) as src:
        assert src.block_shapes == [(256, 256)]


def test_a_raster_may_have_no_crs(tmp_path):
    path = write_raster(tmp_path / 'a.tif', MAP, transform=Affine.identity(), crs=None)
    assert read_image(path)[2] == GeoBox((4, 3), Affine.identity(), None)


# --- whole or not at all


def write_half(path, error):
    with RasterWriter(path, BOX, dtype='uint8') as writer:
        writer.write(0, MAP[:2] * 0)
        raise error


@pytest.mark.skipif(os.name != 'posix', reason='modes of files are a matter of POSIX')
@pytest.mark.parametrize('umask', [0o022, 0o027])
def test_a_map_may_be_read_by_those_whom_the_umask_allows(tmp_path, umask):
    before = os.umask(umask)
    try:
        path = write_raster(tmp_path / 'a.tif', MAP, **PLACE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_nothing_is_left_where_writing_was_interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / 'a.tif', KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_target_is_absent_until_all_of_it_is_written(tmp_path):
    with RasterWriter(tmp_path / 'a.tif', BOX, dtype='uint8') as writer:
        writer.write(0, MAP)
        assert not (tmp_path / 'a.tif').exists()
    assert [path.name for path in tmp_path.iterdir()] == ['a.tif']


def test_an_older_file_stays_as_it_was_where_writing_fails(tmp_path):
    path = write_raster(tmp_path / 'a.tif', MAP, **PLACE)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        write_half(path, ZeroDivisionError)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_older_file_is_replaced_where_writing_succeeds(tmp_path):
    write_raster(tmp_path / 'a.tif', MAP, **PLACE)
    write_raster(tmp_path / 'a.tif', MAP[::-1], **PLACE)
    assert (read_image(tmp_path / 'a.tif')[0][0] == MAP[::-1]).all()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(RasterError, match=r'the folder .*absent does not exist; create it first'):
        write_raster(tmp_path / 'absent' / 'a.tif', MAP, **PLACE)


def test_a_folder_in_the_place_of_the_target_is_named(tmp_path):
    (tmp_path / 'a.tif').mkdir()
    with pytest.raises(RasterError, match=r'cannot write .*a\.tif: '):
        write_raster(tmp_path / 'a.tif', MAP, **PLACE)
    assert [path.name for path in tmp_path.iterdir()] == ['a.tif']


def test_a_crs_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(RasterError, match=r'cannot write .*a\.tif: .*EPSG:99999999'):
        write_raster(tmp_path / 'a.tif', MAP, transform=BOX.transform, crs='EPSG:99999999')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('dtype', ['bool', 'float16'])
def test_numbers_that_a_geotiff_cannot_hold_are_refused(tmp_path, dtype):
    with pytest.raises(RasterError, match=rf'cannot write .*a\.tif: .*{dtype}'):
        write_raster(tmp_path / 'a.tif', np.ones((2, 2), dtype), **PLACE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ['map.png', 'map.jp2', 'map', 'map.tif.part', 'map.vrt', 'map.nc'])
def test_a_suffix_that_is_not_written_row_by_row_is_refused(tmp_path, name):
    with pytest.raises(RasterError, match=r'end the name in one of \.tif, \.tiff'):
        RasterWriter(tmp_path / name, BOX, dtype='uint8')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(('name', 'driver'), [('a.TIF', 'GTiff'), ('a.tiff', 'GTiff')])
def test_the_format_follows_the_suffix(tmp_path, name, driver):
    path = write_raster(tmp_path / name, MAP, **PLACE)
    with rasterio.open(path) as src:
        assert src.driver == driver


def test_names_of_classes_never_outlive_a_map_that_could_not_be_written(tmp_path, monkeypatch):
    path = write_raster(tmp_path / 'a.tif', MAP, **PLACE)
    (tmp_path / 'a.tif.aux.xml').write_text('of the older map')

    def refuse(path):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files, 'flush_to_disk', refuse)
    writer = RasterWriter(path, BOX, dtype='uint8', class_names={1: 'water'})
    with pytest.raises(RasterError, match='No space left on device. Nothing was left behind'), writer:
        writer.write(0, MAP)
    assert sorted(item.name for item in tmp_path.iterdir()) == ['a.tif', 'a.tif.aux.xml']
    assert (tmp_path / 'a.tif.aux.xml').read_text() == 'of the older map'


# --- a full disk

FULL_DISK = """
import resource, signal, sys
from pathlib import Path

import numpy as np
from affine import Affine

from geolearn.errors import RasterError
from geolearn.raster import GeoBox, RasterWriter

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
noise = np.random.default_rng(0).integers(0, 256, (512, 512)).astype(np.uint8)
box = GeoBox(noise.shape, Affine(10, 0, 0, 0, -10, 0), 'EPSG:32633')
folder = Path(sys.argv[1])
for share in (0, 0.001, 0.3, 0.6, 0.99):
    for compress in ('lzw', 'none'):
        limit = int(noise.size * share)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with RasterWriter(folder / 'map.tif', box, dtype='uint8', compress=compress) as writer:
                for row in range(0, 512, 256):
                    writer.write(row, noise[row : row + 256])
            outcome = 'no error'
        except RasterError as error:
            outcome = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        left = [path.name for path in folder.iterdir()]
        print(share, compress, 'OK' if 'Is the disk full' in outcome and not left else f'{outcome} {left}')
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='limits the size of files as Linux does')
def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path):
    command = [sys.executable, '-W', 'ignore', '-c', FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 10
    assert [line for line in lines if not line.endswith('OK')] == []


def test_names_of_pixel_values_lie_where_gdal_looks_for_them_and_old_sidecars_go(tmp_path):
    path = tmp_path / 'map.tif'
    for old in ('map.tif.ovr', 'map.tif.aux.xml'):
        (tmp_path / old).write_text('of an older map')
    box = GeoBox((4, 5), Affine(10, 0, 0, 0, -10, 0), 'EPSG:32633')
    with RasterWriter(path, box, dtype='uint8', class_names={1: 'water & ice', 3: 'Wälder'}) as writer:
        writer.write(0, np.ones((4, 5), np.uint8))
    assert not (tmp_path / 'map.tif.ovr').exists()
    root = ElementTree.parse(tmp_path / 'map.tif.aux.xml').getroot()
    assert [item.text or '' for item in root.iter('Category')] == ['', 'water & ice', '', 'Wälder']


def test_names_that_no_file_can_hold_are_written_as_far_as_possible(tmp_path):
    names = {1: 'wat\x00er', 2: 'half \ud83d', 3: 'line\x1b[31m'}
    writer = RasterWriter(
        tmp_path / 'a.tif', BOX, dtype='uint8', class_names=names, band_names=['cl\x01ass'], tags={'MODEL': 'x\udcff'}
    )
    with writer:
        writer.write(0, MAP)
    root = ElementTree.parse(tmp_path / 'a.tif.aux.xml').getroot()
    texts = [item.text or '' for item in root.iter('Category')]
    assert texts == ['', 'wat\ufffder', 'half \ufffd', 'line\ufffd[31m']
    with rasterio.open(tmp_path / 'a.tif') as src:
        assert src.descriptions == ('cl\ufffdass',)
        assert src.tags(1)['class_2'] == 'half \ufffd'
        assert src.tags()['MODEL'] == 'x\ufffd'
