"""Scores of continuous values and of several labels per chip, against scikit-learn's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    fbeta_score,
    hamming_loss,
    mean_absolute_error,
    precision_score,
    r2_score,
    recall_score,
    root_mean_squared_error,
)

from geolearn.metrics import MultiLabelScores, RegressionScores


@given(st.integers(0, 2**31), st.sampled_from([0.0, 1e3, -1e6]), st.integers(1, 5))
@settings(max_examples=40)
def test_scores_of_values_are_scikit_learns_over_all_batches(seed, offset, batches):
    rng = np.random.default_rng(seed)
    truth = rng.normal(offset, 3, (batches, 2, 5, 6))
    predicted = truth + rng.normal(0.5, 2, truth.shape)
    truth[rng.random(truth.shape) < 0.3] = np.nan
    truth[0, 0, 0, 0] = offset
    truth[0, 0, 0, 1] = offset + 1
    scores = RegressionScores()
    for p, t in zip(predicted, truth):
        scores.add(torch.as_tensor(p)[:, None], torch.as_tensor(t))
    known = ~np.isnan(truth)
    y, p = truth[known], predicted[known]
    found = scores.values()
    assert found['rmse'] == pytest.approx(root_mean_squared_error(y, p))
    assert found['mae'] == pytest.approx(mean_absolute_error(y, p))
    assert found['bias'] == pytest.approx((p - y).mean())
    assert found['r2'] == pytest.approx(r2_score(y, p), rel=1e-6, abs=1e-9)


def test_a_truth_that_does_not_vary_has_no_r2():
    scores = RegressionScores()
    scores.add(torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2))
    assert scores.values() == {'rmse': 1, 'mae': 1, 'bias': 1, 'r2': pytest.approx(math.nan, nan_ok=True)}


def test_batches_without_truth_change_nothing():
    scores = RegressionScores()
    predicted, target = torch.randn(1, 1, 3, 3), torch.randn(1, 3, 3)
    scores.add(predicted, target)
    before = scores.values()
    scores.add(predicted, torch.full((1, 3, 3), torch.nan))
    scores.add(predicted[:0], target[:0])
    assert scores.values() == before


def test_predictions_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r'must be \(N, 1, H, W\)'):
        RegressionScores().add(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3))


@given(st.integers(0, 2**31), st.sampled_from([0.3, 0.5, 0.8]))
@settings(max_examples=25)
def test_scores_of_labels_are_scikit_learns(seed, threshold):
    rng = np.random.default_rng(seed)
    truth, logits = rng.random((40, 4)) < 0.4, rng.normal(0, 2, (40, 4))
    truth[:4] |= np.eye(4, dtype=bool)
    scores = MultiLabelScores(4, threshold=threshold)
    for part in np.split(np.arange(40), 4):
        scores.add(torch.as_tensor(logits[part]), torch.as_tensor(truth[part]).float())
    found, given_ = scores.values(), 1 / (1 + np.exp(-logits)) >= threshold
    for beta in (1, 2):
        each = fbeta_score(truth, given_, beta=beta, average=None)
        assert scores.f_score(beta).numpy() == pytest.approx(each)
        assert found[f'f{beta}_macro'] == pytest.approx(each.mean())
        assert found[f'f{beta}_micro'] == pytest.approx(fbeta_score(truth, given_, beta=beta, average='micro'))
    assert found['precision'] == pytest.approx(precision_score(truth, given_, average='micro'))
    assert found['recall'] == pytest.approx(recall_score(truth, given_, average='micro'))
    assert found['hamming_loss'] == pytest.approx(hamming_loss(truth, given_))
    precision = precision_score(truth, given_, average=None, zero_division=np.nan)
    assert scores.precision.numpy() == pytest.approx(precision, nan_ok=True)
    assert scores.recall.numpy() == pytest.approx(recall_score(truth, given_, average=None))


def test_a_label_in_neither_truth_nor_prediction_is_left_out_of_the_mean():
    scores = MultiLabelScores(2)
    scores.add(torch.tensor([[3.0, -3.0], [3.0, -3.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert scores.f_score().tolist() == pytest.approx([2 / 3, math.nan], nan_ok=True)
    assert scores.values()['f1_macro'] == pytest.approx(2 / 3)


@pytest.mark.parametrize('threshold', [0, 1, 50])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(ValueError, match='threshold must be a probability between 0 and 1'):
        MultiLabelScores(2, threshold=threshold)
