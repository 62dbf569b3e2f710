"""A file is read as what its suffix says it is, and never leads to other files or hosts."""

import os

import numpy as np
import pytest
from PIL import Image

from geolearn.chips.formats.tiles import read_class_raster
from geolearn.errors import ChipFolderError, RasterError
from geolearn.raster import open_raster, read_image, read_label, read_stack

PIXELS = np.arange(1, 13, dtype=np.uint8).reshape(1, 3, 4)


def vrt_text(source):
    return (
        '<VRTDataset rasterXSize="4" rasterYSize="3"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename>{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>'
    )


@pytest.mark.parametrize('name', ['000.tif', '000.tiff', '000.TIF', '000.png', '000.jpg', '000.img', '000', '000.xml'])
def test_a_virtual_raster_under_another_name_is_no_raster(tmp_path, save, name):
    secret = save(tmp_path / 'secret.tif', PIXELS)
    (tmp_path / name).write_text(vrt_text(secret))
    with pytest.raises(RasterError, match='cannot open raster'):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    'text',
    [
        '<WMS_GDAL><Service name="TMS"><ServerUrl>http://127.0.0.1:9/</ServerUrl></Service></GDAL_WMS>',
        '<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:9/</ServerUrl></Service></GDAL_WMS>',
        '<WCS_GDAL><ServiceURL>http://127.0.0.1:9/</ServiceURL></WCS_GDAL>',
    ],
)
def test_text_that_asks_hosts_is_no_raster(tmp_path, text):
    for name in ('a.tif', 'a.xml', 'a'):
        (tmp_path / name).write_text(text)
        with pytest.raises(RasterError, match='cannot open raster'):
            read_image(tmp_path / name)


def test_a_virtual_raster_that_says_so_is_opened_and_its_sources_are_said(tmp_path, save, caplog):
    source = save(tmp_path / 'other.tif', PIXELS)
    (tmp_path / 'a.vrt').write_text(vrt_text(source))
    assert (read_image(tmp_path / 'a.vrt')[0] == PIXELS).all()
    assert 'a.vrt takes its pixels from 1 files, the first' in caplog.text


@pytest.mark.parametrize('read', [read_label, lambda path: read_stack([path])])
@pytest.mark.parametrize('name', ['a.vrt', 'a.img', '/vsicurl/http://127.0.0.1:9/a.tif', 'http://127.0.0.1:9/a.tif'])
def test_chips_are_images_in_their_folder(tmp_path, save, read, name):
    source = save(tmp_path / 'other.tif', PIXELS)
    path = name
    if '/' not in name:
        path = tmp_path / name
        path.write_text(vrt_text(source))
    with pytest.raises(RasterError, match='is no file|is no image of a chip'):
        read(path)


@pytest.mark.parametrize(
    'text',
    [
        '<MRF_META><CachedSource><Source>http://127.0.0.1:9/a.tif</Source></CachedSource></MRF_META>',
        '<MRF_META><Raster><DataFile>/etc/passwd</DataFile></Raster></MRF_META>',
        '<MRF_META><Raster><IndexFile>../../x.idx</IndexFile></Raster></MRF_META>',
    ],
)
def test_an_mrf_whose_pixels_lie_elsewhere_is_no_chip(tmp_path, text):
    (tmp_path / 'a.mrf').write_text(text)
    with pytest.raises(RasterError, match='takes its pixels from another place'):
        read_stack([tmp_path / 'a.mrf'])


@pytest.mark.parametrize('suffix', ['.msk', '.ovr'])
def test_masks_and_overviews_beside_a_chip_are_tiffs(tmp_path, save, suffix):
    path = save(tmp_path / 'a.tif', PIXELS)
    (tmp_path / f'a.tif{suffix}').write_text(vrt_text('/vsicurl/http://127.0.0.1:9/a.tif'))
    with pytest.raises(RasterError, match='is no TIFF, as masks and overviews beside a chip are'):
        read_stack([path])


def test_chips_of_all_formats_are_read(tmp_path, save):
    for name in ('a.tif', 'a.png'):
        assert (read_stack([save(tmp_path / name, PIXELS)])[0] == PIXELS).all()
    Image.fromarray(PIXELS[0]).save(tmp_path / 'a.jpg')
    assert read_stack([tmp_path / 'a.jpg'])[0].shape == PIXELS.shape


@pytest.mark.skipif(os.name != 'posix', reason='names of files are bytes on POSIX only')
def test_a_name_that_is_not_utf_8_is_shown_and_refused(tmp_path, save):
    path = save(tmp_path / 'a.tif', PIXELS)
    odd = os.fsencode(tmp_path) + b'/caf\xe9.tif'
    os.rename(path, odd)
    with pytest.raises(RasterError, match='its name is not UTF-8; rename it') as told, open_raster(os.fsdecode(odd)):
        pass
    str(told.value).encode()


@pytest.mark.parametrize(('name', 'written'), [('a.tif', 'PNG'), ('a.png', 'TIFF'), ('b.tif', 'JPEG')])
def test_an_image_under_the_suffix_of_another_kind_of_image_is_read(tmp_path, name, written):
    Image.fromarray(np.full((16, 16), 90, np.uint8)).save(tmp_path / name, format=written)
    pixels, _, _ = read_image(tmp_path / name)
    assert (pixels == 90).all()


def test_labels_in_a_jpeg_are_lossy_under_any_suffix(tmp_path):
    Image.fromarray(np.full((16, 16), 90, np.uint8)).save(tmp_path / 'a.tif', format='JPEG')
    with pytest.raises(ChipFolderError, match='lossy compression'):
        read_class_raster(tmp_path / 'a.tif', (16, 16))
