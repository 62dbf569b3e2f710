"""Figures of what models did: read from what was drawn, and drawn, because that is when matplotlib complains."""

import math

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection

from geolearn.bands import get_bands
from geolearn.chips.splits.split import Split
from geolearn.classes import IGNORE_INDEX, ClassInfo, default_color
from geolearn.errors import UnknownNameError
from geolearn.metrics import (
    ReliabilityBin,
    best_epoch,
    choose_typical,
    find_monitor,
    name_metric,
    rank_chips,
    score_chips,
)
from geolearn.plotting import (
    describe_chip,
    error_map,
    show_confusion_matrix,
    show_hard_examples,
    show_losses,
    show_predictions,
    show_rate_test,
    show_regression,
    show_regression_scatter,
    show_reliability,
    show_split_map,
)
from geolearn.plotting.canvas import amount
from geolearn.raster import GeoBox

RGBN = get_bands('sentinel2-l2a', ['B08', 'B02', 'B03', 'B04'])
CLASSES = tuple(ClassInfo(i + 1, name, default_color(i)) for i, name in enumerate(['Wald', 'Gewässer', 'Straße']))


def images(count):
    return torch.rand((count, 4, 16, 16), generator=torch.Generator().manual_seed(0)) * 3000


def masks(count, value=0):
    return torch.full((count, 16, 16), value)


def legend(figure):
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def drawn(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def texts_do_not_overlap(figure, texts):
    drawn(figure)
    boxes = [text.get_window_extent() for text in texts if text.get_text().strip()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    width, height = figure.canvas.get_width_height()
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)


# -- predictions


def test_predictions_stand_beside_the_truth_and_their_errors():
    figure = show_predictions(images(3), masks(3), masks(3, value=2), RGBN, CLASSES)
    assert len(figure.axes) == 12
    assert [ax.get_title() for ax in figure.axes[:4]] == ['image', 'truth', 'prediction', 'errors']
    assert legend(figure) == ['Wald', 'Gewässer', 'Straße', 'right', 'wrong']


def test_the_error_map_knows_right_wrong_and_not_labelled():
    assert error_map(np.array([0, 1, 2]), np.array([0, 2, IGNORE_INDEX])).tolist() == [0, 1, 2]
    truth = masks(1)
    truth[0, :3] = IGNORE_INDEX
    figure = show_predictions(images(1), truth, masks(1), RGBN, CLASSES)
    shown = np.asarray(figure.axes[3].images[0].get_array())
    assert (shown[:3] == 2).all()
    assert (shown[3:] == 0).all()
    assert legend(figure)[-1] == 'not labelled'


def test_each_row_is_titled_and_titles_run_into_nothing():
    titles = [describe_chip(f'images/very/long/name/of_a_chip_{i:06d}', IoU=0.123 * i, loss=2.0) for i in range(3)]
    figure = show_predictions(images(3), masks(3), masks(3), RGBN, CLASSES, titles=titles)
    assert [figure.axes[i].get_title(loc='left').strip() for i in (0, 4, 8)] == titles
    texts_do_not_overlap(figure, [figure.axes[i]._left_title for i in (4, 8)] + [ax.title for ax in figure.axes[:4]])
    heights = {round(ax.title.get_window_extent().y0) for ax in figure.axes[:4]}
    assert len(heights) == 1


def test_a_chip_is_described_by_name_and_scores():
    assert describe_chip('0001', IoU=0.314, boundary_IoU=1.0) == '0001 · IoU 0.31 · boundary IoU 1.00'


def test_hard_examples_show_what_each_pixel_costs_and_not_what_is_unlabelled():
    truth = masks(2)
    truth[:, 0] = IGNORE_INDEX
    losses = torch.full((2, 16, 16), 0.5)
    losses[0, 8, 8] = 9.0
    figure = show_hard_examples(images(2), truth, masks(2), losses, RGBN, CLASSES, titles=['a', 'b'])
    drawn(figure)
    cost = np.ma.filled(figure.axes[3].images[0].get_array(), np.nan)
    assert np.isnan(cost[0]).all()
    assert cost[8, 8] == 9
    assert figure.axes[3].get_title() == 'loss'


def test_chips_without_any_label_can_be_drawn():
    nothing = masks(1, value=IGNORE_INDEX)
    for figure in (
        show_predictions(images(1), nothing, masks(1), RGBN, CLASSES),
        show_hard_examples(images(1), nothing, masks(1), torch.zeros(1, 16, 16), RGBN, CLASSES),
    ):
        assert drawn(figure).std() > 0
        assert len(figure.axes) >= 4


# -- which chips


def test_chips_are_scored_by_their_own_iou():
    truth, found = masks(3), masks(3)
    found[1, :8] = 1  # half of the pixels: class 0 has 0.5, class 1 has 0
    truth[2] = IGNORE_INDEX
    assert score_chips(found, truth, 3) == pytest.approx([1.0, 0.25, math.nan], nan_ok=True)


def test_the_worst_come_first_and_the_unjudged_last():
    scores = [0.5, math.nan, 0.1, 0.9]
    assert rank_chips(scores, highest_first=False) == [2, 0, 3, 1]
    assert rank_chips(scores, highest_first=True) == [3, 0, 2, 1]


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=40), st.booleans())
@settings(max_examples=40)
def test_ranking_is_an_order_of_all_chips(scores, highest_first):
    order = rank_chips(scores, highest_first=highest_first)
    assert sorted(order) == list(range(len(scores)))
    known = [scores[i] for i in order if not math.isnan(scores[i])]
    assert known == sorted(known, reverse=highest_first)


def test_typical_chips_lie_in_the_middle():
    scores = [0.9, 0.1, 0.5, 0.4, 0.6, math.nan]
    assert choose_typical(scores, 3) == [3, 2, 4]
    assert choose_typical(scores, 99) == [1, 3, 2, 4, 0]


# -- training


def rows(*losses, **scores):
    columns = {'valid_loss': losses} | {name: values for name, values in scores.items()}
    return [{name: values[i] for name, values in columns.items()} for i in range(len(losses))]


def test_training_is_drawn_by_epoch_and_the_best_is_marked():
    figure = show_losses([3.0, 2.0, 1.0, 0.5], rows(1.0, 2.0, miou=(0.2, 0.3), seconds=(1.0, 1.0)))
    drawn(figure)
    losses, scores = figure.axes
    assert [line.get_xdata().tolist() for line in losses.lines[:2]] == [[0.5, 1, 1.5, 2], [1, 2]]
    assert losses.lines[2].get_xdata() == [1, 1]
    assert [line.get_label() for line in scores.lines] == ['mean IoU']
    assert legend(figure)[-1] == 'best epoch: 1 (by validation loss)'


def test_epochs_of_a_loaded_model_keep_their_numbers():
    figure = show_losses([2.0, 1.0], [{'epoch': 3, 'valid_loss': 1.0}])
    assert [line.get_xdata().tolist() for line in figure.axes[0].lines[:2]] == [[2.5, 3], [3]]
    assert legend(figure)[-1] == 'best epoch: 3 (by validation loss)'


def test_the_best_epoch_follows_the_monitor_whichever_way_it_improves():
    found = rows(1.0, math.nan, 0.5, miou=(0.9, 0.2, 0.3))
    assert best_epoch(found, find_monitor('valid_loss')) == 2
    assert best_epoch(found, find_monitor('miou')) == 0
    assert best_epoch([{'valid_loss': math.nan}], find_monitor('valid_loss')) is None
    with pytest.raises(UnknownNameError, match=r"unknown value to monitor 'bias'"):
        best_epoch(found, find_monitor('bias'))


def test_scores_that_shrink_as_they_improve_are_not_drawn_among_those_that_grow():
    figure = show_losses([1.0], rows(1.0, rmse=(3.0,), r2=(0.4,)))
    assert [line.get_label() for line in figure.axes[1].lines] == ['R²']


def test_a_peak_at_the_start_does_not_flatten_the_rest():
    figure = show_losses([1e6, *[1.0] * 199], rows(0.9, 0.8))
    drawn(figure)
    assert figure.axes[0].get_ylim()[1] < 2


@pytest.mark.parametrize('losses', [[], [1.0], [math.nan, math.nan]])
def test_hardly_any_training_can_be_drawn(losses):
    for epochs in ([], [{'valid_loss': math.nan}]):
        figure = show_losses(losses, epochs)
        assert drawn(figure).std() > 0
        assert figure.axes[0].get_xlabel()


def test_the_rate_test_is_drawn_over_decades():
    figure = show_rate_test([1e-4, 1e-3], [1.0, 2.0], 5e-4)
    drawn(figure)
    assert figure.axes[0].get_xscale() == 'log'


def test_columns_have_names_for_people():
    assert [name_metric(name) for name in ('miou', 'valid_loss', 'f2_micro')] == [
        'mean IoU',
        'validation loss',
        'f2 micro',
    ]


# -- confusion and calibration


def test_a_small_matrix_shows_shares_of_rows_and_counts():
    figure = show_confusion_matrix(torch.tensor([[75, 25], [0, 2_000]]), ['a', 'b'])
    assert [text.get_text() for text in figure.axes[0].texts] == ['75%\n75', '25%\n25', '100%\n2k']
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ['a  100', 'b  2k']


def test_a_class_that_is_not_in_the_truth_has_no_shares():
    figure = show_confusion_matrix(np.array([[5, 5], [0, 0]]), ['a', 'b'])
    drawn(figure)
    assert np.isnan(np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)[1]).all()


@pytest.mark.parametrize('count', [1, 9, 12, 30])
def test_names_and_numbers_of_up_to_thirty_classes_do_not_overlap(count):
    counts = np.random.default_rng(0).integers(0, 10**6, (count, count)) + np.eye(count, dtype=int) * 10**8
    figure = show_confusion_matrix(counts, [f'A long name of a class {i}' for i in range(count)])
    ax = figure.axes[0]
    texts_do_not_overlap(figure, ax.get_yticklabels())
    side = ax.get_window_extent().width / count
    widest = max(ax.texts, key=lambda text: len(text.get_text())).get_window_extent()
    assert widest.width < side
    assert widest.height < side
    assert min(text.get_fontsize() for text in [*ax.texts, *ax.get_yticklabels()]) >= 7


def test_more_classes_are_drawn_without_numbers():
    figure = show_confusion_matrix(np.eye(60, dtype=int), [f'c{i}' for i in range(60)])
    drawn(figure)
    assert not figure.axes[0].texts


def test_a_matrix_needs_a_name_for_each_class():
    with pytest.raises(ValueError, match=r'a matrix of \(2, 2\) needs 2 class names, got 3'):
        show_confusion_matrix(np.eye(2), ['a', 'b', 'c'])


def test_reliability_is_drawn_from_bins_that_hold_something():
    bins = [
        ReliabilityBin(0.0, 0.5, 0, math.nan, math.nan),
        ReliabilityBin(0.5, 0.75, 100, 0.7, 0.5),
        ReliabilityBin(0.75, 1.0, 300, 0.9, 0.9),
    ]
    figure = show_reliability(bins)
    drawn(figure)
    upper, lower = figure.axes
    assert [bar.get_height() for bar in upper.patches] == [0.5, 0.9]
    assert [bar.get_height() for bar in lower.patches] == [0.25, 0.75]
    assert upper.get_title() == 'expected calibration error 0.050'
    drawn(show_reliability([]))


# -- values


def test_numbers_stand_beside_their_difference_on_equal_scales():
    truth = torch.linspace(0, 100, 256).reshape(1, 16, 16).repeat(2, 1, 1)
    truth[:, 0] = math.nan
    figure = show_regression(images(2), truth, truth + 10, RGBN, unit='t/ha', titles=['a', 'b'])
    drawn(figure)
    _, left, right, difference = (ax.images[0] for ax in figure.axes[:4])
    assert left.get_clim() == right.get_clim()
    assert difference.get_clim()[0] == -difference.get_clim()[1]
    assert np.nanmax(np.ma.filled(difference.get_array(), np.nan)) == pytest.approx(10)
    assert [ax.get_title() for ax in figure.axes[:4]] == ['image', 'truth', 'prediction', 'difference']


def test_the_scatter_counts_known_pixels_and_sums_up_the_errors():
    truth = torch.linspace(0, 100, 1000)
    truth[:10] = math.nan
    figure = show_regression_scatter(truth, truth + 2, unit='m')
    drawn(figure)
    assert figure.axes[0].get_title().startswith('RMSE 2 m, bias +2 m, R² 0.99')
    assert figure.axes[0].get_xlabel() == 'truth (m)'


@pytest.mark.parametrize('value', [math.nan, 5.0])
def test_no_number_and_a_single_one_can_be_drawn(value):
    same = torch.full((1, 16, 16), value)
    drawn(show_regression(images(1), same, same, RGBN))
    drawn(show_regression_scatter(same, same))


# -- places


def boxes(count, *, step=640.0, crs='EPSG:32633'):
    return [GeoBox((64, 64), Affine(10, 0, 4e5 + step * i, 0, -10, 5e6 + step * (i % 3)), crs) for i in range(count)]


def test_chips_lie_on_the_map_in_the_color_of_their_part():
    figure = show_split_map(boxes(10), Split((0, 1, 2, 3, 4, 5), (6, 7), (8,), (9,)))
    texts_do_not_overlap(figure, figure.legends[0].get_texts())
    assert legend(figure) == ['training: 6 chips', 'validation: 2 chips', 'test: 1 chip', 'in no part: 1 chip']
    shapes = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    assert sorted(len(shape.get_paths()) for shape in shapes) == [1, 1, 2, 6]
    extents = shapes[1].get_paths()[0].get_extents().extents.tolist()
    assert extents == [4e5, 5e6 - 640, 4e5 + 640, 5e6]


def test_chips_that_are_small_beside_the_land_are_dots():
    figure = show_split_map(boxes(20, step=1e6), Split(tuple(range(15)), tuple(range(15, 20))))
    drawn(figure)
    dots = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    assert sum(len(dot.get_offsets()) for dot in dots) == 20


def test_each_crs_has_its_map_and_what_has_no_place_is_counted():
    nowhere = GeoBox((64, 64), Affine(1, 0, 0, 0, 1, 0), None)
    figure = show_split_map([*boxes(4), *boxes(3, crs='EPSG:32634'), nowhere], Split((0, 1, 4, 7), (2, 3, 5, 6)))
    drawn(figure)
    assert len(figure.axes) == 2
    assert figure.get_suptitle() == 'Not shown: 1 chip without a place or in other CRSs'
    assert show_split_map([nowhere] * 3, Split((0, 1), (2,))) is None


@pytest.mark.parametrize(
    ('count', 'text'),
    [(0, '0'), (950, '950'), (1000, '1k'), (12_345, '12.3k'), (999_600, '1000k'), (4_500_000, '4.5M'), (2e9, '2G')],
)
def test_counts_take_a_few_characters(count, text):
    assert amount(count) == text


def test_the_legend_of_calibration_covers_no_bar():
    figure = show_reliability([ReliabilityBin(k / 10, (k + 1) / 10, 100, k / 10 + 0.05, 0.95) for k in range(10)])
    drawn(figure)
    below = figure.legends[0].get_window_extent()
    assert all(below.y1 <= bar.get_window_extent().y0 for ax in figure.axes for bar in ax.patches)
    assert all(ax.get_legend() is None for ax in figure.axes)
