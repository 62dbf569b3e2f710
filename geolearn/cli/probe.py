"""geolearn probe, geolearn study: embeddings measured by simple classifiers, and studies that do so as papers did."""

import argparse
from pathlib import Path

from geolearn.cli.arguments import Formatter, add_chips, number, read_chips, split, whole
from geolearn.cli.messages import option_names

METHODS = ('knn', 'linear', 'logistic', 'random_forest', 'mlp')
"""As in `geolearn.probe`, which must not be imported to show help."""


STARTS = ('scratch', 'frozen', 'fine-tuned')
INPUTS = ('attention maps', 'tokens', 'UNet', 'UNet + attention')
"""As in `geolearn.studies.sar`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `probe` takes."""
    parser.add_argument('chips', nargs='+', help='chip folder, or several')
    _add_backbone(parser)
    _add_classifiers(parser, ['knn', 'linear'])
    parser.add_argument('--folds', type=whole(2), default=5, help='parts that are tested in turn')
    parser.add_argument(
        '--fold-split',
        choices=['blocks', 'random'],
        help='test whole blocks of land, which is the default, or any chips',
    )
    parser.add_argument('--out', help='folder for tables and figures')
    parser.add_argument('--device', help='torch device; CUDA where there is one')
    add_chips(parser)
    parser.set_defaults(run=run, inputs=('chips', 'valid_path'))


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `study` takes: a command for each study."""
    studies = parser.add_subparsers(dest='study', required=True, help='which study')
    text = 'probe a frozen backbone on a folder in the layout of BigEarthNet: 19 and 43 classes, both baselines'
    bigearthnet = studies.add_parser('bigearthnet', help=text, description=text, formatter_class=Formatter)
    bigearthnet.add_argument('folder', help='with the patches, version 1 or 2')
    bigearthnet.add_argument('--out', help='folder for tables, figures and embeddings')
    bigearthnet.add_argument('--satellite', choices=['s1', 's2'], default='s1', help='Sentinel-1 or Sentinel-2')
    bigearthnet.add_argument('--classes', type=int, nargs='+', choices=[19, 43], help='19, 43 or both (default both)')
    bigearthnet.add_argument(
        '--split',
        choices=['published', 'blocks', 'random'],
        help='lists of parts in the folder, blocks of land, or any patches; the first that the folder allows',
    )
    _add_backbone(bigearthnet)
    _add_classifiers(bigearthnet, ['knn', 'linear', 'random_forest', 'mlp'])
    bigearthnet.add_argument('--verbose', action='store_true', help='print notes too')
    bigearthnet.set_defaults(run=run_bigearthnet, inputs=('folder',), option_names=option_names(bigearthnet))

    text = 'train starts x inputs x shares of the labels, as the study of transformers on radar did'
    sar = studies.add_parser('sar', help=text, description=text, formatter_class=Formatter)
    sar.add_argument('folder', help='of training chips with a class per pixel')
    sar.add_argument('out', help='folder for the table; finished trainings are kept there')
    sar.add_argument(
        '--backbone', default='vit_small', help='the transformer: a file of `geolearn pretrain`, or a name'
    )
    sar.add_argument('--weights', help='file of weights of a named backbone')
    sar.add_argument('--from-scratch', action='store_true', help='without weights, for trials')
    sar.add_argument('--starts', nargs='+', choices=STARTS, default=STARTS, help=f'default: {", ".join(STARTS)}')
    sar.add_argument(
        '--inputs',
        dest='kinds',  # `inputs` names the arguments that are files, see `check_paths`
        nargs='+',
        choices=INPUTS,
        default=INPUTS,
        help=f'default: {", ".join(INPUTS)}',
    )
    sar.add_argument(
        '--shares', nargs='+', type=number(0, 1, above=True), default=[0.001, 0.01, 0.1], help='default: 0.001 0.01 0.1'
    )
    sar.add_argument('--seeds', nargs='+', type=whole(0), default=[0], help='default: 0')
    sar.add_argument('--epochs', type=whole(1), default=20, help='of each training')
    sar.add_argument('--lr', type=number(0, above=True), default=1e-3, help='highest learning rate')
    sar.add_argument('--batch-size', type=whole(2), default=16, help='chips per batch')
    sar.add_argument('--chip-size', type=whole(1), default=224, help='side of the training images in pixels')
    sar.add_argument('--bands', nargs='+', help='names of the bands, where the export names none')
    parts = 'how 60, 20 and 20 %% of the chips are chosen, as for train'
    sar.add_argument('--split', type=split, default='latitude', help=parts)
    sar.add_argument('--verbose', action='store_true', help='print notes too')
    sar.set_defaults(
        run=run_sar,
        inputs=('folder',),
        option_names=option_names(sar),
        when_interrupted='interrupted; run it again to go on',
    )


def _add_backbone(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--backbone', default='dofa_base', help='which network makes the embeddings')
    parser.add_argument('--weights', help='file of weights, instead of fetching the published ones')
    parser.add_argument('--from-scratch', action='store_true', help='random weights')
    parser.add_argument('--pooling', choices=['mean', 'max', 'cls'], default='mean', help='of the tokens of an image')


def _add_classifiers(parser: argparse.ArgumentParser, methods: list[str]) -> None:
    text = f'classifiers (default {" ".join(methods)})'
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=methods, help=text)
    parser.add_argument('--seeds', type=whole(0), nargs='+', default=[0, 1, 2], help='of folds (default 0 1 2)')
    parser.add_argument('--epochs', type=whole(1), help='of the MLP; as many as see 600,000 items, 3 to 100')
    parser.add_argument('--neighbors', type=whole(1), default=5, help='of knn')
    parser.add_argument('--ridge', type=number(0, above=True), default=0.1, help='penalty of linear, per dimension')


def run(arguments: argparse.Namespace) -> None:
    """Embed the chips, print the tables, and write them with figures where a folder is named."""
    from geolearn.probe import ProbeOptions, probe_chips

    data = read_chips(arguments, arguments.chips)
    options = ProbeOptions(
        neighbors=arguments.neighbors, ridge=arguments.ridge, epochs=arguments.epochs, device=arguments.device
    )
    result = probe_chips(
        data,
        arguments.backbone,
        pretrained=not arguments.from_scratch,
        weights=arguments.weights,
        pooling=arguments.pooling,
        method=arguments.methods,
        folds=arguments.folds,
        split=arguments.fold_split,
        block_size=arguments.block_size,
        seeds=arguments.seeds,
        device=arguments.device,
        options=options,
    )
    print(result.to_markdown())
    print(f'\n{result.class_markdown()}')
    if arguments.out:
        _say_written(result.save(arguments.out))


def run_bigearthnet(arguments: argparse.Namespace) -> None:
    """Run the study, print its tables, and write them with figures where a folder is named."""
    from geolearn.probe import ProbeOptions, study_bigearthnet

    study = study_bigearthnet(
        arguments.folder,
        out=arguments.out,
        sensor=arguments.satellite,
        backbone=arguments.backbone,
        pretrained=not arguments.from_scratch,
        weights=arguments.weights,
        pooling=arguments.pooling,
        classes=tuple(arguments.classes or (19, 43)),
        method=arguments.methods,
        split=arguments.split,
        seeds=arguments.seeds,
        options=ProbeOptions(neighbors=arguments.neighbors, ridge=arguments.ridge, epochs=arguments.epochs),
    )
    print(study.to_markdown())
    if arguments.out:
        print(f'wrote tables and figures to {arguments.out}')


def run_sar(arguments: argparse.Namespace) -> None:
    """Train what is not trained yet, and print the table."""
    from geolearn.studies import study_sar

    study = study_sar(
        arguments.folder,
        arguments.out,
        backbone=arguments.backbone,
        pretrained=not arguments.from_scratch,
        weights=arguments.weights,
        starts=arguments.starts,
        inputs=arguments.kinds,
        shares=arguments.shares,
        seeds=arguments.seeds,
        epochs=arguments.epochs,
        lr=arguments.lr,
        batch_size=arguments.batch_size,
        chip_size=arguments.chip_size,
        bands=arguments.bands,
        split=arguments.split,
    )
    print(study.to_markdown())


def _say_written(paths: list[Path]) -> None:
    print('\n'.join(f'wrote {path}' for path in paths))
