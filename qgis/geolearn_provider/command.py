"""Running geolearn from QGIS: words of its command line, progress, errors, cancelling. Imports nothing of QGIS.

geolearn runs in its own Python environment: what QGIS sets for its Python (PYTHONHOME, PYTHONPATH) is not passed on.
"""

import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

SETTING = 'GEOLEARN_PROGRAM'
"""Of QGIS's settings, and of the environment: the program to run."""

INSTALL = (
    'Install it into an environment of its own: "python3 -m venv geolearn-env", then "geolearn-env/bin/pip install" '
    'with the folder of geolearn; and name geolearn-env/bin/geolearn (on Windows geolearn-env\\Scripts\\geolearn.exe) '
    'under Settings, Options, Processing, Providers, geolearn.'
)

PATIENCE = 10.0
"""Seconds that a cancelled run has to end by itself, before it is killed."""

_PERCENT = re.compile(r'^(?P<label>[^:]{1,80}): (?P<percent>\d{1,3}) % \(')
_OF_QGIS = ('PYTHONHOME', 'PYTHONPATH', 'PYTHONEXECUTABLE', 'PYTHONSTARTUP', 'VIRTUAL_ENV', '__PYVENV_LAUNCHER__')


class CommandError(Exception):
    """geolearn could not be run, or said that something is wrong."""


def find_program(named: str = '') -> str:
    """Return the program to run: the one that is named, or the one of the environment or PATH.

    Raises:
        CommandError: If there is none; the message says how to install it.
    """
    wanted = named.strip() or os.environ.get(SETTING, '').strip() or 'geolearn'
    found = shutil.which(os.path.expanduser(wanted))
    if found is None:
        missing = 'geolearn is not on PATH.' if wanted == 'geolearn' else f'There is no program {wanted}.'
        raise CommandError(f'{missing} {INSTALL}')
    return found


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what QGIS sets for its own Python."""
    kept = {name: value for name, value in environment.items() if name not in _OF_QGIS}
    return kept | {'PYTHONUNBUFFERED': '1', 'PYTHONIOENCODING': 'utf-8', 'MPLBACKEND': 'Agg'}


def parse_progress(line: str) -> float | None:
    """Return the percentage that a line of geolearn's progress states; None for other lines."""
    found = _PERCENT.match(line)
    return min(float(found['percent']), 100.0) if found else None


def run_command(
    program: str,
    words: Sequence[str],
    *,
    on_line: Callable[[str], None],
    on_progress: Callable[[float], None],
    is_cancelled: Callable[[], bool],
) -> list[str]:
    """Run geolearn and wait for it.

    Args:
        program: From `find_program`.
        words: Of the command line.
        on_line: Called with each line that is no progress.
        on_progress: Called with a percentage.
        is_cancelled: Asked several times a second; True ends the run.

    Returns:
        The lines that were printed.

    Raises:
        CommandError: If geolearn cannot be started, ends with an error, whose text this is, or was cancelled.
    """
    group = {'creationflags': subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == 'nt' else {'start_new_session': True}
    try:
        process = subprocess.Popen(
            [program, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=clean_environment(os.environ), encoding='utf-8', errors='replace', **group,
        )  # fmt: skip
    except OSError as error:
        raise CommandError(f'cannot run {program}: {error.strerror or error}. {INSTALL}') from error
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    said: list[str] = []
    try:
        _follow(lines, said, on_line, on_progress, is_cancelled)
    except BaseException:
        _end(process)
        raise
    status = process.wait()
    reader.join()
    if status:
        raise CommandError(_reason(said, status))
    return said


def _read(process: 'subprocess.Popen[str]', lines: 'queue.SimpleQueue[str | None]') -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line.rstrip('\n'))
    lines.put(None)


def _follow(
    lines: 'queue.SimpleQueue[str | None]',
    said: list[str],
    on_line: Callable[[str], None],
    on_progress: Callable[[float], None],
    is_cancelled: Callable[[], bool],
) -> None:
    while True:
        if is_cancelled():
            raise CommandError('cancelled')
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            continue
        if line is None:
            return
        percent = parse_progress(line)
        if percent is not None:
            on_progress(percent)
        elif line.strip():
            said.append(line)
            on_line(line)


def _end(process: 'subprocess.Popen[str]') -> None:
    """Interrupt a run with all its processes; kill it where it does not end."""
    if os.name == 'nt':
        process.send_signal(signal.CTRL_BREAK_EVENT)  # type: ignore[attr-defined,unused-ignore]
    else:
        _signal_group(process, signal.SIGINT)
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()
    if os.name != 'nt':
        _signal_group(process, signal.SIGKILL)  # workers that are left
    process.wait()


def _signal_group(process: 'subprocess.Popen[str]', number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # it ended meanwhile


def _reason(said: Sequence[str], status: int) -> str:
    """Return what geolearn says of its error: one line, by its rules."""
    for line in reversed(said):
        if line.startswith('geolearn'):
            return line.partition(': ')[2] or line
    return '\n'.join(said[-5:]) or f'geolearn ended with status {status}'


def _split(text: str | None) -> list[str]:
    """Return the words of a text; on Windows a backslash is a part of a path.

    Raises:
        CommandError: If a quotation mark is not closed.
    """
    words = shlex.shlex(text or '', posix=True, punctuation_chars=False)
    words.whitespace_split, words.commenters = True, ''
    words.escape = '' if os.name == 'nt' else words.escape
    try:
        return list(words)
    except ValueError as error:
        raise CommandError(f'cannot read {text}: {error}; put names with blanks between two quotation marks') from error


def _option(name: str, value: object) -> list[str]:
    """Return an option and its value, nothing where there is no value; a list becomes several words."""
    if value is None or value == '' or value is False or value == []:
        return []
    if value is True:
        return [name]
    values = value if isinstance(value, list) else [value]
    return [name, *map(str, values)]


def train_words(
    chips: Sequence[str],
    bundle: str,
    *,
    model: str = 'UNet',
    backbone: str = '',
    epochs: int = 10,
    lr: float | None = None,
    chip_size: int = 224,
    batch_size: int | None = None,
    ignore_classes: str = '',
    block_size: float | None = None,
    pretrained: bool = True,
    report: str = '',
    more: str = '',
) -> list[str]:
    """Return the words of a training; `block_size` holds out blocks of land, `more` is put at the end as it is."""
    return [
        'train', *chips, bundle, '--model', model, '--epochs', str(epochs), '--chip-size', str(chip_size),
        *_option('--backbone', backbone), *_option('--lr', lr), *_option('--batch-size', batch_size),
        *_option('--ignore-classes', _split(ignore_classes)), *_option('--from-scratch', not pretrained),
        *(['--split', 'blocks', '--block-size', str(block_size)] if block_size else []),
        *_option('--report', report), *_split(more),
    ]  # fmt: skip


def predict_words(
    bundle: str, raster: str, out: str, *, scale: float | None = None, bands: str = '', nodata: str = '', more: str = ''
) -> list[str]:
    """Return the words of a map of classes or values."""
    reading = [*_option('--scale', scale), *_option('--bands', _split(bands)), *_option('--nodata', _split(nodata))]
    return ['predict', bundle, raster, out, '--overwrite', *reading, *_split(more)]


def detect_words(
    bundle: str,
    raster: str,
    out: str,
    *,
    threshold: float | None = None,
    scale: float | None = None,
    bands: str = '',
    nodata: str = '',
    more: str = '',
) -> list[str]:
    """Return the words of a search for objects."""
    reading = [*_option('--scale', scale), *_option('--bands', _split(bands)), *_option('--nodata', _split(nodata))]
    found = _option('--threshold', threshold)
    return ['detect', bundle, raster, out, '--overwrite', *found, *reading, *_split(more)]


def embed_words(
    raster: str,
    out: str,
    *,
    backbone: str = 'dofa_base',
    sensor: str = '',
    bands: str = '',
    nodata: str = '',
    pretrained: bool = True,
    more: str = '',
) -> list[str]:
    """Return the words of a grid of embeddings."""
    words = ['embed', raster, out, '--overwrite', '--backbone', backbone, *_option('--sensor', sensor)]
    words += [*_option('--bands', _split(bands)), *_option('--nodata', _split(nodata))]
    return [*words, *_option('--no-pretrained', not pretrained), *_split(more)]


def export_words(
    raster: str,
    labels: str,
    out: str,
    *,
    layer: str = '',
    field: str = '',
    format: str = 'Classified_Tiles',
    tile_size: int = 256,
    stride: int | None = None,
    sensor: str = '',
    bands: str = '',
    nodata: str = '',
    more: str = '',
) -> list[str]:
    """Return the words of an export of training chips."""
    words = ['export-chips', raster, out, '--labels', labels, '--format', format, '--tile-size', str(tile_size)]
    words += [*_option('--stride', stride), *_option('--layer', layer), *_option('--class-field', field)]
    words += [*_option('--sensor', sensor), *_option('--bands', _split(bands)), *_option('--nodata', _split(nodata))]
    return [*words, *_split(more)]


def style_of(path: str) -> str | None:
    """Return the style for QGIS that geolearn wrote beside a map or layer; None where there is none."""
    file = Path(path)
    for beside in (file.with_suffix('.qml'), file.with_name(f'{file.name}.qml')):
        if beside.is_file():
            return str(beside)
    return None
