"""geolearn export-chips: cut rasters and labels into chips."""

import argparse

from geolearn.cli.arguments import (
    add_embeddings,
    add_nodata,
    add_unlabelled,
    choose_bands,
    number,
    one_or_each,
    sensor,
    whole,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('raster', nargs='+', help='image; several make one mosaic')
    parser.add_argument('out', help='new folder for the chips, the last of the paths')
    parser.add_argument('--labels', help='vector file or class raster; not needed for Export_Tiles')
    parser.add_argument('--format', default='Classified_Tiles', help='metadata format')
    parser.add_argument('--tile-size', type=whole(1), default=256, help='side of a chip in pixels')
    parser.add_argument('--stride', type=whole(1), help='pixels from chip to chip; the tile size if not given')
    parser.add_argument('--class-field', help='field of the vector file that holds class values or names')
    parser.add_argument('--class-name-field', help='field that holds the names of the classes')
    parser.add_argument('--labels-crs', help='CRS of labels that name none, such as EPSG:4326')
    parser.add_argument(
        '--buffer-radius', type=number(0, above=True), help='around points and lines, in units of the CRS of the raster'
    )
    parser.add_argument('--layer', help='layer of the vector file, needed if it has several')
    parser.add_argument('--sensor', type=sensor, help='such as Sentinel-2')
    parser.add_argument('--bands', nargs='+', help="names of the raster's bands in file order, where it names none")
    parser.add_argument('--values', action='store_true', help='labels are regression targets, such as biomass')
    parser.add_argument('--all-tiles', action='store_true', help='write chips without any label too')
    add_nodata(parser)
    add_unlabelled(parser)
    add_embeddings(parser)
    parser.set_defaults(run=run, inputs=('raster', 'labels'))


def run(arguments: argparse.Namespace) -> None:
    """Write the chips, and say how many."""
    from geolearn.chips.export import export_training_data

    written = export_training_data(
        arguments.raster,
        arguments.labels,
        arguments.out,
        arguments.format,
        arguments.tile_size,
        arguments.stride,
        arguments.class_field,
        target='values' if arguments.values else 'classes',
        class_name_field=arguments.class_name_field,
        layer=arguments.layer,
        nodata=one_or_each(arguments.nodata),
        unlabelled=arguments.unlabelled,
        labels_crs=arguments.labels_crs,
        buffer_radius=arguments.buffer_radius,
        sensor=arguments.sensor or 'Undefined',
        bands=choose_bands(arguments.bands, arguments.sensor) if arguments.bands else None,
        output_nofeature_tiles=arguments.all_tiles,
        dequantize=arguments.dequantize,
        product=arguments.product,
    )
    print(f'wrote {len((written / "map.txt").read_text(encoding="utf-8").splitlines())} chips to {written}')
