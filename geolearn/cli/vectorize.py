"""geolearn vectorize: the polygons of a map of classes."""

import argparse
import time

from geolearn.cli.arguments import number, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('map', help='raster of class values')
    parser.add_argument('dst', help='layer to write: .gpkg, .parquet, .geojson or .shp')
    parser.add_argument('--overwrite', action='store_true', help='replace the result if it exists')
    parser.add_argument('--band', type=whole(1), help='number of the band of class values, where there are several')
    parser.add_argument(
        '--min-area', type=number(0), default=0.0, help='leave out smaller polygons; in square units of the CRS'
    )
    parser.add_argument(
        '--outline',
        choices=['exact', 'simplified', 'orthogonal'],
        default='exact',
        help='edges of pixels, with fewer corners, or with right angles where a polygon has such a shape',
    )
    parser.add_argument(
        '--tolerance', type=number(0, above=True), default=1.0, help='pixels by which simplified outlines may move'
    )
    parser.add_argument('--no-style', action='store_true', help='write no style for QGIS (.qml)')
    parser.set_defaults(run=run, inputs=('map',), targets=('dst',))


def run(arguments: argparse.Namespace) -> None:
    """Write the layer, and say how long it took."""
    from geolearn.inference.vectorize import vectorize_map

    started = time.perf_counter()
    written = vectorize_map(
        arguments.map,
        arguments.dst,
        band=arguments.band,
        min_area=arguments.min_area,
        outline=arguments.outline,
        tolerance=arguments.tolerance,
        style=not arguments.no_style,
        overwrite=arguments.overwrite,
    )
    print(f'wrote {written} in {time.perf_counter() - started:.1f} s')
