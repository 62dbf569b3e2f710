"""The command line: geolearn export-chips | train | predict | report | weights | info | demo."""

import argparse
import sys
from collections.abc import Sequence

from geolearn.cli import demo, export, info, predict, report, train, weights
from geolearn.errors import GeoLearnError

# The modules of the commands import what they need when they run: `geolearn --help` must not wait for torch.

COMMANDS = {
    'export-chips': export,
    'train': train,
    'predict': predict,
    'report': report,
    'weights': weights,
    'info': info,
    'demo': demo,
}
"""Each module has HELP, a line, and `add_arguments`, which also says what to run."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; an error that geolearn raised on purpose is one line and exit status 2."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except GeoLearnError as error:
        print(f'geolearn: {error}', file=sys.stderr)
        sys.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(prog='geolearn', description='Deep learning on satellite and aerial imagery.')
    commands = parser.add_subparsers(dest='command', required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP))
    return parser
