"""Labels on another grid: each pixel takes the value at its center, as GDAL's nearest neighbor does."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.warp import reproject

from geolearn import export_training_data, from_rasters, prepare_data
from geolearn.errors import ChipFolderError, RasterError
from geolearn.raster import AlignedRaster, GeoBox, open_raster, read_window, same_grid

IMAGE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
FINE = Affine(3.3, 0, 499_990.7, 0, -3.3, 5_000_021.9)
COARSE = Affine(30, 0, 499_951, 0, -30, 5_000_043)
DEGREES = Affine(1.3e-4, 0, 14.9985, 0, -0.9e-4, 45.1535)


@pytest.fixture
def image(save, tmp_path):
    pixels = np.random.default_rng(0).integers(1, 999, (3, 40, 48)).astype(np.uint16)
    names = ('blue', 'green', 'red')
    return save(tmp_path / 'image.tif', pixels, transform=IMAGE, crs='EPSG:32633', names=names)


@pytest.mark.parametrize(
    ('place', 'crs', 'shape'),
    [
        (FINE, 'EPSG:32633', (140, 160)),
        (COARSE, 'EPSG:32633', (15, 17)),
        (DEGREES, 'EPSG:4326', (60, 60)),
        (Affine(10, 0, 500_200, 0, -10, 5_000_000), 'EPSG:32633', (40, 48)),
    ],
    ids=['finer', 'coarser', 'degrees', 'half of it'],
)
def test_each_pixel_takes_the_value_at_its_center(image, save, tmp_path, place, crs, shape):
    truth = np.random.default_rng(1).integers(1, 6, shape).astype(np.uint8)
    truth[:2] = 0  # NoData
    labels = save(tmp_path / 'labels.tif', truth, transform=place, crs=crs, nodata=0)
    wanted = np.zeros((40, 48), np.uint8)
    kind = {'src_nodata': 0, 'dst_nodata': 0, 'resampling': Resampling.nearest, 'tolerance': 0}
    reproject(truth, wanted, src_transform=place, src_crs=crs, dst_transform=IMAGE, dst_crs='EPSG:32633', **kind)
    with open_raster(image) as src, open_raster(labels) as lab:
        aligned = AlignedRaster(lab, src.geobox)
        pixels, valid = read_window(aligned, rasterio.windows.Window(0, 0, 48, 40), [1])
        part, _ = read_window(aligned, rasterio.windows.Window(13, 5, 20, 9), [1])
    known = np.ones((40, 48), bool) if valid is None else valid
    found = np.where(known, pixels[0], 0)
    assert (found == wanted).mean() > 0.998  # centers on an edge may fall to either side
    assert (found > 0).any()
    assert (part[0] == pixels[0, 5:14, 13:33]).all()
    chips = export_training_data(image, labels, tmp_path / 'chips', tile_size=8, align_labels=True)
    data = from_rasters(image, labels, chip_size=8, batch_size=4, align_labels=True, split='random', transforms=False)
    for made in (prepare_data(chips, chip_size=8, batch_size=4), data):
        counts = {value: int((wanted == value).sum()) for value in range(1, 6)}
        assert {value: made.value_counts[value] for value in counts} == pytest.approx(counts, rel=0.02)


def test_grids_in_degrees_are_compared_in_pixels():
    """A ten-thousandth of a degree is 75 pixels of a drone."""
    drone = GeoBox((512, 512), Affine(1.34e-6, 0, 85.5, 0, -1.19e-6, 27.6), 'EPSG:4326')
    assert same_grid(drone, GeoBox((512, 512), Affine(1.34e-6, 0, 85.5 + 1e-9, 0, -1.19e-6, 27.6), None))
    for place in (Affine(1.34e-6, 0, 85.5 + 5e-7, 0, -1.19e-6, 27.6), Affine(1.341e-6, 0, 85.5, 0, -1.19e-6, 27.6)):
        assert not same_grid(drone, GeoBox((512, 512), place, 'EPSG:4326'))


def test_what_cannot_be_aligned_is_refused(image, save, tmp_path):
    truth = np.ones((40, 48), np.uint8)
    nowhere = save(tmp_path / 'nowhere.tif', truth[:9], transform=Affine.identity(), crs=None)
    with pytest.raises(RasterError, match='cannot be aligned'):
        export_training_data(image, nowhere, tmp_path / 'out', align_labels=True)
    shifted = save(tmp_path / 'shifted.tif', truth, transform=COARSE, crs='EPSG:32633')
    for make in (export_training_data, from_rasters):
        with pytest.raises(ChipFolderError, match='pass align_labels=True to take for each pixel the label at its'):
            make(image, shifted, *([tmp_path / 'out'] if make is export_training_data else []))


def test_pairs_of_rasters_in_several_places_are_one_data_set(save, tmp_path):
    """Three images in two CRSs, each with its class raster, of which none has all classes."""
    rng, images, labels, wanted = np.random.default_rng(2), [], [], np.zeros(8, int)
    for at, (crs, values) in enumerate([('EPSG:32633', (1, 2)), ('EPSG:32636', (2, 7)), ('EPSG:32633', (4, 1))]):
        place = Affine(10, 0, 500_000 + 9000 * at, 0, -10, 5_000_000)
        pixels, truth = rng.integers(1, 999, (2, 32, 32)).astype(np.uint16), rng.choice(values, (32, 32))
        images.append(save(tmp_path / f'i{at}.tif', pixels, transform=place, crs=crs, names=('red', 'nir')))
        labels.append(save(tmp_path / f'l{at}.tif', truth.astype(np.uint8), transform=place, crs=crs))
        wanted += np.bincount(truth.ravel(), minlength=8)
    chips = export_training_data(images, labels, tmp_path / 'chips', tile_size=16, processing_mode='collection')
    options = {'chip_size': 16, 'batch_size': 4}
    for data in (prepare_data(chips, **options), from_rasters(images, labels, **options)):
        assert [info.value for info in data.class_infos] == [1, 2, 4, 7]
        assert [data.value_counts[value] for value in (1, 2, 4, 7)] == wanted[[1, 2, 4, 7]].tolist()
        assert len(data.table) == 12
    assert "from_rasters(['i0.tif', 'i1.tif', 'i2.tif'], ['l0.tif'" in data.source
    for wrong in (labels[:2], labels[0]):
        with pytest.raises(ChipFolderError, match=r'a class raster for each of the 3 rasters; found'):
            export_training_data(images, wrong, tmp_path / 'no', processing_mode='collection')
    with pytest.raises(ChipFolderError, match='found 3 rasters and 2 label rasters; each raster needs one'):
        from_rasters(images, labels[:2])
