"""Progress of long work: a bar on a terminal, a few lines in a file or pipe, one output in a notebook.

The only importer of tqdm. `TQDM_DISABLE=1` or `GEOLEARN_PROGRESS=off` in the environment silences all of it.
"""

import importlib
import os
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self, TypeVar

from tqdm.std import TqdmWarning, tqdm

Item = TypeVar('Item')

NOTEBOOK_INTERVAL = 0.3
"""Seconds between two refreshes of a notebook's output."""

LINE_INTERVAL = 0.5
"""Seconds between two lines at least: quick work writes its last line alone."""

DEFAULT_TERMINAL = 80, 24
"""Columns and rows of a terminal that does not tell."""

_FALSE = ('', '0', 'false', 'off', 'no')


with warnings.catch_warnings():
    # in a notebook without ipywidgets tqdm.auto warns on its first import, in red; fastai and huggingface_hub import it
    warnings.simplefilter('ignore', TqdmWarning)
    importlib.import_module('tqdm.auto')


def progress_is_silenced() -> bool:
    """Say whether the environment asks for no progress."""
    disabled = os.environ.get('TQDM_DISABLE', '').lower() not in _FALSE
    return disabled or os.environ.get('GEOLEARN_PROGRESS', 'on').lower() in _FALSE


_wording: ContextVar[Callable[[str], str]] = ContextVar('geolearn wording', default=str)


def print_line(text: str) -> None:
    """Print a line on stdout, above a bar where there is one."""
    tqdm.write(_wording.get()(text), file=sys.stdout)


@contextmanager
def reword_lines(change: Callable[[str], str]) -> Iterator[None]:
    """Change the lines that are printed in this context, such as into words of the command line."""
    token = _wording.set(change)
    try:
        yield
    finally:
        _wording.reset(token)


class _Display(ABC):
    """How progress is shown at one place."""

    @abstractmethod
    def show(self, progress: 'ProgressBar') -> None:
        """Show where the work is; called often."""

    @abstractmethod
    def end(self, progress: 'ProgressBar') -> None:
        """Show the end of the work."""


class _Bar(_Display):
    """A bar on a terminal, which vanishes at the end."""

    def __init__(self, progress: 'ProgressBar') -> None:
        # some terminals do not say how large they are, and tqdm shows nothing on one of no columns and rows
        known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
        self._bar: tqdm[Any] = tqdm(
            total=progress.total,
            initial=progress.count,
            desc=progress.label,
            unit=progress.unit,
            leave=False,
            disable=False,
            ncols=None if known else DEFAULT_TERMINAL[0],
            nrows=None if known else DEFAULT_TERMINAL[1],
            dynamic_ncols=known,
            file=sys.stderr,
        )

    def show(self, progress: 'ProgressBar') -> None:
        if self._bar.desc != f'{progress.label}: ':
            self._bar.set_description(progress.label)
        if progress.detail:
            self._bar.set_postfix_str(progress.detail, refresh=False)
        self._bar.update(progress.count - self._bar.n)

    def end(self, progress: 'ProgressBar') -> None:
        self._bar.close()


class _Lines(_Display):
    """A line on stderr for each tenth of the work, as log files and pipes can hold them."""

    def __init__(self, progress: 'ProgressBar') -> None:
        self._tenths = self._count_tenths(progress)
        self._written = time.monotonic()
        self._ended = False

    def show(self, progress: 'ProgressBar') -> None:
        tenths, now = self._count_tenths(progress), time.monotonic()
        if tenths > self._tenths and tenths < 10 and now - self._written >= LINE_INTERVAL:
            self._tenths, self._written = tenths, now
            self._write(progress, f'{tenths * 10} %', f'{_time_text(progress.seconds_left)} left')

    def end(self, progress: 'ProgressBar') -> None:
        if progress.is_complete and not self._ended:
            self._ended = True
            self._write(progress, '100 %', f'took {_time_text(progress.seconds)}')

    def _write(self, progress: 'ProgressBar', share: str, when: str) -> None:
        counted = f'{progress.count} of {progress.total}' if progress.total is not None else str(progress.count)
        sys.stderr.write(f'{progress.label}: {share} ({counted} {progress.units}), {when}\n')
        sys.stderr.flush()

    def _count_tenths(self, progress: 'ProgressBar') -> int:
        return 10 * progress.count // progress.total if progress.total else 0


class _Output(_Display):
    """One output of a notebook cell, replaced in place: stderr is red there, and a saved notebook holds the last."""

    def __init__(self, progress: 'ProgressBar') -> None:
        from IPython.display import display

        self._shown = time.monotonic()
        self._handle = display(self._data(self._text(progress)), raw=True, display_id=True)

    def show(self, progress: 'ProgressBar') -> None:
        now = time.monotonic()
        if now - self._shown >= NOTEBOOK_INTERVAL:
            self._shown = now
            self._update(self._text(progress))

    def end(self, progress: 'ProgressBar') -> None:
        done = f'{progress.label}: {progress.count} {progress.units} in {_time_text(progress.seconds)}'
        self._update(done if progress.is_complete else self._text(progress))

    def _update(self, text: str) -> None:
        self._handle.update(self._data(text), raw=True)

    def _text(self, progress: 'ProgressBar') -> str:
        detail = f', {progress.detail}' if progress.detail else ''
        if progress.total is None:
            return f'{progress.label}: {progress.count} {progress.units}{detail}'
        left = _time_text(progress.seconds_left)
        filled = int(20 * progress.share)
        bar = '█' * filled + '░' * (20 - filled)
        return f'{progress.label} {bar} {progress.count} of {progress.total} {progress.units}, {left} left{detail}'

    @staticmethod
    def _data(text: str) -> dict[str, str]:
        return {'text/plain': text}


class ProgressBar:
    """Progress of one piece of work; a context manager.

    Args:
        total: Number of steps, or None where it is not known.
        label: What is done, such as ``'mapping'``.
        unit: What one step is called, in the singular.
        initial: Steps that were done before, by a run that is resumed.
        at_least: Show nothing where there are fewer steps than this.
        show: False shows nothing.
        lines: Whether to write lines where there is neither terminal nor notebook.
    """

    def __init__(
        self,
        total: int | None,
        label: str,
        unit: str = 'step',
        *,
        initial: int = 0,
        at_least: int = 0,
        show: bool = True,
        lines: bool = True,
    ) -> None:
        self.total, self.label, self.unit, self.count, self.detail = total, label, unit, initial, ''
        self.initial, self._started = initial, time.monotonic()
        few = total is not None and total < at_least
        self._listener = _listener.get()
        hidden = few or not show or self._listener is not None
        self._display = None if hidden else _choose_display(self, lines=lines)

    def update(self, count: int = 1, *, label: str | None = None, detail: str | None = None) -> None:
        """Say that steps are done.

        Args:
            count: How many.
            label: What is done from now on; None for the same as before.
            detail: A few words or numbers beside the bar, such as the loss.
        """
        self.count += count
        self.label = self.label if label is None else label
        self.detail = self.detail if detail is None else detail
        if self._listener is not None:
            self._listener(self)
        if self._display is not None:
            self._display.show(self)

    def finish(self) -> None:
        """Say that the work is over although steps are left, as where a search ends early."""
        self.total = self.count
        self.close()

    def close(self) -> None:
        """End the display; more calls do nothing."""
        if self._display is not None:
            self._display.end(self)
            self._display = None

    @property
    def is_complete(self) -> bool:
        """Whether all steps are done."""
        return self.total is None or self.count >= self.total

    @property
    def units(self) -> str:
        """The word for the steps that are counted, in plural unless there is one."""
        count = self.count if self.total is None else self.total
        if count == 1:
            return self.unit
        return f'{self.unit}es' if self.unit.endswith(('tch', 'x', 's')) else f'{self.unit}s'

    @property
    def share(self) -> float:
        """Share of the work that is done, 0 to 1."""
        return min(self.count / self.total, 1.0) if self.total else 1.0

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self._started

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest takes at the same pace; None where it is not known yet."""
        done = self.count - self.initial
        if self.total is None or done <= 0:
            return None
        return self.seconds / done * max(self.total - self.count, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


_listener: ContextVar[Callable[[ProgressBar], None] | None] = ContextVar('geolearn progress', default=None)


@contextmanager
def report_progress(listener: Callable[[ProgressBar], None]) -> Iterator[None]:
    """Call a function at each step of the work in this context, instead of showing the progress.

    Args:
        listener: Called in the thread that does the work. An exception that it raises ends the work, which cleans up
            as after any other error.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def track(items: Iterable[Item], label: str, unit: str = 'step', *, at_least: int = 0) -> Iterator[Item]:
    """Go through items and show progress.

    Args:
        items: Anything; where it has a length, the share and the time left are shown.
        label: What is done, such as ``'reading files'``.
        unit: What one item is called, in the singular.
        at_least: Show nothing where there are fewer items than this.
    """
    total = len(items) if isinstance(items, Sized) else None
    with ProgressBar(total, label, unit, at_least=at_least) as progress:
        for item in items:
            yield item
            progress.update()


def in_notebook() -> bool:
    """Say whether this runs in the kernel of a notebook."""
    ipython = sys.modules.get('IPython')
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, 'kernel', None) is not None


def _choose_display(progress: ProgressBar, *, lines: bool) -> _Display | None:
    if progress_is_silenced():
        return None
    if in_notebook():
        return _Output(progress)
    if sys.stderr is not None and sys.stderr.isatty():
        return _Bar(progress)
    return _Lines(progress) if lines and sys.stderr is not None else None


def _time_text(seconds: float | None) -> str:
    return '?' if seconds is None else str(tqdm.format_interval(seconds))
