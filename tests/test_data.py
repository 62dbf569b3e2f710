import dataclasses
import logging
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from matplotlib.figure import Figure
from rasterio.env import get_gdal_config

from geolearn.bands import Band, get_bands
from geolearn.classes import IGNORE_INDEX
from geolearn.errors import BandError, ChipFolderError, UnknownNameError
from geolearn.prepare import prepare_data

NAMES = ['Red', 'Green', 'NIR']


def chips(count=5, side=8, *, bands=3, dtype=np.uint8, values=(0, 1, 2)):
    """Images of noise, each around a level of its own, and labels that hold all of `values`."""
    rng = np.random.default_rng(count * side)
    images = [(rng.integers(0, 100, (bands, side, side)) + 20 * i + 1).astype(dtype) for i in range(count)]
    labels = [rng.choice(np.array(values), (side, side)) for _ in range(count)]
    for label in labels:
        label.flat[: len(values)] = values
    return images, [label.astype(np.uint8 if max(values) < 256 else np.uint16) for label in labels]


@pytest.fixture
def export(tmp_path, write_export):
    return write_export(tmp_path / 'export', *chips(), band_names=NAMES)


def make(write_export, folder, *, values=(0, 1, 2), classes=None, **options):
    """An export whose classes are those of its labels."""
    listed = classes or [(value, f'c{value}', [value % 256, 0, 9]) for value in values if value]
    return write_export(folder, *chips(values=values), classes=listed, band_names=NAMES, **options)


def batches(data):
    return [(images.clone(), masks.clone()) for images, masks in data.train_dl]


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) and torch.equal(m, n) for (a, m), (b, n) in zip(first, second)
    )


# --- what is found


def test_an_export_becomes_batches_with_all_that_a_model_must_know(export):
    data = prepare_data(export, chip_size=8, batch_size=2)
    assert data.path == export
    assert [band.name for band in data.bands] == NAMES
    assert data.classes == ['NoData', 'one', 'two']
    assert (data.c, data.chip_size, data.batch_size, data.dtype) == (3, 8, 2, 'uint8')
    assert data.class_mapping == {0: 'NoData', 1: 'one', 2: 'two'}
    assert data.color_mapping == {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 0, 255)}
    assert (len(data.train_ds), len(data.valid_ds)) == (4, 1)
    for images, masks in data.train_dl:
        assert (images.shape, images.dtype) == ((2, 3, 8, 8), torch.float32)
        assert (masks.shape, masks.dtype) == ((2, 8, 8), torch.int64)


def test_an_old_export_is_read_without_its_eg_strings(tmp_path, write_export):
    data = prepare_data(write_export(tmp_path / 'e', *chips(), layout='old'))
    assert data.classes == ['NoData', 'one', 'two']
    assert len(data.bands) == 3
    assert data.statistics.is_sound()


def test_the_folder_above_is_enough_and_the_choice_is_told(export):
    data = prepare_data(export.parent)
    assert data.path == export
    assert f'{export.parent} itself is no export; reading {export}' in data.notes


def test_models_go_beside_the_export_unless_told_otherwise(export, tmp_path):
    assert prepare_data(export).working_dir is None
    assert prepare_data(export, working_dir=str(tmp_path)).working_dir == tmp_path


def test_chip_data_cannot_be_changed(export):
    data = prepare_data(export)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.chip_size = 3


def test_its_text_tells_folder_bands_classes_shares_and_notes(export):
    (export / 'labels' / '000000000004.tif').unlink()
    text = repr(prepare_data(export, ignore_classes=[2], val_split_pct=0.25))
    counts = np.bincount(np.concatenate([label.ravel() for label in chips()[1][:4]]))
    shares = [f'{share:.2%} of pixels' for share in counts / counts.sum()]
    lines = [' '.join(line.split()) for line in text.splitlines()]
    assert lines[0] == 'ChipData: 3 chips to train, 1 to validate, 8 px, batches of 3, uint8'
    assert lines[1] == f'folder {export} (Classified_Tiles)'
    assert lines[2] == 'bands Red (0.665 µm), Green (0.56 µm), NIR (0.865 µm)'
    assert lines[3:6] == [f'class 0 NoData {shares[0]}', f'class 1 one {shares[1]}', f'ignored 2 {shares[2]}']
    assert lines[6].startswith('note label value 0')
    assert lines[7] == 'note 1 images have no label and were left out, the first is 000000000004'
    assert 'statistics' in '\n'.join(lines[8:])


# --- classes


def test_a_single_class_is_told_from_what_is_unlabelled(tmp_path, write_export):
    data = prepare_data(make(write_export, tmp_path / 'e', values=(0, 255)), transforms=False)
    assert data.class_mapping == {0: 'NoData', 255: 'c255'}
    assert {int(index) for _, masks in data.train_dl for index in masks.unique()} == {0, 1}
    assert any('label value 0 (' in note and 'pass ignore_classes=[0]' in note for note in data.notes)


def test_indices_follow_the_order_of_the_emd_behind_zero(tmp_path, write_export):
    rows = [(9, 'nine', [0, 0, 1]), (300, 'many', [0, 0, 2]), (0, 'ground', [0, 0, 3]), (4, 'four', [0, 0, 4])]
    data = prepare_data(make(write_export, tmp_path / 'e', values=(0, 4, 9, 300), classes=rows), transforms=False)
    assert data.classes == ['ground', 'nine', 'many', 'four']
    image, mask = data.valid_ds[0]
    label = chips(values=(0, 4, 9, 300))[1][data.split.valid[0]]
    assert (np.array([0, 9, 300, 4])[mask.numpy()] == label).all()
    assert image.shape == (3, 8, 8)


def test_class_mapping_renames(export):
    assert prepare_data(export, {1: 'water', 0: 'rest'}).classes == ['rest', 'water', 'two']


def test_class_mapping_names_a_value_that_the_emd_forgot(tmp_path, write_export):
    folder = make(write_export, tmp_path / 'e', classes=[(1, 'one', [1, 2, 3])])
    assert prepare_data(folder, {2: 'two'}).class_mapping == {0: 'NoData', 1: 'one', 2: 'two'}


def test_a_legend_may_name_classes_that_no_label_holds(export, caplog):
    data = prepare_data(export, {1: 'water', 7: 'mine'}, transforms=False)
    assert data.class_mapping == {0: 'NoData', 1: 'water', 2: 'two', 7: 'mine'}
    assert 'no pixel of: mine' in data.notes
    assert 'no pixel of: mine; such classes cannot be learned, and have no metrics' in caplog.text
    assert np.isfinite(data.class_weights).all()


def test_names_that_differ_by_blanks_at_the_ends_are_one_name(tmp_path, write_export):
    folder = make(write_export, tmp_path / 'e', classes=[(1, 'one', [1, 2, 3]), (2, 'one ', [4, 5, 6])])
    with pytest.raises(
        ChipFolderError, match="label values 1 and 2 are both called 'one ', and classes are not merged"
    ):
        prepare_data(folder)
    assert prepare_data(folder, {2: ' two '}).class_mapping == {0: 'NoData', 1: 'one', 2: 'two'}


def test_a_value_that_is_no_class_is_named_with_its_first_file(tmp_path, write_export):
    images, labels = chips()
    labels[2][5, 5] = labels[3][0, 0] = 77
    folder = write_export(tmp_path / 'e', images, labels)
    words = r'hold values \[77\] that are no class \(1, 2\), first in .*000000000002\.tif; name them with class_map'
    with pytest.raises(ChipFolderError, match=words):
        prepare_data(folder)
    assert prepare_data(folder, ignore_classes=[77]).classes == ['NoData', 'one', 'two']


def test_ignored_classes_take_no_part(export):
    data = prepare_data(export, ignore_classes=[0], transforms=False)
    assert data.classes == ['one', 'two']
    assert data.ignored_values == (0,)
    label = chips()[1][data.split.valid[0]]
    assert (data.valid_ds[0][1].numpy() == np.where(label == 0, IGNORE_INDEX, label.astype(int) - 1)).all()


def test_classes_may_be_ignored_by_name(export):
    assert prepare_data(export, ignore_classes=['one']).ignored_values == (1,)
    assert prepare_data(export, {2: 'new'}, ignore_classes=['new']).classes == ['NoData', 'one']


@pytest.mark.parametrize(
    ('ignored', 'words'),
    [
        (0, r'ignore_classes is 0; pass a list, such as \[0\]'),
        ('one', r"ignore_classes is 'one'; pass a list, such as \['one'\]"),
        ([7], r'holds 7, which neither \.emd nor labels hold: 0, 1 \(one\), 2 \(two\)'),
        (['many'], "holds 'many', which neither"),
        ([1.5], r'holds 1\.5, which neither'),
    ],
)
def test_classes_that_cannot_be_ignored_are_refused(export, ignored, words):
    with pytest.raises(ChipFolderError, match=words):
        prepare_data(export, ignore_classes=ignored)


def test_zero_may_be_ignored_where_it_does_not_occur(tmp_path, write_export):
    folder = make(write_export, tmp_path / 'e', values=(1, 2))
    assert prepare_data(folder, ignore_classes=[0]).ignored_values == (0,)


@pytest.mark.parametrize('mapping', [{'water': 1}, {1: 2}, ['water']])
def test_a_class_mapping_the_wrong_way_round_is_refused(export, mapping):
    with pytest.raises(ChipFolderError, match="class_mapping is {value: name}, such as {1: 'water'"):
        prepare_data(export, mapping)


def test_classes_may_be_ignored_afterwards(export):
    before = prepare_data(export, transforms=False)
    assert same(batches(before.ignoring([0])), batches(prepare_data(export, transforms=False, ignore_classes=[0])))
    assert before.ignoring([0]).classes == ['one', 'two']
    assert before.classes == ['NoData', 'one', 'two']


def test_a_class_alone_cannot_be_learned(export):
    words = 'at least two classes are needed to tell apart, found 1: two'
    with pytest.raises(ChipFolderError, match=words):
        prepare_data(export, ignore_classes=[0, 1])
    with pytest.raises(ChipFolderError, match=words):
        prepare_data(export).ignoring([0, 1])


def test_a_class_without_a_pixel_is_told(tmp_path, write_export):
    rows = [(1, 'one', [1, 2, 3]), (2, 'two', [1, 2, 4]), (3, 'three', [1, 2, 5])]
    assert 'no pixel of: three' in prepare_data(make(write_export, tmp_path / 'e', classes=rows)).notes


# --- bands


def test_bands_may_be_chosen_by_name_and_by_index(export):
    for wanted in (['NIR', 'Red'], [2, 0], ['NearInfrared', 0]):
        data = prepare_data(export, extract_bands=wanted, transforms=False)
        assert [band.name for band in data.bands] == ['NIR', 'Red']
        assert data.band_indexes == (2, 0)
        assert data.statistics.mean == pytest.approx(np.stack(chips()[0]).mean(axis=(0, 2, 3))[[2, 0]])
        image = chips()[0][data.split.valid[0]]
        assert (data.valid_ds[0][0].numpy() == image[[2, 0]]).all()


@pytest.mark.parametrize(
    ('wanted', 'words'),
    [
        (['SWIR_1'], "no bands fit 'SWIR_1'"),
        ([3], r'extract_bands holds 3, but the chips have bands 0\.\.2'),
        ([-1], 'extract_bands holds -1'),
        (['Red', 0], r"extract_bands=\['Red', 0\] must name at least one band, each once"),
        ([], r'extract_bands=\[\] must name at least one'),
        ('Red', r"extract_bands is 'Red'; pass a list, such as \['Red'\]"),
    ],
)
def test_bands_that_cannot_be_chosen_are_refused(export, wanted, words):
    with pytest.raises(BandError, match=words):
        prepare_data(export, extract_bands=wanted)


def test_bands_given_override_what_the_export_says(export):
    given = prepare_data(export, bands=['Blue', Band('height'), 'SWIR_1']).bands
    assert [(band.name, band.wavelength_um) for band in given] == [('Blue', 0.49), ('height', None), ('SWIR_1', 1.61)]


def test_a_sensor_names_the_bands_of_its_files(tmp_path, write_export):
    folder = write_export(tmp_path / 'e', *chips(bands=4))
    assert prepare_data(folder, bands='naip').bands == get_bands('naip')
    with pytest.raises(BandError, match=r'bands= names 12 bands but the chips hold 4 \(.*000000000000\.tif\)'):
        prepare_data(folder, bands='sentinel2_l2a')


def test_the_sensor_of_the_emd_decides_what_red_is(tmp_path, write_export):
    """Names that the chips repeat are no tags that overrule the sensor."""
    folder = write_export(
        tmp_path / 'e', *chips(), band_names=NAMES, sensor='Landsat 8', image_profile={'names': NAMES}
    )
    assert [band.wavelength_um for band in prepare_data(folder).bands] == [0.655, 0.561, 0.865]


def test_nameless_bands_have_no_wavelength(tmp_path, write_export):
    bands = prepare_data(write_export(tmp_path / 'e', *chips())).bands
    assert [(band.name, band.wavelength_um) for band in bands] == [('band_1', None), ('band_2', None), ('band_3', None)]


def test_an_emd_of_another_number_of_bands_is_refused(tmp_path, write_export):
    folder = write_export(tmp_path / 'e', *chips(), stats={'NumBands': 4})
    with pytest.raises(ChipFolderError, match='the .emd describes 4 bands but the chips hold 3 .*or pass bands='):
        prepare_data(folder)
    assert len(prepare_data(folder, bands=NAMES).bands) == 3


def test_chips_of_different_numbers_of_bands_are_refused(tmp_path, write_export, save):
    folder = write_export(tmp_path / 'e', *chips())
    save(folder / 'images' / '000000000002.tif', chips(bands=2)[0][2])
    with pytest.raises(ChipFolderError, match=r'0000\.tif holds 3 bands but .*0002\.tif 2; export one set'):
        prepare_data(folder)


# --- statistics


def test_statistics_of_the_emd_are_taken_where_they_fit(export):
    data = prepare_data(export)
    assert data.notes[-1] == 'statistics from the .emd'
    assert data.statistics.std == pytest.approx(np.stack(chips()[0]).std(axis=(0, 2, 3)))


@pytest.mark.parametrize(
    ('change', 'note'),
    [
        ({'Min': 60}, 'those in the .emd do not fit band 1'),
        ({'Max': 90, 'Mean': 60, 'StdDev': 20}, 'those in the .emd do not fit band 1'),
        ({'StdDev': 25}, 'those in the .emd do not fit band 1'),
        ({'Mean': 150, 'Max': 255}, 'those in the .emd do not fit band 1'),
        ({'StdDev': 0}, 'the .emd has none that can be true'),
        ({'Mean': 'e.g. 4'}, 'the .emd has none that can be true'),
    ],
)
def test_statistics_that_do_not_fit_the_pixels_are_counted_anew(tmp_path, write_export, change, note):
    images, labels = chips()
    pixels = np.stack(images).astype(np.float64)
    rows = [
        {'BandName': name, 'Min': p.min(), 'Max': p.max(), 'Mean': p.mean(), 'StdDev': p.std()}
        for name, p in zip(NAMES, pixels.swapaxes(0, 1))
    ]
    rows[1] |= change
    emd = {'AllTilesStats': rows}
    data = prepare_data(write_export(tmp_path / 'e', images, labels, emd=emd, stats={'BandStatsState': None}))
    assert data.notes[-1] == f'statistics counted from the chips: {note}'
    assert data.statistics.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)))
    assert data.statistics.std == pytest.approx(pixels.std(axis=(0, 2, 3)))


def test_statistics_of_chips_that_were_removed_since_still_fit(export):
    for part in ('images', 'labels'):
        (export / part / '000000000002.tif').unlink()
    data = prepare_data(export)
    assert data.notes[-1] == 'statistics from the .emd'
    assert data.statistics.mean == pytest.approx(np.stack(chips()[0]).mean(axis=(0, 2, 3)))


def test_pixels_without_data_are_nan_and_ignored_and_not_counted(tmp_path, write_export):
    images, labels = chips(dtype=np.int16)
    for image in images:
        image[1, :2, :3] = -99
    profile = {'nodata': -99}
    folder = write_export(tmp_path / 'e', images, labels, image_profile=profile)
    data = prepare_data(folder, transforms=False)
    assert min(data.statistics.minimum) > 0
    assert sum(data.value_counts.values()) == 5 * (64 - 6)
    for image, mask in data.valid_ds:
        assert image[:, :2, :3].isnan().all()
        assert not image[:, 2:].isnan().any()
        assert (mask[:2, :3] == IGNORE_INDEX).all()
        assert (mask[2:] < 3).all()


def test_holes_in_bands_that_are_not_used_are_none(tmp_path, write_export):
    images, labels = chips(dtype=np.int16)
    for image, label in zip(images, labels):
        image[1, :2, :3] = -99
        image[2, 7, 7] = -99
        label[:2, :3] = 3  # a class that lies in the hole only
    classes = [(value, f'c{value}', [value, 0, 9]) for value in (1, 2, 3)]
    folder = write_export(
        tmp_path / 'e', images, labels, image_profile={'nodata': -99}, band_names=NAMES, classes=classes
    )
    data = prepare_data(folder, extract_bands=['NIR', 'Red'], transforms=False)
    assert sum(data.value_counts.values()) == 5 * 63
    assert data.value_counts[3] == 5 * 6
    values = np.stack(images)[:, [2, 0]]
    values = values[:, :, (values != -99).all(axis=(0, 1))]
    assert data.statistics.mean == pytest.approx(values.mean(axis=(0, 2)))
    assert 3 not in prepare_data(folder, transforms=False).value_counts


def test_chips_without_any_data_are_refused(tmp_path, write_export):
    images, labels = chips()
    folder = write_export(tmp_path / 'e', [image * 0 for image in images], labels, image_profile={'nodata': 0})
    with pytest.raises(ChipFolderError, match='all pixels of 5 chips are NoData'):
        prepare_data(folder)


# --- chips that do not fit


def test_a_chip_that_cannot_be_read_is_left_out_counted_and_logged(export, caplog):
    (export / 'images' / '000000000003.tif').write_bytes(b'II*\x00broken')
    with caplog.at_level(logging.WARNING, 'geolearn'):
        data = prepare_data(export)
    assert len(data.train_ds) + len(data.valid_ds) == 4
    told = [note for note in data.notes if note.startswith('1 chips cannot be read and were left out; the first: ')]
    assert '000000000003.tif' in told[0]
    assert told[0] in caplog.text


def test_a_folder_of_chips_that_cannot_be_read_is_refused(export):
    for path in (export / 'images').iterdir():
        path.write_bytes(b'')
    with pytest.raises(ChipFolderError, match=r'none of 5 chips can be read; the first: .*000000000000\.tif'):
        prepare_data(export)


def test_a_label_of_another_size_than_its_image_is_left_out_and_told(export, save):
    save(export / 'labels' / '000000000001.tif', np.ones((8, 7), np.uint8))
    data = prepare_data(export)
    assert len(data.table) == 4
    assert 'labels/000000000001.tif is 7x8 pixels but its image is 8x8; export bo' in '\n'.join(data.notes)


def test_label_values_beyond_two_bytes_are_left_out_and_told(export, save):
    save(export / 'labels' / '000000000001.tif', np.full((8, 8), -1, np.int16))
    notes = '\n'.join(prepare_data(export).notes)
    assert '000000000001.tif holds values from -1 to -1; class values lie in 0..65535' in notes


def test_images_and_labels_that_lack_each_other_are_counted_and_logged(export, caplog):
    (export / 'labels' / '000000000000.tif').unlink()
    (export / 'images' / '000000000001.tif').unlink()
    with caplog.at_level(logging.WARNING, 'geolearn'):
        notes = prepare_data(export).notes
    told = {
        '1 images have no label and were left out, the first is 000000000000',
        '1 labels have no image and were left out, the first is 000000000001',
    }
    assert told <= set(notes)
    assert all(note in caplog.text for note in told)


def test_an_export_whose_labels_are_none_of_its_kind_is_refused_unless_insisted_on(tmp_path, write_export):
    folder = write_export(tmp_path / 'e', *chips(), stats={'MetaDataMode': 'PASCAL_VOC_rectangles'})
    with pytest.raises(ChipFolderError, match='none of 5 images has a label among 0 label files'):
        prepare_data(folder)
    assert prepare_data(folder, dataset_type='Classified_Tiles').c == 3


@pytest.mark.parametrize(
    'option',
    [{'chip_size': 0}, {'chip_size': 2.5}, {'batch_size': 0}, {'batch_size': -1}, {'seed': None}, {'seed': -1}],
)
def test_numbers_that_make_no_sense_are_refused_by_name(export, option):
    (name, value), *_ = option.items()
    with pytest.raises(ChipFolderError, match=rf'{name} must be a whole number of at least [01], got {value}'):
        prepare_data(export, **option)


def test_no_batch_size_is_the_default_and_is_told(export):
    data = prepare_data(export, batch_size=None)
    assert data.batch_size == 4
    assert any('batch_size=None means batches of 64' in note for note in data.notes)


def test_a_block_size_without_blocks_is_refused(export):
    with pytest.raises(ChipFolderError, match="block_size=100 has no effect without split='blocks'"):
        prepare_data(export, block_size=100)


def test_a_scale_is_told(export):
    for path in (export / 'images').iterdir():
        with rasterio.open(path, 'r+') as dst:
            dst.scales, dst.offsets = [0.5] * 3, [-1] * 3
    assert 'the chips state scale 0.5 and offset -1, which are not applied' in '\n'.join(prepare_data(export).notes)


def test_threads_leave_warnings_and_gdal_as_they_were(export):
    before, size = list(warnings.filters), get_gdal_config('GDAL_CACHEMAX')
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: prepare_data(export, seed=seed), range(24)))
    assert len(found) == 24
    assert warnings.filters == before
    assert get_gdal_config('GDAL_CACHEMAX') == size


def test_an_unknown_way_to_split_is_refused(export):
    with pytest.raises(UnknownNameError, match="unknown split 'block'; did you mean 'blocks'"):
        prepare_data(export, split='block')


def test_blocks_leave_overlapping_chips_in_neither_part(tmp_path, write_export, save):
    images, labels = chips(12)
    folder = write_export(tmp_path / 'e', images, labels)
    for index, (image, label) in enumerate(zip(images, labels)):
        place = {'transform': Affine(10, 0, 40 * index, 0, -10, 0)}
        save(folder / 'images' / f'{index:012d}.tif', image, **place)
        save(folder / 'labels' / f'{index:012d}.tif', label, **place)
    data = prepare_data(folder, split='blocks', val_split_pct=0.3, block_size=160)
    assert len(data.split.train) + len(data.split.valid) + len(data.split.dropped) == 12
    assert f'{len(data.split.dropped)} chips share ground with another part and were left out' in data.notes
    assert min(abs(t - v) for t in data.split.train for v in data.split.valid) == 2


# --- size


def test_larger_chips_are_cropped_at_random_to_train_and_in_the_middle_to_validate(export):
    data = prepare_data(export, chip_size=6, transforms=False)
    image, mask = data.valid_ds[0]
    whole, label = (part[data.split.valid[0]] for part in chips())
    assert (image.numpy() == whole[:, 1:7, 1:7]).all()
    assert (mask.numpy() == label[1:7, 1:7]).all()
    corners = set()
    for draw in range(8):
        batch = data.train_ds.collate([0], epoch=draw)
        image, mask = batch.images[0], batch.masks[0]
        whole, label = (part[data.split.train[0]] for part in chips())
        found = [(r, c) for r in range(3) for c in range(3) if (whole[:, r : r + 6, c : c + 6] == image.numpy()).all()]
        assert len(found) == 1
        (r, c) = found[0]
        assert (label[r : r + 6, c : c + 6] == mask.numpy()).all()
        corners.add((r, c))
    assert len(corners) > 3


def test_a_chip_size_beyond_the_chips_is_theirs(export):
    assert prepare_data(export, chip_size=224).chip_size == 8


def test_smaller_chips_are_padded_with_nothing(export, save):
    save(export / 'images' / '000000000000.tif', np.full((3, 5, 8), 50, np.uint8))
    save(export / 'labels' / '000000000000.tif', np.ones((5, 8), np.uint8))
    data = prepare_data(export, transforms=False)
    assert data.chip_size == 8
    dataset, position = (
        (data.valid_ds, data.split.valid.index(0))
        if 0 in data.split.valid
        else (data.train_ds, data.split.train.index(0))
    )
    image, mask = dataset[position]
    assert (image[:, :5] == 50).all()
    assert image[:, 5:].isnan().all()
    assert (mask[5:] == IGNORE_INDEX).all()


# --- batches


def test_a_seed_repeats_order_crops_and_augmentation_and_another_gives_others(export):
    first, again, other = (batches(prepare_data(export, chip_size=6, batch_size=2, seed=seed)) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


def test_every_epoch_is_another(export):
    data = prepare_data(export, chip_size=6, batch_size=2)
    assert not same(batches(data), batches(data))


def test_validation_is_the_same_each_time(export):
    data = prepare_data(export, chip_size=6, val_split_pct=0.5)
    assert same(list(data.valid_dl), list(data.valid_dl))


@pytest.mark.parametrize('batch_size', [2, 3])
def test_a_worker_gives_the_same_batches_as_none(export, batch_size):
    options = {'chip_size': 6, 'batch_size': batch_size, 'val_split_pct': 0.2}
    alone, helped = (prepare_data(export, num_workers=workers, **options) for workers in (0, 1))
    for _ in range(2):
        assert same(batches(alone), batches(helped))


def test_a_worker_leaves_the_next_epochs_as_they_would_be(export):
    alone, helped = (prepare_data(export, batch_size=1, num_workers=workers) for workers in (0, 1))
    assert same(batches(alone), batches(helped))


def test_no_transforms_leave_the_pixels_as_they_are(export):
    data = prepare_data(export, batch_size=8, transforms=False)
    [(images, masks)] = data.train_dl
    expected = {image.astype(np.float32).tobytes(): label for image, label in zip(*chips())}
    for image, mask in zip(images.numpy(), masks.numpy()):
        assert (expected[image.tobytes()] == mask).all()


def test_the_usual_transforms_change_the_pixels(export):
    data = prepare_data(export, batch_size=8)
    [(images, _)] = data.train_dl
    known = {image.astype(np.float32).tobytes() for image in chips()[0]}
    assert not known & {image.tobytes() for image in images.numpy()}


def test_a_transform_of_one_s_own_is_called_to_train_only(export):
    def negate(batch, generator):
        assert isinstance(generator, torch.Generator)
        return dataclasses.replace(batch, images=-batch.images)

    data = prepare_data(export, transforms=negate)
    assert all((images < 0).all() for images, _ in data.train_dl)
    assert all((images > 0).all() for images, _ in data.valid_dl)


@pytest.mark.parametrize(('space', 'turned'), [('MAP_SPACE', True), ('PIXEL_SPACE', False)])
def test_images_that_are_no_maps_keep_their_up(tmp_path, write_export, space, turned):
    rows = np.arange(8, dtype=np.uint8)[:, None] * np.ones((1, 8), np.uint8)
    labels = [1 + rows % 2, 1 + rows % 2] * 20
    images = [np.stack([rows * 10 + 5] * 3)] * 40
    folder = write_export(tmp_path / 'e', images, labels, emd={'ImageSpaceUsed': space})
    data = prepare_data(folder)
    assert data.image_space == space
    found = {tuple(mask[:, 0].tolist()) for _, masks in data.train_dl for mask in masks}
    assert (len(found) > 1) == turned


@pytest.mark.parametrize(('count', 'sizes'), [(4, [2]), (5, [2, 2]), (6, [2, 2]), (3, [2])])
def test_a_batch_of_one_never_comes_last_in_training(tmp_path, write_export, count, sizes):
    data = prepare_data(write_export(tmp_path / 'e', *chips(count)), batch_size=2, val_split_pct=0.01)
    assert [len(images) for images, _ in data.train_dl] == sizes
    assert len(data.train_dl) == len(sizes)


def test_batches_are_no_larger_than_what_there_is(export):
    assert prepare_data(export, batch_size=64).batch_size == 4


def test_a_custom_device_is_where_batches_are(export):
    data = prepare_data(export)
    images, masks = next(iter(data.train_dl))
    assert images.device.type == masks.device.type == data.train_dl.device.type


# --- memory


def test_show_batch_draws_as_many_chips_as_asked_for(export):
    figure = prepare_data(export).show_batch(2, columns=2)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 4
