"""Export_Tiles: images without labels."""

import pytest

from geolearn.chips.emd import ExportMetadata
from geolearn.chips.formats.tiles import list_export_tiles
from geolearn.chips.label import Task
from geolearn.errors import ChipFolderError


def test_every_image_is_a_chip_without_label(tmp_path):
    (tmp_path / 'images').mkdir()
    for name in ('000000000009.tif', '000000000010.tif', '000000000010.tfw'):
        (tmp_path / 'images' / name).touch()
    listing = list_export_tiles(tmp_path, ExportMetadata.empty())
    assert listing.task is Task.UNLABELLED
    assert [chip.name for chip in listing.chips] == ['000000000009', '000000000010']
    assert (listing.chips[0].labels, listing.classes, listing.notes) == ((), (), ())
    label = listing.chips[0].read_label((2, 2))
    assert label.raster is label.boxes is label.masks is None


def test_a_second_raster_is_told_and_not_read(tmp_path):
    for name in ('images', 'images2'):
        (tmp_path / name).mkdir()
        (tmp_path / name / '0.tif').touch()
    listing = list_export_tiles(tmp_path, ExportMetadata.empty())
    assert [len(chip.dates) for chip in listing.chips] == [1]
    assert listing.notes == ('images2/ is not read: these are tiles',)


def test_no_image_is_no_export(tmp_path):
    (tmp_path / 'images').mkdir()
    with pytest.raises(ChipFolderError, match=r'images holds no image \(.*\), but no file at all'):
        list_export_tiles(tmp_path, ExportMetadata.empty())


def test_labels_of_a_layout_that_is_not_known_are_noted(tmp_path):
    """A folder of DOTA, and one whose labels are shared by the images of two sensors beside each other."""
    for place in ('optical/images', 'optical/labelTxt', 'shared_labels', 'reports'):
        (tmp_path / place).mkdir(parents=True)
    for file in ('optical/images/a.png', 'optical/labelTxt/a.txt', 'shared_labels/a.txt', 'reports/other.txt'):
        (tmp_path / file).touch()
    notes = list_export_tiles(tmp_path / 'optical', ExportMetadata.empty()).notes
    assert [note.split(' holds ')[0] for note in notes] == [
        str(tmp_path / 'optical' / 'labelTxt'),
        str(tmp_path / 'shared_labels'),
    ]
    assert all('a.txt and more of the names of the images, which are not read as labels' in note for note in notes)
