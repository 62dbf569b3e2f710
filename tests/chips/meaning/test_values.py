"""Regression targets, such as biomass: they arrive as they are stored, and what is no truth says so."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.augment import CutMix, Dihedral, Mixup, ScaleCrop
from geolearn.batch import Batch
from geolearn.chips.export import export_training_data
from geolearn.chips.label import Task
from geolearn.chips.meaning.values import as_numbers
from geolearn.errors import ChipFolderError, UnknownNameError
from geolearn.prepare import prepare_data

NAMES = ['Red', 'Green', 'NIR']
PLAIN = {'chip_size': 16, 'batch_size': 2, 'transforms': False}


def pixels(count=6, side=16):
    """Images whose first band, a tenth of it, is the number to learn."""
    rng = np.random.default_rng(count)
    images = [rng.integers(1, 250, (3, side, side)).astype(np.uint8) for _ in range(count)]
    return images, [image[0].astype(np.float32) / 10 for image in images]


@pytest.fixture
def write(tmp_path, write_export):
    """Write a folder without classes: `write(images, labels)`."""

    def folder(images, labels, *, name='chips', classes=(), **options):
        return write_export(tmp_path / name, images, labels, classes=classes, band_names=NAMES, **options)

    return folder


def truth_of(chips):
    return np.stack([chips[index][1].numpy() for index in range(len(chips))])


# --- what is read


@pytest.mark.parametrize('pack', [True, False])
def test_numbers_arrive_as_they_are_stored(write, pack):
    data = prepare_data(write(*pixels()), pack=pack, **PLAIN)
    assert (data.task, data.c, data.classes, data.class_infos) == (Task.REGRESSION, 0, [], ())
    assert any('float32 rasters, read as a number per pixel' in note for note in data.notes)
    for images, values in (*data.train_dl, *data.valid_dl):
        assert (values.shape, values.dtype) == (images[:, 0].shape, torch.float32)
        torch.testing.assert_close(values, images[:, 0] / 10, rtol=0, atol=0)


@pytest.mark.parametrize('pack', [True, False])
@pytest.mark.parametrize('nodata', [-9999, None])
def test_nodata_and_nan_take_no_part(write, pack, nodata):
    images, labels = pixels()
    for label in labels:
        label[:4] = np.nan if nodata is None else nodata
        label[4] = np.nan
        label[5] = np.inf
    folder = write(images, labels, label_profile={'nodata': nodata})
    data = prepare_data(folder, pack=pack, **PLAIN)
    found = truth_of(data.train_ds)
    assert np.isnan(found[:, :6]).all()
    assert np.isfinite(found[:, 6:]).all()
    assert data.target_statistics.count == found[:, 6:].size


def test_pixels_without_an_image_have_no_truth(write):
    images, labels = pixels()
    for image in images:
        image[1, :, :3] = 0
    data = prepare_data(write(images, labels, image_profile={'nodata': 0}), **PLAIN)
    found = truth_of(data.train_ds)
    assert np.isnan(found[..., :3]).all()
    assert data.target_statistics.count == found[..., 3:].size


def test_statistics_are_those_of_the_training_pixels(write):
    images, labels = pixels(8)
    labels[0][:5] = np.nan
    data = prepare_data(write(images, labels), val_split_pct=0.25, **PLAIN)
    known = truth_of(data.train_ds)
    known = known[~np.isnan(known)].astype(np.float64)
    found = data.target_statistics
    assert found.count == len(known)
    expected = (known.mean(), known.std(), known.min(), known.max())
    assert (found.mean, found.std, found.minimum, found.maximum) == pytest.approx(expected)
    assert data.summary().loc['train'].tolist() == pytest.approx([len(known), *expected])
    assert f'target   {known.min():g} to {known.max():g}' in repr(data)


def test_statistics_of_classes_are_none(scene_data):
    assert scene_data.target_statistics is None


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int16', 'int32', 'float64'])
def test_every_stored_type_becomes_float32(write, dtype):
    images, labels = pixels()
    labels = [np.rint(label).astype(dtype) for label in labels]
    data = prepare_data(write(images, labels), target='values', **PLAIN)
    assert data.task == Task.REGRESSION
    for batch, values in data.train_dl:
        torch.testing.assert_close(values, (batch[:, 0] / 10).round(), rtol=0, atol=0)


def test_smaller_chips_are_cut_and_padded_like_their_images(write):
    images, labels = pixels()
    data = prepare_data(write(images, labels), **PLAIN | {'chip_size': 12})
    for batch, values in (*data.train_dl, *data.valid_dl):
        torch.testing.assert_close(values, batch[:, 0] / 10)
    small = [image[:, :9, :7] for image in images[:1]] + images[1:]
    cut = [label[:9, :7] for label in labels[:1]] + labels[1:]
    data = prepare_data(write(small, cut, name='small'), val_split_pct=0.2, **PLAIN)
    for batch, values in (*data.train_dl, *data.valid_dl):
        torch.testing.assert_close(values, batch[:, 0] / 10, equal_nan=True)


def test_chips_of_several_dates_have_one_truth(tmp_path, save):
    images, labels = pixels()
    for name, arrays in (('images', images), ('images2', images[::-1]), ('images3', images), ('labels', labels)):
        (tmp_path / 'chips' / name).mkdir(parents=True)
        for index, array in enumerate(arrays):
            save(tmp_path / 'chips' / name / f'{index}.tif', array)
    data = prepare_data(tmp_path / 'chips', dataset_type='MultiTemporal_Tiles', bands=NAMES, **PLAIN)
    assert data.task == Task.REGRESSION
    for batch, values in data.train_dl:
        torch.testing.assert_close(values, batch[:, 0, 0] / 10)
    assert len(data.show_batch(rows=1).axes) > 1


# --- classes or numbers


def test_integers_are_classes_unless_asked_otherwise(write):
    images, labels = pixels()
    folder = write(images, [(label > 12).astype(np.uint8) + 1 for label in labels])
    assert prepare_data(folder, **PLAIN).task == Task.PIXELS
    assert prepare_data(folder, target='classes', **PLAIN).task == Task.PIXELS
    data = prepare_data(folder, target='values', **PLAIN)
    assert (data.task, data.target_statistics.minimum, data.target_statistics.maximum) == (Task.REGRESSION, 1, 2)


def test_classes_and_numbers_of_one_folder_stay_in_the_cache_side_by_side(write, cache):
    images, labels = pixels()
    folder = write(images, [(label > 12).astype(np.uint8) + 1 for label in labels])
    before = set(cache.rglob('*.pack'))
    for target in ('classes', 'values', 'classes'):
        prepare_data(folder, target=target, **PLAIN)
    assert len(set(cache.rglob('*.pack')) - before) == 2


def test_whole_floating_point_numbers_are_classes_where_asked_or_listed(write):
    images, labels = pixels()
    whole = [(label > 12).astype(np.float32) + 1 for label in labels]
    folder = write(images, whole)
    assert prepare_data(folder, **PLAIN).task == Task.REGRESSION
    assert prepare_data(folder, target='classes', **PLAIN).classes == ['1', '2']
    listed = prepare_data(
        write(images, whole, name='listed', classes=((1, 'a', [1, 2, 3]), (2, 'b', [4, 5, 6]))), **PLAIN
    )
    assert listed.classes == ['a', 'b']
    assert any("pass target='values' if they are numbers" in note for note in listed.notes)


def test_fractions_are_no_classes(write):
    with pytest.raises(ChipFolderError, match="class values are whole numbers; pass target='values'"):
        prepare_data(write(*pixels()), target='classes', **PLAIN)


def test_there_is_no_other_target(write):
    with pytest.raises(UnknownNameError, match="unknown target 'value'; did you mean 'values'"):
        prepare_data(write(*pixels()), target='value', **PLAIN)


def test_folders_of_classes_and_of_numbers_are_not_merged(write):
    images, labels = pixels()
    folders = [write(images, labels), write(images, [label.astype(np.uint8) for label in labels], name='whole')]
    with pytest.raises(ChipFolderError, match=r'labels are of task values and pixels\); folders must be of one type'):
        prepare_data(folders, **PLAIN)


def test_other_formats_hold_no_numbers(tmp_path, save):
    (tmp_path / 'images').mkdir()
    save(tmp_path / 'images' / '1.tif', pixels()[0][0])
    with pytest.raises(ChipFolderError, match="target='values' needs a raster of numbers.* are of task unlabelled"):
        prepare_data(tmp_path, target='values', **PLAIN)


# --- what makes no sense is refused or told


@pytest.mark.parametrize(
    ('option', 'value'),
    [('class_mapping', {1: 'tree'}), ('ignore_classes', [0]), ('oversample', True), ('split', 'stratified')],
)
def test_options_about_classes_are_refused(write, option, value):
    with pytest.raises(
        ChipFolderError, match=rf'{option}.* is about classes, but these labels hold a number per pixel'
    ):
        prepare_data(write(*pixels()), **PLAIN | {option: value})


def test_crops_around_rare_classes_are_refused(write):
    with pytest.raises(ChipFolderError, match='the label type is values; leave it out'):
        prepare_data(write(*pixels()), **PLAIN | {'rare_class_crops': True, 'chip_size': 8})


def test_a_single_number_teaches_nothing(write):
    images, labels = pixels()
    with pytest.raises(ChipFolderError, match=r'all 1,280 pixels to train on are 4\.5; nothing can be learned'):
        prepare_data(write(images, [np.full_like(label, 4.5) for label in labels]), **PLAIN)


@pytest.mark.parametrize(('part', 'name'), [('train', 'training'), ('valid', 'validation')])
def test_a_part_without_any_truth_is_refused(write, part, name):
    images, labels = pixels()
    lists = {'valid': ['000000000000'], 'train': [f'{index:012d}' for index in range(1, 6)]}
    for index, label in enumerate(labels):
        if (index == 0) == (part == 'valid'):
            label[:] = np.nan
    with pytest.raises(ChipFolderError, match=rf'no pixel of \d {name} chips has a number'):
        prepare_data(write(images, labels), split=lists, **PLAIN)


@pytest.mark.parametrize('sentinel', [-9999, -99999])
def test_numbers_that_look_like_nodata_are_told(write, sentinel, caplog):
    images, labels = pixels()
    labels[2][3, 3] = sentinel
    with caplog.at_level(logging.WARNING):
        data = prepare_data(write(images, labels), **PLAIN)
    told = f'labels hold {np.float32(sentinel):g}, which often means NoData'
    assert any(told in note for note in data.notes)
    assert told in caplog.text


@pytest.mark.parametrize('sentinel', [-3.4028235e38, 1e300])
def test_numbers_that_float32_cannot_hold_are_nodata_without_a_tag(write, sentinel):
    images, labels = pixels()
    wide = [label.astype(np.float64) for label in labels]
    wide[2][3, 3] = sentinel
    data = prepare_data(write(images, wide), target='values', **PLAIN)
    found = [data.table.target_statistics([position]) for position in range(len(data.table))]
    assert sorted(part.count for part in found) == [255, *[256] * (len(found) - 1)]
    assert max(abs(part.minimum) for part in found) < 1e6


def test_a_scale_that_labels_state_is_told_as_it_is_not_applied(write):
    import rasterio

    images, labels = pixels()
    folder = write(images, [label.astype(np.int16) for label in labels])
    for path in (folder / 'labels').iterdir():
        with rasterio.open(path, 'r+') as dst:
            dst.scales = (0.1,)
    data = prepare_data(folder, target='values', **PLAIN)
    assert any('labels state scale 0.1 and offset 0, which are not applied' in note for note in data.notes)
    assert data.target_statistics.maximum > 20


@pytest.mark.parametrize(
    ('label', 'words'),
    [
        (np.ones((2, 16, 16), np.float32), 'holds 2 bands'),
        (np.ones((16, 16), np.complex64), 'complex64 numbers; only real ones'),
        (np.ones((8, 16), np.float32), '16x8 pixels but its image is 16x16'),
    ],
)
def test_a_label_that_cannot_be_learned_is_left_out_and_told(write, save, label, words):
    images, labels = pixels()
    folder = write(images, labels)
    save(folder / 'labels' / '000000000003.tif', label)
    data = prepare_data(folder, target='values', **PLAIN)
    assert len(data.table) == 5
    assert any('1 chips cannot be read' in note and words in note for note in data.notes)


@given(
    numbers=st.lists(st.floats(width=64), min_size=1, max_size=9),
    nodata_bits=st.integers(0, 2**9 - 1),
    dtype=st.sampled_from(['float32', 'float64']),
)
def test_numbers_are_float32_or_refused(numbers, nodata_bits, dtype):
    with np.errstate(over='ignore'):
        pixels = np.array(numbers).astype(dtype)[None]
    mask = np.isfinite(pixels) & ~np.array([[bool(nodata_bits >> i & 1) for i in range(len(numbers))]])
    with np.errstate(over='ignore'):
        kept = pixels[mask].astype(np.float32)
    if np.isinf(kept).any():
        with pytest.raises(ChipFolderError, match='beyond those of float32'):
            as_numbers(pixels, mask, 'it')
        return
    found = as_numbers(pixels, mask, 'it')
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), ~mask)
    np.testing.assert_array_equal(found[mask], kept)


# --- augmentation


def numbered(count=4, side=12):
    """Images that hold their pixels' numbers, and the same as values."""
    plane = torch.arange(float(side * side)).view(side, side)
    return Batch(plane.expand(count, 1, side, side).clone(), regression_targets=plane.expand(count, side, side).clone())


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), mixed=st.booleans())
def test_values_move_with_their_pixels(seed, mixed):
    batch = numbered()
    batch = Batch(
        batch.images + 1000 * torch.arange(4.0).view(-1, 1, 1, 1), regression_targets=batch.regression_targets
    )
    batch = Batch(batch.images, regression_targets=batch.images[:, 0].clone())
    change = CutMix(1.0) if mixed else Dihedral()
    found = change(batch, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(found.regression_targets, found.images[:, 0], rtol=0, atol=0)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_zoomed_values_are_the_nearest_and_nan_outside(seed):
    batch = numbered()
    found = ScaleCrop(0.5, 2.0)(batch, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(found.regression_targets.isnan(), found.images[:, 0].isnan())
    known = found.regression_targets[~found.regression_targets.isnan()]
    assert (known == known.round()).all()  # none is mixed of two
    assert ((known - found.images[:, 0][~found.regression_targets.isnan()]).abs() <= 0.5 * 12 + 0.5 + 1e-3).all()


def test_mixup_is_refused(write):
    with pytest.raises(ValueError, match='mixup is not defined for values'):
        Mixup(0.3)(numbered(), torch.Generator().manual_seed(0))
    with pytest.raises(ChipFolderError, match='mixup is not defined for values'):
        prepare_data(write(*pixels()), **PLAIN | {'transforms': {'mixup_alpha': 0.3}})


def test_augmented_batches_keep_images_and_values_together(write):
    options = {'gain': 0.0, 'offset': 0.0, 'cutmix_alpha': 1.0}
    data = prepare_data(write(*pixels()), **PLAIN | {'transforms': options})
    for images, values in data.train_dl:
        torch.testing.assert_close(values, images[:, 0] / 10)


def test_targets_come_in_one_order():
    masks, values, labels = torch.zeros(1, 2, 2, dtype=torch.int64), torch.ones(1, 2, 2), torch.zeros(1)
    batch = Batch(torch.zeros(1, 1, 2, 2), masks, (), labels, regression_targets=values)
    assert [target is known for target, known in zip(batch.targets, (masks, values, (), labels))] == [True] * 4
    moved = batch.to(torch.device('cpu')).cast()
    torch.testing.assert_close(moved.regression_targets, values)


# --- figures and exports


def test_a_batch_is_drawn_with_its_numbers_beside_it(write):
    figure = prepare_data(write(*pixels()), **PLAIN).show_batch(rows=1, columns=2)
    drawn = [ax for ax in figure.axes if ax.images]
    assert [len(ax.images) for ax in drawn] == [1] * 4
    assert drawn[1].images[0].get_cmap().name == 'viridis'


def test_exported_numbers_come_back(tmp_path, save):
    rng = np.random.default_rng(1)
    image = rng.integers(1, 250, (3, 48, 64)).astype(np.uint8)
    height = image[0].astype(np.float32) / 7
    height[:16, :16] = -1  # a whole chip without truth
    height[20:24, 20:24] = -1
    scene = save(tmp_path / 'scene.tif', image, names=NAMES)
    labels = save(tmp_path / 'height.tif', height, nodata=-1)
    out = export_training_data(scene, labels, tmp_path / 'chips', tile_size=16, target='values')
    data = prepare_data(out, **PLAIN)
    assert (data.task, len(data.table)) == (Task.REGRESSION, 11)
    unknown = 0
    for images, values in (*data.train_dl, *data.valid_dl):
        known = ~values.isnan()
        torch.testing.assert_close(values[known], images[:, 0][known] / 7)
        unknown += int((~known).sum())
    assert unknown == 16


def test_numbers_are_written_where_enough_of_a_chip_has_one(tmp_path, save):
    image = np.full((3, 16, 32), 9, np.uint8)
    image[:, ::2] = 5
    height = np.linspace(0, 3, 16 * 32, dtype=np.float32).reshape(16, 32)  # 0 is a number
    height[:, 16:28] = np.nan
    paths = [save(tmp_path / f'{name}.tif', array) for name, array in (('scene', image), ('height', height))]
    out = export_training_data(*paths, tmp_path / 'all', tile_size=16, target='values')
    assert len(list((out / 'images').iterdir())) == 2
    out = export_training_data(*paths, tmp_path / 'half', tile_size=16, target='values', min_labelled=0.5)
    assert len(list((out / 'images').iterdir())) == 1


def test_exports_of_numbers_refuse_what_they_cannot_hold(tmp_path, save):
    images, labels = pixels(1)
    paths = [save(tmp_path / f'{name}.tif', array) for name, array in (('scene', images[0]), ('height', labels[0]))]
    for options, words in (
        ({'metadata_format': 'RCNN_Masks', 'target': 'values'}, 'Classified_Tiles, not RCNN_Masks'),
        ({'target': 'classes'}, 'hold fractions; class values are whole numbers'),
    ):
        with pytest.raises(ChipFolderError, match=words):
            export_training_data(*paths, tmp_path / 'chips', tile_size=16, **options)
    with pytest.raises(UnknownNameError, match='unknown target'):
        export_training_data(*paths, tmp_path / 'chips', tile_size=16, target='numbers')
