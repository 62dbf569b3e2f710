"""geolearn embed: rasters as grids of vectors, or as a vector for each zone of a layer."""

import argparse
import time
from typing import Any

from geolearn.cli.arguments import (
    NO_WAVELENGTH,
    NORMALIZATIONS,
    add_nodata,
    number,
    one_or_each,
    scale_factor,
    sensor,
    wavelength,
    whole,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('src', nargs='+', help='raster; several make one mosaic')
    parser.add_argument('dst', help='.tif for a grid of vectors, .parquet for zones, or with --each a folder')
    each = 'the rasters, or those of a folder, are scenes that are embedded one by one into the folder dst, which gets '
    each += 'a manifest.csv; the same command again does only what is missing'
    parser.add_argument('--each', action='store_true', help=each)
    parser.add_argument('--overwrite', action='store_true', help='replace the result if it exists')
    _add_encoder(parser.add_argument_group('the backbone'))
    _add_raster(parser.add_argument_group('the raster'))
    _add_work(parser.add_argument_group('the work'))
    parser.set_defaults(run=run, inputs=('src', 'zones', 'aoi'), targets=('dst',))


def _add_encoder(group: Any) -> None:
    group.add_argument('--backbone', default='dofa_base', help='its name')
    group.add_argument('--weights', help='file or folder with its weights, instead of fetching them')
    group.add_argument(
        '--no-pretrained', dest='pretrained', action='store_false', help='random weights, the same in every run'
    )
    layer = 'block whose output is taken, counted from 0; -1 is the last, after the final norm'
    group.add_argument('--layer', type=int, default=-1, help=layer)
    normalizing = 'pretraining (for pretrained weights the default), dataset, minmax, robust, imagenet or none'
    group.add_argument('--normalize', choices=[*NORMALIZATIONS, 'none'], metavar='KIND', help=normalizing)
    group.add_argument('--context', type=whole(1), help='side of the images that a transformer sees, in pixels')
    meters = 'meters per pixel, for backbones whose positions depend on it'
    group.add_argument('--resolution-m', type=number(0, above=True), metavar='M', help=meters)
    group.add_argument(
        '--no-check-values',
        dest='check_values',
        action='store_false',
        help='take values as raw units that look normalized already',
    )


def _add_raster(group: Any) -> None:
    group.add_argument('--bands', nargs='+', help='bands to take, or names of all in file order where it names none')
    group.add_argument('--sensor', type=sensor, help='whose names the bands have, such as Sentinel-2 for B04')
    um = f'center wavelength of each band in micrometers, {NO_WAVELENGTH} for radar'
    group.add_argument('--wavelengths', type=wavelength, nargs='+', metavar='UM', help=um)
    scaling = 'multiply pixel values first; db makes decibels of radar bands that are linear power'
    group.add_argument('--scale', type=scale_factor, help=scaling)
    group.add_argument('--offset', type=number(), default=0.0, help='add to pixel values after scaling')
    add_nodata(group)
    size = 'pixel size to resample to while reading, in units of the CRS'
    group.add_argument('--resolution', type=number(0, above=True), help=size)
    group.add_argument('--aoi', help='vector file of the polygons to embed; the rest is NoData')
    sides = ('LEFT', 'BOTTOM', 'RIGHT', 'TOP')
    group.add_argument('--bbox', type=number(), nargs=4, metavar=sides, help='part of the raster to embed')
    group.add_argument('--bbox-crs', help='CRS of --bbox, such as EPSG:4326; that of the raster where it is not given')
    group.add_argument('--zones', help='vector file of polygons or points, each of which gets one vector')
    group.add_argument('--zones-layer', help='layer of that file, needed if it has several')
    group.add_argument('--pooling', choices=['mean', 'max'], default='mean', help='of the tokens of a zone')


def _add_work(group: Any) -> None:
    group.add_argument('--tile', type=whole(1), help='side of the tiles that are computed together, in pixels')
    group.add_argument('--halo', type=whole(0), help='half of what neighboring images share, at least')
    blending = 'images fade into each other (hann) or are cut (the default)'
    group.add_argument('--blend', choices=['hann', 'crop'], help=blending)
    group.add_argument('--batch-size', type=whole(1), help='images computed together')
    group.add_argument('--device', help='torch device; CUDA where there is one')
    group.add_argument('--dtype', choices=['float32', 'float16'], default='float32', help='how numbers are stored')
    group.add_argument('--no-cog', dest='cog', action='store_false', help='write a plain GeoTIFF, without overviews')
    group.add_argument('--resume', action='store_true', help='continue a run that was killed')


ENCODING = (
    *('backbone', 'layer', 'normalize', 'bands', 'sensor', 'wavelengths', 'scale', 'offset', 'pooling', 'tile'),
    *('context', 'device', 'resolution_m', 'pretrained', 'weights', 'check_values', 'zones', 'overwrite'),
)
"""What both functions take."""

WRITING = ('halo', 'blend', 'batch_size', 'aoi', 'bbox', 'bbox_crs', 'resolution', 'dtype', 'cog')
"""What holds for all scenes of a catalog."""


def run(arguments: argparse.Namespace) -> None:
    """Write the embeddings, and say how long it took.

    Raises:
        RasterError: If scenes failed; the others are embedded all the same.
        ValueError: If an option does not go with --each.
    """
    from geolearn.embed.grids import embed_raster
    from geolearn.embed.many import embed_many
    from geolearn.errors import RasterError

    started = time.perf_counter()
    given = {name: getattr(arguments, name) for name in ENCODING} | {'nodata': one_or_each(arguments.nodata)}
    writing = {name: getattr(arguments, name) for name in WRITING}
    source = arguments.src if len(arguments.src) > 1 else arguments.src[0]
    if not arguments.each:
        arguments.resumable = arguments.zones is None
        more = {'resume': arguments.resume, 'zones_layer': arguments.zones_layer}
        written = embed_raster(source, arguments.dst, **given, **writing, **more)
        print(f'wrote {written} in {time.perf_counter() - started:.1f} s')
        return
    if arguments.zones_layer is not None or arguments.resume:
        raise ValueError('--zones-layer and --resume do not go with --each, which does what is missing by itself')
    if arguments.zones is not None:
        if arguments.aoi is not None or arguments.bbox is not None:
            raise ValueError('zones say themselves what is embedded, in one run; leave out --aoi and --bbox')
        writing = {name: value for name, value in writing.items() if name not in ('aoi', 'bbox')}
    result = embed_many(source, arguments.dst, options=writing, **given)
    print(f'{result} in {time.perf_counter() - started:.1f} s')
    if result.failed:
        raise RasterError(f'{len(result.failed)} of {len(result.scenes)} scenes failed')
