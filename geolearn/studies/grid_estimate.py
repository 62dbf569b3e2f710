"""How long a grid of trainings takes and how much memory, measured on a few steps of each kind before it starts."""

import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from geolearn import errors
from geolearn.chips.batches.loader import ChipLoader
from geolearn.device import device_of
from geolearn.models import Model
from geolearn.probe.baselines import BAND_STATISTICS
from geolearn.progress import ProgressBar, report_progress
from geolearn.studies.grid import LEAST_CHIPS, Grid, Job, Plan, make_model, plan_grid
from geolearn.training import estimate_step_memory

TIMED_STEPS = 2
"""After one that is not counted, because it reserves memory and chooses algorithms."""

RATE_SEARCH_STEPS = 100
"""That a training takes first where no learning rate is given."""


@dataclass(frozen=True, kw_only=True)
class RowEstimate:
    """What all trainings of one encoder, decoder and start take.

    Args:
        encoder: Name of the backbone, or of a baseline.
        decoder: Class of models.
        start: How the encoder starts and what of it is trained.
        trainings: Shares and seeds that are not trained yet.
        step_seconds: Of a training step with the batch size of the grid, reading included.
        test_seconds: Of the network on a batch without gradients.
        seconds: Of all trainings of this row.
        memory_bytes: Of a training step: weights, gradients, moments and activations.
        failure: Why no model can be made; empty otherwise.
    """

    encoder: str
    decoder: str
    start: str
    trainings: int
    step_seconds: float = math.nan
    test_seconds: float = math.nan
    seconds: float = 0.0
    memory_bytes: int = 0
    failure: str = ''


@dataclass(frozen=True)
class GridEstimate:
    """What the trainings of a grid take that are not finished.

    Args:
        rows: For each encoder, decoder and start.
        device: That it was measured on.
    """

    rows: tuple[RowEstimate, ...]
    device: str

    @property
    def trainings(self) -> int:
        """Trainings that are not finished."""
        return sum(row.trainings for row in self.rows)

    @property
    def seconds(self) -> float:
        """Of all trainings, one after the other."""
        return sum(row.seconds for row in self.rows)

    @property
    def memory_bytes(self) -> int:
        """Of the largest training step, besides the program itself."""
        return max((row.memory_bytes for row in self.rows), default=0)

    def table(self) -> pd.DataFrame:
        """Return a row for each encoder, decoder and start."""
        return pd.DataFrame([vars(row) for row in self.rows])

    def describe(self) -> str:
        """Return time and memory in a sentence, and which rows take most of the time."""
        if not self.trainings:
            return 'all trainings are finished'
        count = f'{self.trainings} training{"s"[: self.trainings > 1]}'
        text = f'{count}: about {format_duration(self.seconds)} on this {self.device}, one after the other'
        text += f', and {self.memory_bytes / 2**30:.2g} GiB for the largest'
        longest = sorted((row for row in self.rows if row.seconds), key=lambda row: -row.seconds)[:3]
        for row in longest:
            text += f'\n  {row.encoder}, {row.decoder}, {row.start}: {format_duration(row.seconds)} for {row.trainings}'
        return text


def estimate_grid(grid: Grid, out: str | Path, *, part: tuple[int, int] | None = None) -> GridEstimate:
    """Measure a few steps of each encoder, decoder and start, and add up what the unfinished trainings take.

    Networks have random weights, so that nothing is downloaded. Linear layers on the values of pixels take seconds and
    are not measured; reports are not counted.

    Args:
        grid: What is to be trained.
        out: Folder of its finished trainings.
        part: Which of several parts of the trainings to estimate; None for all.

    Raises:
        ArgumentError: If the part is no part.
        ChipFolderError: If the chips cannot be read or divided, or have no class for each pixel.
        TrainingError: If a batch does not fit into memory.
    """
    plan = plan_grid(grid, out, part=part)
    missing = [job for job in plan.mine if plan.read_cell(job) is None]
    kinds: dict[tuple[str, str, str], list[Job]] = {}
    for job in missing:
        kinds.setdefault((job.encoder, job.decoder, 'baseline' if job.baseline else job.start), []).append(job)
    rows = []
    with ProgressBar(len(kinds), 'estimate', 'kind of training') as bar:
        for key, jobs in kinds.items():
            rows.append(_estimate_row(grid, plan, key, jobs))
            bar.update(detail=', '.join(key))
    return GridEstimate(tuple(rows), plan.data.train_dl.device.type.upper())


def format_duration(seconds: float) -> str:
    """Return a duration with its two largest units, such as ``2 h 5 min``."""
    whole = max(round(seconds), 1)
    units = [(whole // 86400, 'd'), (whole // 3600 % 24, 'h'), (whole // 60 % 60, 'min'), (whole % 60, 's')]
    first = next(position for position, (count, _) in enumerate(units) if count)
    return ' '.join(f'{count} {unit}' for count, unit in units[first : first + 2] if count)


def _estimate_row(grid: Grid, plan: Plan, key: tuple[str, str, str], jobs: list[Job]) -> RowEstimate:
    encoder, decoder, start = key
    if encoder == BAND_STATISTICS:
        return RowEstimate(encoder=encoder, decoder=decoder, start=start, trainings=len(jobs))
    try:
        with report_progress(lambda _: None):
            model = make_model(grid, jobs[0], plan.data, pretrained=False)
    except (errors.BackboneError, errors.ArgumentError, errors.WeightsError, errors.BandError) as error:
        return RowEstimate(encoder=encoder, decoder=decoder, start=start, trainings=len(jobs), failure=str(error))
    step, test, memory = _measure(model, plan.data.train_dl)
    split, batch = plan.data.split, plan.data.batch_size
    # chips are tested on as a whole
    windows = math.ceil(int(plan.data.table.shapes.max()) / plan.data.chip_size) ** 2
    seconds = 0.0
    for job in jobs:
        chips = max(round(job.share * len(split.train)), LEAST_CHIPS)
        steps = grid.epochs * math.ceil(chips / batch) + (RATE_SEARCH_STEPS if grid.lr is None else 0)
        tests = grid.epochs * math.ceil(len(split.valid) / batch) + windows * math.ceil(len(split.test) / batch)
        seconds += steps * step + tests * test
    return RowEstimate(
        encoder=encoder,
        decoder=decoder,
        start=start,
        trainings=len(jobs),
        step_seconds=step,
        test_seconds=test,
        seconds=seconds,
        memory_bytes=memory,
    )


def _measure(model: Model, loader: ChipLoader) -> tuple[float, float, int]:
    """Return the seconds of a training step and of a test step, and the bytes of a training step."""
    loss = model.make_loss().to(loader.device)
    network: Any = model.network.to(loader.device)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.0)
    network.train()
    times, images = [], None
    batches = itertools.islice(itertools.cycle(loader), 1 + TIMED_STEPS)
    started = time.perf_counter()
    for images, targets in batches:
        optimizer.zero_grad()
        loss(network(images), targets).backward()
        optimizer.step()
        _wait(network)
        times.append(time.perf_counter() - started)
        started = time.perf_counter()
    if images is None:
        raise errors.ChipFolderError('there is no batch of training chips; pass more chips or a smaller batch_size')
    memory = estimate_step_memory(network, images.shape)
    network.eval()
    with torch.inference_mode():
        started = time.perf_counter()
        network(images)
        _wait(network)
        test = time.perf_counter() - started
    return min(times[1:] or times), test, memory


def _wait(network: torch.nn.Module) -> None:
    """Wait for what a GPU still computes."""
    if device_of(network).type == 'cuda':
        torch.cuda.synchronize()
