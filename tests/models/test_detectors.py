"""What every detector promises, on a transformer and on a convolutional network, and what is special to each."""

import importlib.util
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from geolearn.adaptation import Adaptation
from geolearn.batch import Detections, Objects
from geolearn.errors import BundleError, ChipFolderError, MissingExtraError, UnknownNameError
from geolearn.models import load_model
from geolearn.models.object_detector import (
    FCOS,
    FasterRCNN,
    MaskRCNN,
    OrientedRCNN,
    RetinaNet,
    RotatedFCOS,
    RTDetr,
    SingleShotDetector,
)
from geolearn.networks.detection.architecture import (
    DetectorOptions,
    RCNNOptions,
    RotatedOptions,
    SingleStageOptions,
    TransformerOptions,
)
from geolearn.oriented.geometry import from_hulls, hulls
from geolearn.prepare import prepare_data

FEW = RCNNOptions(
    rpn_pre_nms_top_n_train=60,
    rpn_pre_nms_top_n_test=60,
    rpn_post_nms_top_n_train=40,
    rpn_post_nms_top_n_test=30,
    box_batch_size_per_image=16,
    box_detections_per_img=20,
)
DETECTORS = {
    FasterRCNN: FEW,
    MaskRCNN: FEW,
    RetinaNet: SingleStageOptions(detections_per_img=20, score_thresh=0.001),
    FCOS: SingleStageOptions(detections_per_img=20, score_thresh=0.001),
    SingleShotDetector: SingleStageOptions(detections_per_img=20, score_thresh=0.001),
    RotatedFCOS: RotatedOptions(detections_per_img=20, score_thresh=0.001, width=32, depth=1),
    OrientedRCNN: replace(FEW, width=32, box_score_thresh=0.001),
    RTDetr: TransformerOptions(detections_per_img=20, score_thresh=0.001, num_queries=30, decoder_layers=2),
}
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec('transformers') is None, reason="needs transformers: pip install 'transformers>=5.18'"
)
EVERY = [pytest.param(cls, marks=needs_transformers) if cls is RTDetr else cls for cls in DETECTORS]
BACKBONES = ('dofa_tiny', 'test_resnet')

pytestmark = pytest.mark.usefixtures('one_thread', 'small_dofa')


@pytest.fixture(scope='module')
def chips(square_chips):
    """Chips of squares of two classes, as boxes or as outlines."""
    return {kind: square_chips(kind, classes=2, side=256) for kind in ('PASCAL_VOC_rectangles', 'RCNN_Masks')}


@pytest.fixture
def data(chips, tmp_path):
    """Prepare the chips as boxes or as outlines."""

    def prepare(masks=False, **options):
        kind = 'RCNN_Masks' if masks else 'PASCAL_VOC_rectangles'
        options = {'chip_size': 64, 'batch_size': 4, 'val_split_pct': 0.25, 'transforms': False} | options
        return prepare_data(chips[kind], working_dir=tmp_path, **options)

    return prepare


def make(cls, data, backbone='test_resnet', **options):
    options = {'head': DETECTORS[cls], 'pretrained': False} | options
    return cls(data(masks=cls in (MaskRCNN, RotatedFCOS, OrientedRCNN)), backbone, **options)


def objects(boxes, *, shape=(64, 64), masks=False):
    held = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    outlines = torch.zeros(len(held), *shape, dtype=torch.bool)
    for outline, (left, top, right, bottom) in zip(outlines, held.long().tolist()):
        outline[top:bottom, left:right] = True
    return Objects(held, torch.arange(len(held)) % 2, outlines if masks else None, from_hulls(held))


@pytest.fixture(params=EVERY, ids=lambda cls: cls.__name__)
def detector(request):
    """A class of detectors."""
    return request.param


@pytest.fixture(params=BACKBONES)
def model(request, detector, data):
    """A detector on a backbone."""
    torch.manual_seed(0)
    return make(detector, data, request.param)


class TestEveryDetector:
    def test_it_learns_from_every_part_and_survives_images_without_objects(self, model):
        masks = model.architecture.masks
        loss = model.make_loss()
        model.network.train()
        images = torch.rand(2, 3, 64, 64) * 200
        found, losses = model.network(images, [objects([[5, 5, 25, 30]], masks=masks), objects([], masks=masks)])
        total = loss((found, losses))
        total.backward()
        assert found == []
        assert total.item() == pytest.approx(sum(part.item() for part in loss.parts.values()))
        learning = {name: p for name, p in model.network.named_parameters() if p.requires_grad}
        assert [name for name, p in learning.items() if p.grad is None] == []
        groups = [p for group in model.network.param_groups() for p in group.parameters]
        assert sorted(map(id, groups)) == sorted(map(id, learning.values()))
        nobody = [objects([], masks=masks)] * 2
        total = loss(model.network(images, nobody))
        total.backward()
        assert total.isfinite()
        assert total > 0  # background adds to the loss too
        assert all(p.grad.isfinite().all() for p in learning.values())

    def test_in_use_it_gives_losses_only_with_targets_and_the_same_objects_either_way(self, model):
        masks = model.architecture.masks
        network = model.network.eval()
        images = torch.rand(2, 3, 50, 70) * 200  # no multiple of any stride
        truth = [objects([[5, 5, 25, 30]], shape=(50, 70), masks=masks), objects([], shape=(50, 70), masks=masks)]
        with torch.inference_mode():
            found, losses = network(images, truth)
            _, same = network(images, truth)
            alone, none = network(images)
        assert none == {}
        assert losses.keys() == same.keys()
        assert all(torch.equal(losses[name], same[name]) for name in losses)
        for one, other in zip(found, alone):
            assert torch.equal(one.boxes, other.boxes)
            assert torch.equal(one.scores, other.scores)
            assert ((one.boxes >= 0) & (one.boxes <= torch.tensor([70, 50, 70, 50]))).all()
            assert one.boxes.dtype == torch.float32
            assert set(one.labels.tolist()) <= {0, 1}
            assert (one.masks is not None) == masks
            assert (one.turned is not None) == model.architecture.oriented
            if one.turned is not None:
                assert (one.turned[:, 2] >= one.turned[:, 3]).all()
                assert (one.turned[:, 4].abs() <= torch.pi / 2).all()
                limits = torch.tensor([70, 50, 70, 50])
                torch.testing.assert_close(one.boxes, torch.minimum(hulls(one.turned).clamp(min=0), limits))
            if masks:
                assert one.masks.shape == (len(one), 50, 70)
                assert one.masks.dtype == torch.bool
        assert not network.training
        assert not any(module.training for module in network.modules())

    def test_a_saved_model_is_the_same_model(self, model, tmp_path):
        loaded = load_model(model.save(tmp_path / 'it.dlpk'))
        assert type(loaded) is type(model)
        assert loaded.spec.options == model.spec.options
        image = torch.rand(1, 3, 64, 64) * 200
        with torch.inference_mode():
            (one,), (other,) = (m.network.eval()(image)[0] for m in (model, loaded))
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)


def test_boxes_without_area_are_left_out(detector, data):
    model = make(detector, data)
    model.network.train()
    masks = model.architecture.masks
    flat = objects([[5, 5, 25, 30], [8, 8, 8, 20]], masks=masks)
    losses = model.network(torch.rand(1, 3, 64, 64), [flat])[1]
    assert all(loss.isfinite() for loss in losses.values())


def test_training_without_targets_is_refused(data):
    with pytest.raises(ValueError, match='needs targets'):
        make(FasterRCNN, data).network.train()(torch.rand(1, 3, 64, 64))


def test_the_heads_of_vitdet_have_layer_norms(data):
    options = {**FEW.__dict__, 'style': 'vitdet'}
    plain, deep = make(MaskRCNN, data), make(MaskRCNN, data, head=RCNNOptions(**options))
    names = {name for name, _ in deep.network.head.named_parameters()} - {
        name for name, _ in plain.network.head.named_parameters()
    }
    assert any(name.startswith('roi_heads.box_head') for name in names)
    assert any(name.startswith('roi_heads.mask_head') for name in names)
    assert len(deep.network.head.rpn.head.conv) == 2


def test_anchors_come_from_the_training_boxes(data):
    options = make(FasterRCNN, data)._options(make(FasterRCNN, data).spec)
    assert 12 <= options.anchor_sizes[0][0] <= 24
    assert options.anchor_sizes[1:] == ((64,), (128,), (256,), (512,))
    assert all(0.8 < ratio < 1.25 for ratio in options.aspect_ratios)
    assert 12 <= options.typical_side <= 24


def test_anchors_can_be_given(data):
    model = make(RetinaNet, data, scales=[1, 2 ** (1 / 3)], ratios=[0.5, 1, 2])
    options = model._options(model.spec)
    assert options.anchor_sizes[1] == pytest.approx((64, 64 * 2 ** (1 / 3)))
    assert options.aspect_ratios == (0.5, 1, 2)
    model = make(RetinaNet, data, anchor_sizes=[8, 16, 32, 64, 128])
    assert model._options(model.spec).anchor_sizes == ((8,), (16,), (32,), (64,), (128,))
    with pytest.raises(ValueError, match='anchor_sizes must have 5 levels, finest first, got 2'):
        make(RetinaNet, data, anchor_sizes=[8, 16])
    with pytest.raises(ValueError, match='either scales or anchor_sizes'):
        make(RetinaNet, data, anchor_sizes=[8], scales=[1])
    with pytest.raises(ValueError, match='has no anchors'):
        make(FCOS, data, ratios=[1])


def test_numbers_of_heads_are_checked():
    with pytest.raises(ValueError, match=r'box_score_thresh must be in 0\.\.1, got 2'):
        RCNNOptions(box_score_thresh=2)
    with pytest.raises(ValueError, match='detections_per_img must be a whole number, at least 1, got 0'):
        SingleStageOptions(detections_per_img=0)
    with pytest.raises(UnknownNameError, match="unknown style of heads 'vitdt'; did you mean 'vitdet'"):
        RCNNOptions(style='vitdt')


@pytest.mark.parametrize(
    ('detector', 'head'), [(FCOS, SingleStageOptions(width=32)), (RotatedFCOS, RotatedOptions(width=16, depth=1))]
)
def test_narrow_heads_take_images_whose_coarsest_level_is_one_place(data, detector, head):
    model = detector(data(masks=detector is RotatedFCOS), 'test_resnet', head=head, pretrained=False)
    found, _ = model.network.eval()(torch.rand(1, 3, 64, 64))
    assert len(found) == 1


def test_the_head_of_another_detector_is_refused(data):
    with pytest.raises(ValueError, match='head must be RCNNOptions'):
        FasterRCNN(data(), 'test_resnet', head=SingleStageOptions(), pretrained=False)


@pytest.mark.parametrize(
    'change',
    [
        {'anchor_sizes': 'all'},
        {'anchor_sizes': [[32.0]] * 3},
        {'anchor_sizes': [[32.0] * 80] * 5},
        {'anchor_sizes': [[-1.0]] * 5},
        {'head': {'style': 'evil'}},
        {'head': {'code': 'x'}},
        {'typical_side': float('nan')},
        {'resize_to': 10**9},
        {'head': None},
    ],
)
def test_hostile_options_are_refused(change, data):
    model = make(FasterRCNN, data)
    options = {**model.spec.options, **change}
    with pytest.raises(BundleError, match='the manifest is broken'):
        FasterRCNN.build(type(model.spec)(**{**model.spec.__dict__, 'options': options}))


def test_options_survive_json(data):
    model = make(MaskRCNN, data, resize_to=96)
    options = model._options(model.spec)
    assert DetectorOptions.from_json(options.to_json(), head=RCNNOptions) == options


def test_mask_rcnn_needs_outlines(data):
    with pytest.raises(ChipFolderError, match='MaskRCNN needs outlined objects'):
        MaskRCNN(data(), 'test_resnet', pretrained=False)


def test_what_outlines_of_large_chips_need_is_asked_for_before_the_training(data, monkeypatch):
    large = MaskRCNN(data(masks=True, chip_size=32), 'test_resnet', pretrained=False, head=FEW)
    assert large.make_scores().iou_type == 'segm'
    monkeypatch.setitem(sys.modules, 'shapely', None)
    with pytest.raises(MissingExtraError, match='to evaluate outlines on chips larger than chip_size; install it with'):
        large.fit(1, lr=1e-3)
    assert not large.history.epochs
    assert make(MaskRCNN, data).make_scores().iou_type == 'segm'


def test_resized_images_give_boxes_in_their_own_pixels(data):
    model = make(FasterRCNN, data, resize_to=128)
    assert model.network.zoom == 2
    with torch.inference_mode():
        found, losses = model.network.eval()(torch.rand(1, 3, 64, 48), [objects([[5, 5, 25, 30]])])
    assert (found[0].boxes <= torch.tensor([48, 64, 48, 64])).all()
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize('resize_to', [None, 32])
def test_what_is_found_in_the_padding_is_no_object(data, resize_to):
    network = make(FasterRCNN, data, resize_to=resize_to).network.eval()
    # 50 x 70 pixels are padded to 64 x 96: across the right edge, across the lower one, beyond both, mostly inside
    boxes = torch.tensor([[60, 5, 90, 30], [5, 45, 30, 60], [75, 55, 90, 62], [50, 20, 85, 40]], dtype=torch.float32)
    made = Detections(boxes * network.zoom, torch.zeros(4, dtype=torch.int64), torch.ones(4))
    network.head = PlacingHead(made)
    with torch.inference_mode():
        (found,), _ = network(torch.rand(1, 3, 50, 70) * 200)
    assert found.boxes.tolist() == [[50, 20, 70, 40]]


class PlacingHead(torch.nn.Module):
    """Finds what it is told."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def forward(self, images, levels, targets):
        return [self.found], {}


@pytest.mark.parametrize(
    'adapt',
    [Adaptation(freeze='all'), Adaptation(layer_decay=0.7), Adaptation(lora_rank=2)],
    ids=['frozen', 'decay', 'lora'],
)
def test_adaptations_work_as_everywhere(adapt, data):
    model = make(FasterRCNN, data, 'dofa_tiny', adapt=adapt)
    groups = model.network.param_groups()
    held = {id(p) for group in groups for p in group.parameters}
    assert held == {id(p) for p in model.network.parameters() if p.requires_grad}
    assert {id(p) for p in model.network.head.parameters()} <= held
    if adapt.layer_decay:
        assert len({group.lr_scale for group in groups}) > 2


def test_what_is_found_in_an_array_has_names_and_values(data):
    model = make(FasterRCNN, data)
    rng = np.random.default_rng(0)
    found = model.predict(rng.normal(60, 12, (3, 90, 70)).astype(np.float32), threshold=0.0, nms_overlap=1.0)
    assert len(found) == len(found.names) == len(found.values) > 0
    assert set(found.names) <= {'white', 'blue'}
    assert set(found.values.tolist()) <= {1, 2}
    assert (np.diff(found.scores) <= 0).all()
    assert not len(model.predict(rng.normal(60, 12, (3, 64, 64)), threshold=1.0))
    with pytest.raises(ValueError, match='an image must be an array of 3 bands'):
        model.predict(np.zeros((4, 64, 64)))
    with pytest.raises(ValueError, match=r'threshold must be in 0\.\.1, got 50'):
        model.predict(np.zeros((3, 64, 64)), threshold=50)


def test_scores_figures_and_tables_of_validation_chips(data):
    model = make(MaskRCNN, data)
    by_class = model.average_precision_score()
    assert list(by_class) == ['white', 'blue']
    assert all(0 <= value <= 1 for value in by_class.values())
    assert model.average_precision_score(mean=True) == pytest.approx(np.mean(list(by_class.values())))
    assert model.average_precision_score(mean=True) == pytest.approx(model.scores()['ap50'])
    assert isinstance(model.per_class_metrics(), pd.DataFrame)
    assert list(model.per_class_metrics()) == ['map', 'ap50', 'recall']
    assert len(model.show_results(rows=2, threshold=0.0).axes) == 4
    assert len(model.plot_precision_recall().axes) == 1


def test_esri_learns_what_kind_of_model_it_is(data):
    emd = make(FasterRCNN, data).emd_fields(make(FasterRCNN, data).spec)
    assert emd['ModelType'] == 'ObjectDetection'
    model = make(MaskRCNN, data)
    assert model.emd_fields(model.spec)['ModelType'] == 'InstanceDetection'
