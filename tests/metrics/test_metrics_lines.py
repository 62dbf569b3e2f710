"""Metrics of lines: within a buffer, and by the lengths of paths."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from geolearn.metrics import LineScores, average_path_length_similarity, count_within_buffer


def line(*points, step=1.0):
    """Points along a path, a step apart."""
    parts = []
    for (x, y), (u, v) in pairwise(points):
        count = max(1, round(math.hypot(u - x, v - y) / step))
        parts.append(np.linspace((x, y), (u, v), count + 1)[:-1])
    return np.concatenate([*parts, [points[-1]]])


CROSS = [line((0, 50), (50, 50)), line((50, 50), (100, 50)), line((50, 50), (50, 0)), line((50, 50), (50, 100))]


def test_paths_of_the_same_network_agree():
    assert average_path_length_similarity(CROSS, CROSS) == pytest.approx(1)
    assert average_path_length_similarity(CROSS, [part[::-1] for part in CROSS[::-1]]) == pytest.approx(1)


def test_a_gap_costs_every_path_through_it():
    # of the 10 pairs of 5 places, 4 go through the arm that is gone
    broken = average_path_length_similarity(CROSS, CROSS[:3], spacing=200)
    one, other = 1 - 4 / 10, 1
    assert broken == pytest.approx(2 * one * other / (one + other))


def test_a_detour_costs_its_length_and_a_shift_beyond_reach_everything():
    straight, around = [line((0, 0), (100, 0))], [line((0, 0), (50, 25), (100, 0))]
    longer = 2 * math.hypot(50, 25) / 100
    one, other = 1 - (longer - 1), 1 - (longer - 1) / longer
    # 200 px between places: the ends alone
    found = average_path_length_similarity(straight, around, spacing=200)
    assert found == pytest.approx(2 * one * other / (one + other), rel=0.01)
    shifted = [part + np.array([0, 6]) for part in straight]
    assert average_path_length_similarity(straight, shifted) == 0
    assert average_path_length_similarity(straight, [part + np.array([0, 3]) for part in straight]) > 0.95


def test_no_lines_have_no_score_and_invented_ones_have_0():
    assert math.isnan(average_path_length_similarity([], []))
    assert average_path_length_similarity([], CROSS) == 0
    assert average_path_length_similarity(CROSS, []) == 0


def test_center_lines_count_within_the_buffer():
    truth, predicted = np.zeros((40, 100), bool), np.zeros((40, 100), bool)
    truth[10] = True
    predicted[12, :60] = predicted[30, :20] = True
    counts = count_within_buffer(truth, predicted, buffer=3)
    assert counts.completeness == pytest.approx(0.62)
    assert counts.correctness == pytest.approx(60 / 80)
    assert counts.quality == pytest.approx(60 / (80 + 38))
    assert count_within_buffer(truth, predicted, buffer=1).quality == 0
    assert math.isnan(count_within_buffer(~truth & truth, ~truth & truth).quality)


def test_scores_of_batches_leave_ignored_pixels_out():
    truth = torch.zeros(2, 64, 64, dtype=torch.int64)
    truth[:, 28:34] = 1
    logits = torch.nn.functional.one_hot(truth, 2).movedim(-1, 1).float()
    truth[:, :, 48:] = 255
    scores = LineScores((1,))
    scores.add(logits, truth)
    perfect = scores.values()
    assert perfect == pytest.approx({'completeness': 1, 'correctness': 1, 'quality': 1, 'apls': 1})
    scores.reset()
    scores.add(logits.roll(5, 2), truth)
    assert scores.values()['quality'] == 0
    assert scores.values()['apls'] == 0
    scores.reset()
    scores.add(logits * 0, truth * 0)
    assert all(math.isnan(value) for value in scores.values().values())
