"""geolearn demo: the whole path on synthetic scenes."""

import argparse

HELP = 'the whole path on synthetic scenes'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument('--out', default='demo_output', help='folder for everything (default %(default)s)')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the demo, and tell of each step."""
    from geolearn.demo import run_demo

    run_demo(arguments.out, say=lambda line: print(line, flush=True))
