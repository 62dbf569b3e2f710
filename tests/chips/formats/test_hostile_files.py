"""In no format does a file of a chip folder lead GDAL to other files: text of a virtual raster is no image or label."""

import numpy as np
import pytest
from affine import Affine

from geolearn.chips.export import export_training_data
from geolearn.chips.formats import FORMATS, open_chips
from geolearn.chips.packing.collection import open_collection
from geolearn.errors import GeoLearnError

SECRET = 77


@pytest.fixture(scope='module')
def scene(tmp_path_factory, save):
    folder = tmp_path_factory.mktemp('hostile')
    place = {'transform': Affine(10, 0, 500_000, 0, -10, 5_400_000)}
    labels = np.zeros((64, 64), np.uint8)
    labels[::16, ::16] = labels[5:12, 5:12] = labels[37:44, 5:12] = 1
    labels[5:12, 37:44] = 2
    save(folder / 'secret.tif', np.full((3, 32, 32), SECRET, np.uint8), **place)
    image = save(folder / 'i.tif', np.random.default_rng(0).integers(100, 200, (3, 64, 64)).astype(np.uint8), **place)
    return folder, image, save(folder / 'l.tif', labels, **place)


def vrt(path, bands):
    rows = ''.join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename>{path}</SourceFilename>'
        f'<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>'
        for band in range(1, bands + 1)
    )
    return f'<VRTDataset rasterXSize="32" rasterYSize="32">{rows}</VRTDataset>'


def read_all(out, name):
    """Everything that the chips of a folder hold, and all that is said."""
    try:
        chips = open_collection([out], name, pack=False)
        store = chips.store
        found = [store.chip(position) for position in range(len(store.table))]
        chips.name_bands(None), chips.bad_bands, chips.label_style(), chips.notes()
    except GeoLearnError as error:
        return [], str(error)
    arrays = [part for chip in found for part in (chip.pixels, chip.label.raster, *(chip.label.masks or ()))]
    return [part for part in arrays if part is not None], str(chips.notes())


@pytest.mark.parametrize('name', [name for name, row in FORMATS.items() if row.writer])
def test_virtual_rasters_under_names_of_images_are_refused(scene, tmp_path, name):
    folder, image, labels = scene
    out = export_training_data(image, None if name == 'Export_Tiles' else labels, tmp_path / 'out', name, 32)
    files = sorted(path for path in out.rglob('*') if path.suffix in ('.tif', '.png', '.jpg'))
    assert open_chips(out).listing.chips
    for path in files:
        kept = path.read_bytes()
        path.write_text(vrt(folder / 'secret.tif', 3 if path.parent.name in ('images', '1', '2') else 1))
        arrays, said = read_all(out, name)
        assert not any((part == SECRET).any() for part in arrays)
        assert 'cannot open raster' in said, (path, said)
        path.write_bytes(kept)
