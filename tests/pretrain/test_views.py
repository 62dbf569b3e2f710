"""Options, random views, and the measures of collapse."""

import math
from dataclasses import replace

import pytest
import torch

from geolearn.errors import ArgumentError, UnknownNameError
from geolearn.pretrain import DinoOptions, MaeOptions, ViewOptions
from geolearn.pretrain.collapse import (
    effective_rank,
    feature_spread,
    find_collapse,
    knn_accuracy,
    main_classes,
    output_information,
)
from geolearn.pretrain.options import choose_options
from geolearn.pretrain.views import draw_views, jitter

PLAIN = ViewOptions(flips=False)


def generator():
    return torch.Generator().manual_seed(3)


def test_views_of_the_whole_image_are_the_image():
    images = torch.rand(2, 3, 16, 16)
    views = draw_views(images, 2, 16, (1.0, 1.0), options=PLAIN, generator=generator())
    assert views.shape == (2, 2, 3, 16, 16)
    wide = draw_views(images, 1, 8, (0.2, 0.4), options=PLAIN, generator=generator())
    assert wide.shape == (1, 2, 3, 8, 8)
    assert wide.min() >= images.min()
    assert wide.max() <= images.max()


def test_flips_and_crops_alone_change_sar():
    images = torch.arange(16.0).view(1, 1, 1, 16).expand(64, 1, 16, 16)
    views = draw_views(images, 1, 16, (0.5, 1.0), options=DinoOptions(), generator=generator())[0]
    rising = views[:, 0, 0].diff().mean(1) > 0
    assert 0.2 < rising.float().mean() < 0.8
    same = jitter(views[None], DinoOptions(), generator=generator())[0]
    assert torch.equal(same, views)
    changed = jitter(views[None], replace(DinoOptions(), gain=0.2), generator=generator())[0]
    assert not torch.equal(changed, views)


def test_a_seed_repeats_the_views():
    images = torch.rand(3, 2, 16, 16)
    first, second = (draw_views(images, 2, 8, (0.2, 1), options=PLAIN, generator=generator()) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: DinoOptions(prototypes=1), 'prototypes must be a whole number from 2, got 1'),
        (lambda: DinoOptions(global_scale=(0.5, 0.2)), 'smaller share first'),
        (lambda: DinoOptions(teacher_temperature=0), 'teacher_temperature must be a number'),
        (lambda: MaeOptions(mask=1), 'mask must be a number in 0.05..0.95'),
        (lambda: MaeOptions(decoder_dim=30), 'multiple of 4 and of its 8 heads'),
        (lambda: choose_options('dino', 'sar', MaeOptions()), 'takes options=DinoOptions'),
    ],
)
def test_options_that_are_not_valid_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_unknown_methods_and_presets_are_named():
    with pytest.raises(UnknownNameError, match='simclr'):
        choose_options('simclr', 'sar', None)
    with pytest.raises(UnknownNameError, match='radar'):
        choose_options('dino', 'radar', None)
    assert choose_options('dino', 'sar', None).gain == 0 < choose_options('dino', 'optical', None).gain


def test_measures_of_features():
    torch.manual_seed(0)
    random, same = torch.randn(200, 16), torch.ones(200, 16) + 1e-6 * torch.randn(200, 16)
    line = torch.randn(200, 1) * torch.randn(1, 16)
    assert 0.9 < feature_spread(random) < 1.1
    assert feature_spread(same) < 1e-4
    assert 14 < effective_rank(random) <= 16
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(20, 4)) == 0


def test_information_is_none_for_both_ways_to_collapse():
    uniform, one = torch.full((10, 4), 0.25), torch.eye(4)[[2] * 10]
    sound = torch.eye(4)[torch.arange(8) % 4]
    assert output_information(uniform) == pytest.approx(0)
    assert output_information(one) == pytest.approx(0)
    assert output_information(sound) == pytest.approx(math.log(4))


def test_neighbors_agree_where_classes_differ():
    torch.manual_seed(0)
    labels = torch.arange(40) % 2
    features = torch.randn(40, 8) * 0.1 + 3 * torch.nn.functional.one_hot(labels, 8)
    assert knn_accuracy(features, labels) == 1
    assert knn_accuracy(torch.randn(400, 8), torch.arange(400) % 2) == pytest.approx(0.5, abs=0.12)
    assert math.isnan(knn_accuracy(features, torch.full((40,), -1)))


def test_the_class_of_an_image_is_its_most_frequent_one():
    masks = torch.full((3, 4, 4), 255)
    masks[0], masks[1, 0] = 2, 1
    assert main_classes(masks).tolist() == [2, 1, -1]
    assert main_classes(torch.tensor([0, 3])).tolist() == [0, 3]


def test_a_collapse_is_found_once_it_lasts():
    sound = {'feature_spread': 0.5, 'effective_rank': 12.0, 'information': 2.0}
    bad = sound | {'information': 0.01}
    find = {'images': 50, 'prototypes': 64}
    assert find_collapse([sound] * 5, 10, **find) == []
    assert find_collapse([sound] * 4 + [bad], 10, **find) == []
    (text,) = find_collapse([sound] * 4 + [bad, bad], 10, **find)
    assert text.startswith('information 0.01')
    assert 'the same for all images' in text
    # in the first tenth of the epochs nothing is said
    assert find_collapse([bad, bad], 100, **find) == []
