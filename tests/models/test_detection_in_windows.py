"""Detectors are scored on whole chips: windows of the size they were trained on, and each object once and whole."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from geolearn import from_arrays
from geolearn.batch import Detections
from geolearn.metrics import DetectionScores
from geolearn.models import FCOS
from geolearn.models.evaluation import objects
from geolearn.models.evaluation.objects import WindowedDetector, evaluate_objects
from geolearn.networks.detection.architecture import SingleStageOptions
from geolearn.oriented.geometry import from_hulls

SIDE, WINDOW, OBJECT = 100, 48, 14
pytestmark = pytest.mark.usefixtures('one_thread')


class SeesBright(nn.Module):
    """Detects each bright rectangle that a window shows, or the part of it that it shows."""

    def __init__(self, kind='bbox'):
        super().__init__()
        self.levels, self.backbone, self.kind = nn.Identity(), SimpleNamespace(strides=(4, 8)), kind

    def forward(self, images):
        self.levels(images.nan_to_num())
        return [self.find(image[0]) for image in images], {}

    def find(self, image):
        bright = np.nan_to_num(image.numpy()) > 0
        numbered, count = ndimage.label(bright)
        rows = [(part[1].start, part[0].start, part[1].stop, part[0].stop) for part in ndimage.find_objects(numbered)]
        boxes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
        masks = torch.from_numpy(numbered[None] == np.arange(1, count + 1)[:, None, None])
        return Detections(
            boxes,
            torch.zeros(count, dtype=torch.int64),
            torch.ones(count),
            masks if self.kind == 'segm' else None,
            torch.from_numpy(from_hulls(boxes.numpy())).float() if self.kind == 'rotated' else None,
        )


def make_chips(count, side=SIDE):
    """Images with bright rectangles that do not touch, and the boxes of these."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        image, boxes = np.zeros((1, side, side), np.float32), []
        for row, col in np.ndindex(side // 20, side // 20):
            height, width = rng.integers(6, OBJECT + 1, 2)
            top, left = row * 20 + rng.integers(0, 5), col * 20 + rng.integers(0, 5)
            image[0, top : top + height, left : left + width] = 1
            boxes.append((left, top, left + width, top + height))
        yield image, np.array(boxes, np.float32)


@pytest.mark.parametrize('kind', ['bbox', 'segm', 'rotated'])
def test_each_object_of_a_chip_is_found_once_and_whole(kind):
    find = WindowedDetector(SeesBright(kind), WINDOW, typical_side=OBJECT, most=2)
    images = [torch.from_numpy(image) for image, _ in make_chips(3)]
    found, losses = find(torch.stack(images))
    assert not losses
    for image, detections in zip(images, found):
        expected = SeesBright(kind).find(image[0])
        order = [torch.argsort(each.boxes[:, 1] * SIDE + each.boxes[:, 0]) for each in (detections, expected)]
        torch.testing.assert_close(detections.boxes[order[0]], expected.boxes[order[1]])
        if kind == 'segm':
            assert torch.equal(detections.masks[order[0]], expected.masks[order[1]])
        if kind == 'rotated':
            turned = [each.turned[rows] for each, rows in zip((detections, expected), order)]
            torch.testing.assert_close(turned[0][:, :4], turned[1][:, :4])
            torch.testing.assert_close((2 * turned[0][:, 4]).cos(), (2 * turned[1][:, 4]).cos())


def test_windows_show_nothing_where_the_chip_ends():
    seen = []

    class Notes(SeesBright):
        def find(self, image):
            seen.append(image)
            return super().find(image)

    WindowedDetector(Notes(), 32, typical_side=4, most=3)(torch.zeros(1, 1, 50, 70))
    assert {tuple(image.shape) for image in seen} == {(32, 32)}
    assert any(image.isnan().any() for image in seen)
    assert not any(image.isnan().all() for image in seen)


@pytest.fixture
def data(tmp_path):
    chips = list(make_chips(4))
    labels = [(boxes, np.ones(len(boxes), np.int64)) for _, boxes in chips]
    images = [image for image, _ in chips]
    return from_arrays(
        images, labels, class_mapping={1: 'bright'}, chip_size=WINDOW, batch_size=2, val_split_pct=0.5,
        working_dir=tmp_path,
    )  # fmt: skip


def test_a_perfect_detector_has_the_full_score_on_chips_larger_than_its_images(data):
    found = evaluate_objects(SeesBright(), data.valid_dl, DetectionScores(1), ['bright'], typical_side=OBJECT)
    assert found.metrics['map'] == found.metrics['recall'] == 1
    count = len(data.valid_ds) * (SIDE // 20) ** 2
    assert found.matches.sum((0, 1)).tolist() == [count, 0, 0]
    assert len(found.per_chip) == len(data.valid_ds)


def test_as_many_detections_count_on_each_part_of_a_chip_as_on_one_image(data):
    scores = DetectionScores(1, max_detections=5)
    evaluate_objects(SeesBright(), data.valid_dl, scores, ['bright'], typical_side=OBJECT)
    windows = WindowedDetector(SeesBright(), WINDOW, typical_side=OBJECT, most=1).count(SIDE)
    assert scores.max_detections == 5 * windows >= (SIDE // 20) ** 2
    assert scores.values()['recall'] == 1


def test_models_are_scored_on_all_objects_of_their_chips(data):
    head = SingleStageOptions(detections_per_img=20)
    model = FCOS(data, 'test_resnet', pretrained=False, head=head)
    matches = model.evaluate().matches
    assert int(matches[..., 0].sum() + matches[..., 2].sum()) == len(data.valid_ds) * (SIDE // 20) ** 2


def test_pictures_show_the_whole_chips_that_were_scored(data, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        objects, 'show_detections', lambda images, truth, found, *_, **given: drawn.append((images, truth, found))
    )
    model = FCOS(data, 'test_resnet', pretrained=False, head=SingleStageOptions(detections_per_img=20))
    model.network = SeesBright()
    model.show_results(rows=2)
    ((images, truth, found),) = drawn
    assert images.shape[-2:] == (SIDE, SIDE)
    assert [len(part) for part in found] == [len(part.boxes) for part in truth] == [(SIDE // 20) ** 2] * 2
