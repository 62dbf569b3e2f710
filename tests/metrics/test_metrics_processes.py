"""Scores of two processes, each of which saw half of the batches, are those of one that saw all."""

import json

import pytest
import torch
from torch import distributed, multiprocessing

from geolearn.batch import Objects
from geolearn.metrics import (
    BoundaryIoU,
    Calibration,
    ChipScores,
    DetectionScores,
    MultiLabelScores,
    PixelScores,
    RegressionScores,
)


class Found:
    def __init__(self, boxes, labels, scores):
        self.boxes, self.labels, self.scores, self.masks = boxes, labels, scores, None


def every_score():
    return {
        'pixels': PixelScores(3),
        'boundaries': BoundaryIoU(3),
        'calibration': Calibration(),
        'values': RegressionScores(),
        'chips': ChipScores(3),
        'labels': MultiLabelScores(3),
        'objects': DetectionScores(3),
    }


def batches_of(number):
    """One batch for each score; those of the second process lie elsewhere."""
    generator = torch.Generator().manual_seed(number)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    target = torch.randint(0, 3, (2, 8, 8), generator=generator)
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    found = Found(boxes + number, torch.tensor([0, 1]), torch.tensor([0.9, 0.2 + 0.1 * number]))
    return {
        'pixels': (logits, target),
        'boundaries': (logits, target),
        'calibration': (logits, target),
        'values': (logits[:, :1] + 100 * number, logits[:, 1] + 100 * number),
        'chips': (logits[:, :, 0, 0], target[:, 0, 0]),
        'labels': (logits[:, :, 0, 0], (logits[:, :, 1, 1] > 0).float()),
        'objects': ([found], [Objects(boxes, torch.tensor([0, 1]))]),
    }


def count(numbers):
    scores = every_score()
    for number in numbers:
        for name, batch in batches_of(number).items():
            scores[name].add(*batch)
    return scores


def work(rank, folder):
    """Be one of two processes; the second sees one batch, the first two, and both write what they read."""
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)
    scores = count([0, 1] if rank == 0 else [2])
    for counted in scores.values():
        counted.reduce()
    (folder / f'{rank}.json').write_text(json.dumps({name: counted.values() for name, counted in scores.items()}))
    distributed.destroy_process_group()


@pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='needs a system that can fork')
@pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')
def test_scores_of_two_processes_are_those_of_one(tmp_path):
    # forked, because importing everything afresh would take longer than all other tests of metrics
    multiprocessing.start_processes(work, args=(tmp_path,), nprocs=2, start_method='fork')
    expected = {name: counted.values() for name, counted in count([0, 1, 2]).items()}
    for rank in range(2):
        found = json.loads((tmp_path / f'{rank}.json').read_text())
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, nan_ok=True), name
