"""geolearn weights: the published weights of backbones on this machine."""

import argparse

HELP = "list, download or verify backbones' published weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    actions = parser.add_subparsers(dest='action', required=True)
    listing = actions.add_parser('list', help='which weights there are, and which are on this machine')
    listing.add_argument('pattern', nargs='?', default='*', help="such as '*dofa*' (default: all)")
    listing.set_defaults(run=run_list)
    download = actions.add_parser('download', help='fetch and verify weights, for work without internet')
    download.add_argument('names', nargs='+', metavar='name', help='backbone, such as dofa_base')
    download.set_defaults(run=run_download)
    verify = actions.add_parser('verify', help='hash what is on this machine')
    verify.add_argument('names', nargs='*', metavar='name', help='backbone; all that are here if none is given')
    verify.set_defaults(run=run_verify)


def run_list(arguments: argparse.Namespace) -> None:
    """Print a row for each backbone with published weights."""
    from geolearn.backbones.weights import list_weights

    rows = list_weights(arguments.pattern)
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        print(f'{row.name:<{width}}  {row.path or f"not here: {row.file} of huggingface.co/{row.repo}"}')
    print(f'{sum(row.path is not None for row in rows)} of {len(rows)} are on this machine')


def run_download(arguments: argparse.Namespace) -> None:
    """Fetch weights, unless they are here."""
    from geolearn.backbones.weights import download_weights

    for name in arguments.names:
        print(f'{name}: {download_weights(name)}', flush=True)


def run_verify(arguments: argparse.Namespace) -> None:
    """Hash weights, and say that they are what was published."""
    from geolearn.backbones.weights import list_weights, verify_weights

    for name in arguments.names or [row.name for row in list_weights() if row.path is not None]:
        print(f'{name}: {verify_weights(name)} is what was published', flush=True)
