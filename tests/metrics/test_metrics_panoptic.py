"""Panoptic quality is that of torchmetrics, with void pixels in truth and prediction."""

import math

import numpy as np
import pytest
import torch

from geolearn.batch import Objects, PanopticMap
from geolearn.classes import IGNORE_INDEX
from geolearn.metrics import PanopticScores, count_segments, panoptic_quality

THINGS, STUFF, VOID = (2, 3), (0, 1), 255


def segments(rng, *, void):
    """Random blocks of stuff with random rectangles of things on them."""
    classes = np.kron(rng.integers(0, 2, (4, 4)), np.ones((8, 8), int))
    ids = np.zeros_like(classes)
    for number in range(1, 7):
        top, left = rng.integers(0, 24, 2)
        part = np.s_[top : top + rng.integers(3, 12), left : left + rng.integers(3, 12)]
        classes[part], ids[part] = rng.choice(THINGS), number
    if void:
        top, left = rng.integers(0, 24, 2)
        classes[top : top + 9, left : left + 9] = VOID
        ids[top : top + 9, left : left + 9] = 0
    # a number belongs to one class
    for number in range(1, 7):
        known = classes[(ids == number) & (classes != VOID)]
        if len(known):
            classes[(ids == number) & (classes != VOID)] = known[0]
    return PanopticMap(torch.from_numpy(classes), torch.from_numpy(ids))


def disturbed(rng, truth):
    """The same a pixel off, with some of it drawn anew."""
    shift = tuple(rng.integers(-1, 2, 2).tolist())
    return PanopticMap(*(torch.roll(part, shift, (0, 1)) for part in (truth.classes, truth.ids)))


@pytest.mark.parametrize('void', [False, True])
def test_it_is_the_quality_of_torchmetrics(void):
    detection = pytest.importorskip('torchmetrics.detection')
    rng = np.random.default_rng(3)
    metric = detection.PanopticQuality(
        set(THINGS), set(STUFF), allow_unknown_preds_category=True, return_per_class=True, return_sq_and_rq=True
    )
    counts = np.zeros((4, 4))
    for number in range(12):
        truth = segments(rng, void=void)
        predicted = disturbed(rng, truth) if number % 3 else segments(rng, void=void)
        counts += count_segments(predicted, truth, 4)
        metric.update(*(torch.stack([part.classes, part.ids], -1)[None] for part in (predicted, truth)))
    # (classes, 3) in ascending order of the categories, things first
    expected = metric.compute()
    order = torch.tensor([metric.cat_id_to_continuous_id[value] for value in range(4)])
    found = torch.tensor(np.stack(panoptic_quality(counts), 1))
    torch.testing.assert_close(found, expected[order].double(), rtol=1e-6, atol=1e-6)


def test_a_shift_and_a_merge_of_objects_cost_quality():
    classes, ids = torch.zeros(32, 32, dtype=torch.int64), torch.zeros(32, 32, dtype=torch.int64)
    for number, left in enumerate((2, 8), 1):
        classes[4:10, left : left + 6], ids[4:10, left : left + 6] = 2, number
    masks = torch.stack([ids == 1, ids == 2])
    objects = Objects(torch.tensor([[2.0, 4, 8, 10], [8, 4, 14, 10]]), torch.tensor([2, 2]), masks)
    scores = PanopticScores(4, THINGS)

    def quality(predicted):
        scores.reset()
        scores.add([predicted], (classes[None], [objects]))
        return scores.values()

    perfect = quality(PanopticMap(classes, ids))
    assert perfect == pytest.approx({'pq': 1, 'sq': 1, 'rq': 1, 'pq_things': 1, 'pq_stuff': 1, 'covered': 1})
    # two touching objects as one are neither
    assert quality(PanopticMap(classes, ids.clamp(max=1)))['pq_things'] == 0
    # a third of their width off: overlap 0.5 is no longer over 0.5
    off = PanopticMap(classes.roll(2, 1), ids.roll(2, 1))
    assert quality(off)['pq_things'] < 0.4
    # what is left out counts for nothing, and so the share that is covered is said beside it
    void = ids == 2
    less = quality(PanopticMap(classes.masked_fill(void, IGNORE_INDEX), ids.masked_fill(void, 0)))
    assert less['pq'] == 1
    assert less['covered'] == pytest.approx(1 - 36 / 1024)
    assert math.isnan(PanopticScores(4, THINGS).values()['pq'])
