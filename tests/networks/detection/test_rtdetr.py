"""RT-DETR learns what a box is without anchors, on images of any size, and never looks for weights of its own."""

import copy
import importlib.util
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from geolearn.adaptation import Adaptation
from geolearn.errors import MissingExtraError
from geolearn.models.object_detector import RTDetr
from geolearn.networks.detection.architecture import TransformerOptions
from geolearn.networks.detection.heads import RTDetrHead
from geolearn.prepare import prepare_data
from geolearn.tiling import spread_windows

FEW = TransformerOptions(num_queries=20, num_denoising=10, decoder_layers=1, detections_per_img=10)

pytestmark = pytest.mark.usefixtures('one_thread', 'small_dofa')
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec('transformers') is None, reason="needs transformers: pip install 'transformers>=5.18'"
)


class Maps(nn.Module):
    """Levels of an image of one band: what each place shows, by itself."""

    def __init__(self):
        super().__init__()
        self.looks = nn.ModuleList(nn.Conv2d(1, 256, stride, stride) for stride in (8, 16, 32))

    def forward(self, images):
        return [look(images) for look in self.looks]


def as_list(images):
    return ImageList(images, [tuple(images.shape[-2:])] * len(images))


def head_of(*, side=64, **numbers):
    torch.manual_seed(0)
    return RTDetrHead(None, 2, TransformerOptions(**{**FEW.__dict__, **numbers}), side)


@pytest.fixture
def data(square_chips, tmp_path):
    """Chips of squares of two classes."""
    chips = square_chips('PASCAL_VOC_rectangles', classes=2, side=256)
    return prepare_data(chips, working_dir=tmp_path, chip_size=64, batch_size=4, val_split_pct=0.25, transforms=False)


@given(side=st.integers(1, 20), more=st.integers(0, 60))
@settings(max_examples=60)
def test_windows_overlap_by_half_and_their_cores_cover_the_axis_once(side, more):
    spans = spread_windows(side + more, side)
    assert spans[0].start == 0
    assert spans[-1].start + side == side + more
    steps = [later.start - span.start for span, later in pairwise(spans)]
    assert all(0 < step <= max(1, side // 2) for step in steps)
    assert [span.core_end for span in spans[:-1]] == [span.core_start for span in spans[1:]]
    inner = [(span, cut) for span in spans for cut in (span.core_start, span.core_end) if abs(cut) != float('inf')]
    assert all(min(cut - span.start, span.start + side - cut) * 4 >= side - 1 for span, cut in inner)


def test_what_to_install_is_said(data, monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(
        MissingExtraError, match="to build an RTDetr; install it with: pip install 'transformers>=5.18'"
    ):
        RTDetr(data, 'resnet18', pretrained=False)


def test_there_are_no_anchors_to_choose(data):
    with pytest.raises(ValueError, match='has no anchors'):
        RTDetr(data, 'resnet18', scales=[1, 2], pretrained=False)


@needs_transformers
class TestHead:
    def test_its_losses_have_four_parts_in_training_and_those_of_use_are_steady(self):
        head, maps = head_of(), Maps()
        images = torch.rand(2, 1, 64, 64)
        truth = [
            {'boxes': torch.tensor([[8.0, 8, 30, 40]]), 'labels': torch.tensor([1])},
            {'boxes': torch.zeros(0, 4), 'labels': torch.zeros(0, dtype=torch.int64)},
        ]
        _, losses = head.compute(as_list(images), maps(images), truth)
        assert losses.keys() == {'loss_vfl', 'loss_bbox', 'loss_giou', 'loss_dn'}
        assert losses['loss_dn'] > 0
        _, alone = head.compute(as_list(images), maps(images), truth[1:] * 2)
        assert alone.keys() == losses.keys()
        assert alone['loss_dn'] == 0
        head.eval()
        _, first = head.compute(as_list(images), maps(images), truth)
        _, second = head.compute(as_list(images), maps(images), truth)
        assert first.keys() == {'loss_vfl', 'loss_bbox', 'loss_giou'}
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_there_are_no_more_queries_than_places(self):
        assert head_of(side=32, num_queries=300).layers.config.num_queries == 16 + 4 + 1

    def test_a_smaller_image_is_filled_up_with_zeros(self):
        head, maps = head_of(score_thresh=0.0).eval(), Maps()
        small = maps(torch.rand(1, 1, 32, 64))
        filled = [nn.functional.pad(level, (0, 0, 0, level.shape[-2])) for level in small]
        with torch.inference_mode():
            (one,), _ = head.compute(as_list(torch.zeros(1, 1, 32, 64)), small, None)
            (other,), _ = head.compute(as_list(torch.zeros(1, 1, 64, 64)), filled, None)
        assert len(one['boxes']) == 10
        assert torch.equal(one['boxes'], other['boxes'])

    def test_training_goes_on_after_use_without_gradients(self):
        head, maps = head_of(), Maps()
        images = torch.rand(1, 1, 64, 64)
        truth = [{'boxes': torch.tensor([[8.0, 8, 30, 40]]), 'labels': torch.tensor([1])}]
        with torch.inference_mode():  # transformers keeps the grid of a size that it has seen
            head.eval().compute(as_list(images), maps(images), None)
        _, losses = head.train().compute(as_list(images), maps(images), truth)
        sum(losses.values()).backward()
        assert [name for name, p in head.named_parameters() if p.grad is None] == []

    def test_one_image_is_learned_by_heart_and_found_in_a_larger_one(self):
        image = torch.zeros(1, 1, 64, 64)
        boxes = torch.tensor([[10.0, 12, 28, 30], [36, 38, 60, 54]])
        image[:, :, 12:30, 10:28], image[:, :, 38:54, 36:60] = 1, -1
        head, maps = head_of(decoder_layers=2), Maps()
        truth = [{'boxes': boxes, 'labels': torch.tensor([0, 1])}]
        learner = torch.optim.AdamW([*head.parameters(), *maps.parameters()], lr=1e-3, fused=True)
        for _ in range(45):
            _, losses = head.compute(as_list(image), maps(image), truth)
            learner.zero_grad()
            sum(losses.values()).backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            learner.step()
        large = torch.zeros(1, 1, 64, 192)
        large[..., 128:] = image
        head.eval()
        for seen, shift in ((image, 0), (large, 128)):
            with torch.inference_mode():
                (found,), _ = head.compute(as_list(seen), maps(seen), None)
            sure = (found['scores'] > 0.5) & (found['boxes'][:, 0] >= shift)
            there = boxes + torch.tensor([shift, 0, shift, 0])
            assert sorted(found['labels'][sure].tolist()) == [0, 1]
            assert (box_iou(there, found['boxes'][sure]).max(dim=1).values > 0.7).all()


@needs_transformers
def test_nothing_of_transformers_own_backbone_is_left_and_nothing_is_fetched(data, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('the network was asked for')

    monkeypatch.setattr('socket.socket.connect', refuse)
    model = RTDetr(data, 'resnet18', head=FEW, pretrained=False)
    assert list(model.network.head.layers.model.backbone.parameters()) == []
    assert model.network.head.layers.config.num_labels == 2


@needs_transformers
def test_it_is_fitted_as_every_detector_and_sees_the_end_of_a_large_image(data):
    torch.manual_seed(0)
    head = TransformerOptions(**{**FEW.__dict__, 'score_thresh': 0.0})
    model = RTDetr(data, 'dofa_tiny', head=head, pretrained=False, adapt=Adaptation(layer_decay=0.7))
    assert len({group.lr_scale for group in model.network.param_groups()}) > 2
    rows = model.fit(2, lr=3e-4, checkpoint=False, mixed_precision='bf16').history.epochs
    assert {'classes', 'boxes', 'overlap', 'denoising', 'ap50'} <= rows[-1].keys()
    assert rows[-1]['train_loss'] < rows[0]['train_loss']
    found = model.predict(torch.rand(3, 90, 170).numpy() * 200, threshold=0.0)
    assert found.boxes[:, 2].max() > 150


@needs_transformers
def test_a_copy_after_use_is_the_same_and_a_frozen_backbone_learns_nothing(data):
    model = RTDetr(data, 'dofa_tiny', head=FEW, pretrained=False, adapt=Adaptation(freeze='all'))
    network, image = model.network.eval(), torch.rand(1, 3, 64, 64) * 200
    with torch.no_grad():
        (one,), _ = network(image)
        (other,), _ = copy.deepcopy(network)(image)
    assert torch.equal(one.boxes, other.boxes)
    learning = {id(p) for group in network.param_groups() for p in group.parameters}
    assert {id(p) for p in network.head.parameters()} <= learning
    assert not learning & {id(p) for p in network.backbone.trunk.parameters()}
