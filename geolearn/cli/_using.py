"""Find out what a model can do with rasters, and do it."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from geolearn.cli._arguments import reading
from geolearn.errors import RasterError
from geolearn.inference.vectors import DRIVERS
from geolearn.models import ChangeDetector, FeatureClassifier, Model
from geolearn.models.detection.object_detector import ObjectDetector
from geolearn.models.pixels.base import PixelModel

OPTIONS = (
    *('tile_size', 'halo', 'batch_size', 'device', 'compile'),
    *('threshold', 'nms_overlap', 'overlap', 'outline', 'augment', 'merge', 'resume'),
    *('polygons', 'layer', 'crop'),
)
"""What only some models take; None where it is not given."""

Use = Callable[[Any, argparse.Namespace, dict[str, Any]], Path]


class Work(NamedTuple):
    """What models of one kind do with rasters.

    Args:
        text: It, in words.
        suffixes: Of what is written.
        options: Those of `OPTIONS` that it takes.
        use: Takes the model, the arguments, and the options given as keywords of its method.
    """

    text: str
    suffixes: tuple[str, ...]
    options: tuple[str, ...]
    use: Use


def use_model(model: Model, arguments: argparse.Namespace) -> Path:
    """Map, find or name, as the class of the model does, and return what is written.

    Raises:
        RasterError: If the target, the number of rasters or an option does not fit the model.
    """
    work, name = _find_work(model), type(model).__name__
    if Path(arguments.dst).suffix.lower() not in work.suffixes:
        raise RasterError(f'a {name} {work.text}; {arguments.dst} should end in one of {", ".join(work.suffixes)}')
    given = {option: value for option in OPTIONS if (value := getattr(arguments, option)) is not None}
    for option in given:
        if option not in work.options:
            raise RasterError(f'--{option.replace("_", "-")} means nothing to a {name}, which {work.text}')
    return work.use(model, arguments, given | reading(arguments))


def _find_work(model: Model) -> Work:
    for cls, work in WORKS.items():
        if isinstance(model, cls):
            return work
    raise RasterError(f'geolearn predict does not know what to do with a {type(model).__name__}')


def _map(model: PixelModel, arguments: argparse.Namespace, options: Mapping[str, Any]) -> Path:
    return model.predict_raster(_one_or_several(arguments.src), arguments.dst, **options)


def _map_changes(model: ChangeDetector, arguments: argparse.Namespace, options: Mapping[str, Any]) -> Path:
    if len(arguments.src) != 2:
        raise RasterError(f'a ChangeDetector needs two rasters, before and after, got {len(arguments.src)}')
    before, after = arguments.src
    return model.predict_raster(before, after, arguments.dst, **options)


def _find_objects(model: ObjectDetector, arguments: argparse.Namespace, options: Mapping[str, Any]) -> Path:
    return model.detect_objects(_one_or_several(arguments.src), arguments.dst, **options)


def _name_polygons(model: FeatureClassifier, arguments: argparse.Namespace, options: Mapping[str, Any]) -> Path:
    rest = dict(options)
    polygons = rest.pop('polygons', None)
    if polygons is None:
        raise RasterError('a FeatureClassifier names polygons; pass --polygons and the layer that holds them')
    return model.classify_objects(_one_or_several(arguments.src), polygons, arguments.dst, **rest)


def _one_or_several(paths: list[str]) -> str | list[str]:
    return paths if len(paths) > 1 else paths[0]


_RASTERS, _LAYERS = ('.tif', '.tiff'), tuple(DRIVERS)
_TILES = ('tile_size', 'batch_size', 'device')

WORKS: dict[type, Work] = {
    ChangeDetector: Work('maps what changed', _RASTERS, (*_TILES, 'halo', 'compile'), _map_changes),
    PixelModel: Work('maps pixels', _RASTERS, (*_TILES, 'halo', 'compile'), _map),
    ObjectDetector: Work(
        'finds objects',
        _LAYERS,
        (*_TILES, 'threshold', 'nms_overlap', 'overlap', 'outline', 'augment', 'merge', 'resume'),
        _find_objects,
    ),
    FeatureClassifier: Work(
        'names polygons',
        _LAYERS,
        ('batch_size', 'device', 'threshold', 'polygons', 'layer', 'crop'),
        _name_polygons,
    ),
}
"""By class of model; the first that fits counts."""
