"""What is counted of validation chips agrees with scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from geolearn.errors import BackboneError
from geolearn.losses import MultiLabelCrossEntropy, SoftCrossEntropy
from geolearn.models.evaluation.classification import (
    ChipOutputs,
    binary_matrices,
    count_confusion,
    score_chips,
    tabulate_classes,
)
from geolearn.networks.classification import ChipNetwork
from geolearn.networks.network import Normalize

NAMES = ['a', 'b', 'c', 'd']


def outputs(kind, count=60):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 4, generator=rng)
    if kind == 'one':
        return ChipOutputs(logits, torch.randint(4, (count,), generator=rng))
    return ChipOutputs(logits, (torch.rand(count, 4, generator=rng) > 0.6).float())


@pytest.mark.parametrize('kind', ['one', 'several'])
def test_scores_are_those_of_scikit_learn(kind):
    given = outputs(kind)
    truth, found = given.present.int().numpy(), given.predicted.int().numpy()
    scores = score_chips(given)
    for beta in (1, 2):
        for average in ('micro', 'macro'):
            expected = metrics.fbeta_score(truth, found, beta=beta, average=average)
            assert scores[f'f{beta}_{average}'] == pytest.approx(expected)
    assert scores['hamming_loss'] == pytest.approx(metrics.hamming_loss(truth, found))
    assert scores['accuracy'] == pytest.approx(metrics.accuracy_score(truth, found))
    assert scores['precision'] == pytest.approx(metrics.precision_score(truth, found, average='micro'))
    table = tabulate_classes(given, NAMES)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(truth, found)
    for column, expected in zip(('precision', 'recall', 'f1', 'support'), (precision, recall, f1, support)):
        assert np.allclose(table[column], expected)
    assert np.allclose(table['f2'], metrics.fbeta_score(truth, found, beta=2, average=None))


def test_matrices_are_those_of_scikit_learn():
    one, several = outputs('one'), outputs('several')
    expected = metrics.confusion_matrix(one.truth, one.logits.argmax(1))
    assert (count_confusion(one).counts.numpy() == expected).all()
    expected = metrics.multilabel_confusion_matrix(several.present, several.predicted)
    assert (binary_matrices(several) == expected).all()


def test_losses_of_chips_average_to_the_loss_that_is_trained():
    one, several = outputs('one'), outputs('several')
    assert torch.allclose(one.losses.mean(), SoftCrossEntropy()(one.logits, one.truth))
    assert torch.allclose(several.losses.mean(), MultiLabelCrossEntropy()(several.logits, several.truth))


def test_the_mean_over_places_is_what_a_map_is_pooled_to():
    class Map(nn.Module):
        name, channels, strides, trunk = 'map', (3,), (1,), nn.Identity()
        takes_missing = False

        def forward(self, x):
            return [x]

    network = ChipNetwork(Normalize([0.0] * 3, [1.0] * 3), Map(), 2, pooling='mean', dropout=0.0)
    x = torch.rand(2, 3, 5, 7)
    assert torch.allclose(network.pool(network.encode(x)), x.mean((2, 3)))
    with pytest.raises(BackboneError, match='map has no class token here'):
        ChipNetwork(Normalize([0.0] * 3, [1.0] * 3), Map(), 2, pooling='cls', dropout=0.0)
