"""What a grid of trainings found: tables, figures and files."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geolearn import extras, files, plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = tuple[str, str, str, float]
"""Encoder, decoder, start and share of the labels."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A score of a paper for the same data.

    Args:
        encoder: As in the grid.
        decoder: As in the grid.
        start: As in the grid.
        miou: 0..1.
        source: Where it stands.
        share: Of the training labels.
    """

    encoder: str
    decoder: str
    start: str
    miou: float
    source: str
    share: float = 1.0

    def __post_init__(self) -> None:
        """Check the score.

        Raises:
            ValueError: If it is no share, such as a percentage.
        """
        if not isinstance(self.miou, int | float) or not 0 <= self.miou <= 1:
            raise ValueError(f'published scores are mean IoU in 0..1, got {self.miou!r}')


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of a grid.

    Args:
        encoder: Name of the backbone, or of a baseline.
        decoder: Class of models.
        start: How the encoder started and what of it was trained; ``'baseline'`` of baselines.
        share: Of the training labels.
        seed: Of weights, order and choice of labels.
        chips: Training chips that the share is.
        metrics: On the test chips.
        class_iou: IoU by name of the class; NaN where undefined.
        seconds: That the training took.
        parameters: Of the network.
        trained: Of these, those that were trained.
        versions: Of geolearn, torch and Python.
        failure: Why there is no score: what the model says that cannot be made; empty otherwise.
    """

    encoder: str
    decoder: str
    start: str
    share: float
    seed: int
    chips: int
    metrics: Mapping[str, float]
    class_iou: Mapping[str, float]
    seconds: float
    parameters: int
    trained: int
    versions: Mapping[str, str]
    failure: str = ''

    @property
    def row(self) -> Row:
        """What its seeds have in common."""
        return self.encoder, self.decoder, self.start, self.share

    def describe(self) -> str:
        """Return the score in a few words."""
        return f'mIoU {self.metrics["miou"]:.3f}' if 'miou' in self.metrics else 'not possible'

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON holds it; what is undefined is null."""
        record = asdict(self)
        record['class_iou'] = {name: None if math.isnan(value) else value for name, value in self.class_iou.items()}
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> 'Cell':
        """Return a cell that `as_record` made."""
        iou = {name: math.nan if value is None else float(value) for name, value in record['class_iou'].items()}
        metrics = {name: float(value) for name, value in record['metrics'].items()}
        return cls(**{**record, 'class_iou': iou, 'metrics': metrics})


@dataclass(frozen=True, eq=False)
class GridResult:
    """The finished cells of a grid.

    Args:
        cells: In the order of the grid.
        wanted: Cells of the grid, finished or not.
        classes: Names of the classes.
        chips: Chips of the parts: training, validation, test.
        epochs: Of each training.
        published: Scores of papers.
    """

    cells: tuple[Cell, ...]
    wanted: int
    classes: tuple[str, ...]
    chips: tuple[int, int, int]
    epochs: int
    published: tuple[Published, ...] = ()

    def cell_table(self) -> pd.DataFrame:
        """Return a row for each training: what it was, its metrics, IoU of each class, cost and versions."""
        rows = []
        for cell in self.cells:
            row: dict[str, Any] = {name: getattr(cell, name) for name in (*_FACTS, 'seed', 'chips')}
            row |= cell.metrics
            row |= {f'iou {name}': value for name, value in cell.class_iou.items()}
            row |= {name: getattr(cell, name) for name in ('seconds', 'parameters', 'trained', 'failure')}
            rows.append(row | {f'{name} version': value for name, value in cell.versions.items()})
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """Return a row for each encoder, decoder and start: mIoU by share of the labels, spread and published score.

        What is published for others than those of the grid has rows of its own, at the end.
        """
        rows: dict[tuple[str, str, str], dict[str, float]] = {}
        for key, cells in self._rows():
            row = rows.setdefault(key[:3], {})
            column = percent(key[3])
            scores = [cell.metrics['miou'] for cell in cells if 'miou' in cell.metrics]
            row[column] = float(np.mean(scores)) if scores else math.nan
            row[f'{column}, std'] = float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan
            row[f'{column}, published'] = math.nan
        for p in self.published:
            rows.setdefault((p.encoder, p.decoder, p.start), {})[f'{percent(p.share)}, published'] = p.miou
        if not rows:
            return pd.DataFrame()
        return pd.DataFrame(list(rows.values()), index=pd.MultiIndex.from_tuples(rows, names=list(_FACTS[:3])))

    def to_markdown(self) -> str:
        """Return the table as Markdown, with what it was computed from, what is missing, and what was not possible."""
        table, trained = self.table(), list(dict.fromkeys(cell.share for cell in self.cells))
        stated = list(dict.fromkeys(p.share for p in self.published))
        shares = list(dict.fromkeys([*trained, *stated]))
        heads = ['encoder', 'decoder', 'start']
        for share in shares:
            heads += [f'mIoU, {percent(share)}'] * (share in trained)
            heads += [f'{percent(share)}, published'] * (share in stated)
        lines = ['| ' + ' | '.join(heads) + ' |', '|' + ' --- |' * len(heads)]
        for names, row in zip(table.index, table.to_dict('records')):
            words = list(names)
            for share in shares:
                column = percent(share)
                if share in trained:
                    words.append(format_score(row.get(column, math.nan), row.get(f'{column}, std', math.nan)))
                if share in stated:
                    words.append(format_score(row.get(f'{column}, published', math.nan)))
            lines.append('| ' + ' | '.join(words) + ' |')
        return '\n'.join([*lines, '', *self._notes()])

    def _notes(self) -> list[str]:
        seeds = len({cell.seed for cell in self.cells})
        counts = {percent(cell.share): cell.chips for cell in self.cells}
        notes = [
            f'mIoU on {self.chips[2]} test chips, {len(self.classes)} classes: {", ".join(self.classes)}; mean and '
            f'standard deviation of {seeds} seed{"s"[: seeds > 1]}, {self.epochs} epochs.',
            f'{self.chips[0]} training and {self.chips[1]} validation chips; of the labels '
            + ', '.join(f'{share} are {count} chips' for share, count in counts.items())
            + '.',
        ]
        if sources := list(dict.fromkeys(p.source for p in self.published)):
            notes.append(f'Published, not computed here: {"; ".join(sources)}.')
        if len(self.cells) < self.wanted:
            notes.append(f'{self.wanted - len(self.cells)} of {self.wanted} trainings are not finished.')
        reasons = {(cell.encoder, cell.decoder, cell.start): cell.failure for cell in self.cells if cell.failure}
        notes += [f'Not possible: {" ".join(key)}: {" ".join(reason.split())}' for key, reason in reasons.items()]
        return [f'- {note}' for note in notes]

    def plot_scores(self) -> 'Figure':
        """Draw mIoU of the largest share as bars with their spread, a group for each decoder and start."""
        share = max(cell.share for cell in self.cells)
        rows = {key: cells for key, cells in self._rows() if key[3] == share}
        groups = list(dict.fromkeys((decoder, start) for _, decoder, start, _ in rows))
        encoders = list(dict.fromkeys(key[0] for key in rows))
        bars = {
            encoder: [_spread(rows.get((encoder, decoder, start, share), ())) for decoder, start in groups]
            for encoder in encoders
        }
        lines = [
            (p.encoder, groups.index((p.decoder, p.start)), p.miou)
            for p in self.published
            if p.share == share and (p.decoder, p.start) in groups and p.encoder in encoders
        ]
        titles = [f'{decoder}, {start}' for decoder, start in groups]
        return plotting.show_score_bars(
            titles, bars, label=f'mean IoU, {percent(share)} of the labels', published=lines
        )

    def plot_shares(self) -> 'Figure':
        """Draw mIoU against the share of the labels, a line for each encoder, decoder and start."""
        ticks = {share: percent(share) for share in sorted({cell.share for cell in self.cells})}
        return plotting.show_score_lines(
            self._lines(), x_label='share of the labels', y_label='mean IoU', log=True, ticks=ticks
        )

    def plot_costs(self) -> 'Figure':
        """Draw mIoU of the largest share against the seconds of a training, a point for each row."""
        share = max(cell.share for cell in self.cells)
        points = {
            ', '.join(key[:3]): [(float(np.mean([c.seconds for c in cells])), *_spread(cells))]
            for key, cells in self._rows()
            if key[3] == share and not all(c.failure for c in cells)
        }
        return plotting.show_score_lines(points, x_label='seconds of training', y_label='mean IoU', log=True)

    def _lines(self) -> dict[str, list[tuple[float, float, float]]]:
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for key, cells in self._rows():
            value, spread = _spread(cells)
            if not math.isnan(value):
                lines.setdefault(', '.join(key[:3]), []).append((key[3], value, spread))
        return {name: sorted(points) for name, points in lines.items()}

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``grid.md``, ``grid.csv``, ``grid.parquet`` and figures; what is there is replaced.

        Args:
            folder: Made where it does not exist.

        Returns:
            The paths written; the Parquet file needs pyarrow and is left out without it.
        """
        root, written = Path(folder), []

        def target(name: str) -> Any:
            written.append(root / name)
            return files.atomic_write(root / name, make_folder=True)

        with target('grid.md') as part:
            part.write_text(self.to_markdown() + '\n', encoding='utf-8')
        table = self.cell_table()
        with target('grid.csv') as part:
            table.to_csv(part, index=False)
        if extras.is_installed('pyarrow'):
            with target('grid.parquet') as part:
                table.to_parquet(part, index=False)
        if any('miou' in cell.metrics for cell in self.cells):
            figures = {'scores': self.plot_scores, 'costs': self.plot_costs}
            if len({cell.share for cell in self.cells}) > 1:
                figures['shares'] = self.plot_shares
            for name, plot in figures.items():
                with target(f'{name}.png') as part:
                    plot().savefig(part, format='png')
        return written

    def _rows(self) -> Iterator[tuple[Row, list[Cell]]]:
        rows: dict[Row, list[Cell]] = {}
        for cell in self.cells:
            rows.setdefault(cell.row, []).append(cell)
        yield from rows.items()


_FACTS = ('encoder', 'decoder', 'start', 'share')


def percent(share: float) -> str:
    """Return a share as people write it."""
    return f'{100 * share:g} %'


def _spread(cells: Sequence[Cell]) -> tuple[float, float]:
    scores = [cell.metrics['miou'] for cell in cells if 'miou' in cell.metrics]
    if not scores:
        return math.nan, math.nan
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan


def format_score(value: float, spread: float = math.nan) -> str:
    """Return a score with its spread, a dash where there is none."""
    if math.isnan(value):
        return '-'
    return f'{value:.3f}' if math.isnan(spread) else f'{value:.3f} ± {spread:.3f}'
