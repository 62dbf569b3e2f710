"""What a loss says it was divided by: batches add up to one mean over all of them."""

import pytest
import torch

from geolearn.classes import IGNORE_INDEX
from geolearn.losses import PixelLossOptions, RegressionLossOptions, make_pixel_loss, make_regression_loss


def draw(seed, labelled):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, 8, 8, generator=generator)
    target = torch.randint(0, 4, (3, 8, 8), generator=generator)
    target[torch.rand(3, 8, 8, generator=generator) > labelled] = IGNORE_INDEX
    return logits, target


@pytest.mark.parametrize('loss', ['cross_entropy', 'focal'])
@pytest.mark.parametrize('weights', [None, torch.tensor([0.5, 1.0, 2.0, 0.0])])
def test_batches_weighed_by_what_they_count_give_the_mean_of_all(loss, weights):
    made = make_pixel_loss(PixelLossOptions(loss=loss), weights)
    batches = [draw(0, 0.9), draw(1, 0.1), draw(2, 0.0)]
    together = made(*(torch.cat(part) for part in zip(*batches)))
    counts = torch.stack([made.counted(target) for _, target in batches])
    assert counts[2] == 0
    losses = torch.stack([made(*batch) for batch in batches])
    torch.testing.assert_close((losses * counts).sum() / counts.sum(), together)


@pytest.mark.parametrize('loss', ['dice', 'tversky', 'lovasz'])
def test_overlap_counts_labelled_pixels(loss):
    _, target = draw(0, 0.5)
    made = make_pixel_loss(PixelLossOptions(loss=loss), torch.ones(4))
    assert int(made.counted(target)) == int((target != IGNORE_INDEX).sum())


def test_mixtures_count_as_their_base_does():
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    _, target = draw(0, 0.5)
    plain = make_pixel_loss(PixelLossOptions(), weights).counted(target)
    for options in (PixelLossOptions(dice_fraction=0.5), PixelLossOptions(hard_fraction=0.5)):
        assert make_pixel_loss(options, weights).counted(target) == plain


def test_values_count_pixels_with_a_truth():
    target = torch.full((2, 4, 4), torch.nan)
    target[0, 0, :3] = 1.0
    assert int(make_regression_loss(RegressionLossOptions()).counted(target)) == 3
