"""Several folders as one: merged where they fit, refused where they do not."""

import numpy as np
import pytest

from geolearn.chips.packing.collection import open_collection
from geolearn.errors import BandError, ChipFolderError
from geolearn.prepare import prepare_data


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


@pytest.fixture
def export(tmp_path, rng, write_export):
    """Write a folder of random chips; the dtype, range and size may be chosen."""

    def write(name, *, count=6, bands=3, dtype='uint16', low=100, high=5000, size=8, values=(1, 2), **options):
        images = [rng.uniform(low, high, (bands, size, size)).astype(dtype) for _ in range(count)]
        labels = [rng.choice(values, (size, size)).astype(np.uint8) for _ in range(count)]
        return write_export(tmp_path / name, images, labels, **options)

    return write


def all_pixels(chips):
    parts = [chips.store.chip(position).pixels for position in range(len(chips.table))]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1).astype(np.float64)


@pytest.mark.parametrize('pack', [True, False])
def test_folders_merge_into_one(export, pack):
    paths = [export('a', count=3), export('b', count=2, low=2000, high=60_000, size=5), export('c', count=1)]
    chips = open_collection(paths, None, pack=pack)
    assert chips.part_of.tolist() == [0, 0, 0, 1, 1, 2]
    assert [name.split('/')[0] for name in chips.table.names] == list('aaabbc')
    assert len(set(chips.table.names)) == 6
    for position, folder in enumerate('aaabbc'):
        assert f'/{folder}/labels/' in chips.file_of(position).replace('\\', '/')
    single = [open_collection([path], None, pack=pack) for path in paths]
    for position, (part, inner) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]):
        found, expected = chips.store.chip(position), single[part].store.chip(inner)
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        np.testing.assert_array_equal(found.label.raster, expected.label.raster)
        assert chips.table.geobox(position) == expected.geobox


def test_pooled_statistics_of_folders_are_those_of_all_pixels(export):
    paths = [export('a', count=3), export('b', count=7, low=20_000, high=21_000), export('c', count=1, size=3)]
    chips = open_collection(paths, None, pack=True)
    pixels, found = all_pixels(chips), chips.table.statistics()
    np.testing.assert_allclose(found.mean, pixels.mean(axis=1))
    np.testing.assert_allclose(found.std, pixels.std(axis=1))
    data = prepare_data(paths, chip_size=8)
    np.testing.assert_allclose(data.statistics.mean, pixels.mean(axis=1))
    np.testing.assert_allclose(data.statistics.std, pixels.std(axis=1))


def test_classes_of_folders_are_united_by_value(export):
    one = export('a', classes=((1, 'ash', [255, 0, 0]), (2, 'elm', [0, 255, 0])))
    two = export('b', values=(2, 7), classes=((2, 'elm', [0, 255, 0]), (7, 'oak', [0, 0, 255])))
    data = prepare_data([one, two], chip_size=8)
    assert data.class_mapping == {1: 'ash', 2: 'elm', 7: 'oak'}


def test_one_value_with_two_names_is_refused_unless_it_is_renamed(export):
    one = export('a', classes=((1, 'ash', [255, 0, 0]), (2, 'elm', [0, 255, 0])))
    two = export('b', classes=((1, 'oak', [255, 0, 0]), (2, 'elm', [0, 255, 0])))
    with pytest.raises(ChipFolderError, match=r'ash(.|\n)*oak'):
        prepare_data([one, two], chip_size=8)
    assert prepare_data([one, two], {1: 'tree'}, chip_size=8).class_mapping == {1: 'tree', 2: 'elm'}


@pytest.mark.parametrize('order', [(0, 0), (0, 1, 1), (1, 0, 1)])
def test_a_folder_given_twice_is_refused(export, order):
    paths = [export('a'), export('b')]
    with pytest.raises(ChipFolderError, match='is given twice; its chips would count twice'):
        open_collection([paths[index] for index in order], None, pack=False)


def test_a_folder_given_twice_by_other_names_is_refused(export, tmp_path):
    path = export('a')
    (tmp_path / 'link').symlink_to(path)
    for other in (tmp_path / 'link', path / 'images', path / '..' / 'a'):
        with pytest.raises(ChipFolderError, match='twice'):
            open_collection([path, other], None, pack=False)
    with pytest.raises(ChipFolderError, match='twice'):
        prepare_data(path, chip_size=8, valid_path=path)


def test_no_folder_at_all_is_refused():
    with pytest.raises(ChipFolderError, match='empty list; pass at least one chip folder'):
        open_collection([], None, pack=False)


def test_folders_of_other_tasks_are_refused_before_an_image_is_read(export, tmp_path, save):
    (tmp_path / 'plain').mkdir()
    (tmp_path / 'plain/images').mkdir()
    save(tmp_path / 'plain/images/1.tif', np.ones((3, 8, 8), np.uint16))
    (tmp_path / 'plain/esri_model_definition.emd').write_text('{"MetaDataMode": "Export_Tiles"}')
    with pytest.raises(
        ChipFolderError, match=r'Classified_Tiles but .*plain Export_Tiles .*are of task pixels and unlabelled'
    ):
        open_collection([export('a'), tmp_path / 'plain'], None, pack=True)


def test_folders_of_other_band_counts_are_refused(export):
    with pytest.raises(ChipFolderError, match=r'a holds 3 bands and .*b 4; folders must have the same'):
        open_collection([export('a'), export('b', bands=4)], None, pack=False)


def test_folders_that_name_other_bands_are_refused(export):
    paths = [export('a', band_names=['Red', 'Green', 'Blue']), export('b', band_names=['Blue', 'Green', 'Red'])]
    chips = open_collection(paths, None, pack=False)
    with pytest.raises(ChipFolderError, match=r"\['Red', 'Green', 'Blue'\] but .*\['Blue', 'Green', 'Red'\]"):
        chips.name_bands(None)
    assert [band.name for band in chips.name_bands(['red', 'green', 'blue'])] == ['red', 'green', 'blue']


def test_given_bands_of_another_number_are_refused(export):
    with pytest.raises(BandError, match='names 2 bands but the chips hold 3'):
        open_collection([export('a')], None, pack=False).name_bands(['red', 'green'])


def test_types_may_differ_where_units_do_not(export):
    paths = [export('a', dtype='uint16'), export('b', dtype='float32')]
    chips = open_collection(paths, None, pack=True)
    assert chips.table.dtype == 'float32'
    assert len(prepare_data(paths, chip_size=8).train_ds) == 11


def test_other_types_in_other_units_are_refused(export):
    paths = [export('a'), export('b', dtype='float32', low=0.01, high=0.5)]
    with pytest.raises(ChipFolderError, match=r'a holds uint16 pixels and .*b float32, in other units; bring'):
        open_collection(paths, None, pack=False)


def test_reflectance_in_two_scales_is_refused(export):
    names = {'band_names': ['Red', 'Green', 'NearInfrared']}
    paths = [
        export('a', dtype='float32', low=0.02, high=0.6, **names),
        export('b', dtype='float32', low=200, high=6000, **names),
    ]
    with pytest.raises(ChipFolderError, match=r'a holds reflectance as fractions of 1 but .*b as thousands'):
        prepare_data(paths, chip_size=8)


def test_radar_in_two_units_is_refused(export):
    names = {'band_names': ['VV', 'VH'], 'bands': 2, 'dtype': 'float32'}
    paths = [export('a', low=-25, high=-4, **names), export('b', low=0.001, high=0.4, **names)]
    with pytest.raises(ChipFolderError, match='radar bands are in different units'):
        prepare_data(paths, chip_size=8)


def test_a_folder_of_nothing_but_nodata_does_no_harm(export, tmp_path, write_export):
    images = [np.zeros((3, 8, 8), np.uint8)] * 2
    labels = [np.ones((8, 8), np.uint8)] * 2
    empty = write_export(tmp_path / 'empty', images, labels, image_profile={'nodata': 0})
    full = export('full')
    data = prepare_data([full, empty], chip_size=8)
    pixels = all_pixels(open_collection([full], None, pack=False))
    np.testing.assert_allclose(data.statistics.mean, pixels.mean(axis=1))


def test_folders_of_one_name_are_told_apart(export):
    chips = open_collection([export('north/chips', count=2), export('south/chips', count=2)], None, pack=False)
    assert len(set(chips.table.names)) == 4
    assert 'north' in chips.table.names[0]
    assert 'south' in chips.table.names[2]


def test_the_working_folder_has_a_name_too(export, monkeypatch):
    one, two = export('one', count=2), export('two', count=2)
    monkeypatch.chdir(one)
    chips = open_collection(['.', two], None, pack=False)
    assert chips.table.names[0].startswith('one/')
    assert chips.table.names[2].startswith('two/')


def test_notes_name_their_folder_where_there_are_several(export):
    paths = [export('a'), export('b')]
    (paths[1] / 'images/000000000002.tif').write_bytes(b'')
    chips = open_collection(paths, None, pack=False)
    assert next(note for note in chips.notes() if 'cannot be read' in note).startswith('b: 1 chips cannot be read')
    assert len(chips.table) == 11


def test_validation_and_test_chips_come_from_their_folders(export):
    train, valid, test = export('train', count=5), export('valid', count=3), export('test', count=2)
    data = prepare_data(train, chip_size=8, valid_path=valid, test_path=[test])
    names = [[data.table.names[p].split('/')[0] for p in part] for part in (data.split.train, data.split.valid)]
    assert names == [['train'] * 5, ['valid'] * 3]
    assert [data.table.names[p].split('/')[0] for p in data.split.test] == ['test'] * 2
    assert len(data.test_dl.dataset) == 2


def test_a_test_folder_alone_leaves_the_rest_to_be_divided(export):
    data = prepare_data(export('all', count=10), chip_size=8, val_split_pct=0.2, test_path=export('test', count=3))
    assert (len(data.split.train), len(data.split.valid), len(data.split.test)) == (8, 2, 3)
