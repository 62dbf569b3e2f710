"""Chips of several dates: a folder for each, or the bands of all of them in one file."""

import json
import shutil
from datetime import date

import numpy as np
import pytest
from affine import Affine

from geolearn.bands import Band
from geolearn.chips.exporting.metadata import ExportDescription
from geolearn.chips.exporting.run import ChipWriter
from geolearn.chips.formats import open_chips
from geolearn.chips.label import ChipSource, Label, Task, read_no_label
from geolearn.chips.meaning.bands import name_bands
from geolearn.chips.packing.read_chip import read_chip
from geolearn.chips.packing.store import pack_path
from geolearn.classes import ClassInfo
from geolearn.errors import ChipFolderError
from geolearn.prepare import prepare_data
from geolearn.raster import GeoBox

NAMES = ['Red', 'NIR']
CHIPS = range(4)
DAYS = ['2021-05-01', '2021-06-10', '2022-01-03']


def image(chip, day):
    """Two bands of 8 x 8 pixels; the hundreds tell the date, the tens the band."""
    rng = np.random.default_rng([chip, day])
    return (rng.integers(0, 9, (2, 8, 8)) + 100 * day + 10 * np.arange(2)[:, None, None] + chip).astype(np.int16)


@pytest.fixture
def export(tmp_path, write_export, save):
    """A function that writes four chips of three dates, in folders or in files."""
    labels = [np.tile(np.array([[1, 2], [2, 1]], np.uint8), (4, 4))] * len(CHIPS)

    def write(layout, *, block=None, **options):
        days = [[image(chip, day) for chip in CHIPS] for day in range(3)]
        first = days[0] if layout == 'folders' else [np.concatenate(chip) for chip in zip(*days)]
        names = NAMES if layout == 'folders' else options.pop('names', NAMES * 3)
        emd = options.pop('emd', {}) | ({} if block is None else {'geolearn': block})
        folder = write_export(tmp_path / 'e', first, labels, band_names=names, emd=emd, **options)
        for number in (2, 3) if layout == 'folders' else ():
            (folder / f'images{number}').mkdir()
            for path, pixels in zip(sorted((folder / 'images').iterdir()), days[number - 1]):
                save(folder / f'images{number}' / path.name, pixels)
        return folder

    return write


def check_pixels(folder, **options):
    """Both layouts must come to the same chips."""
    listing = open_chips(folder, **options).listing
    assert listing.task is Task.PIXELS
    for number, source in enumerate(listing.chips):
        chip = read_chip(source)
        assert chip.dates == 3
        assert (chip.pixels == np.concatenate([image(number, day) for day in range(3)])).all()
    return listing


# --- a folder for each date


def test_folders_are_dates_where_that_is_asked_for(export):
    folder = export('folders')
    listing = check_pixels(folder, dataset_type='MultiTemporal_Tiles')
    assert [files[0].parent.name for files in listing.chips[0].dates] == ['images', 'images2', 'images3']
    assert [info.value for info in listing.classes] == [1, 2]


@pytest.mark.parametrize('dates', [3, DAYS])
def test_folders_are_dates_where_the_emd_says_so(export, dates):
    folder = export('folders', block={'dates': dates})
    check_pixels(folder)
    assert open_chips(folder).dataset_type == 'MultiTemporal_Tiles'


def test_the_format_may_be_named_in_the_emd(export):
    mode = {'MetaDataMode': 'MultiTemporal_Tiles'}
    assert open_chips(export('folders', emd=mode, stats=mode)).dataset_type == 'MultiTemporal_Tiles'


@pytest.mark.parametrize('emd', [True, False])
def test_a_third_folder_shows_that_this_is_no_change(export, emd):
    folder = export('folders')
    if not emd:
        (folder / 'esri_model_definition.emd').unlink()
    assert check_pixels(folder).task is Task.PIXELS
    assert open_chips(folder).dataset_type == 'MultiTemporal_Tiles'


def test_two_folders_stay_change_until_the_emd_tells_of_dates(export):
    folder = export('folders')
    shutil.rmtree(folder / 'images3')
    assert open_chips(folder).listing.task is Task.CHANGE
    path = folder / 'esri_model_definition.emd'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'geolearn': {'dates': 2}}))
    assert open_chips(folder).listing.task is Task.PIXELS


def test_a_chip_that_lacks_a_date_is_left_out_and_told_of(export):
    folder = export('folders')
    (folder / 'images3' / '000000000001.tif').unlink()
    (folder / 'labels' / '000000000002.tif').unlink()
    listing = open_chips(folder, 'MultiTemporal_Tiles').listing
    assert [chip.name for chip in listing.chips] == ['000000000000', '000000000003']
    assert listing.notes == (
        '1 chips lack the image of a date and were left out, the first is 000000000001',
        '1 images have no label and were left out, the first is 000000000002',
    )


def test_a_gap_between_the_folders_is_refused(export):
    folder = export('folders')
    shutil.rmtree(folder / 'images2')
    with pytest.raises(ChipFolderError, match=r'found images3/, needed images2/'):
        open_chips(folder, 'MultiTemporal_Tiles')


def test_another_number_of_folders_than_the_emd_says_is_refused(export):
    with pytest.raises(ChipFolderError, match=r'\.emd says that chips have 4 dates, but there are 3 folders'):
        open_chips(export('folders', block={'dates': 4}))


def test_one_folder_without_a_word_on_dates_is_refused(export):
    with pytest.raises(ChipFolderError, match=r'holds no images2/, and .*\.emd tells of no dates within one file'):
        open_chips(export('files'), 'MultiTemporal_Tiles')


def test_images_alone_are_single_dates_where_classified_tiles_are_asked_for(export):
    opened = open_chips(export('folders', block={'dates': 3}), 'Classified_Tiles')
    assert read_chip(opened.listing.chips[0]).dates == 1


# --- one file for all dates


@pytest.mark.parametrize('dates', [3, DAYS])
@pytest.mark.parametrize('dataset_type', [None, 'MultiTemporal_Tiles'])
def test_files_hold_the_dates_that_the_emd_tells_of(export, dates, dataset_type):
    listing = check_pixels(export('files', block={'dates': dates}), dataset_type=dataset_type)
    assert {chip.dates_in_file for chip in listing.chips} == {3}


def test_bands_that_do_not_share_out_among_the_dates_are_refused(tmp_path, save):
    path = save(tmp_path / 'a.tif', np.zeros((4, 2, 2), np.uint8))
    source = ChipSource('a', ((path,),), (), read_no_label, dates_in_file=3)
    with pytest.raises(ChipFolderError, match=r'a\.tif holds 4 bands, which cannot be those of 3 dates'):
        read_chip(source)


def test_other_dates_make_another_pack(export):
    folder = export('files', block={'dates': 3})
    listings = [open_chips(folder).listing]
    path = folder / 'esri_model_definition.emd'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'geolearn': {'dates': 2}}))
    listings.append(open_chips(folder).listing)
    assert len({pack_path(folder, 'Classified_Tiles', listing, version=1) for listing in listings}) == 2


@pytest.mark.parametrize('names', [NAMES * 3, NAMES])
def test_bands_are_those_of_one_date(export, names):
    folder = export('files', block={'dates': 3, 'wavelengths_um': [0.66, 0.84] * 3}, names=names)
    opened = open_chips(folder)
    bands = name_bands(None, opened.metadata, opened.listing, opened.listing.chips[0].image, 2)
    assert [(band.name, band.wavelength_um) for band in bands] == [('Red', 0.66), ('NIR', 0.84)]


def test_bands_that_lie_together_instead_of_dates_are_refused(export, save):
    folder = export('files', block={'dates': 3}, names=[''] * 6)
    opened = open_chips(folder)
    image = opened.listing.chips[0].image
    save(image, np.zeros((6, 8, 8), np.uint8), names=['B4', 'B4', 'B4', 'B8', 'B8', 'B8'])
    with pytest.raises(ChipFolderError, match='the bands of one date must lie together'):
        name_bands(None, opened.metadata, opened.listing, image, 2)


@pytest.mark.parametrize('said', [0, -1, 1.5, True, [], ['May'], [3], 'three', {}])
def test_dates_that_cannot_be_are_refused(export, said):
    with pytest.raises(ChipFolderError, match=r'\.emd: "dates" in the geolearn block is .*; it must be a number'):
        open_chips(export('files', block={'dates': said}))


def test_times_come_with_the_metadata(export):
    metadata = open_chips(export('files', block={'dates': [*DAYS[:2], '2022-01-03T10:30:00Z']})).metadata
    assert (metadata.dates, metadata.acquired) == (3, tuple(map(date.fromisoformat, DAYS)))


# --- what follows


@pytest.mark.parametrize(('layout', 'dataset_type'), [('folders', 'MultiTemporal_Tiles'), ('files', None)])
def test_batches_have_an_axis_of_dates(export, layout, dataset_type):
    folder = export(layout, block=None if layout == 'folders' else {'dates': 3})
    data = prepare_data(folder, dataset_type=dataset_type, chip_size=8, batch_size=2, extract_bands=['NIR'])
    batch = data.valid_dl.peek(1)
    assert batch.images.shape == (1, 3, 1, 8, 8)
    assert [int(day.min()) // 100 for day in batch.images[0]] == [0, 1, 2]
    assert batch.masks.shape == (1, 8, 8)
    assert (data.table.dates, data.table.band_count) == (3, 2)
    assert 100 < data.statistics.mean[0] < 130


@pytest.mark.parametrize('acquired', [(), tuple(map(date.fromisoformat, DAYS))])
def test_what_is_written_is_read_again(tmp_path, acquired):
    bands = (Band('Red', 0.66), Band('NIR', 0.84)) * 3
    facts = ExportDescription(
        'Classified_Tiles', bands, (ClassInfo(1, 'one', (1, 2, 3)),), 8, dates=3, acquired=acquired
    )
    place = GeoBox((8, 8), Affine(10, 0, 0, 0, -10, 0), 'EPSG:32633')
    with ChipWriter(tmp_path / 'e', facts) as writer:
        for chip in CHIPS:
            pixels = np.concatenate([image(chip, day) for day in range(3)])
            writer.add(pixels, Label(raster=np.ones((8, 8), np.uint8)), place)
    check_pixels(tmp_path / 'e')
    opened = open_chips(tmp_path / 'e')
    assert (opened.metadata.dates, opened.metadata.acquired) == (3, acquired)
    named = name_bands(None, opened.metadata, opened.listing, opened.listing.chips[0].image, 2)
    assert [(band.name, band.wavelength_um) for band in named] == [('Red', 0.66), ('NIR', 0.84)]


def test_an_export_whose_bands_are_not_those_of_its_dates_is_refused():
    with pytest.raises(ValueError, match='3 bands are not those of 2 dates'):
        ExportDescription('Classified_Tiles', (Band('a'), Band('b'), Band('c')), (), 8, dates=2)
    with pytest.raises(ValueError, match='found 1 acquisition dates of 2 dates'):
        ExportDescription('Classified_Tiles', (Band('a'),) * 2, (), 8, dates=2, acquired=(date(2021, 1, 1),))
