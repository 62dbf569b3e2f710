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
