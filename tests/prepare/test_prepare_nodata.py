"""NoData of labels and images: what files declare, and what the user names."""

import json

import numpy as np
import pytest
import rasterio
from affine import Affine

from geolearn import prepare_data
from geolearn.chips.export import export_training_data
from geolearn.classes import IGNORE_INDEX
from geolearn.errors import ChipFolderError
from geolearn.raster import open_raster, read_image

PLACE = Affine(10, 0, 500_000, 0, -10, 5_400_000)
CRS = 'EPSG:32633'
PLAIN = {'chip_size': 8, 'batch_size': 4, 'transforms': False, 'val_split_pct': 0.25}


def field(dtype, unset):
    """Class values 0, 1 and 2 (8, 8), the last row unset."""
    values = np.repeat([[0, 1, 2, 2]], 8, axis=0).repeat(2, axis=1).astype(dtype)
    values[7] = unset
    return values


@pytest.fixture
def folder(tmp_path, save):
    """Write images/ and labels/: `folder(labels, nodata=[...])`."""

    def write(labels, *, nodata=None, images=None, **profile):
        for name in ('images', 'labels'):
            (tmp_path / 'chips' / name).mkdir(parents=True)
        rng = np.random.default_rng(0)
        for index, label in enumerate(labels):
            image = rng.integers(1, 2000, (2, 8, 8)).astype(np.uint16) if images is None else images[index]
            save(tmp_path / f'chips/images/{index}.tif', image)
            tag = nodata[index] if isinstance(nodata, list) else nodata
            save(tmp_path / f'chips/labels/{index}.tif', label[None], nodata=tag, **profile)
        return tmp_path / 'chips'

    return write


@pytest.mark.parametrize('pack', [True, False])
@pytest.mark.parametrize(
    ('dtype', 'unset'), [('uint8', 255), ('int16', -1), ('int32', -9999), ('uint16', 65535), ('float32', np.nan)]
)
def test_declared_nodata_of_labels_is_unlabelled(folder, dtype, unset, pack):
    options = {'target': 'classes'} if dtype == 'float32' else {}
    data = prepare_data(folder([field(dtype, unset)] * 4, nodata=unset), pack=pack, **PLAIN, **options)
    assert data.class_mapping == {0: 'NoData', 1: '1', 2: '2'}
    assert dict(data.value_counts) == {0: 56, 1: 56, 2: 112}
    for _, masks in (*data.train_dl, *data.valid_dl):
        assert (masks[:, 7] == IGNORE_INDEX).all()
        assert (masks[:, :7] == masks.new_tensor([0, 0, 1, 1, 2, 2, 2, 2])).all()


def test_each_label_file_has_its_own_nodata(folder):
    labels = [field('int32', unset) for unset in (255, -1, 77, -9999)]
    data = prepare_data(folder(labels, nodata=[255, -1, 77, -9999]), **PLAIN)
    assert dict(data.value_counts) == {0: 56, 1: 56, 2: 112}


@pytest.mark.parametrize(('dtype', 'unset'), [('uint8', 255), ('int16', -1), ('int32', -9999)])
def test_named_values_are_unlabelled_and_0_stays_a_class(folder, dtype, unset):
    data = prepare_data(folder([field(dtype, unset)] * 4), unlabelled=[unset], class_mapping={0: 'bare'}, **PLAIN)
    assert data.class_mapping == {0: 'bare', 1: '1', 2: '2'}
    assert dict(data.value_counts) == {0: 56, 1: 56, 2: 112}
    again = prepare_data(data.path, unlabelled=[unset, 2], **PLAIN)
    assert again.class_mapping == {0: 'NoData', 1: '1'}, 'another choice has a pack of its own'


def test_negative_values_are_refused_with_words_that_work(folder):
    path = folder([field('int16', -9999)] * 4)
    with pytest.raises(ChipFolderError, match=r'holds values from -9999 to 2; .*pass unlabelled=\[-9999\]'):
        prepare_data(path, **PLAIN)
    assert dict(prepare_data(path, unlabelled=[-9999], **PLAIN).value_counts) == {0: 56, 1: 56, 2: 112}


def test_numbers_have_unlabelled_values_too(folder):
    labels = [field('float32', -9999) + index for index in range(4)]
    for label in labels:
        label[7] = -9999
    data = prepare_data(folder(labels), unlabelled=[-9999], target='values', **PLAIN)
    assert data.target_statistics.minimum >= 0
    for _, targets in data.train_dl:
        assert targets[:, 7].isnan().all()


def test_change_labels_have_nodata(folder, save):
    labels = [field('uint8', 255)] * 4
    path = folder(labels, nodata=255)
    (path / 'images2').mkdir()
    for index in range(4):
        save(path / f'images2/{index}.tif', read_image(path / f'images/{index}.tif')[0][:, ::-1])
    data = prepare_data(path, **PLAIN)
    assert data.task == 'change'
    assert 255 not in data.value_counts


def test_unlabelled_is_refused_where_labels_are_no_rasters(tmp_path, write_folder):
    with pytest.raises(ChipFolderError, match=r'unlabelled=\[255.0\] names values of label rasters'):
        prepare_data(write_folder(tmp_path / 'a', 'PASCAL_VOC_rectangles'), unlabelled=[255])
    with pytest.raises(ChipFolderError, match='unlabelled is .* pass a number, or a list'):
        prepare_data(tmp_path / 'a', unlabelled='255')


@pytest.mark.parametrize('pack', [True, False])
def test_a_named_value_is_nodata_of_images(folder, pack):
    images = [np.full((2, 8, 8), 100 + index, np.uint16) for index in range(4)]
    for image in images:
        image[:, :, 4:] = np.arange(200, 232).reshape(8, 4)
        image[:, :2] = 0
        image[1, 5, 5] = 7
    path = folder([field('uint8', 0)] * 4, images=images)
    assert prepare_data(path, pack=pack, **PLAIN).statistics.minimum == (0, 0)
    data = prepare_data(path, nodata=0, pack=pack, **PLAIN)
    assert data.statistics.minimum == (100, 7)
    assert sum(data.value_counts.values()) == 4 * 48
    data = prepare_data(path, nodata=[0, 7], pack=pack, **PLAIN)
    assert data.statistics.minimum == (100, 100)
    with pytest.raises(ChipFolderError, match='nodata= holds 3 values, but .* holds 2 bands'):
        prepare_data(path, nodata=[0, 7, 9], pack=pack, **PLAIN)


# --- export


def scene(tmp_path, save, *, border=0, dtype='uint16', **profile):
    pixels = np.random.default_rng(1).integers(500, 2000, (2, 32, 32)).astype(dtype)
    if border:
        pixels[:, :, :border] = 0
    return save(tmp_path / 'scene.tif', pixels, transform=PLACE, crs=CRS, **profile)


@pytest.mark.parametrize(('dtype', 'unset', 'tag'), [('uint8', 255, 255), ('int16', -1, None), ('int32', -9999, -9999)])
def test_an_export_keeps_0_as_a_class_where_asked(tmp_path, save, dtype, unset, tag):
    label = np.tile(field(dtype, unset), (4, 4))
    labels = save(tmp_path / 'labels.tif', label[None], transform=PLACE, crs=CRS, nodata=tag)
    out = export_training_data(
        scene(tmp_path, save), labels, tmp_path / 'e', tile_size=8, unlabelled=[unset] if tag is None else []
    )
    emd = json.loads((out / 'esri_model_definition.emd').read_text())
    assert [row['Value'] for row in emd['Classes']] == [0, 1, 2]
    data = prepare_data(out, **PLAIN)
    assert dict(data.value_counts) == {0: 16 * 14, 1: 16 * 14, 2: 16 * 28}
    assert data.ignored_values == ()


def test_an_export_without_asking_takes_0_as_unlabelled(tmp_path, save):
    labels = save(
        tmp_path / 'labels.tif', np.tile(field('int16', -1), (4, 4))[None], transform=PLACE, crs=CRS, nodata=-1
    )
    data = prepare_data(export_training_data(scene(tmp_path, save), labels, tmp_path / 'e', tile_size=8), **PLAIN)
    assert data.class_mapping == {0: 'NoData', 1: '1', 2: '2'}


def test_an_export_stops_at_negative_values_with_words_that_work(tmp_path, save):
    labels = save(tmp_path / 'labels.tif', np.tile(field('int16', -9), (4, 4))[None], transform=PLACE, crs=CRS)
    image = scene(tmp_path, save)
    with pytest.raises(ChipFolderError, match=r'from -9 to 2; .*pass unlabelled=\[-9\]'):
        export_training_data(image, labels, tmp_path / 'e', tile_size=8)
    assert export_training_data(image, labels, tmp_path / 'e', tile_size=8, unlabelled=[-9]).is_dir()


@pytest.mark.parametrize(('tag', 'values'), [(None, 0), (7, 0), (None, (0, 0)), (None, (0, 499))])
def test_named_nodata_goes_through_export_and_reading(tmp_path, save, tag, values):
    image = scene(tmp_path, save, border=12, nodata=tag)
    labels = save(tmp_path / 'labels.tif', np.full((1, 32, 32), 2, np.uint8), transform=PLACE, crs=CRS)
    labels_two = read_image(labels)[0]
    labels_two[0, :, 16:] = 1
    save(labels, labels_two, transform=PLACE, crs=CRS)
    out = export_training_data(image, labels, tmp_path / 'e', tile_size=8, nodata=values)
    assert len(list((out / 'images').glob('*.tif'))) == 12, 'chips of border alone are left out'
    data = prepare_data(out, **PLAIN)
    assert data.statistics.minimum[0] >= 500
    assert dict(data.value_counts) == {1: 16 * 32, 2: 4 * 32}
    with open_raster(out / 'images' / '000000000000.tif') as src:
        assert src.nodata == {7: 7}.get(tag, 0 if values in (0, (0, 0)) else None)


# --- bands that are not used


@pytest.fixture
def gappy(tmp_path, save):
    """Chips of three bands: the last has gaps of its own over class 2, or is empty."""

    def write(*, empty=False, target=False, bad=False):
        for name in ('images', 'labels'):
            (tmp_path / 'gappy' / name).mkdir(parents=True)
        for index in range(4):
            pixels = np.random.default_rng(index).normal(0.2, 0.05, (3, 8, 8)).astype(np.float32)
            pixels[2] = np.nan if empty else np.where(field('uint8', 1) == 2, np.nan, pixels[2])
            label = field('float32' if target else 'uint8', 1)[None]
            path = save(tmp_path / f'gappy/images/{index}.tif', pixels, names=('red', 'green', 'nir'))
            save(tmp_path / f'gappy/labels/{index}.tif', label)
            if bad:
                with rasterio.open(path, 'r+') as dst:
                    dst.update_tags(2, bbl='0')
        return tmp_path / 'gappy'

    return write


@pytest.mark.parametrize('pack', [True, False])
def test_nodata_of_bands_that_are_not_used_changes_no_count(gappy, pack):
    path = gappy()
    whole = prepare_data(path, pack=pack, **PLAIN)
    assert 2 not in whole.value_counts
    data = prepare_data(path, extract_bands=['red', 'green'], pack=pack, **PLAIN)
    assert dict(data.value_counts) == {0: 56, 1: 88, 2: 112}
    summary = data.summary()
    assert (summary['train pixels'] + summary['valid pixels']).tolist() == [56, 88, 112]
    assert (summary['train chips'] + summary['valid chips']).tolist() == [4, 4, 4]
    shares = np.array([56, 88, 112]) / 256
    np.testing.assert_allclose(data.class_weights * shares, (data.class_weights * shares)[0])
    assert data.table.pooled(range(4), [0, 1]).count.tolist() == [256, 256]


def test_targets_under_gaps_of_unused_bands_count(gappy):
    data = prepare_data(gappy(target=True), extract_bands=['red', 'green'], target='values', **PLAIN)
    assert data.target_statistics.count == 192
    assert data.target_statistics.maximum == 2


def test_a_band_that_is_empty_everywhere_is_left_out_and_noted(gappy, caplog):
    data = prepare_data(gappy(empty=True), **PLAIN)
    assert [band.name for band in data.bands] == ['red', 'green']
    assert "band 'nir' is NoData in all chips and is left out" in caplog.text
    assert sum(data.value_counts.values()) == 256
    assert data.table.percentiles([0, 1]) is not None
    assert next(iter(data.train_dl))[0].isfinite().all()


def test_a_band_that_is_tagged_as_bad_is_left_out_unless_it_is_named(gappy, caplog):
    path = gappy(bad=True)
    data = prepare_data(path, **PLAIN)
    assert [band.name for band in data.bands] == ['red', 'nir']
    assert "band 'green' is tagged as bad (bbl = 0) and is left out" in caplog.text
    assert len(prepare_data(path, extract_bands=['red', 'green'], **PLAIN).bands) == 2


def test_bad_bands_are_known_after_an_export(tmp_path, save):
    image = scene(tmp_path, save)
    with rasterio.open(image, 'r+') as dst:
        dst.update_tags(1, bbl='0')
    labels = save(tmp_path / 'labels.tif', np.tile(field('uint8', 1), (4, 4))[None], transform=PLACE, crs=CRS)
    data = prepare_data(export_training_data(image, labels, tmp_path / 'e', tile_size=8), **PLAIN)
    assert data.band_indexes == (1,)


def test_statistics_of_the_export_that_count_named_nodata_are_not_taken(tmp_path, save):
    rng = np.random.default_rng(1)
    image = rng.integers(1000, 1500, (2, 32, 32)).astype(np.uint16)
    image[:, :5] = 7
    labels = save(tmp_path / 'l.tif', rng.integers(1, 3, (32, 32)).astype(np.uint8), transform=PLACE, crs=CRS)
    scene = save(tmp_path / 'i.tif', image, transform=PLACE, crs=CRS, names=('red', 'nir'))
    chips = export_training_data(scene, labels, tmp_path / 'chips', tile_size=8)
    data = prepare_data(chips, nodata=7, extract_bands=['nir'], **PLAIN)
    assert data.statistics.mean == pytest.approx([image[1, 5:].mean()])
    assert data.statistics.std == pytest.approx([image[1, 5:].std()])
    assert data.statistics.minimum[0] >= 1000


def test_zero_that_is_declared_as_nodata_of_labels_is_explained(folder, caplog):
    labels = [np.repeat([[0, 1]], 8, axis=0).repeat(4, axis=1).astype(np.uint8)] * 4
    chips = folder(labels, nodata=0)
    with pytest.raises(ChipFolderError, match=r'found 1: 1\. .*0\.tif declares 0 as NoData.*gdal_edit.py -unsetnodata'):
        prepare_data(chips, **PLAIN)
    for path in sorted((chips / 'labels').glob('*.tif')):  # what the advice does
        with rasterio.open(path, 'r+') as dst:
            dst.nodata = None
    assert dict(prepare_data(chips, **PLAIN).value_counts) == {0: 128, 1: 128}
    assert 'declares 0' not in caplog.text


def test_zero_that_is_nodata_beside_two_classes_is_said_in_the_log(folder, caplog):
    data = prepare_data(folder([field('uint8', 0)] * 4, nodata=0), **PLAIN)
    assert data.class_mapping == {1: '1', 2: '2'}
    assert caplog.text.count('declares 0 as NoData, so that pixels of value 0 are unlabelled') == 1


def test_an_export_says_that_zero_is_nodata_of_its_labels(tmp_path, save, caplog):
    image = save(tmp_path / 'i.tif', np.random.default_rng(0).integers(1, 9, (2, 16, 16)).astype(np.uint8))
    labels = np.resize(np.uint8([0, 1, 2]), (16, 16))
    for nodata, count in ((0, 1), (None, 0)):
        caplog.clear()
        truth = save(tmp_path / f'l{nodata}.tif', labels, nodata=nodata)
        export_training_data(image, truth, tmp_path / f'out{nodata}', tile_size=8, unlabelled=[255])
        assert caplog.text.count('declare 0 as NoData, so that 0 is unlabelled') == count
