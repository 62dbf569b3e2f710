"""Metrics of pixel classification against scikit-learn's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, precision_recall_fscore_support

from geolearn.classes import IGNORE_INDEX
from geolearn.metrics import ConfusionMatrix


def matrix_of(predicted, target, count):
    matrix = ConfusionMatrix.empty(count)
    matrix.add(torch.as_tensor(predicted), torch.as_tensor(target))
    return matrix


@pytest.fixture
def pixels():
    """Predictions and truth of four classes in images (3, 20, 30), right about half of the time, a tenth ignored."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (3, 20, 30))
    predicted = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, 4, truth.shape))
    return predicted, np.where(rng.random(truth.shape) < 0.1, IGNORE_INDEX, truth)


def test_all_metrics_are_scikit_learns_over_the_pixels_that_count(pixels):
    predicted, target = pixels
    counted = target != IGNORE_INDEX
    y, p = target[counted], predicted[counted]
    matrix = matrix_of(predicted, target, 4)
    precision, recall, f1, _ = precision_recall_fscore_support(y, p)
    iou = jaccard_score(y, p, average=None)
    assert np.array_equal(matrix.counts, confusion_matrix(y, p))
    assert matrix.accuracy == pytest.approx(accuracy_score(y, p))
    for found, expected in [
        (matrix.precision, precision),
        (matrix.recall, recall),
        (matrix.f1, f1),
        (matrix.iou, iou),
        (matrix.miou, iou.mean()),
    ]:
        assert np.asarray(found) == pytest.approx(expected)


@given(
    arrays(np.uint8, st.tuples(st.integers(0, 4), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, 255])),
    st.integers(0, 2**32 - 1),
)
def test_batches_add_up_to_the_whole(target, seed):
    predicted = np.random.default_rng(seed).integers(0, 3, target.shape)
    whole = matrix_of(predicted, target, 3)
    parts = ConfusionMatrix.empty(3)
    for p, t in zip(predicted, target):
        parts.add(torch.as_tensor(p), torch.as_tensor(t))
    assert torch.equal(whole.counts, parts.counts)
    assert whole.counts.sum() == (target != IGNORE_INDEX).sum()
    assert whole.counts.dtype == torch.int64


def test_rows_are_truth_and_columns_prediction():
    assert matrix_of([1, 1, 0], [0, 0, 0], 2).counts.tolist() == [[1, 2], [0, 0]]


def test_a_class_in_neither_truth_nor_prediction_is_nan_and_left_out_of_the_mean():
    matrix = matrix_of([0, 0, 1, 1], [0, 0, 0, 1], 3)
    assert [math.isnan(v) for v in matrix.iou.tolist()] == [False, False, True]
    assert matrix.miou == pytest.approx((2 / 3 + 1 / 2) / 2)
    for column in (matrix.precision, matrix.recall, matrix.f1):
        assert math.isnan(column[2])


def test_a_class_that_is_missed_wholly_has_no_precision_and_counts_as_zero():
    matrix = matrix_of([0, 0, 0], [0, 0, 1], 2)
    assert math.isnan(matrix.precision[1])
    assert (matrix.recall[1], matrix.f1[1], matrix.iou[1]) == (0, 0, 0)
    assert matrix.miou == pytest.approx(1 / 3)


def test_a_class_that_is_only_predicted_has_no_recall_and_counts_as_zero():
    matrix = matrix_of([0, 0, 1], [0, 0, 0], 2)
    assert math.isnan(matrix.recall[1])
    assert (matrix.precision[1], matrix.f1[1], matrix.iou[1]) == (0, 0, 0)


def test_nothing_counted_gives_nan_everywhere():
    matrix = matrix_of([0, 1], [IGNORE_INDEX] * 2, 2)
    assert matrix.counts.sum() == 0
    assert math.isnan(matrix.accuracy)
    assert math.isnan(matrix.miou)
    assert matrix.iou.isnan().all()
