"""How far the mapping of a raster is: a bar on a terminal, and calls of a function for programs."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from geolearn.progress import ProgressBar
from geolearn.raster.pieces import FileStage, Watch

Stage = Literal['mapping'] | FileStage


class MapProgress(NamedTuple):
    """How far the mapping of a raster is.

    Args:
        done: Tiles that are computed or have no data; blocks, where a cluster computes them.
        total: Tiles of the raster, or blocks.
        megapixels: Of the raster that are done, in this run or before it.
        megapixels_per_second: In this run.
        seconds: Since the mapping began, or the making of the files after it.
        seconds_left: Of the mapping, or of the making of the files, at this pace; None where it is not known yet.
        stage: ``'mapping'``; then, while the files are made of what was computed, ``'overviews'`` and ``'joining'``.
        share: Of the mapping that is done, or of the making of the files, 0 to 1; of files it is an estimate by bytes.
    """

    done: int
    total: int
    megapixels: float
    megapixels_per_second: float
    seconds: float
    seconds_left: float | None
    stage: Stage = 'mapping'
    share: float = 0.0


ProgressFn = Callable[[MapProgress], None]


def advance(bar: ProgressBar, count: int, pixels_per_step: float, progress: ProgressFn | None) -> None:
    """Say that the mapping is as far as `count` steps.

    Args:
        bar: Of the steps.
        count: Tiles or blocks that are done.
        pixels_per_step: Megapixels of each.
        progress: Called with how far the map is.
    """
    if count <= bar.count:
        return
    rate = (count - bar.initial) * pixels_per_step / max(bar.seconds, 1e-9)
    bar.update(count - bar.count, detail=f'{rate:.2f} Mpx/s')
    if progress is not None:
        total = bar.total or count
        left = bar.seconds_left
        progress(MapProgress(count, total, count * pixels_per_step, rate, bar.seconds, left, share=count / total))


LARGE_FILES = 32
"""Megapixels from which on a bar is shown while files are made; those of less take a few seconds."""

LABELS: dict[FileStage, str] = {'overviews': 'building overviews', 'joining': 'joining pieces'}


@contextmanager
def watch_files(steps: int, megapixels: float, progress: ProgressFn | None) -> Iterator[Watch]:
    """Show how far the files of a map are, which are made of its pieces.

    Args:
        steps: Tiles of the map.
        megapixels: Of the map.
        progress: Called with how far the map is.

    Yields:
        What takes the stage, and the share of all work on the files that is done.
    """
    total = max(math.ceil(megapixels), 1)
    with ProgressBar(total, LABELS['joining'], 'megapixel', at_least=LARGE_FILES) as bar:

        def watch(stage: FileStage, share: float) -> None:
            bar.update(math.floor(share * total) - bar.count, label=LABELS[stage])
            if progress is not None:
                rate = share * megapixels / max(bar.seconds, 1e-9)
                left = bar.seconds * (1 - share) / share if share > 0 else None
                progress(MapProgress(steps, steps, megapixels, rate, bar.seconds, left, stage, share))

        yield watch
