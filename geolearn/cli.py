"""The command line: geolearn export-chips | train | predict | info | demo."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from geolearn.errors import GeoLearnError

if TYPE_CHECKING:
    from geolearn.bands import Band

# Sub-commands import what they need themselves: `geolearn --help` must not wait for torch.


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; an error that geolearn raised on purpose is one line and exit status 2."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except GeoLearnError as error:
        print(f'geolearn: {error}', file=sys.stderr)
        sys.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all sub-commands."""
    parser = argparse.ArgumentParser(prog='geolearn', description='Deep learning on satellite and aerial imagery.')
    commands = parser.add_subparsers(dest='command', required=True)
    _add_export(commands.add_parser('export-chips', help='cut rasters and labels into training chips'))
    _add_train(commands.add_parser('train', help='train a model on exported chips'))
    _add_predict(commands.add_parser('predict', help='map a raster of any size'))
    _add_info(commands.add_parser('info', help='describe a model, a chip folder or a raster'))
    _add_demo(commands.add_parser('demo', help='the whole path on synthetic scenes'))
    return parser


def _whole(least: int) -> Callable[[str], int]:
    """Make an argument type: a whole number from `least`."""

    def parse(text: str) -> int:
        if not text.removeprefix('-').isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'must be a whole number from {least}, got {text!r}')
        return int(text)

    return parse


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('raster', nargs='+', help='image; several make one mosaic')
    parser.add_argument('out', help='new folder for the chips, the last of the paths')
    parser.add_argument('--labels', help='vector file or class raster; not needed for Export_Tiles')
    parser.add_argument('--format', default='Classified_Tiles', help='metadata format (default %(default)s)')
    parser.add_argument('--tile-size', type=_whole(1), default=256, help='side of a chip in pixels')
    parser.add_argument('--stride', type=_whole(1), help='pixels from chip to chip; the tile size if not given')
    parser.add_argument('--class-field', help='field of the vector file that holds class values or names')
    parser.add_argument('--layer', help='layer of the vector file, needed if it has several')
    parser.add_argument('--sensor', default='Undefined', help='such as Sentinel-2')
    parser.add_argument('--bands', nargs='+', help="names of the raster's bands in file order, where it names none")
    parser.add_argument('--all-tiles', action='store_true', help='write chips without any label too')
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    from geolearn.chips.export import export_training_data

    written = export_training_data(
        arguments.raster,
        arguments.labels,
        arguments.out,
        arguments.format,
        arguments.tile_size,
        arguments.stride,
        arguments.class_field,
        layer=arguments.layer,
        sensor=arguments.sensor,
        bands=_bands(arguments.bands, arguments.sensor),
        output_nofeature_tiles=arguments.all_tiles,
    )
    print(f'wrote {sum(1 for _ in (written / "map.txt").open(encoding="utf-8"))} chips to {written}')


def _bands(names: Sequence[str] | None, sensor: str) -> 'Sequence[Band] | None':
    from geolearn.bands import resolve_bands

    return None if names is None else resolve_bands(names, sensor=None if sensor == 'Undefined' else sensor)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('chips', nargs='+', help='chip folder, or several to merge')
    parser.add_argument('model', help='name of the model, or path of the .dlpk to write')
    parser.add_argument('--backbone', default='dofa_base', help='such as dofa_base or resnet50 (default %(default)s)')
    parser.add_argument('--weights', help="file or folder with the backbone's weights, instead of fetching them")
    parser.add_argument('--from-scratch', action='store_true', help='start from random weights')
    parser.add_argument('--epochs', type=_whole(1), default=10)
    parser.add_argument('--lr', type=float, help='learning rate; searched for if not given')
    parser.add_argument('--batch-size', type=_whole(2), default=8)
    parser.add_argument('--chip-size', type=_whole(1), default=224)
    parser.add_argument('--valid', type=float, default=0.1, help='share of chips to validate on')
    parser.add_argument('--split', default='random', help='random, stratified, blocks, latitude, or a file of lists')
    parser.add_argument('--dataset-type', help='format of the chips, where they do not say')
    parser.add_argument('--normalize', default='dataset', help='dataset, minmax, robust, imagenet or pretraining')
    parser.add_argument('--class-balancing', action='store_true', help='weigh rare classes more in the loss')
    parser.add_argument('--block-size', type=float, help='side of a block in map units, for --split blocks')
    parser.add_argument('--ignore-classes', type=int, nargs='*', default=[], help='label values to leave out')
    parser.add_argument('--bands', nargs='+', help='names of the bands, where the export names none')
    parser.add_argument('--seed', type=int, default=42)
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> None:
    import torch

    from geolearn.models import DeepLab
    from geolearn.prepare import prepare_data

    data = prepare_data(
        arguments.chips,
        chip_size=arguments.chip_size,
        val_split_pct=arguments.valid,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        ignore_classes=arguments.ignore_classes,
        dataset_type=arguments.dataset_type,
        normalize=arguments.normalize,
        split=arguments.split,
        block_size=arguments.block_size,
        bands=arguments.bands,
    )
    print(data)
    torch.manual_seed(arguments.seed)
    model = DeepLab(
        data,
        arguments.backbone,
        pretrained=not arguments.from_scratch,
        weights=arguments.weights,
        class_balancing=arguments.class_balancing,
    )
    model.fit(arguments.epochs, lr=arguments.lr)
    print(model.per_class_metrics().to_string(float_format='{:.3f}'.format))
    print(f'accuracy {model.accuracy():.4f}, mIoU {model.mIOU(mean=True):.4f} on the validation chips')
    print(f'wrote {model.save(arguments.model)}')


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', help='the .dlpk')
    parser.add_argument('src', nargs='+', help='raster to map; several make one mosaic')
    parser.add_argument('dst', help='GeoTIFF to write, the last of the files')
    parser.add_argument('--overwrite', action='store_true', help='replace the GeoTIFF if it exists')
    parser.add_argument('--bands', nargs='+', help="names of the raster's bands in file order, where it names none")
    parser.add_argument('--sensor', help='whose names the bands have, such as Sentinel-2 for B04')
    parser.add_argument('--scale', type=float, help='multiply pixel values, where units differ')
    parser.add_argument('--offset', type=float, default=0.0, help='add to pixel values after scaling')
    parser.add_argument('--tile-size', type=_whole(1), help='side of the tiles in pixels')
    parser.add_argument('--halo', type=_whole(0), help='pixels dropped at inner tile edges')
    parser.add_argument('--batch-size', type=_whole(1), default=4, help='tiles computed together')
    parser.add_argument('--device', help='torch device; CUDA where there is one')
    parser.set_defaults(run=_predict, refuse=parser.error)


def _predict(arguments: argparse.Namespace) -> None:
    if arguments.halo and arguments.tile_size and 2 * arguments.halo >= arguments.tile_size:
        arguments.refuse('--halo must be under half of --tile-size')
    if Path(arguments.dst).exists() and not arguments.overwrite:
        # a forgotten target would make the last image the target
        arguments.refuse(f'{arguments.dst} exists; name the map to write last, or pass --overwrite to replace it')
    from geolearn.models import load_model

    started = time.perf_counter()
    model = load_model(arguments.model)
    written = model.predict_raster(
        arguments.src if len(arguments.src) > 1 else arguments.src[0],
        arguments.dst,
        bands=arguments.bands,
        sensor=arguments.sensor,
        scale=arguments.scale,
        offset=arguments.offset,
        tile_size=arguments.tile_size,
        halo=arguments.halo,
        batch_size=arguments.batch_size,
        device=arguments.device,
    )
    print(f'wrote {written} in {time.perf_counter() - started:.1f} s')


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('path', help='a .dlpk, a chip folder or a raster')
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> None:
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


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--out', default='demo_output', help='folder for everything (default %(default)s)')
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    from geolearn.demo import run_demo

    run_demo(arguments.out, say=lambda line: print(line, flush=True))
