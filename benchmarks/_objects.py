"""NEON tree crowns and Banepa buildings as chips: what the benchmarks of detectors on real imagery share.

NEON's images at 10 cm come from DeepForest, with boxes in Pascal VOC XML; the drone images of Banepa at 15 cm come from
fAIr, with buildings of OpenStreetMap.
"""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import geopandas
import shapely
from affine import Affine

from geolearn import ChipData, export_training_data, prepare_data
from geolearn.bands import resolve_bands
from geolearn.raster import read_image, write_raster

BANDS = ('Red', 'Green', 'Blue')
TREE_CELL_M, TREE_CHIP, TREE_STRIDE = 0.1, 200, 100
"""The test image of 400 pixels is four chips; training chips overlap by half."""
TREE_TRAINING, TREE_TEST = ('SOAP_061', '2019_YELL_2_541000_4977000_image_crop'), 'OSBS_029'
BUILDING_CHIP = 256
BUILDING_TEST_COLUMN = 'OAM-386690-'
"""The westernmost of six columns of map tiles is held out."""


def export_trees(source: Path, folder: Path) -> dict[str, Path]:
    """Write each place's image and boxes as chips; returns the folders by place.

    Args:
        source: Folder of images and XML files.
        folder: Where to put rasters and chips.
    """
    return {
        name: _export_place(source, name, folder, 1000.0 * number)
        for number, name in enumerate((*TREE_TRAINING, TREE_TEST))
    }


PART_CHIP, PART_EDGE = 160, 320
"""Chips of parts, and the column of Yellowstone's image at which the part to test on ends, in pixels."""


def export_tree_parts(source: Path, folder: Path) -> dict[str, list[Path]]:
    """Write chips of a near and a far test: `'valid'` is the western part of Yellowstone's image, `'far'` Florida.

    Args:
        source: Folder of images and XML files.
        folder: Where to put rasters and chips.

    Returns:
        Folders of chips by part; `'train'` is all else.
    """
    california, yellowstone = TREE_TRAINING
    west, east = slice(0, PART_EDGE), slice(PART_EDGE, None)
    wanted = [
        ('train', california, slice(None), PART_CHIP // 2),
        ('train', yellowstone, east, PART_CHIP // 2),
        ('valid', yellowstone, west, PART_CHIP),
        ('far', TREE_TEST, slice(None), PART_CHIP),
    ]
    parts: dict[str, list[Path]] = {}
    for number, (part, name, columns, stride) in enumerate(wanted):
        chips = _export_place(
            source,
            name,
            folder,
            1000.0 * number,
            title=f'{part}_{name}',
            columns=columns,
            chip=PART_CHIP,
            stride=stride,
        )
        parts.setdefault(part, []).append(chips)
    return parts


def _export_place(
    source: Path,
    name: str,
    folder: Path,
    east_m: float,
    *,
    title: str = '',
    columns: slice = slice(None),
    chip: int = TREE_CHIP,
    stride: int | None = None,
) -> Path:
    pixels, _, _ = read_image(source / f'{name}.png', [1, 2, 3])
    title = title or name
    # the files name no place: a kilometer apart, no two of them share ground
    transform = Affine(TREE_CELL_M, 0, east_m, 0, -TREE_CELL_M, 0)
    first, last, _ = columns.indices(pixels.shape[2])
    image = write_raster(
        folder / f'{title}.tif', pixels[:, :, columns], transform=transform, crs=None, band_names=BANDS
    )
    boxes = []
    for item in ElementTree.parse(source / f'{name}.xml').iter('bndbox'):
        x, y, x_end, y_end = (float(item.findtext(tag, '')) for tag in ('xmin', 'ymin', 'xmax', 'ymax'))
        x, x_end = max(x, first) - first, min(x_end, last) - first
        if x_end <= x:
            continue
        (left, top), (right, bottom) = transform * (x, y), transform * (x_end, y_end)
        boxes.append(shapely.box(left, bottom, right, top))
    return export_training_data(
        image,
        geopandas.GeoDataFrame({'value': [1] * len(boxes), 'name': ['Tree'] * len(boxes)}, geometry=boxes),
        folder / title,
        'PASCAL_VOC_rectangles',
        chip,
        stride or (TREE_CHIP if name == TREE_TEST else TREE_STRIDE),
        'value',
        class_name_field='name',
        min_polygon_overlap_ratio=0.3,
        output_nofeature_tiles=True,
    )


def read_trees(chips: dict[str, Path], *, batch_size: int = 4, augmented: bool = True) -> ChipData:
    """Read the chips, those of the place that is never trained on as validation chips."""
    return prepare_data(
        [chips[name] for name in TREE_TRAINING],
        chip_size=TREE_CHIP,
        batch_size=batch_size,
        transforms=None if augmented else False,
        valid_path=chips[TREE_TEST],
    )


def read_tree_parts(chips: dict[str, list[Path]]) -> tuple[ChipData, ChipData]:
    """Read the chips of `export_tree_parts`: those to train on with the near test, and the far test."""
    given: dict[str, Any] = {'chip_size': PART_CHIP, 'batch_size': 4}
    far = prepare_data(chips['far'], transforms=False, val_split_pct=0.5, **given).validating_on_all()
    return prepare_data(chips['train'], valid_path=chips['valid'], **given), far


def export_buildings(source: Path, folder: Path) -> dict[str, Path]:
    """Write windows of the drone images as chips; returns the folders of both parts, `'train'` and `'valid'`.

    Args:
        source: Folder with `oam`, of map tiles as rasters, and `osm`, with the buildings.
        folder: Where to put chips.
    """
    (outlines,) = (source / 'osm').glob('*.geojson')
    buildings = geopandas.read_file(outlines)[['geometry']].assign(value=1, name='Building')
    tiles = sorted((source / 'oam').glob('*.tif'))
    held_out = [tile for tile in tiles if tile.name.startswith(BUILDING_TEST_COLUMN)]
    parts = {'train': [tile for tile in tiles if tile not in held_out], 'valid': held_out}
    return {
        part: export_training_data(
            rasters,
            buildings,
            folder / f'buildings_{part}',
            'RCNN_Masks',
            BUILDING_CHIP,
            None,
            'value',
            class_name_field='name',
            processing_mode='collection',
            min_polygon_overlap_ratio=0.3,
            output_nofeature_tiles=True,
            bands=resolve_bands(BANDS),
        )
        for part, rasters in parts.items()
    }


def read_buildings(chips: dict[str, Path], *, batch_size: int = 4) -> ChipData:
    """Read the chips, those of the column of tiles that is held out as validation chips."""
    return prepare_data(chips['train'], chip_size=BUILDING_CHIP, batch_size=batch_size, valid_path=chips['valid'])
