"""geolearn benchmark: grids of trainings."""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from geolearn.cli.arguments import part
from geolearn.errors import ArgumentError, TrainingError

if TYPE_CHECKING:
    from distributed import Client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('grid', help='YAML file: data, encoders, decoders, starts, shares, seeds, epochs, lr')
    out = 'folder for tables, figures and finished trainings; the name of the file if not given'
    parser.add_argument('--out', help=out)
    parting = 'do one of several parts of the trainings, such as the third of eight; all may share a folder'
    parser.add_argument('--part', type=part, metavar='3/8', help=parting)
    scheduler = "address of a Dask scheduler whose workers do the trainings, such as 'tcp://host:8786' (extra: dask)"
    parser.add_argument('--scheduler', metavar='ADDRESS', help=scheduler)
    help = (
        'only say how much time and memory the trainings take that are not finished; a few steps of each are measured'
    )
    parser.add_argument('--estimate', action='store_true', help=help)
    parser.add_argument('--no-estimate', action='store_true', help='start at once, without measuring time and memory')
    again = 'interrupted; trainings that are finished were kept. Run it again to go on'
    parser.set_defaults(run=run, inputs=('grid',), when_interrupted=again)


def run(arguments: argparse.Namespace) -> None:
    """Say what it takes, train what is not trained yet, and print the table."""
    from geolearn.studies import estimate_grid, read_grid, run_grid
    from geolearn.training.distributed import started_as

    grid = read_grid(arguments.grid)
    out = arguments.out or Path(arguments.grid).with_suffix('')
    if arguments.estimate or not arguments.no_estimate:
        print(estimate_grid(grid, out, part=arguments.part).describe(), flush=True)
    if arguments.estimate:
        return
    with connect(arguments.scheduler) if arguments.scheduler else nullcontext() as client:
        result = run_grid(grid, out, part=arguments.part, client=client)
    if started_as()[1] > 1 and len(result.cells) < result.wanted:
        return  # the process that ends last prints the table
    print(result.to_markdown())
    print(f'wrote tables and figures to {out}')
    if result.wanted and not any('miou' in cell.metrics for cell in result.cells):
        raise TrainingError(
            f'none of the {result.wanted} trainings came to a score; correct the encoders, decoders or starts that '
            'the notes above name, and run it again'
        )


def connect(address: str) -> 'Client':
    """Return a client of a Dask scheduler.

    Raises:
        MissingExtraError: If Dask is not installed.
        ArgumentError: If none answers there.
    """
    from geolearn import extras

    distributed = extras.require('distributed', extra='dask', to='work on a cluster')
    try:
        return distributed.Client(address, timeout='10s')
    except (OSError, ValueError) as error:
        raise ArgumentError(f'no Dask scheduler answers at {address}: {error}; start one by dask scheduler') from error
