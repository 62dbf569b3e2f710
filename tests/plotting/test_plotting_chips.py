import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from geolearn.bands import Band, get_bands, resolve_bands
from geolearn.batch import Batch, Objects
from geolearn.classes import IGNORE_INDEX, ClassInfo, default_color
from geolearn.plotting import (
    class_colors,
    fit_stretch,
    instance_colors,
    natural_colors,
    show_batch,
    show_boxes,
    show_chips,
    show_images,
    show_instances,
    show_labels,
    show_pairs,
)

RGBN = get_bands('sentinel2-l2a', ['B08', 'B02', 'B03', 'B04'])
RADAR = resolve_bands(['VV', 'VH'])
CLASSES = tuple(ClassInfo(i + 1, name, default_color(i)) for i, name in enumerate(['Wald', 'Gewässer', 'Straße']))
RED, GREEN = ClassInfo(1, 'red', (255, 0, 0)), ClassInfo(2, 'green', (0, 255, 0))


def images(count=4, bands=4, size=16):
    return torch.rand((count, bands, size, size), generator=torch.Generator().manual_seed(0)) * 3000


def masks(count=4, size=16, value=0):
    return torch.full((count, size, size), value)


def objects(count=1, *, outlines=True, labels=None):
    """Objects of 3 x 4 pixels on a diagonal."""
    planes = torch.zeros(count, 16, 16, dtype=torch.bool)
    starts = [(3 * i) % 12 for i in range(count)]
    for plane, start in zip(planes, starts):
        plane[start : start + 4, start : start + 3] = True
    boxes = torch.tensor([[s, s, s + 3, s + 4] for s in starts], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([0] * count if labels is None else labels, dtype=torch.int64)
    return Objects(boxes, labels, planes if outlines else None)


def legend(figure):
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def drawn(figure):
    """Draw a figure, which is when matplotlib would complain, and return its pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


# -- colors


def test_colors_are_chosen_by_wavelength_and_stretched():
    ramp = torch.linspace(0, 100, 101)
    image = torch.stack([torch.zeros(101), ramp, ramp.flip(0), ramp])[:, None].expand(4, 101, 101)
    found = natural_colors(image, RGBN)
    assert found.shape == (101, 101, 3)
    assert found[0, 0].tolist() == [0, 1, 0]  # red and blue rise, green falls
    assert found[0, -1].tolist() == [1, 0, 1]
    assert found[0, 50] == pytest.approx([0.5] * 3, abs=0.01)


def test_pixels_without_data_are_gray_even_if_only_one_band_lacks_it():
    image = images(1)[0]
    image[2, :4, :4] = float('nan')
    image[0, 8, 8] = float('inf')
    found = natural_colors(image, RGBN)
    assert (found[:4, :4] == 0.5).all()
    assert np.isfinite(found).all()
    assert (natural_colors(torch.full((4, 3, 3), float('nan')), RGBN) == 0.5).all()


def test_one_value_everywhere_is_gray():
    assert (natural_colors(np.full((4, 4, 4), 7.0), RGBN) == 0.5).all()


def land(brightness, seed=0):
    return np.random.default_rng(seed).uniform(brightness, 2 * brightness, (1, 50, 50)).astype(np.float32)


PAN = (Band('pan'),)


@pytest.mark.parametrize('cloudy', [10, 25])
def test_clouds_leave_the_land_in_the_light(cloudy):
    image = land(100)
    image[:, :cloudy] = 10_000
    found = natural_colors(image, PAN)
    assert np.median(found[cloudy:]) > 0.15  # the clouds would leave it 0.01
    assert (found[:cloudy] == 1).all()


def test_images_of_a_data_set_have_one_stretch_and_few_bright_ones_do_not_darken_it():
    chips = np.stack([land(100, seed) for seed in range(20)])
    chips[7] = 50_000 + land(100)
    fitted = fit_stretch(chips, PAN)
    assert fitted.high[0] == pytest.approx(198, abs=3)
    alone, dark = (natural_colors(chip, PAN, fitted) for chip in (chips[0], chips[0] / 2))
    assert 0.4 < np.median(alone) < 0.6
    assert np.median(dark) < 0.1  # by itself it would look like the first
    figure = show_images(torch.tensor(np.stack([chips[0], chips[0] / 2])), PAN, columns=2, stretch=fitted)
    assert np.array_equal(np.asarray(figure.axes[1].images[0].get_array()), dark)


def test_images_of_one_figure_are_comparable_without_a_stretch_too():
    first = land(100)
    pair = torch.tensor(np.stack([first, np.clip(first + 20, 100, 200)]))
    one, two = (ax.images[0].get_array().mean() for ax in show_images(pair, PAN, columns=2).axes)
    assert two > one + 0.1


@pytest.mark.parametrize('names', [['pan'], ['a', 'b']])
def test_one_or_two_bands_are_gray(names):
    found = natural_colors(images(1, len(names))[0], resolve_bands(names))
    assert (found == found[..., :1]).all()
    assert found.std() > 0.1


def test_radar_is_shown_as_both_polarizations_and_their_ratio_whatever_its_unit():
    decibels = -5 - 20 * torch.rand(2, 20, 20, generator=torch.Generator().manual_seed(0))
    found = natural_colors(decibels, RADAR)
    linear = natural_colors(10 ** (decibels / 10), RADAR)
    swapped = natural_colors(decibels.flip(0), RADAR[::-1])
    assert np.allclose(found, linear, atol=1e-3)
    assert np.allclose(found, swapped)
    like, cross, ratio = (np.corrcoef(found[..., i].ravel(), values.ravel())[0, 1] for i, values in
                          enumerate([decibels[0], decibels[1], decibels[0] - decibels[1]]))  # fmt: skip
    assert min(like, cross, ratio) > 0.95


def test_radar_without_echo_is_gray():
    linear = torch.rand(2, 8, 8) + 0.1
    linear[:, :2] = 0
    assert (natural_colors(linear, RADAR)[:2] == 0.5).all()


def test_a_single_polarization_is_gray_and_heights_beside_radar_are_left_out():
    pixels = torch.rand(3, 8, 8) + 0.1
    one = natural_colors(pixels[:1], RADAR[:1])
    assert (one == one[..., :1]).all()
    assert np.array_equal(natural_colors(pixels, (*RADAR, Band('dem'))), natural_colors(pixels[:2], RADAR))


def test_optical_bands_beside_radar_are_shown_as_colors():
    pixels = images(1, 6)[0]
    assert np.array_equal(natural_colors(pixels, (*RADAR, *RGBN)), natural_colors(pixels[2:], RGBN))


def test_masks_take_the_colors_of_their_classes_and_are_clear_where_ignored():
    found = class_colors(torch.tensor([[0, 1, IGNORE_INDEX]]), [RED, GREEN])
    assert found.tolist() == [[[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]]]


def test_an_outline_has_an_opaque_edge_and_a_clear_fill():
    mask = torch.zeros(1, 7, 7, dtype=torch.bool)
    mask[0, 1:6, 1:6] = True
    found = instance_colors(mask, torch.tensor([1]), [RED, GREEN], alpha=0.25)
    assert (found[2:5, 2:5] == [0, 1, 0, 0.25]).all()
    assert (found[1, 1:6] == [0, 1, 0, 1]).all()
    assert (found[1:6, 5] == [0, 1, 0, 1]).all()
    assert (found[0] == 0).all()


# -- figures


def test_a_batch_is_drawn_in_the_way_of_its_task():
    pixels, some = images(2), masks(2)
    ways = {
        'pixels': Batch(pixels, some),
        'boxes': Batch(pixels, objects=(objects(2, outlines=False),) * 2),
        'instances': Batch(pixels, objects=(objects(2),) * 2),
        'panoptic': Batch(pixels, some, (objects(2),) * 2),
        'label': Batch(pixels, labels=torch.tensor([0, 1])),
        'labels': Batch(pixels, labels=torch.eye(3)[:2]),
        'unlabelled': Batch(pixels),
        'change': Batch(pixels[:, None].expand(-1, 2, -1, -1, -1), some),
        'dates': Batch(pixels[:, None].expand(-1, 4, -1, -1, -1)),
    }
    found = {}
    for name, batch in ways.items():
        figure = show_batch(batch, RGBN, CLASSES, columns=2, alpha=0.5)
        drawn(figure)
        layers = [len(ax.images) for ax in figure.axes]
        found[name] = (len(figure.axes), max(layers), sum(len(ax.patches) for ax in figure.axes), len(legend(figure)))
    assert found == {
        'pixels': (2, 2, 0, 3),
        'boxes': (2, 1, 4, 3),
        'instances': (2, 2, 0, 3),
        'panoptic': (2, 3, 0, 3),
        'label': (2, 1, 0, 0),
        'labels': (2, 1, 0, 0),
        'unlabelled': (2, 1, 0, 0),
        'change': (6, 1, 0, 3),
        'dates': (8, 1, 0, 0),
    }


@pytest.mark.parametrize(('rows', 'expected'), [(1, 3), (2, 6), (5, 7), (None, 7)])
def test_no_more_rows_are_drawn_than_asked_for(rows, expected):
    figure = show_batch(Batch(images(7), masks(7)), RGBN, CLASSES, columns=3, alpha=0.5, rows=rows)
    assert sum(bool(ax.images) for ax in figure.axes) == expected
    dated = Batch(images(7)[:, None].expand(-1, 2, -1, -1, -1))
    figure = show_batch(dated, RGBN, CLASSES, columns=3, alpha=0.5, rows=rows)
    assert len(figure.axes) == 2 * (rows or 7) if rows != 5 else 10


def test_labels_cover_the_image_with_the_color_of_their_class():
    figure = show_chips(images(1), masks(1, value=1), RGBN, [RED, GREEN], columns=1, alpha=1.0)
    pixels = drawn(figure)
    green = (pixels[..., :3] == [0, 255, 0]).all(-1)
    assert green.mean() > 0.5
    assert legend(figure) == ['red', 'green']


def test_a_legend_names_all_classes_and_edges_have_their_true_colors():
    mask = masks(1, value=1)
    mask[:, :8, :8] = 0
    figure = show_chips(images(1), mask, RGBN, CLASSES, columns=1, alpha=0.3)
    assert legend(figure) == [info.name for info in CLASSES]
    overlay = np.asarray(figure.axes[0].images[1].get_array())
    assert overlay[3, 7].tolist() == [*(part / 255 for part in CLASSES[0].color), 1]
    assert overlay[3, 8].tolist() == [*(part / 255 for part in CLASSES[1].color), 1]
    assert overlay[3, 3].tolist() == [*(part / 255 for part in CLASSES[0].color), 0.3]


def test_boxes_have_the_place_color_and_name_of_their_object():
    found = objects(2, outlines=False, labels=[0, 1])
    figure = show_boxes(images(1), [found], RGBN, [RED, GREEN], columns=3)
    patches = figure.axes[0].patches
    assert all(isinstance(patch, Rectangle) for patch in patches)
    # imshow draws the first pixel from -0.5 to 0.5
    assert [patch.get_bbox().extents.tolist() for patch in patches] == [[-0.5, -0.5, 2.5, 3.5], [2.5, 2.5, 5.5, 6.5]]
    assert [to_hex(patch.get_edgecolor()) for patch in patches] == ['#ff0000', '#00ff00']
    assert [text.get_text() for text in figure.axes[0].texts] == ['red', 'green']
    assert figure.axes[0].get_xlim() == (-0.5, 15.5)


def test_where_there_are_many_boxes_only_the_legend_names_them():
    figure = show_boxes(images(1), [objects(20, outlines=False)], RGBN, CLASSES, columns=1)
    assert len(figure.axes[0].patches) == 20
    assert not figure.axes[0].texts
    assert legend(figure) == [info.name for info in CLASSES]


def test_objects_without_outlines_get_boxes_among_those_that_have_them():
    figure = show_instances(images(2), [objects(2), objects(3, outlines=False)], RGBN, CLASSES, columns=2, alpha=0.5)
    assert [(len(ax.images), len(ax.patches)) for ax in figure.axes] == [(2, 0), (1, 3)]


def test_images_without_objects_name_the_classes_too():
    for none in (objects(0), objects(0, outlines=False)):
        figure = show_batch(Batch(images(1), objects=(none,)), RGBN, CLASSES, columns=1, alpha=0.5)
        drawn(figure)
        assert legend(figure) == [info.name for info in CLASSES]


def test_pairs_stand_beside_their_change():
    pairs = images(2)[:, None].repeat(1, 2, 1, 1, 1)
    figure = show_pairs(pairs, masks(2, value=1), RGBN, CLASSES)
    assert [ax.get_title() for ax in figure.axes[:3]] == ['before', 'after', 'change']
    figure = show_pairs(images(2)[:, None].repeat(1, 3, 1, 1, 1), None, RGBN, CLASSES)
    assert [ax.get_title() for ax in figure.axes[:3]] == ['date 1', 'date 2', 'date 3']


def test_what_did_not_change_looks_the_same_on_all_dates():
    before = images(1)[0]
    after = before.clone()
    after[:, :3, :3] *= 50  # something bright was built
    figure = show_pairs(torch.stack((before, after))[None], None, RGBN, CLASSES)
    one, two = (np.asarray(ax.images[0].get_array()) for ax in figure.axes[:2])
    assert np.array_equal(one[3:], two[3:])
    assert not np.array_equal(one[:3, :3], two[:3, :3])


def test_the_unlabelled_class_hides_nothing():
    mask = torch.zeros(1, 6, 6, dtype=torch.int64)
    mask[:, :3] = 1
    for name, opacity in (('NoData', 0), ('Background', 1)):
        known = [ClassInfo(0, name, (0, 0, 0)), ClassInfo(1, 'water', (0, 0, 255))]
        figure = show_chips(images(1, size=6), mask, RGBN, known, columns=1, alpha=0.5)
        drawn_mask = np.asarray(figure.axes[0].images[1].get_array())
        assert ((drawn_mask[3:, :, 3] > 0) == opacity).all()
        assert (drawn_mask[:3, :, 3] > 0).all()
        assert legend(figure) == [name, 'water']


@pytest.mark.parametrize(
    ('labels', 'titles'),
    [
        (torch.tensor([1, 2]), ['Gewässer', 'Straße']),
        (torch.tensor([[1.0, 0, 1], [0, 0, 0]]), ['Wald, Straße', 'no class']),
        (
            torch.tensor([[0.25, 0.75, 0], [1, 0, 0]]),
            ['Gewässer\N{NO-BREAK SPACE}75%, Wald\N{NO-BREAK SPACE}25%', 'Wald'],
        ),
    ],
)
def test_chips_are_titled_with_their_classes(labels, titles):
    figure = show_labels(images(2), labels, RGBN, CLASSES, columns=2)
    assert [ax.get_title() for ax in figure.axes] == titles


def test_titles_of_many_classes_are_cut_and_do_not_run_into_one_another():
    many = [ClassInfo(i, f'a class of land cover with number {i}', (0, 0, 0)) for i in range(50)]
    figure = show_labels(images(4), torch.ones(4, 50), RGBN, many, columns=2)
    drawn(figure)
    boxes = [ax.title.get_window_extent() for ax in figure.axes]
    assert all(ax.get_title().count('\n') == 2 for ax in figure.axes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert not any(box.overlaps(ax.get_window_extent()) for box in boxes for ax in figure.axes)


def test_the_legend_names_the_classes_that_are_seen_and_counts_those_it_leaves_out():
    many = [ClassInfo(i, f'class {i}', default_color(i)) for i in range(200)]
    few = torch.tensor([[[3, 7, IGNORE_INDEX]]])
    assert legend(show_chips(images(1, size=3), few, RGBN, many, columns=1, alpha=1)) == [
        'class 3',
        'class 7',
        '… and 198 more',
    ]
    mask = torch.arange(196).reshape(1, 14, 14)
    figure = show_chips(images(1, size=14), mask, RGBN, many, columns=1, alpha=1)
    assert len(legend(figure)) == 31
    assert legend(figure)[-1] == '… and 170 more'
    drawn(figure)
    below = figure.legends[0].get_window_extent()
    assert not below.overlaps(figure.axes[0].get_window_extent())
    assert below.x0 >= 0
    assert figure.axes[0].get_window_extent().height > 150


def test_names_of_any_letters_and_length_are_shown_as_they_are():
    odd = [
        ClassInfo(1, '_cost $a$ and $b$', (9, 9, 9)),
        ClassInfo(2, 'Ĝardeno\nÅŽŁ', (99, 9, 9)),
        ClassInfo(3, 'x' * 99, RED.color),
    ]
    figure = show_chips(images(1, size=3), torch.tensor([[[0, 1, 2]]]), RGBN, odd, columns=1, alpha=1)
    drawn(figure)
    assert legend(figure) == [' _cost $a$ and $b$', 'Ĝardeno ÅŽŁ', 'x' * 27 + '…']
    found = Objects(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([0]))
    drawn(show_boxes(images(1), [found], RGBN, odd, columns=1))
    drawn(show_labels(images(1), torch.tensor([0]), RGBN, odd, columns=1))


def test_a_single_pixel_can_be_drawn():
    one = Objects(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([0]), torch.ones(1, 1, 1, dtype=torch.bool))
    for batch in (Batch(images(1, size=1), masks(1, 1)), Batch(images(1, size=1), objects=(one,))):
        figure = show_batch(batch, RGBN, CLASSES, columns=3, alpha=0.5)
        assert drawn(figure).std() > 0
        assert figure.axes[0].images[0].get_array().shape[:2] == (1, 1)


def test_drawing_takes_no_pyplot_and_importing_no_matplotlib():
    code = (
        'import sys, torch; from geolearn import plotting; from geolearn.bands import Band; '
        "before = 'matplotlib' in sys.modules; "
        "plotting.show_images(torch.rand(1, 1, 4, 4), [Band('a')], columns=1).savefig(__import__('io').BytesIO()); "
        "print(before, 'matplotlib.figure' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ['False', 'True', 'False']


def test_images_alone_have_neither_title_nor_legend():
    figure = show_images(images(5), RGBN, columns=3)
    assert sum(bool(ax.images) for ax in figure.axes) == 5
    assert legend(figure) == []
