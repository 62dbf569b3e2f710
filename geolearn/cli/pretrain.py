"""geolearn pretrain: a backbone from unlabelled imagery."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolearn.cli.arguments import (
    NO_WAVELENGTH,
    NORMALIZATIONS,
    add_nodata,
    choose_bands,
    class_value_or_name,
    number,
    one_or_each,
    scale_factor,
    sensor,
    wavelength,
    whole,
)

if TYPE_CHECKING:
    from geolearn.pretrain import WindowOptions


FIGURES = ('.png', '.jpg', '.jpeg', '.pdf', '.svg')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('images', nargs='+', help='rasters to draw random windows from, or chip folders')
    parser.add_argument('--name', help='of the file of weights (default: those of backbone and method)')
    parser.add_argument('--working-dir', help='the file goes into its folder models; that of the images if not given')
    parser.add_argument('--overwrite', action='store_true', help='replace the file of weights if it exists')
    parser.add_argument('--figure', metavar='PNG', help='draw the losses and the measures of collapse')
    _add_method(parser.add_argument_group('the method'))
    _add_images(parser.add_argument_group('the images'))
    _add_training(parser.add_argument_group('the training'))
    parser.set_defaults(run=run, inputs=('images',), targets=('figure',))


def _add_method(group: Any) -> None:
    group.add_argument('--method', choices=['dino', 'mae'], default='dino', help='dino or mae')
    group.add_argument('--preset', choices=['sar', 'optical'], help='sar or optical; what the bands are if not given')
    group.add_argument('--backbone', default='vit_small', help='plain transformer, or a file to continue from')
    group.add_argument('--pretrained', action='store_true', help='start from the published weights of the backbone')
    group.add_argument('--weights', help='file to start from')
    group.add_argument('--prototypes', type=whole(2), help='outputs of the head of dino')
    group.add_argument('--mask', type=number(0.05, 0.95), help='share of the patches that mae hides')


def _add_images(group: Any) -> None:
    group.add_argument(
        '--chip-size', type=whole(8), help='side of the images in pixels; that of the preset if not given'
    )
    group.add_argument('--bands', nargs='+', help='names of the bands, where the files name none')
    whose = 'whose bands they are, such as Sentinel-1; alone, or with --bands'
    group.add_argument('--sensor', type=sensor, help=whose)
    group.add_argument(
        '--extract-bands', nargs='+', type=class_value_or_name, help='bands to use, by name or from 0 on'
    )
    um = f'center wavelength of each band in micrometers, {NO_WAVELENGTH} for radar'
    group.add_argument('--wavelengths', type=wavelength, nargs='+', metavar='UM', help=um)
    kinds = 'dataset, minmax, robust, imagenet or pretraining'
    group.add_argument('--normalize', choices=NORMALIZATIONS, metavar='KIND', default='dataset', help=kinds)
    group.add_argument(
        '--scale', type=scale_factor, help="factor of a raster's values, or db for radar in linear power"
    )
    group.add_argument('--offset', type=number(), default=0.0, help='added after scaling')
    add_nodata(group)
    group.add_argument(
        '--windows', type=whole(2), default=10_000, help='random windows of rasters in an epoch, at most'
    )
    group.add_argument('--min-valid', type=number(0, 1), default=0.5, help='share of a window that should hold data')
    group.add_argument('--valid', type=number(0, 1), default=0.1, help='share of the images to validate on')


def _add_training(group: Any) -> None:
    group.add_argument('--epochs', type=whole(1), default=100, help='passes over the images')
    group.add_argument('--batch-size', type=whole(2), default=64, help='images per step')
    group.add_argument('--lr', type=number(1e-12), help='learning rate; that of the method if not given')
    group.add_argument('--accumulate', type=whole(1), default=1, help='batches per optimizer step')
    group.add_argument('--precision', choices=['bf16', 'fp16', 'auto'], help='compute in half precision')
    group.add_argument('--seed', type=whole(0), default=42, help='of windows, order, crops, masks and first weights')
    group.add_argument('--resume', action='store_true', help='continue the same pretraining after an interruption')


def run(arguments: argparse.Namespace) -> None:
    """Pretrain, and say where the weights are."""
    if arguments.figure:
        _figure_format(arguments.figure)
    from geolearn.pretrain.run import pretrain

    started = time.time()
    try:
        result = pretrain(
            arguments.images,
            method=arguments.method,
            backbone=arguments.backbone,
            pretrained=arguments.pretrained,
            weights=arguments.weights,
            preset=arguments.preset,
            options=_choose_options(arguments),
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            chip_size=arguments.chip_size,
            lr=arguments.lr,
            bands=choose_bands(arguments.bands, arguments.sensor),
            extract_bands=arguments.extract_bands,
            wavelengths=arguments.wavelengths,
            normalize=arguments.normalize,
            reading=_choose_reading(arguments),
            val_split_pct=arguments.valid,
            seed=arguments.seed,
            name=arguments.name or '',
            working_dir=arguments.working_dir,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            mixed_precision=True if arguments.precision == 'auto' else arguments.precision,
            accumulate=arguments.accumulate,
        )
    finally:
        arguments.resumable = _has_checkpoint(arguments, started)
    print(result)
    if arguments.figure:
        from geolearn.files import atomic_write

        with atomic_write(arguments.figure) as part:
            result.plot().savefig(part, format=_figure_format(arguments.figure))
        print(f'wrote {arguments.figure}')


def _figure_format(path: str) -> str:
    """Return the format of a figure by the suffix of its file.

    Raises:
        ValueError: If it has none of a figure.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FIGURES:
        raise ValueError(f'{path} is no name of a figure; end it in one of {", ".join(FIGURES)}')
    return suffix.removeprefix('.')


def _choose_options(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Return what the command line changes of the preset's options; None where it changes nothing.

    Raises:
        ValueError: If an option is that of the other method.
    """
    for option, method in (('prototypes', 'dino'), ('mask', 'mae')):
        if getattr(arguments, option) is not None and arguments.method != method:
            raise ValueError(f'--{option} does not apply to --method {arguments.method}; leave it out')
    changes = {name: getattr(arguments, name) for name in ('prototypes', 'mask')}
    return {name: value for name, value in changes.items() if value is not None} or None


def _choose_reading(arguments: argparse.Namespace) -> 'WindowOptions':
    from geolearn.pretrain.windows import WindowOptions

    return WindowOptions(
        windows=arguments.windows,
        min_valid=arguments.min_valid,
        scale=arguments.scale,
        offset=arguments.offset,
        nodata=one_or_each(arguments.nodata),
    )


def _has_checkpoint(arguments: argparse.Namespace, since: float) -> bool:
    """Whether this run left a checkpoint to resume from."""
    first = Path(arguments.images[0])
    place = Path(arguments.working_dir) if arguments.working_dir else first if first.is_dir() else first.parent
    found = (place / 'models' / 'pretraining').glob('*/*/checkpoints/last.safetensors')
    return any(path.stat().st_mtime >= since for path in found)
