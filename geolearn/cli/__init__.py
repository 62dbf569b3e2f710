"""The command line: geolearn export-chips | train | pretrain | evaluate | report | predict | vectorize | serve | ..."""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence

from geolearn._version import __version__
from geolearn.cli import (
    benchmark,
    compare,
    embed,
    evaluate,
    export,
    info,
    predict,
    pretrain,
    probe,
    serve,
    show,
    train,
    vectorize,
)
from geolearn.cli.arguments import Formatter, Parser, PrintCompletion, check_paths
from geolearn.cli.config import expand_config
from geolearn.cli.examples import show_examples
from geolearn.cli.messages import (
    describe_error,
    drop,
    flush_output,
    is_out_of_memory,
    notes_in_options,
    option_names,
    rename_options,
    say,
)
from geolearn.errors import GeoLearnError

# The modules of the commands import what they need when they run: `geolearn --help` must not wait for torch.

COMMANDS = {
    'export-chips': ('cut rasters and labels into training chips', export.add_arguments),
    'train': ('train a model on exported chips', train.add_arguments),
    'compare': ('train several classes of models and backbones, and keep the best', compare.add_arguments),
    'pretrain': ('pretrain a backbone on imagery without labels', pretrain.add_arguments),
    'evaluate': ('compute the metrics of a model on chips', evaluate.add_arguments),
    'report': ('write a page on a model and its chips', evaluate.add_report_arguments),
    'show': ('draw chips, the results of a model on them, or a raster such as a map', show.add_arguments),
    'predict': ('map a raster, detect objects in it, or classify polygons', predict.add_arguments),
    'detect': ('find objects in a raster', predict.add_detect_arguments),
    'lines': ('trace roads, rivers or edges in a raster as lines', predict.add_lines_arguments),
    'embed': ('turn rasters into embeddings: grids of vectors, or one for each zone', embed.add_arguments),
    'vectorize': ('turn a map of classes into polygons', vectorize.add_arguments),
    'probe': ('measure how well simple classifiers do on the embeddings of chips', probe.add_arguments),
    'benchmark': ('train a grid of encoders, decoders, starts and shares of the labels', benchmark.add_arguments),
    'study': ('run the study of a paper on a folder, its published scores beside it', probe.add_study_arguments),
    'serve': ('answer requests over HTTP with a model, and show a page to try it', serve.add_arguments),
    'weights': ("list, download or verify backbones' published weights", info.add_weights_arguments),
    'info': (
        'describe a model, a folder of chips, a raster, or any other file that geolearn reads',
        info.add_arguments,
    ),
    'demo': ('the whole path on synthetic scenes', info.add_demo_arguments),
}
"""What each command does, and the function that adds its arguments and says what to run."""

EPILOG = 'An error is one line; set GEOLEARN_TRACEBACK=1 to see where in geolearn it comes from.'


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; whatever a user can correct is one line on stderr and exit status 2."""
    words = sys.argv[1:] if argv is None else list(argv)
    names: dict[str, str] = {}
    arguments = argparse.Namespace()
    try:
        try:
            parser, commands = build_parsers()
            expanded = expand_config(words, commands)
            if expanded[:1] and expanded[0] in commands:
                renamed = [expanded[0], *rename_options(expanded[1:], commands[expanded[0]])]
            else:
                renamed = expanded
            arguments = parser.parse_args(renamed)
            arguments.config_file = words[1] if expanded != words else None
        finally:
            flush_output()  # --help and --version
        names = arguments.option_names
        check_paths(arguments)
        with notes_in_options(names, verbose=arguments.verbose):
            arguments.run(arguments)
        flush_output()
    except KeyboardInterrupt:
        _interrupted(arguments, words)
    except BrokenPipeError:
        drop(sys.stdout)  # else Python tries once more when it ends, and complains
        sys.exit(1)
    except (GeoLearnError, OSError, ValueError, MemoryError) as error:
        _fail(error, names)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _fail(error, names)


def _fail(error: Exception, names: dict[str, str]) -> None:
    if isinstance(error, OSError) and error.filename is None:
        try:  # what could not be printed is still held
            flush_output()
        except OSError as again:
            error = again
    if os.environ.get('GEOLEARN_TRACEBACK'):
        raise error
    say(describe_error(error, names))
    sys.exit(2)


def _interrupted(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Say how to resume, where something that is finished was kept."""
    again: Sequence[str] | None = None
    if getattr(arguments, 'each', False) or getattr(arguments, 'part', None) is not None:
        again = [word for word in words if word != '--overwrite']  # else scenes that are done would be mapped again
    elif getattr(arguments, 'resumable', False) or getattr(arguments, 'resume', False):
        again = words if '--resume' in words else [*words, '--resume']
    if again is not None:
        say(f'interrupted; what is finished was kept. Continue with: {shlex.join(["geolearn", *again])}')
    else:
        say(getattr(arguments, 'when_interrupted', 'interrupted; nothing was written'))
    sys.exit(130)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    return build_parsers()[0]


def build_parsers() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """Build the parser of the command line, and those of its commands by name."""
    parser = Parser(prog='geolearn', description='Deep learning on satellite and aerial imagery.', epilog=EPILOG)
    parser.add_argument('--version', action='version', version=f'geolearn {__version__}')
    shells = 'print a script that completes commands, options and files in this shell'
    parser.add_argument('--print-completion', choices=['bash', 'zsh', 'tcsh'], action=PrintCompletion, help=shells)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, (text, add_arguments) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=text, epilog=show_examples(name), formatter_class=Formatter
        )
        add_arguments(command)
        command.add_argument('--verbose', action='store_true', help='print notes too, such as which bands were matched')
        command.set_defaults(option_names=option_names(command), command_parser=command)
    return parser, commands.choices
