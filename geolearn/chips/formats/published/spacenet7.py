"""SpaceNet 7: building footprints in monthly mosaics of PlanetScope, 1024 x 1024 px of 4 m."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.warp import transform_geom

from geolearn.chips.emd import read_json
from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.published.rows import Published, Row, find_root, glob_files
from geolearn.chips.label import Label, Task
from geolearn.classes import color_classes
from geolearn.errors import ChipFolderError
from geolearn.raster import open_raster
from geolearn.raster.geobox import apply_affine
from geolearn.raster.opening import burn_polygons

PLACES = ('labels_match', 'labels')
"""Where the footprints of a month are; the first holds them with the identity of each building."""

IMAGES = ('images_masked', 'images')
"""Where the mosaics are; the first has clouds masked."""


def find_rows(folder: Path) -> Iterator[Row]:
    """Find the mosaics of ``train/``, whose footprints are published."""
    root = find_root(folder, 'train')
    home = root / 'train' if (root / 'train').is_dir() else root
    for area in sorted(path for path in home.iterdir() if path.is_dir()):
        place = next((area / name for name in IMAGES if (area / name).is_dir()), area / IMAGES[0])
        for image in glob_files(place, '*.tif'):
            candidates = (area / name / f'{image.stem}_Buildings.geojson' for name in PLACES)
            label = next((path for path in candidates if path.is_file()), None)
            read = None if label is None else partial(read_footprints, label, image)
            yield Row(f'{area.name}/{image.stem}', ((image,),), label, read_label=read)


def read_footprints(path: Path, image: Path, shape: tuple[int, int], unlabelled: tuple[float, ...] = ()) -> Label:
    """Burn the footprints of a month: 1 where the middle of a pixel lies in a building, else 0.

    Args:
        path: The GeoJSON.
        image: Its mosaic, whose place and CRS are taken.
        shape: Height and width of the mosaic.
        unlabelled: Not used: every pixel is labelled.

    Raises:
        ChipFolderError: If the file is no GeoJSON of polygons.
        RasterError: If the mosaic cannot be read.
    """
    content = read_json(path)
    features = content.get('features')
    if not isinstance(features, list):
        raise ChipFolderError(f'{path} is no GeoJSON: it has no features')
    stated: Any = content.get('crs') or {}
    crs = str((stated.get('properties') or {}).get('name') or 'OGC:CRS84') if isinstance(stated, dict) else 'OGC:CRS84'
    with open_raster(image, chip=True) as src:
        inverse, target = ~src.transform, src.crs
    burnt = []
    for feature in features:
        geometry = feature.get('geometry') if isinstance(feature, dict) else None
        if not geometry or (isinstance(geometry, dict) and geometry.get('coordinates') == []):
            continue
        try:
            placed = transform_geom(crs, target, geometry) if target is not None else geometry
            burnt.append((_to_pixels(json.loads(json.dumps(placed)), inverse), 1))
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise ChipFolderError(f'{path} holds a feature that is no polygon: {error}') from error
    return Label(raster=burn_polygons(burnt, shape))


def _to_pixels(geometry: dict[str, Any], inverse: Any) -> dict[str, Any]:
    """Return a polygon, or several, in columns and rows."""

    def moved(part: Any) -> Any:
        if isinstance(part[0], int | float):
            return apply_affine(inverse, np.array([part[:2]], np.float64))[0].tolist()
        return [moved(inner) for inner in part]

    return {'type': geometry['type'], 'coordinates': moved(geometry['coordinates'])}


def fits(content: FolderContent) -> bool:
    """Whether a folder is the data set, or its ``train/``."""
    root = find_root(content.root, 'train')
    home = root / 'train' if (root / 'train').is_dir() else root
    return any(next(home.glob(f'L15-*/{place}/*_Buildings.geojson'), None) for place in PLACES)


SPACENET7 = Published(
    'SpaceNet 7',
    'train/AREA/images_masked/NAME.tif (or images/) and train/AREA/labels_match/NAME_Buildings.geojson (or labels/) '
    'for each month, where AREA is such as L15-0331E-1257N_1327_3160_13',
    Task.PIXELS,
    color_classes([(0, 'no building', (150, 160, 110)), (1, 'building', (200, 40, 40))]),
    find_rows,
    bands=('Red', 'Green', 'Blue'),
)
