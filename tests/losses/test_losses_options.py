"""Losses by name, from plain values."""

import json
from dataclasses import asdict

import pytest
import torch

from geolearn.errors import UnknownNameError
from geolearn.losses import (
    Dice,
    HardPixels,
    Lovasz,
    Mixed,
    PixelCrossEntropy,
    PixelFocal,
    PixelLossOptions,
    RegressionLoss,
    RegressionLossOptions,
    Tversky,
    WithAuxiliary,
    make_pixel_loss,
    make_regression_loss,
    pixel_loss_names,
)

WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0, 0.1])


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({}, PixelCrossEntropy(WEIGHTS)),
        ({'label_smoothing': 0.1}, PixelCrossEntropy(WEIGHTS, label_smoothing=0.1)),
        ({'hard_fraction': 0.5}, HardPixels(PixelCrossEntropy(WEIGHTS), 0.5)),
        ({'loss': 'focal', 'focal_gamma': 3}, PixelFocal(3, WEIGHTS)),
        ({'loss': 'focal', 'hard_fraction': 0.5}, HardPixels(PixelFocal(2, WEIGHTS), 0.5)),
        ({'loss': 'dice'}, Dice('micro', WEIGHTS)),
        ({'loss': 'dice', 'dice_average': 'macro'}, Dice('macro', WEIGHTS)),
        ({'loss': 'tversky', 'tversky_beta': 0.9}, Tversky(0.1, 0.9, average='micro', class_weights=WEIGHTS)),
        ({'loss': 'lovasz'}, Lovasz(WEIGHTS)),
        ({'dice_fraction': 0.3}, Mixed(PixelCrossEntropy(WEIGHTS), Dice('micro', WEIGHTS), 0.3)),
        (
            {'loss': 'lovasz', 'dice_fraction': 0.3, 'dice_average': 'macro'},
            Mixed(Lovasz(WEIGHTS), Dice('macro', WEIGHTS), 0.3),
        ),
    ],
)
def test_options_make_the_loss_they_name(batch, options, expected):
    torch.testing.assert_close(make_pixel_loss(PixelLossOptions(**options), WEIGHTS)(*batch), expected(*batch))


def test_the_auxiliary_head_adds_its_share(batch):
    logits, target = batch
    auxiliary, base = logits.flip(0), PixelCrossEntropy()
    found = make_pixel_loss(PixelLossOptions(auxiliary_weight=0.25))((logits, auxiliary), target)
    torch.testing.assert_close(found, base(logits, target) + 0.25 * base(auxiliary, target))
    torch.testing.assert_close(WithAuxiliary(base)(logits, target), base(logits, target))


def test_a_mix_is_the_weighted_mean_of_its_parts(batch):
    base, dice = PixelCrossEntropy()(*batch), Dice()(*batch)
    torch.testing.assert_close(Mixed(PixelCrossEntropy(), Dice(), 0.3)(*batch), 0.7 * base + 0.3 * dice)


@pytest.mark.parametrize('loss', pixel_loss_names())
def test_options_survive_json(loss):
    options = PixelLossOptions(loss=loss, focal_gamma=1.5, dice_average='macro', auxiliary_weight=0.2)
    assert PixelLossOptions(**json.loads(json.dumps(asdict(options)))) == options


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'dice_average': 'mean'}, "dice_average must be 'micro' or 'macro', got 'mean'"),
        ({'focal_gamma': -1}, 'focal_gamma must be 0 or more, got -1'),
        ({'focal_gamma': float('nan')}, 'focal_gamma must be 0 or more, got nan'),
        ({'auxiliary_weight': -0.1}, 'auxiliary_weight must be 0 or more'),
        ({'tversky_beta': 1.5}, 'tversky_beta must lie in 0..1, got 1.5'),
        ({'dice_fraction': 2}, 'dice_fraction must lie in 0..1, got 2'),
        ({'label_smoothing': 1.0}, 'label_smoothing must be at least 0 and below 1, got 1.0'),
        ({'hard_fraction': 0}, 'hard_fraction must be above 0 and at most 1, got 0'),
        ({'loss': 'dice', 'dice_fraction': 0.5}, "dice_fraction is 0.5, but loss is 'dice' already"),
        ({'loss': 'focal', 'label_smoothing': 0.1}, "label_smoothing works with loss='cross_entropy' alone"),
        ({'loss': 'lovasz', 'hard_fraction': 0.5}, 'hard_fraction needs a loss per pixel'),
    ],
)
def test_options_without_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PixelLossOptions(**options)


def test_a_misspelt_loss_is_corrected():
    with pytest.raises(UnknownNameError, match="unknown loss 'lovas'; did you mean 'lovasz'"):
        PixelLossOptions(loss='lovas')
    with pytest.raises(UnknownNameError, match="unknown regression loss 'hubert'; did you mean 'huber'"):
        RegressionLossOptions(loss='hubert')


def test_value_options_make_their_loss():
    predicted, target = torch.randn(2, 1, 4, 4), torch.randn(2, 4, 4)
    loss, expected = (
        make_regression_loss(RegressionLossOptions(loss='huber', delta=0.5)),
        RegressionLoss('huber', delta=0.5),
    )
    torch.testing.assert_close(loss(predicted, target), expected(predicted, target))
    torch.testing.assert_close(loss((predicted, predicted), target), 1.4 * expected(predicted, target))
    with pytest.raises(ValueError, match='auxiliary_weight must be 0 or more'):
        RegressionLossOptions(auxiliary_weight=-1)
