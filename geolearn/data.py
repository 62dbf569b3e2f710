"""ChipData: batches of chips with everything a model must know about them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from geolearn import normalize, notebook, plotting
from geolearn.arguments import DATA
from geolearn.bands import Band
from geolearn.chips.batches.collate import class_weights
from geolearn.chips.batches.loader import ChipDataset, ChipLoader
from geolearn.chips.label import Task
from geolearn.chips.meaning import classes as taxonomy
from geolearn.chips.packing.table import ChipTable, TargetStatistics
from geolearn.chips.splits.split import Split
from geolearn.classes import ClassInfo
from geolearn.raster import EmbeddingProduct
from geolearn.statistics import BandStatistics

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ChipData:
    """Batches of chips, with everything a model must know about them.

    Args:
        path: The chip folder, the first where several were given.
        working_dir: Models go to ``<working_dir>/models/<name>``; None means the chip folder.
        task: Task of the labels.
        dataset_type: Format of the chip folder.
        bands: Bands of the images, in order.
        band_indexes: 0-based positions of these bands in the chip files.
        class_infos: Trained classes; position is class index.
        ignored_values: Label values that take no part.
        chip_size: Side of the training images in pixels.
        statistics: Of the bands, in stored units, over valid pixels.
        normalization: What the network's first layer does to pixels; None where the backbone's own statistics decide.
        value_counts: Valid pixels per label value, or objects, or chips.
        dtype: Stored dtype of the chips.
        train_dl: Training batches.
        valid_dl: Validation batches.
        test_dl: Test batches, or None where no chip was kept for a test.
        split: Which chips are in which part.
        table: Facts about every chip: name, place, statistics, labels.
        cell_size: The export's MinCellSize, else that of the chips' own grids or labels, passed on to saved models.
        acquired: When the images of each date were taken; empty where it is not said or there is one date.
        image_space: The export's ImageSpaceUsed, such as ``'MAP_SPACE'`` or ``'PIXEL_SPACE'``.
        variable_size: Whether each chip was cut to the size of its feature.
        blackened: Whether pixels around the feature of a chip were set to 0.
        reading_notes: What was picked, skipped or recounted while reading, for people.
        arguments: What `prepare_data` was given besides its defaults, as JSON; see `geolearn.arguments`.
        source: The call that made them from memory, rasters or several folders, as text; empty for one folder.
        product: The precomputed embeddings that the bands are; None for other images.
        target_bands: Names of the bands of images to predict; empty where labels are no images.
        published_parts: Parts that are as the data set publishes them.
        fingerprint: Tells these chips from others, and from what they were before a file was changed.
    """

    path: Path
    working_dir: Path | None
    task: Task
    dataset_type: str
    bands: tuple[Band, ...]
    band_indexes: tuple[int, ...]
    class_infos: tuple[ClassInfo, ...]
    ignored_values: tuple[int, ...]
    chip_size: int
    statistics: BandStatistics
    normalization: normalize.Normalization | None
    value_counts: Mapping[int, int]
    dtype: str
    train_dl: ChipLoader = field(repr=False)
    valid_dl: ChipLoader = field(repr=False)
    test_dl: ChipLoader | None = field(repr=False)
    split: Split
    table: ChipTable = field(repr=False)
    cell_size: Mapping[str, Any] | None
    image_space: str
    variable_size: bool
    blackened: bool
    acquired: tuple[date, ...]
    reading_notes: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    source: str = field(default='', repr=False)
    product: EmbeddingProduct | None = None
    target_bands: tuple[str, ...] = ()
    published_parts: tuple[str, ...] = ()
    fingerprint: str = field(default='', repr=False)

    if not TYPE_CHECKING:  # else type checkers would take any attribute

        def __getattr__(self, name: str) -> Any:
            """Answer names that only arcgis.learn's data have."""
            text = f'ChipData has no attribute {name!r}'
            raise AttributeError(f'{text}; instead of that of arcgis.learn: {DATA[name]}' if name in DATA else text)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know: what was left out while reading, and what is odd about the classes."""
        return (*taxonomy.class_notes(self.task, self.class_infos, self.value_counts), *self.reading_notes)

    @property
    def classes(self) -> list[str]:
        """Names of the trained classes, in index order."""
        return [info.name for info in self.class_infos]

    @property
    def c(self) -> int:
        """Number of trained classes."""
        return len(self.class_infos)

    @property
    def class_mapping(self) -> dict[int, str]:
        """Name of each trained class by label value."""
        return {info.value: info.name for info in self.class_infos}

    @property
    def color_mapping(self) -> dict[int, tuple[int, int, int]]:
        """Color of each trained class by label value."""
        return {info.value: info.color for info in self.class_infos}

    @property
    def class_weights(self) -> np.ndarray:
        """Weight of each class (classes,), rare ones more: total / count over the training chips, 1 on average."""
        if not self.class_infos:
            return np.zeros(0)
        counts = self.table.value_counts(self.split.train)
        return class_weights([counts[info.value] for info in self.class_infos])

    @property
    def target_statistics(self) -> TargetStatistics | None:
        """Statistics of the regression targets of the training chips; None where labels hold none."""
        return self.table.target_statistics(self.split.train)

    @property
    def batch_size(self) -> int:
        """Chips per batch."""
        return self.train_dl.batch_size

    @property
    def train_ds(self) -> ChipDataset:
        """Training chips, one by one."""
        return self.train_dl.dataset

    @property
    def valid_ds(self) -> ChipDataset:
        """Validation chips, one by one."""
        return self.valid_dl.dataset

    @property
    def test_ds(self) -> ChipDataset | None:
        """Test chips, one by one, or None."""
        return None if self.test_dl is None else self.test_dl.dataset

    @cached_property
    def display_stretch(self) -> plotting.DisplayStretch | None:
        """Which pixel values are black and white in figures of these chips; None where no chip has valid pixels."""
        pixels = self.table.sample.reshape(-1, self.table.band_count)[:, list(self.band_indexes)].T
        return plotting.fit_stretch(pixels, self.bands) if pixels.size else None

    def ignoring(self, values: Sequence[int]) -> 'ChipData':
        """Return the same chips with more label values left out of loss, metrics and predictions."""
        ignored = tuple(sorted({*self.ignored_values, *values}))
        infos = tuple(info for info in self.class_infos if info.value not in ignored)
        taxonomy.check_trainable(self.task, infos)
        indexes = np.full(self.c, taxonomy.ignored_index(self.task))
        indexes[[position for position, info in enumerate(self.class_infos) if info in infos]] = np.arange(len(infos))

        def without(loader: ChipLoader) -> ChipLoader:
            # the labels of the files may have other values than the classes
            table = loader.dataset.config.table.copy()
            trained = (table >= 0) & (table < self.c)
            table[trained] = indexes[table[trained]]
            return loader.with_config(replace(loader.dataset.config, table=table, class_count=len(infos)))

        return replace(
            self,
            class_infos=infos,
            ignored_values=ignored,
            train_dl=without(self.train_dl),
            valid_dl=without(self.valid_dl),
            test_dl=None if self.test_dl is None else without(self.test_dl),
        )

    def oriented(self) -> 'ChipData':
        """Return the same chips with oriented boxes in place of outlines: the rectangles of least area around them."""
        if self.task != Task.INSTANCES:
            return self

        def turned(loader: ChipLoader) -> ChipLoader:
            return loader.with_config(replace(loader.dataset.config, task=Task.ORIENTED))

        return replace(
            self,
            task=Task.ORIENTED,
            train_dl=turned(self.train_dl),
            valid_dl=turned(self.valid_dl),
            test_dl=None if self.test_dl is None else turned(self.test_dl),
        )

    def validating_on_all(self) -> 'ChipData':
        """Return the same chips, all of them to validate on, as for an evaluation of a model that saw none of them."""
        split = self.split
        valid = tuple(sorted({*split.train, *split.valid, *split.test}))
        dataset = replace(self.valid_ds, positions=valid)
        return replace(self, split=replace(split, valid=valid), valid_dl=ChipLoader(dataset, self.valid_dl.options))

    def show_batch(self, rows: int = 3, *, columns: int = 3, alpha: float = 0.5) -> 'Figure':
        """Draw augmented training chips with their labels.

        Args:
            rows: Rows of chips.
            columns: Chips per row; a chip of several dates fills a row.
            alpha: Opacity of labels that are laid over the image, 0..1.

        Raises:
            ValueError: If there would be no row or no column.
        """
        if rows < 1 or columns < 1:
            raise ValueError(f'rows and columns must be at least 1, got {rows} and {columns}')
        count = min(rows if self.table.dates > 1 else rows * columns, len(self.train_ds))
        batch = self.train_dl.peek(count).to(torch.device('cpu'))
        return plotting.show_batch(
            batch, self.bands, self.class_infos, columns=columns, alpha=alpha, stretch=self.display_stretch
        )

    def summary(self) -> 'pd.DataFrame':
        """Count the classes in each part.

        Returns:
            A row for each trained class and column pairs by part: how many pixels (or objects, or chips) are of the
            class, and how many chips hold it. Of regression targets, a row for each part with its `TargetStatistics`.
        """
        import pandas as pd

        parts = {'train': self.split.train, 'valid': self.split.valid, 'test': self.split.test}
        if self.task == Task.REGRESSION:
            found = {name: self.table.target_statistics(positions) for name, positions in parts.items()}
            rows = {name: asdict(statistics) for name, statistics in found.items() if statistics is not None}
            return pd.DataFrame.from_dict(rows, orient='index').rename_axis('part')
        unit = 'pixels' if self.task in taxonomy.RASTER_TASKS else 'labels'
        amounts = self.table.amounts([info.value for info in self.class_infos])
        columns: dict[str, Any] = {'value': [info.value for info in self.class_infos]}
        for name, positions in parts.items():
            if positions:
                held = amounts[list(positions)]
                columns[f'{name} {unit}'] = held.sum(axis=0)
                columns[f'{name} chips'] = (held > 0).sum(axis=0)
        return pd.DataFrame(columns, index=pd.Index(self.classes, name='class'))

    def _repr_html_(self) -> str:
        return notebook.rows_as_html(repr(self))

    def __repr__(self) -> str:
        total = max(sum(self.value_counts.values()), 1)
        test = f', {len(self.test_ds)} to test' if self.test_ds is not None else ''
        lines = [
            f'ChipData: {len(self.train_ds)} chips to train, {len(self.valid_ds)} to validate{test}, '
            f'{self.chip_size} px, batches of {self.batch_size}, {self.dtype}',
            f'  {"from" if self.source.startswith("from_") else "folder":<8} {self.path} ({self.dataset_type})',
            '  bands    ' + ', '.join(_band_text(band) for band in self.bands),
        ]
        unit = 'pixels' if self.task in taxonomy.RASTER_TASKS else 'labels'
        for info in self.class_infos[:60]:
            share = self.value_counts.get(info.value, 0) / total
            lines.append(f'  class    {info.value:>5}  {info.name:<24}{share:>8.2%} of {unit}')
        if self.c > 60:
            lines.append(f'  class    and {self.c - 60} more')
        lines.extend(
            f'  ignored  {value:>5}  {"":<24}{self.value_counts.get(value, 0) / total:>8.2%} of {unit}'
            for value in self.ignored_values
        )
        if (target := self.target_statistics) is not None:
            lines.append(
                f'  target   {target.minimum:g} to {target.maximum:g}, mean {target.mean:g}, std {target.std:g} over '
                f'{target.count:,} training pixels'
            )
        if self.product is not None:
            lines.append(f'  product  {self.product}')
        lines.extend(f'  note     {note}' for note in self.notes)
        # file names need not be UTF-8, and must not stop a print
        return '\n'.join(lines).encode('utf-8', 'backslashreplace').decode('utf-8')


def _band_text(band: Band) -> str:
    if band.is_radar:
        return f'{band.name} (radar)'
    return f'{band.name} ({band.wavelength_um:g} µm)' if band.wavelength_um else f'{band.name} (wavelength unknown)'
