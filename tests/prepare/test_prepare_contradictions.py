"""Images, labels and rasters that contradict one another: places, units, sizes, names of bands, label values."""

import numpy as np
import pytest
import rasterio
from affine import Affine

from geolearn.chips.export import export_training_data
from geolearn.errors import ChipFolderError, RasterError
from geolearn.prepare import prepare_data
from geolearn.raster import open_raster
from geolearn.raster_windows import from_rasters

PLAIN = {'chip_size': 8, 'batch_size': 2, 'transforms': False, 'val_split_pct': 0.5}
SOUTH_UP = {'transform': Affine(10, 0, 0, 0, 10, -80)}
UNITS = r'values of different units.* scale 0\.0001 and offset 0, and scale 0\.0001 and offset -0\.1'


def pixels(*shape, low=1, high=2000, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.uint16)


@pytest.fixture
def folder(tmp_path, save):
    """Write chips: `folder(images={}, labels={})`, with profiles of each folder."""

    def write(*, values=(0, 1, 2), names=(), count=4, bands=3, **profiles):
        for name, profile in ({'images': {}, 'labels': {}} | profiles).items():
            (tmp_path / 'chips' / name).mkdir(parents=True)
            for index in range(count):
                path = tmp_path / f'chips/{name}/{index}.tif'
                if name == 'labels':
                    save(path, np.resize(np.array(values, np.uint16), (8, 8)), **profile)
                else:
                    save(path, pixels(bands, 8, 8, seed=index), names=names, **profile)
        return tmp_path / 'chips'

    return write


def state(path, scale, offset):
    with rasterio.open(path, 'r+') as dst:
        dst.scales, dst.offsets = [scale] * dst.count, [offset] * dst.count
    return path


def test_labels_and_dates_that_lie_elsewhere_are_refused(folder, tmp_path, save):
    chips = folder(labels=SOUTH_UP)
    with pytest.raises(ChipFolderError, match=r'labels/0\.tif lies 8 pixels from its image'):
        prepare_data(chips, **PLAIN)
    for path in (chips / 'labels').iterdir():
        save(path, np.resize(np.array([0, 1], np.uint8), (8, 8)), crs=None, transform=Affine.identity())
    assert len(prepare_data(chips, **PLAIN).table) == 4  # what has no place contradicts none
    (chips / 'images2').mkdir()
    for index in range(4):
        save(chips / f'images2/{index}.tif', pixels(3, 8, 8), transform=Affine(10, 0, 40, 0, -10, 0))
    with pytest.raises(ChipFolderError, match=r'images2/0\.tif lies 4 pixels from .*images/0\.tif'):
        prepare_data(chips, **PLAIN)


def test_files_that_share_no_ground_are_matched_by_name_which_is_noted(folder):
    """Labels of other software often carry a place of their own, such as 0, 0."""
    chips = folder(labels={'transform': Affine(10, 0, 500_000, 0, -10, 5_400_000)})
    data = prepare_data(chips, **PLAIN)
    assert len(data.table) == 4
    (note,) = [note for note in data.notes if 'share no ground' in note]
    assert 'labels/0.tif' in note


def test_chips_and_dates_of_other_scales_are_refused(folder):
    chips = folder(images2={})
    for index in range(4):
        state(chips / f'images/{index}.tif', 1e-4, 0)
        state(chips / f'images2/{index}.tif', 1e-4, -0.1)
    with pytest.raises(ChipFolderError, match=f'images/0.tif and .*images2/0.tif hold {UNITS}'):
        prepare_data(chips, **PLAIN)
    for path in (chips / 'images2').iterdir():
        path.unlink()
    (chips / 'images2').rmdir()
    state(chips / 'images/3.tif', 1e-4, -0.1)
    with pytest.raises(ChipFolderError, match=f'images/0.tif and .*images/3.tif hold {UNITS}'):
        prepare_data(chips, **PLAIN)


def test_rasters_of_other_scales_are_neither_mixed_nor_joined(tmp_path, save):
    beside = {'transform': Affine(10, 0, 80, 0, -10, 0)}
    rasters = [save(tmp_path / f'{name}.tif', pixels(3, 8, 8), **place) for name, place in (('a', {}), ('b', beside))]
    labels = [save(tmp_path / f'l{i}.tif', pixels(8, 8, high=3), **place) for i, place in enumerate(({}, beside))]
    with open_raster(rasters):  # nothing says that they differ
        pass
    for path, offset in zip(rasters, (0, -0.1)):
        state(path, 1e-4, offset)
    with pytest.raises(RasterError, match=UNITS), open_raster(rasters):
        pass
    with pytest.raises(RasterError, match=UNITS):
        from_rasters([[path] for path in rasters], labels, chip_size=4, split='random')
    with pytest.raises(RasterError, match=UNITS):
        export_training_data(rasters, labels, tmp_path / 'out', tile_size=4, processing_mode='collection')


def test_rasters_of_decibels_and_of_power_are_not_mixed(tmp_path, save):
    power = np.random.default_rng(0).uniform(0.01, 0.3, (2, 16, 16)).astype(np.float32)
    names = ('VV', 'VH')
    rasters = [
        save(tmp_path / 'db.tif', 10 * np.log10(power), names=names),
        save(tmp_path / 'power.tif', power, names=names, transform=Affine(10, 0, 160, 0, -10, 0)),
    ]
    labels = [
        save(tmp_path / f'l{at}.tif', pixels(16, 16, high=3), transform=Affine(10, 0, at, 0, -10, 0)) for at in (0, 160)
    ]
    with pytest.raises(ChipFolderError, match=r'db\.tif is in dB; .*power\.tif is linear'):
        from_rasters([[path] for path in rasters], labels, chip_size=8, split='random')
    with pytest.raises(ChipFolderError, match=r'db\.tif is in dB; .*power\.tif is linear'):
        export_training_data(rasters, labels, tmp_path / 'out', tile_size=8, processing_mode='collection')


def test_a_value_far_above_the_others_is_noted_unless_it_has_a_name(folder, caplog):
    chips = folder(values=(0, 1, 2, 255))
    wanted = 'label value 255 (25.0% of pixels) is trained as a class, and the others lie in 0..2'
    assert any(note.startswith(wanted) for note in prepare_data(chips, **PLAIN).notes)
    assert wanted in caplog.text
    for options in ({'class_mapping': {255: 'road'}}, {'unlabelled': [255]}):
        assert not any(note.startswith(wanted) for note in prepare_data(chips, **PLAIN, **options).notes)


def test_pixels_of_several_sizes_are_noted(folder, save):
    chips = folder()
    wanted = 'pixels of the chips measure 10 to 30 m on the ground'
    assert not any(wanted in note for note in prepare_data(chips, **PLAIN).notes)
    coarse = {'transform': Affine(30, 0, 3000, 0, -30, 0)}
    save(chips / 'images/3.tif', pixels(3, 8, 8), **coarse)
    save(chips / 'labels/3.tif', pixels(8, 8, high=3), **coarse)
    assert any(wanted in note for note in prepare_data(chips, **PLAIN).notes)


def test_names_of_bands_in_another_order_than_the_files_are_noted(folder, caplog):
    chips = folder(names=('B1', 'B10', 'B11', 'B2'), bands=4)
    prepare_data(chips, bands=['B01', 'B10', 'B11', 'B02'], **PLAIN)
    assert 'bands= says' not in caplog.text
    data = prepare_data(chips, bands=['B01', 'B02', 'B10', 'B11'], **PLAIN)
    assert [band.name for band in data.bands] == ['B01', 'B02', 'B10', 'B11']
    assert 'the file calls them B1, B10, B11, B2; if the file is right' in caplog.text


def test_folders_whose_classes_are_names_give_each_name_one_value(tmp_path, save):
    box = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>6</xmax><ymax>6</ymax></bndbox>'
    for part, names in (('train', ('barn', 'boat', 'car')), ('valid', ('barn', 'car'))):
        (tmp_path / part / 'labels').mkdir(parents=True)
        for kind in ('images', *(f'classes/{name}' for name in names)):
            (tmp_path / part / kind).mkdir(parents=True)
        for index, name in enumerate(names):
            save(tmp_path / part / f'images/{index}.tif', pixels(3, 8, 8))
            save(tmp_path / part / f'classes/{name}/{part}{index}.tif', pixels(3, 8, 8))
            text = f'<annotation><object><name>{name}</name>{box}</object></annotation>'
            (tmp_path / part / f'labels/{index}.xml').write_text(text)
    options = {key: value for key, value in PLAIN.items() if key != 'val_split_pct'}
    boxes = prepare_data(tmp_path / 'train', valid_path=tmp_path / 'valid', **options)
    assert boxes.class_mapping == {1: 'barn', 2: 'boat', 3: 'car'}
    assert [objects.labels.tolist() for _, objects in (boxes.valid_ds[0], boxes.valid_ds[1])] == [[0], [2]]
    whole = prepare_data(tmp_path / 'train/classes', valid_path=tmp_path / 'valid/classes', **options)
    assert whole.class_mapping == boxes.class_mapping
    assert [int(value) for _, value in (whole.valid_ds[0], whole.valid_ds[1])] == [0, 2]
