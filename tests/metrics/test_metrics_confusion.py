"""The confusion matrix beyond test_metrics.py: kappa, means, sums, refusals, and the scores made of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score, precision_recall_fscore_support
from torchmetrics.functional.classification import multiclass_jaccard_index

from geolearn.classes import IGNORE_INDEX
from geolearn.errors import UnknownNameError
from geolearn.metrics import (
    METRICS,
    BoundaryIoU,
    Calibration,
    ChipScores,
    ConfusionMatrix,
    MultiLabelScores,
    PixelScores,
    RegressionScores,
    Scores,
    cover_classes,
    find_monitor,
    reduce,
    spread_chips,
)

SEEDS = st.integers(0, 2**31)


def draw(seed, shape=(2, 9, 11), classes=4):
    """Logits (N, classes, ...) and targets, a tenth of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, shape, generator=generator)
    ignored = torch.rand(shape, generator=generator) < 0.1
    logits = torch.randn(shape[0], classes, *shape[1:], generator=generator)
    return logits, target.masked_fill(ignored, IGNORE_INDEX)


def names_of(scores):
    return tuple(metric.name for metric in scores.columns)


def counted_pairs(logits, target):
    counted = target != IGNORE_INDEX
    return target[counted].numpy(), logits.argmax(1)[counted].numpy()


@given(SEEDS)
@settings(max_examples=25)
def test_kappa_and_means_are_scikit_learns(seed):
    logits, target = draw(seed)
    matrix = ConfusionMatrix.empty(4)
    matrix.add(logits.argmax(1), target)
    y, p = counted_pairs(logits, target)
    precision, recall, f1, _ = precision_recall_fscore_support(y, p, average='macro', zero_division=np.nan)
    assert matrix.kappa == pytest.approx(cohen_kappa_score(y, p))
    assert float(matrix.precision.nanmean()) == pytest.approx(precision)
    assert matrix.mean_recall == pytest.approx(recall) == pytest.approx(balanced_accuracy_score(y, p))
    assert matrix.mean_f1 == pytest.approx(f1)


def test_kappa_of_a_single_class_is_undefined():
    matrix = ConfusionMatrix.empty(2)
    matrix.add(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    assert math.isnan(matrix.kappa)


@given(SEEDS)
@settings(max_examples=25)
def test_matrices_add_up(seed):
    parts = [ConfusionMatrix.empty(4) for _ in range(2)]
    whole = ConfusionMatrix.empty(4)
    for part, number in zip(parts, (seed, seed + 1)):
        logits, target = draw(number)
        part.add(logits.argmax(1), target)
        whole.add(logits.argmax(1), target)
    assert torch.equal((parts[0] + parts[1]).counts, whole.counts)
    assert torch.equal((ConfusionMatrix.empty(4) + whole).counts, whole.counts)


def test_matrices_of_other_sizes_do_not_add_up():
    with pytest.raises(ValueError, match='matrices of 2 and 3 classes cannot be added'):
        ConfusionMatrix.empty(2) + ConfusionMatrix.empty(3)


@pytest.mark.parametrize(
    ('predicted', 'target', 'message'),
    [
        ([0, 3], [0, 1], r'predicted classes must lie in 0..2, got 0..3'),
        ([0, IGNORE_INDEX], [0, 1], r'predicted classes must lie in 0..2, got 0..255'),
        ([0, 1], [-1, 1], r'target classes must lie in 0..2, got -1..1'),
    ],
)
def test_indices_that_are_no_class_are_refused(predicted, target, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix.empty(3).add(torch.tensor(predicted), torch.tensor(target))


def test_what_is_predicted_for_ignored_pixels_does_not_matter():
    matrix = ConfusionMatrix.empty(2)
    matrix.add(torch.tensor([0, 99, -7]), torch.tensor([0, IGNORE_INDEX, IGNORE_INDEX]))
    assert matrix.counts.tolist() == [[1, 0], [0, 0]]


def test_without_other_processes_a_matrix_is_its_own_sum():
    matrix = ConfusionMatrix.empty(2)
    matrix.add(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert torch.equal(reduce(matrix).counts, matrix.counts)


@given(SEEDS)
@settings(max_examples=25)
def test_pixel_scores_are_those_of_the_matrix_of_all_batches(seed):
    scores = PixelScores(4)
    batches = [draw(seed), draw(seed + 1)]
    scores.add(*batches[0])
    scores.add((batches[1][0], torch.zeros(1)), batches[1][1])  # an auxiliary head takes no part
    logits, target = (torch.cat(parts) for parts in zip(*batches))
    y, p = counted_pairs(logits, target)
    found = scores.values()
    assert tuple(found) == names_of(scores) == ('accuracy', 'miou', 'dice')
    assert found['accuracy'] == pytest.approx((y == p).mean())
    expected = multiclass_jaccard_index(logits, target, 4, ignore_index=IGNORE_INDEX)
    assert found['miou'] == pytest.approx(expected.item(), rel=1e-5)
    assert found['dice'] == pytest.approx(f1_score(y, p, average='macro'))


def test_chip_scores_ignore_no_class_and_take_the_largest_share():
    scores = ChipScores(300)
    logits = torch.zeros(3, 300)
    logits[[0, 1, 2], [255, 7, 7]] = 1
    scores.add(logits, torch.tensor([255, 7, 8]))
    assert scores.values() == {'accuracy': pytest.approx(2 / 3), 'f1': pytest.approx((1 + 2 / 3 + 0) / 3)}
    shares = torch.zeros(3, 300)
    shares[[0, 1, 2], [255, 7, 8]] = 0.7
    shares[:, 0] = 0.3
    scores.add(logits, shares)
    assert scores.values()['accuracy'] == pytest.approx(2 / 3)
    assert scores.matrix.counts.sum() == 6


EVERY = {
    'pixels': lambda: PixelScores(4),
    'boundaries': lambda: BoundaryIoU(4),
    'calibration': lambda: Calibration(),
    'values': lambda: RegressionScores(),
    'chips': lambda: ChipScores(4),
    'labels': lambda: MultiLabelScores(4),
}


def a_batch(name, seed):
    logits, target = draw(seed)
    chip_logits = logits.mean((2, 3))
    if name == 'values':
        return logits[:, :1], logits[:, 1]
    if name in ('chips', 'labels'):
        return chip_logits, (torch.tensor([0, 3]) if name == 'chips' else (logits[:, :, 0, 0] > 0).float())
    return logits, target


@pytest.mark.parametrize('name', EVERY)
def test_scores_keep_their_promises(name):
    scores: Scores = EVERY[name]()
    nothing = scores.values()
    assert tuple(nothing) == names_of(scores)
    assert all(math.isnan(value) for value in nothing.values())
    scores.add(*a_batch(name, 1))
    once = scores.values()
    assert tuple(once) == names_of(scores)
    assert all(type(value) is float and math.isfinite(value) for value in once.values())
    assert scores.values() == once  # looking changes nothing
    scores.reduce()
    assert scores.values() == pytest.approx(once)
    scores.add(*a_batch(name, 2))
    scores.reset()
    scores.add(*a_batch(name, 1))
    assert scores.values() == once


@pytest.mark.parametrize('name', EVERY)
def test_scores_count_in_inference_mode_and_go_on_outside(name):
    scores = EVERY[name]()
    with torch.inference_mode():
        scores.add(*a_batch(name, 1))
    scores.add(*a_batch(name, 2))
    together = EVERY[name]()
    for seed in (1, 2):
        together.add(*a_batch(name, seed))
    assert scores.values() == together.values()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('name', EVERY)
def test_counting_on_a_device_never_waits_for_it(name):
    scores, expected = EVERY[name](), EVERY[name]()
    expected.add(*a_batch(name, 1))
    batch = [part.cuda() for part in a_batch(name, 1)]
    scores.add(*batch)  # the first batch moves the counts there
    scores.reset()
    torch.cuda.set_sync_debug_mode('error')
    try:
        scores.add(*batch)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert scores.values() == pytest.approx(expected.values(), rel=1e-5)


def test_every_value_but_bias_says_which_way_is_better():
    metrics = {metric.name: metric for make in EVERY.values() for metric in make().columns}
    assert {name for name, metric in metrics.items() if metric.higher_is_better is None} == {'bias'}
    assert metrics.items() <= METRICS.items()
    assert find_monitor('miou').higher_is_better
    assert not find_monitor('valid_loss').higher_is_better
    with pytest.raises(UnknownNameError, match="unknown value to monitor 'mIOU'; did you mean 'miou'"):
        find_monitor('mIOU')


def test_chips_that_are_chosen_show_every_class_together():
    amounts = np.array([[90, 0, 0, 0], [95, 5, 0, 0], [0, 80, 0, 0], [0, 0, 0, 0], [1, 0, 9, 0], [0, 0, 0, 7]])
    chosen = cover_classes(amounts, least=3, most=8)
    assert len(chosen) == len(set(chosen)) == 3
    assert (amounts[chosen] > 0).any(0).all()
    assert cover_classes(amounts, least=6, most=6)[-1] == 3  # nothing is labelled there
    single = np.eye(10, dtype=int)
    assert sorted(cover_classes(single, least=4, most=12)) == list(range(10))
    assert len(cover_classes(single, least=4, most=8)) == 8
    assert cover_classes(np.zeros((3, 2), int), least=2, most=4) == [0, 1]


def test_chips_are_chosen_over_the_range_of_a_value():
    assert spread_chips([5.0, 1.0, float('nan'), 9.0, 3.0, 7.0], 3) == [1, 0, 3]
    assert spread_chips([5.0, float('nan')], 2) == [0, 1]
