"""geolearn info: describe a model, a chip folder or a raster."""

import argparse
from pathlib import Path

HELP = 'describe a model, a chip folder or a raster'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('path', help='a .dlpk, a chip folder or a raster')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print what is known of a file or folder."""
    path = Path(arguments.path)
    if path.suffix == '.dlpk':
        from geolearn.models import load_model

        print(load_model(path))
    elif path.is_dir():
        from geolearn.prepare import prepare_data

        print(prepare_data(path))
    else:
        print(_raster_text(path))


def _raster_text(path: Path) -> str:
    from geolearn.raster import open_raster, raster_bands, raster_geobox

    with open_raster(path) as src:
        box = raster_geobox(src)
        lines = [
            f'{path}: {src.width} x {src.height} pixels, {src.count} bands of {src.dtypes[0]}, NoData {src.nodata}',
            f'  crs      {src.crs}',
            f'  pixel    {box.resolution[0]:g} x {box.resolution[1]:g} map units',
        ]
        lines += [f'  band     {band}' for band in raster_bands(src)]
    return '\n'.join(lines)
