"""geolearn info, weights, demo: what a file holds, which weights are on this machine, the path on synthetic scenes."""

import argparse
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolearn.cli import describe, train
from geolearn.cli.evaluate import print_data
from geolearn.cli.messages import logs_above, option_names
from geolearn.errors import ChipFolderError, RasterError

if TYPE_CHECKING:
    from geolearn.data import ChipData


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `info` takes."""
    parser.add_argument('path', help=describe.READ)
    parser.add_argument('--stac', help='write a STAC item that describes the model to this file')
    kinds = 'format of a chip folder, where it does not say, or the data set, such as hls_burn_scars'
    parser.add_argument('--dataset-type', '--dataset', help=kinds)
    parser.add_argument('--json', action='store_true', help='print one JSON object, for programs')
    parser.set_defaults(run=run, targets=('stac',))


def run(arguments: argparse.Namespace) -> None:
    """Print what is known of a file or folder."""
    path = Path(arguments.path)
    is_model = path.suffix in ('.dlpk', '.emd') or _is_model_folder(path)
    if arguments.stac and not is_model:
        raise ValueError('stac describes a model; pass a .dlpk')
    if arguments.json:
        if arguments.stac:
            write_stac(path, arguments.stac)
        print(json.dumps(_finite(_facts(path, arguments)), indent=2, allow_nan=False))
        return
    if is_model:
        print_model(path)
        if arguments.stac:
            write_stac(path, arguments.stac)
            print(f'wrote {arguments.stac}')
    elif path.is_dir() and path.suffix != '.zarr':
        print_folder(path, arguments)
    else:
        print(describe.describe_file(path, arguments.path))


def _facts(path: Path, arguments: argparse.Namespace) -> describe.Facts:
    """Return what is known of a file or folder."""
    if path.suffix in ('.dlpk', '.emd') or _is_model_folder(path):
        from geolearn.bundle import read_emd

        emd = read_emd(path, foreign=True)
        if 'geolearn' in emd:
            return {'kind': 'model', 'path': str(path), **emd['geolearn']}
        return {'kind': 'foreign model', 'path': str(path), 'emd': emd}
    if path.is_dir() and path.suffix != '.zarr':
        from geolearn.prepare import prepare_data

        try:
            return _chip_facts(prepare_data(path, dataset_type=arguments.dataset_type))
        except ChipFolderError as error:
            try:
                return describe.raster_facts(path)
            except RasterError:
                raise error from None
    return describe.file_facts(path, arguments.path)


def _chip_facts(data: 'ChipData') -> describe.Facts:
    classes = [
        {
            'value': info.value,
            'name': info.name,
            'color': [int(part) for part in info.color],
            'count': int(data.value_counts.get(info.value, 0)),
        }
        for info in data.class_infos
    ]
    return {
        'kind': 'chips',
        'path': str(data.path),
        'format': data.dataset_type,
        'chips_to_train': len(data.train_ds),
        'chips_to_validate': len(data.valid_ds),
        'chip_size': data.chip_size,
        'dtype': data.dtype,
        'bands': [describe.band_facts(band) for band in data.bands],
        'classes': classes,
        'ignored_values': [int(value) for value in data.ignored_values],
        'notes': list(data.notes),
    }


def _finite(value: Any) -> Any:
    """Return plain JSON: null for nan and infinities, which JSON has no word for, and text for what it cannot hold."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _is_model_folder(path: Path) -> bool:
    """Whether a folder is that of a saved model: a .dlpk, and nothing that chips have."""
    from geolearn.chips.emd import EMD_NAME

    return any(path.glob('*.dlpk')) and not any((path / name).exists() for name in ('images', EMD_NAME))


def print_folder(path: Path, arguments: argparse.Namespace) -> None:
    """Print what is known of a folder of chips; or of the bands of a scene, or the tiles of a raster."""
    from geolearn.prepare import prepare_data

    with logs_above(logging.ERROR):  # warnings are among the notes that are printed
        try:
            data = prepare_data(path, dataset_type=arguments.dataset_type)
        except ChipFolderError as error:
            try:
                text = describe.as_text(describe.raster_facts(path))
            except RasterError:
                raise error from None
            print(text)
            return
    # info has no options for chips: those of the command that trains on them
    commands = argparse.ArgumentParser()
    train.add_arguments(commands)
    print_data(data, option_names(commands))


def print_model(path: Path) -> None:
    """Print what a bundle holds, that of other software too."""
    from geolearn.bundle import read_emd

    emd = read_emd(path, foreign=True)
    if 'geolearn' not in emd:
        print(describe.describe_foreign(path, emd))
        return
    from geolearn.models import load_model

    print(load_model(path))
    exports = emd['geolearn'].get('exports')
    for kind, row in exports.items() if isinstance(exports, dict) else ():
        differs = row.get('largest_difference') if isinstance(row, dict) else None
        if isinstance(differs, int | float):
            scores = row.get('largest_score_difference')
            more = f' pixels in boxes and {scores:.2g} in scores' if isinstance(scores, int | float) else ''
            print(f'  graph    {kind}: {row.get("file")}, differs from the network by up to {differs:.2g}{more}')


def write_stac(path: Path, stac: str) -> None:
    """Write the STAC item of a bundle.

    Raises:
        BundleError: If it is no bundle of geolearn.
    """
    from geolearn.files import atomic_write
    from geolearn.stac import describe_bundle

    item = json.dumps(describe_bundle(path), indent=2)
    with atomic_write(Path(stac)) as part:
        part.write_text(item, encoding='utf-8')


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `weights` takes."""
    actions = parser.add_subparsers(dest='action', required=True, help='what to do with weights')
    listing = actions.add_parser('list', help='which weights there are, and which are on this machine')
    listing.add_argument('pattern', nargs='?', default='*', help="such as '*dofa*' (default: all)")
    listing.set_defaults(run=list_weights)
    download = actions.add_parser('download', help='fetch and verify weights, for work without internet')
    download.add_argument('names', nargs='+', metavar='name', help='backbone, such as dofa_base')
    download.set_defaults(run=download_weights)
    verify = actions.add_parser('verify', help='hash what is on this machine')
    verify.add_argument('names', nargs='*', metavar='name', help='backbone; all that are here if none is given')
    verify.set_defaults(run=verify_weights)


def list_weights(arguments: argparse.Namespace) -> None:
    """Print a row for each backbone with published weights."""
    from geolearn.backbones import weights

    rows = weights.list_weights(arguments.pattern)
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        print(f'{row.name:<{width}}  {row.path or f"not here: {row.file} of huggingface.co/{row.repo}"}')
    print(f'{sum(row.path is not None for row in rows)} of {len(rows)} are on this machine')


def download_weights(arguments: argparse.Namespace) -> None:
    """Fetch weights, unless they are here."""
    from geolearn.backbones import weights

    for name in arguments.names:
        print(f'{name}: {weights.download_weights(name)}', flush=True)


def verify_weights(arguments: argparse.Namespace) -> None:
    """Hash weights, and compare with what was published."""
    from geolearn.backbones import weights

    for name in arguments.names or [row.name for row in weights.list_weights() if row.path is not None]:
        print(f'{name}: {weights.verify_weights(name)} is what was published', flush=True)


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `demo` takes."""
    parser.add_argument('--out', default='demo_output', help='folder for everything')
    parser.set_defaults(run=run_demo)


def run_demo(arguments: argparse.Namespace) -> None:
    """Run the demo, and print each step."""
    from geolearn import demo

    demo.run_demo(arguments.out, say=lambda line: print(line, flush=True))
