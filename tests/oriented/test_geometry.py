"""The convention of oriented boxes at its borders, minimum rectangles and exact overlaps, against shapely."""

import math
import time

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.inference import overlapping
from geolearn.oriented import geometry, overlap, suppression

NUMBERS = st.floats(-50, 50), st.floats(-50, 50), st.floats(1, 40), st.floats(1, 40), st.floats(-7, 7)
BOX = st.tuples(*NUMBERS)


def random_boxes(rng, count, extent=30.0):
    """Boxes in any form of the angle."""
    place, sides = rng.uniform(0, extent, (count, 2)), rng.uniform(1, 20, (count, 2))
    return np.concatenate([place, sides, rng.uniform(-4, 4, (count, 1))], 1)


def polygons(boxes):
    return shapely.polygons(geometry.corners(np.asarray(boxes, np.float64)))


def shapely_overlaps(first, second):
    ones, others = polygons(first), polygons(second)
    shared = shapely.area(shapely.intersection(ones, others))
    return shared / (shapely.area(ones) + shapely.area(others) - shared)


def exact(first, second):
    return overlap.pair_overlaps(torch.tensor(np.atleast_2d(first)), torch.tensor(np.atleast_2d(second))).numpy()


def test_the_angle_turns_the_x_axis_towards_the_y_axis():
    """Elongated and off-center: a box drawn with the opposite sign would overlap this one by nothing."""
    box = np.array([[40.0, 10.0, 20.0, 4.0, math.radians(30)]])
    ends = geometry.corners(box)[0]
    tip = ends[1:3].mean(0)  # the end in the direction of the angle
    np.testing.assert_allclose(tip, [40 + 10 * math.cos(math.pi / 6), 10 + 10 * math.sin(math.pi / 6)])
    np.testing.assert_allclose(geometry.corners(np.array([[5.0, 5, 4, 2, 0]]))[0], [[3, 4], [7, 4], [7, 6], [3, 6]])
    assert exact(box, box * np.array([1, 1, 1, 1, -1])) < 0.3


def test_canonical_boxes_are_the_same_rectangles_within_the_limits_also_at_them():
    boxes = random_boxes(np.random.default_rng(0), 2000)
    boxes[:9, 4] = [math.pi / 2, -math.pi / 2, math.pi, 0, 3 * math.pi / 2, -1e-17, 1e-17, math.tau, -math.pi]
    boxes[9:18, 2:4] = 5  # squares
    boxes[9:18, 4] = boxes[:9, 4]
    for made in (geometry.canonical(boxes), geometry.canonical(torch.tensor(boxes)).numpy()):
        assert (made[:, 2] >= made[:, 3]).all()
        assert (made[:, 4] >= -math.pi / 2).all()
        assert (made[:, 4] < math.pi / 2).all()
        np.testing.assert_allclose(exact(boxes, made), 1, atol=1e-12)
        np.testing.assert_allclose(geometry.canonical(made), made)
    np.testing.assert_allclose(geometry.hulls(boxes), shapely.bounds(polygons(boxes)), atol=1e-9)


def test_flips_turns_shifts_and_zooms_move_corners_as_they_move_points():
    boxes = random_boxes(np.random.default_rng(1), 200)
    points = geometry.corners(boxes)
    angle, center = 0.7, (8.0, 21.0)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    cases = {
        'left to right': (geometry.mirrored(boxes, width=30), points * [-1, 1] + [30, 0]),
        'upside down': (geometry.mirrored(boxes, height=20), points * [1, -1] + [0, 20]),
        'transposed': (geometry.transposed(boxes), points[..., ::-1]),
        'turned': (geometry.rotated(boxes, angle, center), (points - center) @ turn + center),
        'moved': (geometry.moved(boxes, 3, -4), points + np.array([3, -4])),
        'zoomed': (geometry.scaled(boxes, 2.5), points * 2.5),
    }
    for name, (made, wanted) in cases.items():
        shared = shapely.area(shapely.intersection(polygons(made), shapely.make_valid(shapely.polygons(wanted))))
        np.testing.assert_allclose(shared, made[:, 2] * made[:, 3], rtol=1e-9, err_msg=name)


def test_minimum_rectangles_are_those_of_shapely_and_hold_degenerate_points():
    rng = np.random.default_rng(2)
    quadrilaterals = rng.uniform(0, 50, (500, 4, 2))
    made = geometry.rectangles_of_quadrilaterals(quadrilaterals)
    wanted = shapely.oriented_envelope(shapely.multipoints(quadrilaterals))
    np.testing.assert_allclose(made[:, 2] * made[:, 3], shapely.area(wanted), rtol=1e-9)
    assert shapely.covers(shapely.buffer(polygons(made), 1e-6), shapely.multipoints(quadrilaterals)).all()
    boxes = geometry.canonical(random_boxes(rng, 500))
    shuffled = rng.permuted(geometry.corners(boxes), axis=1)  # corners in any order, self-crossing among them
    np.testing.assert_allclose(exact(geometry.rectangles_of_quadrilaterals(geometry.corners(boxes)), boxes), 1)
    assert np.isfinite(geometry.rectangles_of_quadrilaterals(shuffled)).all()
    for points in ([[3, 3]] * 4, [[0, 0], [1, 1], [2, 2], [3, 3]], [[0, 0], [4, 0], [4, 0], [0, 0]]):
        box = geometry.rectangles_of_quadrilaterals(np.array([points]))[0]
        assert np.isfinite(box).all()
        assert box[3] == pytest.approx(0, abs=1e-9)
    cloud = rng.normal(size=(40, 2)) * [9, 3]
    area = shapely.area(shapely.oriented_envelope(shapely.multipoints(cloud)))
    assert geometry.minimum_rectangle(cloud)[2:4].prod() == pytest.approx(area)


def test_the_rectangle_of_a_mask_holds_whole_pixels():
    mask = np.zeros((20, 30), bool)
    mask[4:9, 10:22] = True
    np.testing.assert_allclose(geometry.mask_rectangle(mask), [16, 6.5, 12, 5, 0], atol=1e-9)
    true = np.array([15.0, 10.0, 16.0, 6.0, 0.5])
    y, x = np.mgrid[:20, :30] + 0.5
    u = (x - 15) * math.cos(0.5) + (y - 10) * math.sin(0.5)
    v = (y - 10) * math.cos(0.5) - (x - 15) * math.sin(0.5)
    drawn = (abs(u) < 8) & (abs(v) < 3)
    assert exact(geometry.mask_rectangle(drawn), true) > 0.75


def test_overlaps_are_those_of_shapely():
    rng = np.random.default_rng(3)
    first, second = random_boxes(rng, 3000), random_boxes(rng, 3000)
    np.testing.assert_allclose(exact(first, second), shapely_overlaps(first, second), atol=1e-12)
    np.testing.assert_allclose(overlap.array_overlaps(first, second), exact(first, second), atol=1e-15)
    far = np.array([500000.0, 5400000.0, 0, 0, 0])  # in map coordinates
    np.testing.assert_allclose(exact(first + far, second + far), exact(first, second), atol=1e-6)
    whole = rng.integers(0, 6, (500, 2, 2)).astype(float)
    level = [
        geometry.from_hulls(np.concatenate([part, part + rng.integers(1, 5, (500, 2))], 1))
        for part in whole.swapaxes(0, 1)
    ]
    np.testing.assert_allclose(exact(*level), shapely_overlaps(*level), atol=1e-12)


def test_nearly_equal_boxes_and_twins_overlap_by_one():
    """mmcv and torchvision return 0.33 and less for some of these."""
    boxes = random_boxes(np.random.default_rng(4), 2000)
    noise = np.random.default_rng(5).normal(size=boxes.shape)
    for size in (0, 1e-17, 1e-15, 1e-12, 1e-9):
        assert exact(boxes, boxes * (1 + size * noise)).min() > 1 - 1e-6
    assert exact(boxes, boxes + np.array([0, 0, 0, 0, math.pi])).min() > 1 - 1e-12
    assert exact(boxes, boxes[:, [0, 1, 3, 2, 4]] + [0, 0, 0, 0, math.pi / 2]).min() > 1 - 1e-12
    empty = np.array([[5.0, 5, 0, 0, 0.3]])
    assert exact(empty, empty) == 0


@settings(max_examples=25, deadline=None)
@given(BOX, BOX, st.floats(-3, 3), st.floats(0.2, 5))
def test_overlaps_do_not_depend_on_order_place_direction_or_scale(one, other, angle, factor):
    first, second = np.array([one]), np.array([other])
    shared = exact(first, second)
    assert 0 <= shared <= 1
    assert exact(second, first) == pytest.approx(shared, abs=1e-9)
    turned = [geometry.scaled(geometry.rotated(box, angle, (3.0, 4.0)), factor) for box in (first, second)]
    assert exact(*turned) == pytest.approx(shared, abs=1e-7)


def test_gradients_of_overlaps_are_their_slopes():
    rng = np.random.default_rng(6)
    first = torch.tensor(random_boxes(rng, 200), requires_grad=True)
    second = torch.tensor(random_boxes(rng, 200))
    overlap.pair_overlaps(first, second).sum().backward()
    assert first.grad.isfinite().all()
    step = 1e-6
    for column in range(5):
        shift = torch.zeros(5, dtype=torch.float64)
        shift[column] = step
        with torch.no_grad():
            slope = (overlap.pair_overlaps(first + shift, second) - overlap.pair_overlaps(first - shift, second)) / (
                2 * step
            )
        assert (first.grad[:, column] - slope).abs().median() < 1e-7
        assert (
            (first.grad[:, column] - slope).abs() < 1e-4
        ).float().mean() > 0.99  # a corner on an edge has two slopes


def test_prob_iou_has_finite_slopes_and_a_term_of_its_own_for_squares():
    box = torch.tensor([[10.0, 10, 8, 8, 0.2]])
    turned = torch.tensor([[10.0, 10, 8, 8, 0.2 + math.pi / 4]], requires_grad=True)
    assert overlap.prob_iou(box, turned).item() == pytest.approx(1, abs=2e-3)
    assert overlap.square_angle_loss(turned, box).item() == pytest.approx(1)
    equal = box.clone().requires_grad_()
    (1 - overlap.prob_iou(equal, box)).sum().backward()
    assert equal.grad.isfinite().all()
    long = torch.tensor([[10.0, 10, 40, 8, 0.2]])
    assert overlap.square_angle_loss(long + torch.tensor([0, 0, 0, 0, 0.5]), long) < 1e-3
    half = torch.tensor([[10.0, 10, 40, 8, 0.2 + math.pi]])
    assert overlap.prob_iou(half, long).item() == pytest.approx(1, abs=2e-3)


def test_visible_shares_are_those_of_shapely():
    boxes = random_boxes(np.random.default_rng(7), 500)
    frame = shapely.box(0, 0, 30, 20)
    wanted = shapely.area(shapely.intersection(polygons(boxes), frame)) / shapely.area(polygons(boxes))
    np.testing.assert_allclose(overlap.visible_shares(boxes, (20, 30)), wanted, atol=1e-9)


def test_angle_errors_have_a_period_of_half_a_turn_and_of_a_quarter_for_near_squares():
    ship, square = [0, 0, 20, 4, 0.0], [0, 0, 20, 19, 0.0]
    found = np.array([[0, 0, 20, 4, math.pi - 0.1], [0, 0, 20, 19, math.pi / 2 - 0.1], [0, 0, 20, 4, math.pi / 2]])
    errors = geometry.angle_errors(found, np.array([ship, square, ship], float))
    np.testing.assert_allclose(errors, [0.1, 0.1, math.pi / 2], atol=1e-9)


def brute_force(boxes, labels, scores, threshold):
    kept = []
    for row in np.argsort(-scores, kind='stable'):
        rivals = [other for other in kept if labels[other] == labels[row]]
        if not rivals or exact(np.repeat(boxes[[row]], len(rivals), 0), boxes[rivals]).max() <= threshold:
            kept.append(row)
    return kept


def crowd(count, seed=0):
    """Slanted objects, about one and a half on each place."""
    rng = np.random.default_rng(seed)
    boxes = geometry.canonical(random_boxes(rng, count, extent=12 * math.sqrt(count)))
    return boxes, rng.integers(0, 3, count), rng.random(count)


def test_suppression_is_that_of_brute_force_in_images_and_rasters():
    boxes, labels, scores = crowd(150)
    for threshold in (0.05, 0.3, 0.5):
        wanted = brute_force(boxes, labels, scores, threshold)
        kept = suppression.suppress_oriented(boxes, labels, scores, threshold=threshold, most=10**6)
        assert kept.tolist() == wanted
        kept, owners = overlapping.nms(geometry.hulls(boxes), labels, scores, overlap=threshold, turned=boxes)
        assert kept.tolist() == wanted
        assert (owners[kept] == kept).all()


def test_suppression_of_40000_boxes_takes_seconds():
    boxes, labels, scores = crowd(40_000)
    start = time.perf_counter()
    kept, _ = overlapping.nms(geometry.hulls(boxes), labels, scores, overlap=0.3, turned=boxes)
    assert time.perf_counter() - start < 5
    assert 20_000 < len(kept) < 40_000
