"""What a person sees of a training: a bar over the batches, a row for each epoch."""

import time
from collections.abc import Mapping

from tqdm.auto import tqdm

from geolearn.history import History
from geolearn.training._distributed import process_index
from geolearn.training._fastai import QuickCallback
from geolearn.training._recorder import read_losses

WHOLE = ('epoch', 'seconds')
"""Columns of whole numbers."""


class Watch(QuickCallback):
    """Show a bar over the batches, write a row per epoch, and keep both in the history.

    Args:
        history: Extended in place.
        verbose: Show anything at all.
    """

    order = 60  # after the recorder, whose numbers it shows

    def __init__(self, history: History, *, verbose: bool = True) -> None:
        self.history = history
        self._silent = not verbose or process_index() > 0
        self._bar: tqdm | None = None
        self._header: list[str] = []
        self._read = 0
        self._title = ''

    def before_fit(self) -> None:
        """Begin a new table."""
        self._header, self._read = [], 0

    def before_epoch(self) -> None:
        """Begin a new bar."""
        self._started = time.perf_counter()
        self._title = f'epoch {len(self.history.epochs) + 1}'
        batches = len(self.learn.dls.train)
        self._bar = tqdm(total=batches, desc=self._title, unit='batch', leave=False, disable=self._silent)

    def after_batch(self) -> None:
        """Move the bar."""
        if self.learn.training and self._bar is not None:
            if (reading := self.learn.last_reading) is not None:
                self._bar.set_postfix(loss=f'{reading.loss:.3f}', refresh=False)
            self._bar.update()

    def before_validate(self) -> None:
        """Say that the bar stands still because of the validation."""
        if self._bar is not None:
            self._bar.set_description(f'{self._title} validates')

    def after_epoch(self) -> None:
        """Close the bar and write the row."""
        self.close()
        recorder = self.learn.recorder
        self.history.batch_losses.extend(read_losses(recorder.losses[self._read :]))
        self._read = len(recorder.losses)
        row: dict[str, float] = {'epoch': len(self.history.epochs) + 1} | recorder.row
        row['learning_rate'] = float(recorder.lrs[-1]) if recorder.lrs else float('nan')
        row['seconds'] = time.perf_counter() - self._started
        self.history.epochs.append(row)
        if not self._silent:
            self._write(row)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write(self, row: Mapping[str, float]) -> None:
        widths = {name: max(12, len(name) + 2) for name in row}
        if self._header != [*row]:
            self._header = [*row]
            tqdm.write(''.join(f'{name:>{width}}' for name, width in widths.items()))
        tqdm.write(''.join(f'{_number_text(name, value):>{widths[name]}}' for name, value in row.items()))


def tell(text: str) -> None:
    """Write a line above the bar; only the first of several processes does."""
    if process_index() == 0:
        tqdm.write(text)


def _number_text(name: str, value: float) -> str:
    if name in WHOLE:
        return f'{value:.0f}'
    return f'{value:.2e}' if name == 'learning_rate' else f'{value:.4f}'
