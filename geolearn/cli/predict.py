"""geolearn predict: use any model on rasters."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolearn.cli.arguments import add_reading, check_model, number, part, reading, whole
from geolearn.cli.messages import OTHER_NAMES

if TYPE_CHECKING:
    from geolearn.models import Model

OPTIONS = (
    *('aoi', 'bbox', 'bbox_crs'),
    *('tile_size', 'halo', 'batch_size', 'device', 'compile', 'engine', 'mixed_precision'),
    *('threshold', 'nms_overlap', 'overlap', 'outline', 'augment', 'merge', 'resume'),
    *('polygons', 'layer', 'crop'),
    *('dequantize', 'product'),
    *('blend', 'max_memory', 'cog', 'outputs', 'probability_dtype', 'layout', 'part', 'merge_parts'),
)
"""What only some models take; None where it is not given."""

INPUTS = ('model', 'src', 'aoi')

RASTERS = ('.tif', '.tiff', '.jp2', '.img', '.vrt')
"""Suffixes of a raster, which with --each is one scene and no list of scenes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes; options that only some models have are None where they are not given."""
    parser.add_argument('model', help='the .dlpk')
    parser.add_argument(
        'src', nargs='+', help='raster; several make one mosaic, or are the dates of a model of several, oldest first'
    )
    parser.add_argument(
        'dst', help='the last of the files: .tif for maps; .gpkg, .geojson, .parquet or .shp for objects and polygons'
    )
    each = 'the rasters, or those of a folder, are scenes that are mapped one by one into the folder dst, which gets a '
    each += 'manifest.csv; the same command again does only what is missing'
    parser.add_argument('--each', action='store_true', help=each)
    parser.add_argument('--overwrite', action='store_true', help='replace the result if it exists')
    add_reading(parser)
    _add_area(parser.add_argument_group('the area'))
    _add_running(parser.add_argument_group('the work'))
    _add_maps(parser.add_argument_group('maps'))
    _add_objects(parser.add_argument_group('objects'))
    _add_polygons(parser.add_argument_group('polygons'))
    parser.set_defaults(run=run, inputs=INPUTS, targets=('dst',))


def add_detect_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `detect` takes: what `predict` does, for models that find objects."""
    _add_layer(parser, 'the .dlpk of a detector')
    _add_running(parser.add_argument_group('the work'))
    _add_parts(parser.add_argument_group('parts'))
    _add_objects(parser.add_argument_group('objects'))
    parser.set_defaults(run=run, each=False, inputs=INPUTS, targets=('dst',))


def add_lines_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `lines` takes."""
    _add_layer(parser, 'the .dlpk of a pixel classifier')
    work = parser.add_argument_group('the work')
    work.add_argument('--tile-size', type=whole(1), help='side of the tiles in pixels')
    work.add_argument('--batch-size', type=whole(1), help='tiles computed together')
    work.add_argument('--device', help='torch device; CUDA where there is one')
    group = parser.add_argument_group('lines')
    group.add_argument('--classes', type=whole(0), nargs='+', help='label values of the classes that are lines')
    group.add_argument('--threshold', type=number(0, 1, above=True), help="lowest probability of a line's pixel")
    group.add_argument('--min-length', type=number(0), help='pixels; connected lines that are shorter are left out')
    group.add_argument('--simplify', type=number(0), help='pixels by which lines may move to have fewer points')
    group.add_argument('--bridge', type=number(0), help='pixels; the longest gap between ends that is closed')
    group.add_argument('--most-width', type=whole(2), help='pixels; what is wider is no line')
    parser.set_defaults(run=run_lines, each=False, halo=None, inputs=INPUTS, targets=('dst',))


def _add_layer(parser: argparse.ArgumentParser, model_help: str) -> None:
    """Add what every command takes that makes a vector layer of rasters."""
    parser.add_argument('model', help=model_help)
    parser.add_argument('src', nargs='+', help='raster; several make one mosaic')
    parser.add_argument('dst', help='layer to write, the last of the files: .gpkg, .geojson, .parquet or .shp')
    parser.add_argument('--overwrite', action='store_true', help='replace the result if it exists')
    add_reading(parser)
    _add_area(parser.add_argument_group('the area'))


LINE_OPTIONS = (
    *('aoi', 'bbox', 'bbox_crs', 'tile_size', 'batch_size', 'device'),
    *('classes', 'threshold', 'min_length', 'simplify', 'bridge', 'most_width'),
)


def run_lines(arguments: argparse.Namespace) -> None:
    """Write the layer of lines, and say how long it took.

    Raises:
        ValueError: If the model classifies no pixels.
    """
    check_arguments(arguments)
    from geolearn.device import choose_device
    from geolearn.models import PixelClassifier, load_model
    from geolearn.models.raster_use import one_or_several

    choose_device(arguments.device)
    started = time.perf_counter()
    model = load_model(arguments.model)
    if not isinstance(model, PixelClassifier):
        raise ValueError(
            f'{arguments.model} is a {type(model).__name__}, which {model.raster_use.text}; lines come from pixel '
            'classifiers such as UNet'
        )
    given = {name: value for name in LINE_OPTIONS if (value := getattr(arguments, name)) is not None}
    sources = one_or_several(arguments.src)
    written = model.predict_lines(sources, arguments.dst, overwrite=arguments.overwrite, **given, **reading(arguments))
    print(f'wrote {written} in {time.perf_counter() - started:.1f} s')


def _add_area(group: Any) -> None:
    group.add_argument('--aoi', help='vector file of the polygons to map; the rest is NoData')
    group.add_argument(
        '--bbox', type=number(), nargs=4, metavar=('LEFT', 'BOTTOM', 'RIGHT', 'TOP'), help='part of the raster to map'
    )
    group.add_argument('--bbox-crs', help='CRS of --bbox, such as EPSG:4326; that of the raster where it is not given')


def _add_running(group: Any) -> None:
    group.add_argument('--tile-size', type=whole(1), help='side of the tiles in pixels')
    group.add_argument('--halo', type=whole(0), help='pixels dropped at inner tile edges')
    group.add_argument('--batch-size', type=whole(1), help='tiles or chips computed together')
    group.add_argument('--device', help='torch device; CUDA where there is one')
    compiling = 'compile the network first: up to a minute, then faster on CNNs'
    group.add_argument('--compile', action='store_true', default=None, help=compiling)
    engine = 'what computes maps: torch (the default), the ONNX graph in onnxruntime or OpenVINO, or the fastest (auto)'
    group.add_argument('--engine', choices=['torch', 'onnx', 'openvino', 'auto'], help=engine)
    half = 'compute maps in half precision; auto takes the better on a GPU and float32 elsewhere'
    group.add_argument('--precision', dest='mixed_precision', choices=['bf16', 'fp16', 'auto'], help=half)
    augmenting = 'predict each tile flipped too and take the mean: objects 4 times, maps 8 times with turns'
    group.add_argument('--augment', action='store_true', default=None, help=augmenting)
    group.add_argument('--resume', action='store_true', default=None, help='continue a run that was killed')


def _add_maps(group: Any) -> None:
    outputs = 'what to write, with commas between: classes (the default), probabilities, confidence'
    group.add_argument('--outputs', type=_names, help=f'{outputs}; the first goes to the result, others beside it')
    group.add_argument(
        '--probability-dtype', choices=['uint8', 'float16', 'float32'], help='of probabilities; uint8 in steps of 0.004'
    )
    group.add_argument('--layout', choices=['files', 'bands'], help='a file for each output, or all as bands of one')
    blending = 'tiles fade into each other (hann) or are cut; the default is hann for transformers'
    group.add_argument('--blend', choices=['hann', 'crop'], help=blending)
    memory = 'MiB that rows and tiles may take, besides the network; by how the raster is stored if not given'
    group.add_argument('--max-memory', type=_megabytes, metavar='MB', help=memory)
    group.add_argument(
        '--no-cog', dest='cog', action='store_const', const=False, help='write a plain GeoTIFF, without overviews'
    )
    _add_parts(group)


def _add_parts(group: Any) -> None:
    parting = 'compute one of several parts alone, such as the third of forty; the same again does what is missing'
    group.add_argument('--part', type=part, metavar='3/40', help=parting)
    merging = 'write the result, once all parts are computed'
    group.add_argument('--merge-parts', action='store_true', default=None, help=merging)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(',') if name.strip())


def _megabytes(text: str) -> int:
    return whole(1)(text) * 2**20


def _add_objects(group: Any) -> None:
    group.add_argument('--threshold', type=number(0, 1), help='lowest score of an object or class (default 0.5)')
    group.add_argument('--nms-overlap', type=number(0, 1), help='objects that overlap more are merged (default 0.3)')
    merging = 'of objects that overlap keep the highest score (nms, the default), lower the others, or take the mean'
    group.add_argument('--merge', choices=['nms', 'soft_nms', 'weighted'], help=merging)
    group.add_argument('--overlap', type=whole(0), help='pixels that neighboring tiles share')
    group.add_argument(
        '--outline', choices=['exact', 'simplified', 'orthogonal', 'rectangle'], help='of objects with masks'
    )


def _add_polygons(group: Any) -> None:
    group.add_argument('--polygons', help='file of the polygons to classify, for a FeatureClassifier')
    group.add_argument('--layer', help='layer of that file, needed if it has several')
    group.add_argument(
        '--crop',
        choices=['fixed', 'bounding_box'],
        help='chip of a polygon: of the training size around it, or its bounding box',
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the map or the layer, and say how long it took."""
    check_arguments(arguments)
    from geolearn.device import choose_device
    from geolearn.models import load_model

    choose_device(arguments.device)
    started = time.perf_counter()
    model = load_model(arguments.model)
    options = choose_options(model, arguments)
    if arguments.each:
        _map_each(model, arguments, options)
        return
    arguments.resumable = 'resume' in model.raster_use.options
    options['overwrite'] = arguments.overwrite
    written = model.use_on_raster(arguments.src, arguments.dst, options)
    seconds = time.perf_counter() - started
    if arguments.part is not None:
        part, count = arguments.part
        print(f'computed part {part}/{count} in {seconds:.1f} s, kept in {written}')
        print(f'once all {count} are computed, run the command with --merge-parts instead of --part {part}/{count}')
        return
    print(f'wrote {written} in {seconds:.1f} s')


def _map_each(model: 'Model', arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    """Map scenes one by one.

    Raises:
        RasterError: If some failed; the others are mapped all the same.
    """
    from geolearn.errors import RasterError

    started = time.perf_counter()
    catalog = arguments.src[0] if len(arguments.src) == 1 else arguments.src
    if len(arguments.src) == 1 and Path(catalog).suffix.lower() in RASTERS:
        catalog = arguments.src
    result = model.predict_many(catalog, arguments.dst, options=options, overwrite=arguments.overwrite)
    if result.failed:
        raise RasterError(str(result))
    print(f'{result}, in {time.perf_counter() - started:.1f} s')


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be, before torch is imported.

    Raises:
        ValueError: If the options or the files do not fit together.
    """
    if arguments.halo and arguments.tile_size and 2 * arguments.halo >= arguments.tile_size:
        raise ValueError('--halo must be under half of --tile-size')
    if arguments.each:
        if Path(arguments.dst).is_file():
            raise ValueError(f'{arguments.dst} is a file; with --each the last name is the folder of the results')
        for name in ('resume', 'part', 'merge_parts'):
            if getattr(arguments, name) is not None:
                option = f'--{name.replace("_", "-")}'
                raise ValueError(
                    f'{option} is for one raster; --each does what is missing by itself, leave {option} out'
                )
    check_model(arguments.model)


def choose_options(model: 'Model', arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of what the model does with rasters.

    Raises:
        ValueError: If the target or an option does not fit the model.
    """
    use, name = model.raster_use, type(model).__name__
    if not arguments.each and Path(arguments.dst).suffix.lower() not in use.suffixes:
        raise ValueError(f'a {name} {use.text}; {arguments.dst} should end in one of {", ".join(use.suffixes)}')
    given = {option: value for option in OPTIONS if (value := getattr(arguments, option, None)) is not None}
    for option in given:
        if option not in use.options:
            flag = OTHER_NAMES.get(option, f'--{option.replace("_", "-")}')
            raise ValueError(f'{flag} does not apply to a {name}, which {use.text}')
    if 'polygons' in use.options and 'polygons' not in given:
        raise ValueError(f'a {name} {use.text}; pass --polygons and the layer that holds them')
    if given.get('mixed_precision') == 'auto':
        given['mixed_precision'] = True
    return given | reading(arguments)
