"""Calibration against torchmetrics, and temperatures that are known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from geolearn.classes import IGNORE_INDEX
from geolearn.metrics import Calibration, PixelSample, fit_temperature


def draw(seed, *, sharpness=1.0, shape=(3, 20, 20), classes=5):
    """Logits whose softmax is the truth's distribution, times the sharpness, and a draw of that truth."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(*shape, classes, generator=generator)
    target = torch.multinomial(logits.softmax(-1).flatten(0, -2), 1, generator=generator).view(shape)
    return sharpness * logits.movedim(-1, 1), target


@given(st.integers(0, 2**31), st.sampled_from([5, 15]), st.floats(0.3, 3))
@settings(max_examples=25)
def test_ece_is_torchmetrics(seed, bins, sharpness):
    logits, target = draw(seed, sharpness=sharpness)
    target[0, :3] = IGNORE_INDEX
    scores = Calibration(bins)
    for rows, truth in zip(logits.split(1), target.split(1)):
        scores.add(rows, truth)
    expected = multiclass_calibration_error(logits, target, 5, n_bins=bins, ignore_index=IGNORE_INDEX)
    assert scores.values()['ece'] == pytest.approx(expected.item(), abs=1e-5)


def test_the_table_holds_all_predictions_and_their_means():
    logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.1, 0.0], [0.0, 4.0]])
    scores = Calibration(4)
    scores.add(logits, torch.tensor([0, 1, 0, IGNORE_INDEX]))
    table = scores.table()
    sure, unsure = 1 / (1 + math.exp(-4)), 1 / (1 + math.exp(-0.1))
    assert [row.predictions for row in table] == [0, 0, 1, 2]
    assert [(row.low, row.high) for row in table] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    assert table[2][3:] == pytest.approx((unsure, 1))
    assert table[3][3:] == pytest.approx((sure, 0.5))
    assert math.isnan(table[0].accuracy)
    assert scores.values()['ece'] == pytest.approx(((1 - unsure) + 2 * (sure - 0.5)) / 3)


def test_certainty_falls_into_the_last_bin():
    scores = Calibration(10)
    scores.add(torch.tensor([[1e4, 0.0]]), torch.tensor([0]))
    assert scores.table()[-1].predictions == 1
    assert scores.values() == {'ece': 0.0}


@pytest.mark.parametrize('sharpness', [0.25, 1.0, 3.0])
def test_the_temperature_undoes_how_much_too_sure_a_network_is(sharpness):
    batches = [draw(seed, sharpness=sharpness, shape=(4, 50, 50)) for seed in range(3)]
    found = fit_temperature(batches)
    assert found == pytest.approx(sharpness, rel=0.05)
    before, after = Calibration(), Calibration(temperature=found)
    for batch in batches:
        before.add(*batch)
        after.add(*batch)
    assert after.values()['ece'] < 0.02
    assert after.values()['ece'] <= before.values()['ece'] + 0.005


def test_no_other_temperature_is_more_likely():
    logits, target = draw(7, sharpness=2.0)
    target[0, :5] = IGNORE_INDEX
    best = fit_temperature([(logits, target), ((logits, torch.zeros(1)), target)])

    def cost(temperature):
        return torch.nn.functional.cross_entropy(logits.double() / temperature, target, ignore_index=IGNORE_INDEX)

    assert cost(best) <= min(cost(best * 1.001), cost(best / 1.001))


def test_a_part_of_the_pixels_is_enough_and_the_seed_repeats_it():
    batches = [draw(seed, sharpness=3.0, shape=(4, 50, 50)) for seed in range(3)]
    found = fit_temperature(batches, max_pixels=5000, seed=1)
    assert found == pytest.approx(3.0, rel=0.1)
    assert fit_temperature(batches, max_pixels=5000, seed=1) == found
    assert fit_temperature(batches, max_pixels=5000, seed=2) != found


def test_the_temperature_of_faultless_chips_is_the_lowest():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert fit_temperature([(logits, torch.tensor([0, 1]))]) == pytest.approx(0.01)


def test_a_temperature_needs_labels():
    with pytest.raises(ValueError, match='the validation split has none'):
        fit_temperature([(torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), IGNORE_INDEX))])
    with pytest.raises(ValueError, match='the validation split has none'):
        fit_temperature([])


def test_a_sample_is_drawn_evenly_from_all_batches():
    # each pixel's only logit is its number
    counts = torch.zeros(60)
    for seed in range(300):
        sample = PixelSample(20, seed=seed)
        for batch in torch.arange(60.0).view(3, 1, 1, 4, 5):
            sample.add(batch, batch[:, 0].long())
        assert torch.equal(sample.logits[:, 0].long(), sample.labels)
        counts[sample.labels] += 1
        assert len(sample.labels.unique()) == 20
    # 300 draws of one third: 100 each, with a standard deviation of 8
    assert (counts - 100).abs().max() < 33
    assert (counts.view(3, 20).mean(1) - 100).abs().max() < 7


def test_a_sample_holds_all_that_counts_where_that_is_few():
    sample = PixelSample(100)
    target = torch.tensor([[[0, IGNORE_INDEX, 1]]])
    sample.add(torch.arange(6.0).view(1, 2, 1, 3), target)
    rows = sorted(zip(sample.labels.tolist(), sample.logits.tolist()))
    assert rows == [(0, [0.0, 3.0]), (1, [2.0, 5.0])]
