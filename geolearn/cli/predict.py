"""geolearn predict: use any model on rasters."""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from geolearn.cli.arguments import add_reading, number, reading, whole
from geolearn.errors import RasterError
from geolearn.inference.vectors import DRIVERS
from geolearn.models import ChangeDetector, FeatureClassifier, Model
from geolearn.models.object_detector import ObjectDetector
from geolearn.models.segmentation import PixelModel

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

HELP = 'map a raster, find objects in it, or name polygons'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes; options that only some models have are None where they are not given."""
    parser.add_argument('model', help='the .dlpk')
    parser.add_argument(
        'src', nargs='+', help='raster; several make one mosaic, or are the dates of a model of several, oldest first'
    )
    parser.add_argument(
        'dst', help='the last of the files: .tif for maps; .gpkg, .geojson, .parquet or .shp for objects and polygons'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace the result if it exists')
    add_reading(parser)
    _add_running(parser.add_argument_group('the work'))
    _add_objects(parser.add_argument_group('objects'))
    _add_polygons(parser.add_argument_group('polygons'))
    parser.set_defaults(run=run, refuse=parser.error)


def _add_running(group: Any) -> None:
    group.add_argument('--tile-size', type=whole(1), help='side of the tiles in pixels')
    group.add_argument('--halo', type=whole(0), help='pixels dropped at inner tile edges')
    group.add_argument('--batch-size', type=whole(1), help='tiles or chips computed together')
    group.add_argument('--device', help='torch device; CUDA where there is one')
    compiling = 'compile the network first: up to a minute, then faster on CNNs'
    group.add_argument('--compile', action='store_true', default=None, help=compiling)


def _add_objects(group: Any) -> None:
    group.add_argument('--threshold', type=number(0, 1), help='lowest score of an object or class (default 0.5)')
    group.add_argument('--nms-overlap', type=number(0, 1), help='objects that overlap more are merged (default 0.3)')
    merging = 'of objects that overlap keep the surest (nms, the default), lower the others, or take their mean'
    group.add_argument('--merge', choices=['nms', 'soft_nms', 'weighted'], help=merging)
    group.add_argument('--overlap', type=whole(0), help='pixels that neighbouring tiles share')
    group.add_argument('--outline', choices=['exact', 'simplified', 'orthogonal'], help='of objects with masks')
    group.add_argument('--augment', action='store_true', default=None, help='look at each tile four times, flipped')
    group.add_argument('--resume', action='store_true', default=None, help='go on with a run that was killed')


def _add_polygons(group: Any) -> None:
    group.add_argument('--polygons', help='layer of polygons to name, for a FeatureClassifier')
    group.add_argument('--layer', help='layer of that file, needed if it has several')
    group.add_argument('--crop', choices=['fixed', 'bounding_box'], help='what is seen of the ground of a polygon')


def run(arguments: argparse.Namespace) -> None:
    """Write the map or the layer, and say how long it took."""
    if arguments.halo and arguments.tile_size and 2 * arguments.halo >= arguments.tile_size:
        arguments.refuse('--halo must be under half of --tile-size')
    if Path(arguments.dst).exists() and not arguments.overwrite:
        # a forgotten target would make the last image the target
        arguments.refuse(f'{arguments.dst} exists; name the result to write last, or pass --overwrite to replace it')
    pass
    from geolearn.models import load_model

    started = time.perf_counter()
    written = use_model(load_model(arguments.model), arguments)
    print(f'wrote {written} in {time.perf_counter() - started:.1f} s')
