"""The page of mistakes: each is made, and what geolearn says is what the page says."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from geolearn import UNet, export_training_data, prepare_data
from geolearn.errors import GeoLearnError

pytestmark = pytest.mark.usefixtures('one_thread')

PAGE = Path(__file__).parents[1] / 'docs' / 'mistakes.md'
MISTAKE = re.compile(r'### (\d+)\. .*?\n\n```python\n(.*?)```\n```text\n(.*?)```', re.DOTALL)
NAMES = ['B02', 'B03', 'B04', 'B08']
BANDS = [f'{name}.tif' for name in NAMES]


def square(x, y):
    ring = [[x, y], [x + 400, y], [x + 400, y - 400], [x, y - 400], [x, y]]
    return {
        'type': 'FeatureCollection',
        'crs': {'type': 'name', 'properties': {'name': 'EPSG:32633'}},
        'features': [
            {'type': 'Feature', 'properties': {'use': 'field'}, 'geometry': {'type': 'Polygon', 'coordinates': [ring]}}
        ],
    }


@pytest.fixture(scope='module')
def place(tmp_path_factory, save, write_export):
    """The folder in which the mistakes are made, and the names that they use."""
    folder = tmp_path_factory.mktemp('mistakes')
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(1, 3, (8, 8)), np.ones((16, 16), int))
    grid = {'transform': Affine(10, 0, 500_000, 0, -10, 5_400_000), 'crs': 'EPSG:32633'}
    pixels = np.stack([300 * (index + 1) + 500 * labels + rng.normal(0, 40, labels.shape) for index in range(4)])
    pixels = pixels.clip(1).astype(np.uint16)
    for name, band in zip(NAMES, pixels):
        save(folder / f'{name}.tif', band, **grid)
    save(folder / 'labels.tif', labels.astype(np.uint8), **grid)
    bordered = pixels.copy()
    bordered[:, :, :40] = 0
    save(folder / 'bordered.tif', bordered, names=NAMES, **grid)
    save(folder / 'nameless.tif', pixels, **grid)
    save(folder / 'reflectance.tif', pixels.astype(np.float32) / 10_000, names=NAMES, **grid)
    coarse = {**grid, 'transform': Affine(60, 0, 500_000, 0, -60, 5_400_000)}
    save(folder / 'coarse.tif', pixels[:, ::2, ::2], names=NAMES, **coarse)
    (folder / 'landuse.geojson').write_text(json.dumps(square(500_200, 5_399_800)))
    (folder / 'elsewhere.geojson').write_text(json.dumps(square(900_200, 5_399_800)))
    smooth = np.kron(rng.integers(1, 4, (4, 4)), np.ones((8, 8), int)).astype(np.uint8) * 60
    write_export(
        folder / 'jpeg_labels', [pixels[:3, :32, :32]] * 4, [smooth] * 4, label_suffix='.jpg',
        classes=((60, 'a', [255, 0, 0]), (120, 'b', [0, 255, 0]), (180, 'c', [0, 0, 255])),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = {'tile_size': 32, 'sensor': 'Sentinel-2'}
        export_training_data(BANDS, 'labels.tif', 'chips', **options)
        export_training_data(BANDS, 'labels.tif', 'overlapping', stride=16, **options)
        export_training_data('nameless.tif', 'labels.tif', 'nameless', tile_size=32)
        sparse = {'class_value_field': 'use', 'output_nofeature_tiles': True}
        export_training_data(BANDS, 'landuse.geojson', 'sparse', **sparse, **options)
        data = prepare_data('chips', chip_size=32, batch_size=4)
        model = UNet(data, 'test_resnet', pretrained=False)
        names = {'BANDS': BANDS, 'data': data, 'model': model, 'UNet': UNet}
        yield names | {'export_training_data': export_training_data, 'prepare_data': prepare_data}


MISTAKES = MISTAKE.findall(PAGE.read_text(encoding='utf-8'))


def test_there_are_twenty():
    assert [int(number) for number, _, _ in MISTAKES] == list(range(1, 21))


@pytest.mark.parametrize(('code', 'said'), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_geolearn_says_what_the_page_says(code, said, place, caplog):
    with caplog.at_level(logging.WARNING, 'geolearn'):
        try:
            exec(code, dict(place))
            found = [record.getMessage() for record in caplog.records]
        except (GeoLearnError, TypeError, ValueError, OSError) as error:
            found = [str(error)]
    assert ' '.join(said.split()) in [' '.join(text.split()) for text in found]
