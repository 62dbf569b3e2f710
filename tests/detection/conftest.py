"""Rasters of bright squares, a network that finds them exactly, and chips of squares to learn from."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from finding_tools import SquareFinder
from torch import nn

from geolearn.backbones import catalog

CRS = 'EPSG:32633'
PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)


@pytest.fixture
def finder() -> Callable[..., nn.Module]:
    """The network that finds what is bright."""
    return SquareFinder


@pytest.fixture(scope='session')
def draw() -> Callable[..., np.ndarray]:
    """Draw bright boxes on the dark: (1, height, width) float32."""

    def draw(shape, boxes, *, bands=1):
        image = np.zeros((bands, *shape), np.float32)
        for left, top, right, bottom in boxes:
            image[:, top:bottom, left:right] = 1
        return image

    return draw


@pytest.fixture(scope='session')
def square_chips(tmp_path_factory, save) -> Callable[..., Path]:
    """Export chips of 64 pixels with bright squares on noise, in a metadata format, one class or two."""
    from geolearn.chips.export import export_training_data

    folder = tmp_path_factory.mktemp('squares')

    def make(metadata_format='PASCAL_VOC_rectangles', *, classes=1, side=512):
        out = folder / f'{metadata_format}-{classes}-{side}'
        if out.exists():
            return out
        rng = np.random.default_rng(7)
        image = rng.normal(60, 12, (3, side, side))
        frame = _squares(rng, side, classes)
        for shape, value in zip(frame.geometry, frame['value']):
            left, bottom, right, top = shape.bounds
            rows, cols = slice(side - int(top), side - int(bottom)), slice(int(left), int(right))
            image[:, rows, cols] = 200 if value == 1 else np.array([60, 60, 220])[:, None, None]
        image = np.clip(image, 0, 255).astype(np.uint8)
        raster = save(
            folder / f'{out.name}.tif', image, names=['Red', 'Green', 'Blue'], transform=Affine(1, 0, 0, 0, -1, side)
        )
        return export_training_data(
            raster, frame, out, metadata_format, tile_size=64, class_value_field='value', class_name_field='name',
            output_nofeature_tiles=True,
        )  # fmt: skip

    return make


def _squares(rng, side, classes):
    """One to three squares on most chips, none on some, never across the edges of chips."""
    import geopandas
    import shapely

    shapes, values = [], []
    for row in range(side // 64):
        for col in range(side // 64):
            if (row + col) % 7 == 6:
                continue
            quarters = rng.permutation([(0, 0), (0, 32), (32, 0), (32, 32)])[: rng.integers(1, 4)]
            for quarter in quarters:
                size = int(rng.integers(12, 24))
                x, y = (start + rng.integers(2, 30 - size + 1) for start in quarter)
                left, bottom = 64 * col + x, 64 * row + y
                shapes.append(shapely.box(left, bottom, left + size, bottom + size))
                values.append(int(rng.integers(1, classes + 1)))
    names = {1: 'white', 2: 'blue'}
    return geopandas.GeoDataFrame(
        {'value': values, 'name': [names[value] for value in values]}, geometry=shapes, crs=CRS
    )


@pytest.fixture
def small_dofa(monkeypatch):
    """Let 'dofa_tiny' be 48 wide and 4 deep, for building and for loading."""
    record = dataclasses.replace(catalog.get_record('dofa_tiny'), dim=48, depth=4, heads=3)
    monkeypatch.setattr(catalog, 'get_record', lambda name: record)
