"""NEON tree crowns and Banepa buildings as chips: what the benchmarks of detectors on real imagery share.

NEON's images at 10 cm come from DeepForest, with boxes in Pascal VOC XML; the drone images of Banepa at 15 cm come from
fAIr, with buildings of OpenStreetMap.
"""

from pathlib import Path
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


def _export_place(source: Path, name: str, folder: Path, east_m: float) -> Path:
    pixels, _, _ = read_image(source / f'{name}.png', [1, 2, 3])
    # the files name no place: a kilometer apart, no two of them share ground
    transform = Affine(TREE_CELL_M, 0, east_m, 0, -TREE_CELL_M, 0)
    image = write_raster(folder / f'{name}.tif', pixels, transform=transform, crs=None, band_names=BANDS)
    boxes = []
    for item in ElementTree.parse(source / f'{name}.xml').iter('bndbox'):
        corners = [float(item.findtext(tag, '')) for tag in ('xmin', 'ymin', 'xmax', 'ymax')]
        (left, top), (right, bottom) = transform * corners[:2], transform * corners[2:]
        boxes.append(shapely.box(left, bottom, right, top))
    return export_training_data(
        image,
        geopandas.GeoDataFrame({'value': [1] * len(boxes), 'name': ['Tree'] * len(boxes)}, geometry=boxes),
        folder / name,
        'PASCAL_VOC_rectangles',
        TREE_CHIP,
        TREE_CHIP if name == TREE_TEST else TREE_STRIDE,
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
