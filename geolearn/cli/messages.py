"""What the command line says: errors, notes and warnings in one line each, in words of its own options."""

import argparse
import ast
import errno
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from geolearn.progress import reword_lines

OTHER_NAMES = {
    'val_split_pct': '--valid',
    'test_split_pct': '--test',
    'resolution_m': '--resolution',
    'class_value_field': '--class-field',
    'output_nofeature_tiles': '--all-tiles',
    'hard_fraction': '--hard-pixels',
    'mixed_precision': '--precision',
    'focal_loss': '--loss focal',
    'in_class_data': '--labels',
    'metadata_format': '--format',
    'monitor': '--monitor',
}
"""Options that are not called as the arguments of the Python functions are."""

PHRASES = {
    'pretrained=False': '--from-scratch',
    'pretrained=True': 'no --from-scratch',
    "freeze='all but norms'": '--freeze "all but norms"',
    'labels=None': 'no --labels',
    "target='values'": '--values',
    'batch_size=None': 'no --batch-size',
    'mixed_precision=None': 'no --precision',
    'resume=False': 'no --resume',
    'without resume=True': 'without --resume',
    'call fit with checkpoint=True first': 'run the same command without --resume first',
}
"""Arguments with a value that another option stands for."""

CALLS = {
    'fit': 'geolearn train',
    'prepare_data': '',
    'export_training_data': 'geolearn export-chips',
    'predict_raster': 'geolearn predict',
    'detect_objects': 'geolearn predict',
    'classify_objects': 'geolearn predict',
    'download_weights': 'geolearn weights download',
}
"""Functions that messages name, and the commands that run them."""

_VALUE = r"""'[^']*'|"[^"]*"|\[[^\[\]]*\]|\{[^{}]*\}|\([^()]*\)|-?\d[\w.+-]*|[A-Za-z_]\w*|\.\.\."""
_ARGUMENT = re.compile(rf"(?<![\w.'\"\-/])([a-z]\w*)=(?!=)({_VALUE})?")
_CALL = re.compile(r'\b(' + '|'.join(CALLS) + r')\(([^()]*)\)')
_NAME = re.compile(r"(?<![\w.'\"\-/=])[a-z]+(?:_[a-z]+)+(?![\w(='\"./])")
_FIRST = re.compile(r'^([a-z]+)(?= (?:must|is|has|needs|holds|names|covers)\b)')


def option_names(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return the options of a command by the names of the Python arguments that they stand for."""
    own = {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}
    known = set(own.values())
    return own | {name: option for name, option in OTHER_NAMES.items() if option.split()[0] in known}


SWITCHES = {'--no-pretrained': '--from-scratch'}
"""Options that switch off what an argument of Python is for, where the command line has another word."""


def rename_options(words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Return the words of a command with its own options in place of those that are called as in Python.

    Args:
        words: After the command, such as ``['chips', 'm', '--val-split-pct', '0.2']``.
        parser: Of the command.
    """
    known = {option for action in parser._actions for option in action.option_strings}
    names = {f'--{name.replace("_", "-")}': option for name, option in option_names(parser).items()} | SWITCHES
    renamed: list[str] = []
    for index, word in enumerate(words):
        name, sign, value = word.partition('=')
        option = names.get(name.replace('_', '-'), '') if name.startswith('--') else ''
        if word == '--':
            return [*renamed, *words[index:]]
        renamed.append(f'{option}{sign}{value}' if option in known and name not in known else word)
    return renamed


def as_options(text: str, names: Mapping[str, str]) -> str:
    """Return a message for Python users in words of the command line.

    Args:
        text: Such as ``'leave it out with ignore_classes=[0]'``.
        names: From `option_names`. Arguments that no option stands for stay as they are.
    """
    for phrase, option in PHRASES.items():
        if any(word in names.values() for word in option.split()):
            text = text.replace(phrase, option)

    def replace_argument(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in names:
            return found[0]
        words = _as_words(value)
        return f'{names[name]} {words.replace(" ", "/") if name == "part" else words}'.rstrip()

    def replace_call(found: re.Match[str]) -> str:
        inside = ' '.join(part.strip() for part in found[2].split(', ') if part.strip() not in ('', '...'))
        return f'{CALLS[found[1]]} {inside}'.strip()

    text = _ARGUMENT.sub(replace_argument, text)
    text = _CALL.sub(replace_call, text)
    text = _NAME.sub(lambda found: names.get(found[0], found[0]), text)
    return _FIRST.sub(lambda found: names.get(found[0], found[0]), text)


def _as_words(value: str | None) -> str:
    """Return a Python value as words of a shell."""
    if value is None or value in ('True', 'None', '...'):
        return ''
    try:
        content = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    if isinstance(content, dict):
        return ' '.join(f'{key}=NAME' if item is ... else shlex.quote(f'{key}={item}') for key, item in content.items())
    items = content if isinstance(content, list | tuple | set) else [content]
    return ' '.join(shlex.quote(str(item)) for item in items)


def describe_error(error: BaseException, names: Mapping[str, str]) -> str:
    """Return an error in one line, in words of the command line."""
    text = ' '.join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and not text.startswith(error.strerror):
        text = f'{error.filename}: {error.strerror}' if error.filename else f'cannot write: {error.strerror}'
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        text = f'memory does not suffice ({text[:200]}); take a smaller batch_size, tile_size or chip_size'
    return as_options(text, names)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error of torch is about memory, of the device or of the machine."""
    return type(error).__name__ == 'OutOfMemoryError' or "can't allocate memory" in str(error)


def say(text: str) -> None:
    """Print a line on stderr; where that is closed or full, nobody can be told."""
    try:
        print(f'geolearn: {text}', file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def flush_output() -> None:
    """Write what stdout still holds.

    Raises:
        OSError: If it cannot be written, as on a full disk; nothing more is tried when Python ends.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        drop(sys.stdout)
        if error.errno == errno.EPIPE:  # such as `geolearn info x | head -1`, which has seen enough
            raise
        raise OSError(error.errno, error.strerror, 'standard output') from error


def drop(stream: object) -> None:
    """Send what a stream still holds to nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[attr-defined]
    except (OSError, ValueError, AttributeError):
        return


class _Handler(logging.Handler):
    def __init__(self, names: Mapping[str, str], level: int) -> None:
        super().__init__(level)
        self._names = names

    def emit(self, record: logging.LogRecord) -> None:
        say(as_options(record.getMessage(), self._names))


@contextmanager
def logs_above(level: int) -> Iterator[None]:
    """Say nothing that is logged below a level, where a command prints it itself."""
    log = logging.getLogger('geolearn')
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def notes_in_options(names: Mapping[str, str], *, verbose: bool) -> Iterator[None]:
    """Print geolearn's log and warnings as the command line says things, and its notes too where it is `verbose`."""
    log = logging.getLogger('geolearn')
    handler, level = _Handler(names, logging.INFO if verbose else logging.WARNING), log.level
    log.addHandler(handler)
    if verbose:
        log.setLevel(logging.INFO)
    show = warnings.showwarning

    def show_in_a_line(message: Warning | str, category: type[Warning], *rest: object) -> None:
        if issubclass(category, UserWarning) and not issubclass(category, DeprecationWarning):
            say(as_options(' '.join(str(message).split()), names))

    warnings.showwarning = show_in_a_line  # type: ignore[assignment]
    try:
        with reword_lines(lambda text: as_options(text, names)):
            yield
    finally:
        warnings.showwarning = show
        log.removeHandler(handler)
        log.setLevel(level)
