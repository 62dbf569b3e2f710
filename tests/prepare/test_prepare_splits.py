"""Every way to divide chips, through prepare_data."""

import itertools
import logging
import shutil

import numpy as np
import pytest
import rasterio
from affine import Affine

from geolearn.errors import ChipFolderError, UnknownNameError
from geolearn.prepare import prepare_data

PLAIN = {'chip_size': 32, 'batch_size': 2, 'transforms': False}


@pytest.fixture
def export(write_folder, tmp_path):
    return write_folder(tmp_path / 'export', 'Classified_Tiles', 20)


@pytest.fixture
def overlapping(write_folder, save, fields, tmp_path):
    """Twenty chips on a row, each half on the next."""
    folder = write_folder(tmp_path / 'overlapping', 'Classified_Tiles', 20)
    for index in range(20):
        place = {'transform': Affine(10, 0, 500_000 + 160 * index, 0, -10, 5_400_000)}
        save(folder / 'images' / f'{index:09d}.tif', fields.image(index), **place)
        with rasterio.open(folder / 'labels' / f'{index:09d}.tif', 'r+') as label:
            label.transform = place['transform']
    return folder


def divided(folder, **options):
    return prepare_data(folder, **(PLAIN | options))


def test_a_random_split_of_overlapping_chips_leaks_which_is_logged_and_noted(overlapping, caplog):
    with caplog.at_level(logging.WARNING, 'geolearn'):
        data = divided(overlapping, val_split_pct=0.2, test_split_pct=0.1)
    (note,) = [note for note in data.notes if 'share ground with training chips' in note]
    assert note in caplog.text
    train = np.array(data.split.train)
    leaking = sum(bool((abs(train - position) <= 1).any()) for position in data.split.valid)
    assert note.startswith(f'{leaking} of 4 validation chips')
    assert "pass split='blocks'" in note


def test_blocks_do_not_leak(overlapping):
    data = divided(overlapping, val_split_pct=0.2, split='blocks')
    assert not any('share ground with training' in note for note in data.notes)
    assert min(abs(t - v) for t in data.split.train for v in data.split.valid) >= 2
    assert sum(map(len, (data.split.train, data.split.valid, data.split.dropped))) == 20


def test_folders_and_lists_that_leak_are_told_what_helps(overlapping, tmp_path):
    copy = shutil.copytree(overlapping, tmp_path / 'copy')
    folders = {'valid_path': copy}, {'test_path': copy, 'split': 'blocks'}
    for options in folders:
        (note,) = [note for note in divided(overlapping, **options).notes if 'share ground with training' in note]
        assert note.endswith(f'pass folders of other land as {next(iter(options))}')
    listed = divided(overlapping, split={'valid': ['000000003']})
    (note,) = [note for note in listed.notes if 'share ground with training' in note]
    assert note.endswith('list chips of one place in one part')


def test_chips_side_by_side_do_not_leak(export):
    assert not any('share ground' in note for note in divided(export).notes)


def test_latitude_holds_out_stripes_of_land(write_folder, save, fields, tmp_path):
    folder = write_folder(tmp_path / 'e', 'Classified_Tiles', 10)
    for index in range(10):
        place = {'transform': Affine(10, 0, 500_000, 0, -10, 5_400_000 + 320 * index)}
        save(folder / 'images' / f'{index:09d}.tif', fields.image(index), **place)
    split = divided(folder, split='latitude', val_split_pct=0.2, test_split_pct=0.2).split
    assert sorted((*split.train, *split.valid, *split.test)) == list(range(10))
    assert [len(part) for part in (split.train, split.valid, split.test)] == [6, 2, 2]
    for part in (split.valid, split.test):
        assert part == tuple(range(part[0], part[0] + 2)), 'a stripe is of neighbors'


def test_rare_classes_are_in_every_part_of_a_stratified_split(export, save, fields):
    for index in range(20):
        label = np.where(fields.label(index) == fields.POND, 0, fields.label(index)).astype(np.uint8)
        label[:2, :2] = fields.POND if index in (4, 11, 17) else 0
        save(export / 'labels' / f'{index:09d}.tif', label)
    for seed in range(4):
        split = divided(export, split='stratified', val_split_pct=0.2, test_split_pct=0.2, seed=seed).split
        assert [sum(p in (4, 11, 17) for p in part) for part in (split.train, split.valid, split.test)] == [1, 1, 1]


def test_lists_name_the_parts(export, tmp_path):
    lists = {'valid': ['000000001', '000000003.tif'], 'test': ['000000005']}
    file = tmp_path / 'parts.csv'
    file.write_text('name,part\n' + '\n'.join(f'{name},{part}' for part, names in lists.items() for name in names))
    for given in (lists, file, str(file)):
        data = divided(export, split=given)
        assert (data.split.valid, data.split.test) == ((1, 3), (5,))
        assert len(data.train_ds) == 17
        assert len(data.test_ds) == 1
    named = divided(export, split=lists | {'train': ['000000000', '000000002']})
    assert named.split.train == (0, 2)
    assert '15 chips are in no list and were left out' in named.notes


def test_folders_are_parts(export, write_folder, tmp_path):
    valid, test = (write_folder(tmp_path / name, 'Classified_Tiles', 3) for name in ('valid', 'test'))
    data = divided(export, valid_path=valid, test_path=[test])
    assert [len(part) for part in (data.train_ds, data.valid_ds, data.test_ds)] == [20, 3, 3]
    assert {data.table.names[p].split('/')[0] for p in data.split.valid} == {'valid'}
    assert {data.table.names[p].split('/')[0] for p in data.split.test} == {'test'}
    data = divided(export, test_path=test, val_split_pct=0.2)
    assert [len(part) for part in (data.train_ds, data.valid_ds, data.test_ds)] == [16, 4, 3]
    assert {data.table.names[p].split('/')[0] for p in data.split.valid} == {'export'}


def test_one_part_does_not_come_from_two_places(export, write_folder, tmp_path):
    other = write_folder(tmp_path / 'other', 'Classified_Tiles', 3)
    with pytest.raises(ChipFolderError, match=r'test_path and test_split_pct=0\.1 both say what to test on; pass one'):
        divided(export, test_path=other, test_split_pct=0.1)
    with pytest.raises(ChipFolderError, match=r'test_split_pct=0\.1 has no effect beside valid_path; .* test_path'):
        divided(export, valid_path=other, test_split_pct=0.1)
    for split in ('blocks', 'stratified', {'valid': ['000000001']}):
        with pytest.raises(ChipFolderError, match='valid_path and split=.* both say what to validate on; pass one'):
            divided(export, valid_path=other, split=split)


def test_a_share_to_test_on_is_told_apart(export):
    data = divided(export, val_split_pct=0.2, test_split_pct=0.1)
    assert [len(part) for part in (data.train_ds, data.valid_ds, data.test_ds)] == [14, 4, 2]
    assert '2 to test' in repr(data)
    assert divided(export).test_dl is None


@pytest.mark.parametrize('split', ['random', 'stratified', 'blocks'])
def test_smaller_shares_of_the_labels_lie_within_larger_ones(export, split):
    shares = (0.05, 0.1, 0.3, 0.6, 1)
    found = [divided(export, split=split, val_split_pct=0.2, label_fraction=share) for share in shares]
    whole = divided(export, split=split, val_split_pct=0.2)
    for data, share in zip(found, shares):
        assert len(data.split.train) == max(round(share * len(whole.split.train)), 1)
        assert data.split.valid == whole.split.valid
        note = f'label_fraction={share:g}: trained on {len(data.train_ds)} of {len(whole.train_ds)} training chips'
        assert note in data.notes
    for less, more in itertools.pairwise(found):
        assert set(less.split.train) <= set(more.split.train)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'split': 'block'}, "unknown split 'block'; did you mean 'blocks'"),
        ({'split': {'vald': ['000000001']}}, "unknown part 'vald'; did you mean 'valid'"),
        ({'split': {'valid': ['nope']}}, "names 'nope', which no chip bears; names look like '000000000'"),
        ({'split': {}}, "the lists name no chip for 'valid'"),
        ({'split': None}, 'split must be one of .* got None'),
        ({'split': ['000000001']}, 'or lists of names by part'),
        ({'split': {'valid': [1]}}, 'or lists of names by part'),
        ({'split': {'valid': 1}}, 'or lists of names by part'),
        ({'split': 'nothing.csv'}, 'cannot read the list of chips nothing.csv'),
        ({'val_split_pct': 0}, 'val_split_pct must lie between 0 and 1, got 0'),
        ({'val_split_pct': 1.5}, 'val_split_pct must lie between 0 and 1'),
        ({'val_split_pct': None}, 'val_split_pct must be a number, got None'),
        ({'test_split_pct': '10 %'}, "test_split_pct must be a number, got '10 %'"),
        ({'test_split_pct': 0.95}, 'leave chips to train on'),
        ({'label_fraction': 0}, 'label_fraction must be over 0 and at most 1, got 0'),
        ({'label_fraction': 'all'}, "label_fraction must be a number, got 'all'"),
        ({'split': 'blocks', 'block_size': float('nan')}, 'block_size must be positive'),
        ({'split': 'blocks', 'block_size': '1 km'}, "block_size must be a number, got '1 km'"),
        ({'split': 'blocks', 'block_size': 1e9}, r'all chips lie in one block of 1e\+09 map units'),
    ],
)
def test_what_cannot_be_a_split_is_refused(export, options, words):
    with pytest.raises((ChipFolderError, UnknownNameError), match=words):
        divided(export, **options)


def write_parts(tmp_path, save, present):
    """Write chips whose labels hold the class values that `present` lists for each."""
    for index, values in enumerate(present):
        for name in ('images', 'labels'):
            (tmp_path / 'parts' / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(1, 99, (1, 8, 8)).astype(np.uint8)
        label = np.resize(np.array(values, np.uint8), (1, 8, 8))
        save(tmp_path / f'parts/images/{index}.tif', pixels)
        save(tmp_path / f'parts/labels/{index}.tif', label)
    return tmp_path / 'parts'


def test_classes_in_no_validation_or_training_chip_are_warned_of(tmp_path, save, caplog):
    path = write_parts(tmp_path, save, [(1, 2), (1, 2), (1, 3), (2,)])
    data = prepare_data(path, split={'valid': ['2'], 'train': ['0', '1', '3']}, chip_size=8, batch_size=2)
    notes = [note for note in data.notes if 'chip' in note and 'classes in no' in note]
    assert notes == [
        "classes in no training chip cannot be learned: 3; pass split='stratified', another seed or more chips",
        'classes in no validation chip have no metrics, and means are over the other classes: 2; '
        "pass split='stratified', another seed or more chips",
    ]
    assert all(note in caplog.text for note in notes)


def test_validation_without_labels_is_warned_of(tmp_path, save, caplog):
    path = write_parts(tmp_path, save, [(1, 2), (1, 2), (0,), (2,)])
    split = {'valid': ['2'], 'train': ['0', '1', '3']}
    prepare_data(path, split=split, chip_size=8, batch_size=2, ignore_classes=[0])
    assert 'nothing is labelled in 1 validation chips, so no metric of them is defined' in caplog.text


@pytest.mark.parametrize('ignored', [(), (0,)])
def test_most_pixels_trained_as_nodata_are_warned_of_at_once(tmp_path, save, caplog, ignored):
    path = write_parts(tmp_path, save, [(0, 0, 0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 0, 0, 2)] * 3)
    prepare_data(path, chip_size=8, batch_size=2, ignore_classes=ignored)
    said = "label value 0 covers 87.5% of pixels and is trained as class 'NoData'; pass ignore_classes=[0]"
    assert (said in caplog.text) == (not ignored)
