"""Panoptic models segment stuff and things, on chips and over rasters, where no tile's edge splits an object."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from rasterio.features import geometry_mask
from small_cnn import small_backbone

from geolearn.batch import Detections, PanopticMap
from geolearn.classes import ClassInfo
from geolearn.cli import main
from geolearn.errors import (
    CheckpointError,
    ChipFolderError,
    ExportError,
    MissingExtraError,
    RasterError,
    UnknownNameError,
)
from geolearn.metrics import count_segments, panoptic_quality
from geolearn.models import Mask2Former, Mask2FormerOptions, PanopticFPN, load_model
from geolearn.models.reports.tasks import panoptic_report
from geolearn.networks.detection.architecture import RCNNOptions
from geolearn.networks.detection.panoptic import MergeOptions, PanopticNetwork, merge_segments
from geolearn.networks.network import Normalize
from geolearn.plotting import show_panoptic
from geolearn.prepare import prepare_data
from geolearn.synthetic import PANOPTIC_CLASSES, make_panoptic_scene

pytestmark = pytest.mark.usefixtures('one_thread')

FEW = RCNNOptions(
    rpn_pre_nms_top_n_train=80,
    rpn_pre_nms_top_n_test=60,
    rpn_post_nms_top_n_train=30,
    rpn_post_nms_top_n_test=20,
    rpn_batch_size_per_image=64,
    box_batch_size_per_image=32,
    box_detections_per_img=20,
)
PLACE = Affine(0.5, 0, 400_000, 0, -0.5, 5_400_000)


@pytest.fixture(scope='session')
def write_panoptic(save):
    """Write chips of a scene as Panoptic_Segmentation: `write_panoptic(folder, size, side, seed)`.

    With `told` the bands are classes and numbers of objects, as `Exact` reads them.
    """

    def write(folder, size=192, side=48, seed=0, *, told=False):
        scene, objects = make_panoptic_scene(size, seed=seed)
        names = {info.value: info.name for info in PANOPTIC_CLASSES}
        for part in ('images', 'labels', 'labels2/house', 'labels2/tree'):
            (folder / part).mkdir(parents=True)
        numbers = {value: np.zeros(scene.label.shape, np.uint16) for value in (3, 4)}
        for number, (value, mask) in enumerate(objects, 1):
            numbers[value][mask] = number
        both = sum(numbers.values()).astype(np.uint8)
        image = np.stack([scene.label, both, both]) if told else scene.image
        for index, (row, col) in enumerate(np.ndindex(size // side, size // side)):
            part = np.s_[side * row : side * row + side, side * col : side * col + side]
            place = {'transform': PLACE @ Affine.translation(side * col, side * row)}
            save(folder / 'images' / f'{index:03}.tif', image[:, part[0], part[1]],
                 names=['Red', 'Green', 'Blue'], **place)  # fmt: skip
            save(folder / 'labels' / f'{index:03}.tif', scene.label[part], **place)
            for value, plane in numbers.items():
                save(folder / 'labels2' / names[value] / f'{index:03}.tif', plane[part], **place)
        rows = [{'Value': info.value, 'Name': info.name, 'Color': list(info.color)} for info in PANOPTIC_CLASSES]
        emd = {'MetaDataMode': 'Panoptic_Segmentation', 'ImageSpaceUsed': 'MAP_SPACE', 'Classes': rows}
        emd['Panoptic_Segmentation_Instance_Classes'] = [
            {'Value': row['Value'], 'Name': row['Name']} for row in rows[2:]
        ]
        (folder / 'esri_model_definition.emd').write_text(json.dumps(emd))
        return folder

    return write


@pytest.fixture(scope='module')
def trained(write_panoptic, tmp_path_factory):
    folder = tmp_path_factory.mktemp('panoptic')
    chips = write_panoptic(folder / 'chips', 128, 32)
    data = prepare_data(chips, chip_size=32, batch_size=6, val_split_pct=0.25, working_dir=folder)
    torch.manual_seed(0)
    model = PanopticFPN(data, 'test_resnet', head=FEW, pretrained=False)
    return model.fit(1, lr=1e-3, checkpoint=False)


def test_training_counts_segments_and_adds_up_losses(trained):
    (row,) = trained.history.epochs
    assert {'semantic', 'masks', 'boxes', 'classes', 'pq', 'sq', 'rq', 'pq_things', 'pq_stuff'} <= row.keys()
    assert trained.scores()['pq'] == pytest.approx(row['pq'], abs=1e-6, nan_ok=True)
    assert list(trained.per_class_metrics().index) == ['grass', 'water', 'house', 'tree']
    assert trained.network.things == (2, 3)
    trained.show_results(rows=1)


def test_figures_name_what_is_no_segment(trained):
    for void in (True, False):
        classes = torch.zeros(16, 16, dtype=torch.int64)
        classes[:4] = 255 if void else 1
        found = PanopticMap(classes, torch.zeros_like(classes))
        figure = show_panoptic(torch.rand(1, 3, 16, 16), [found], [found], trained.spec.bands, trained.spec.class_infos)
        names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert names == ['grass', 'water', 'house', 'tree', *(['no segment'] if void else [])]


def test_a_saved_model_is_the_same_and_says_which_classes_are_things(trained, tmp_path):
    loaded = load_model(trained.save(tmp_path / 'm.dlpk', compute_metrics=False))
    image = make_panoptic_scene(64, seed=5)[0].image
    for one, other in zip(trained.predict(image), loaded.predict(image)):
        assert np.array_equal(one, other)
    assert loaded.emd_fields(loaded.spec)['Panoptic_Segmentation_Instance_Classes'] == [
        {'Value': 3, 'Name': 'house'},
        {'Value': 4, 'Name': 'tree'},
    ]
    with pytest.raises(ExportError, match='differs from image to image'):
        trained.save(tmp_path / 'x.dlpk', export='onnx')


SMALL = Mask2FormerOptions(num_queries=12, encoder_layers=1, decoder_layers=2, hidden_dim=32, train_num_points=256)


@pytest.fixture(scope='module')
def mask2former(trained):
    """Trained for a moment on the same chips."""
    pytest.importorskip('transformers')
    torch.manual_seed(0)
    model = Mask2Former(trained.data, 'test_resnet', head=SMALL, pretrained=False)
    return model.fit(2, lr=2e-3, checkpoint=False)


def test_mask2former_trains_on_the_same_chips_and_comes_back_from_its_bundle(mask2former, tmp_path):
    first, row = mask2former.history.epochs
    assert {'classes', 'masks', 'dice', 'pq', 'pq_things', 'pq_stuff'} <= row.keys()
    assert row['train_loss'] < first['train_loss']
    loaded = load_model(mask2former.save(tmp_path / 'm.dlpk', compute_metrics=False))
    image = make_panoptic_scene(64, seed=5)[0].image[:, :56, :45]  # no multiple of a stride
    for one, other in zip(mask2former.predict(image), loaded.predict(image)):
        assert one.shape == (56, 45)
        assert np.array_equal(one, other)
    network, (images, masks, objects) = loaded.network, next(iter(mask2former.data.valid_dl))
    losses = [network(images, masks, objects)[1] for _ in range(2)]
    assert losses[0] == losses[1]  # at the same points
    nothing = [network(images, torch.full_like(masks, 255), [found.select(found.labels < 0) for found in objects])[1]]
    assert all(loss.isfinite() for loss in nothing[0].values())


def test_the_command_line_trains_and_maps_segments(trained, save, tmp_path, capsys):
    words = '--model PanopticFPN --backbone test_resnet --from-scratch --chip-size 32 --batch-size 6 --valid 0.25'
    path = tmp_path / 'm.dlpk'
    main(['train', str(trained.data.path), str(path), *words.split(), '--epochs', '1', '--lr', '1e-3'])
    assert 'pq' in capsys.readouterr().out.lower()
    main(['evaluate', str(path), str(trained.data.path), '--valid', '0.25'])
    assert 'pq of things' in capsys.readouterr().out.lower()
    scene = save(tmp_path / 'scene.tif', make_panoptic_scene(64, seed=3)[0].image, names=['Red', 'Green', 'Blue'],
                 transform=PLACE)  # fmt: skip
    main(['predict', str(path), str(scene), str(tmp_path / 'map.tif'), '--threshold', '0.3'])
    assert rasterio.open(tmp_path / 'map.tif').descriptions == ('class', 'id')
    assert (tmp_path / 'map.gpkg').is_file()
    main(['report', str(path), str(trained.data.path), str(tmp_path / 'report.html')])
    text = (tmp_path / 'report.html').read_text()
    assert 'panoptic quality' in text.lower()
    head = text.split('Before you trust')[0]
    places = [head.index(f'>{name}<') for name in ('PQ', 'SQ', 'RQ', 'classes')]
    assert places == sorted(places)
    assert 'Labeled pixels with a class' in text


def test_mask2former_maps_rasters_and_gives_things_and_stuff(mask2former, save, tmp_path):
    scene, _ = make_panoptic_scene(96, seed=3)
    path = save(tmp_path / 'scene.tif', scene.image, names=['Red', 'Green', 'Blue'], transform=PLACE)
    out = mask2former.predict_raster(path, tmp_path / 'map.tif', threshold=0.0)
    with rasterio.open(out) as src:
        assert (src.count, src.shape) == (2, (96, 96))
    # queries that are sure of a thing, of stuff, and of nothing
    network = mask2former.network
    chances = torch.tensor([[0.0, 0, 0.8, 0.1], [0.9, 0, 0.05, 0], [0.1, 0.1, 0.1, 0.1]])
    drawn = torch.zeros(3, 8, 8)
    drawn[0, 2:5, 1:4] = 1.0
    drawn[1] = 1.0
    (found,) = [network._objects(chances, drawn)]
    assert found.labels.tolist() == [2]
    assert found.boxes.tolist() == [[1, 2, 4, 5]]
    assert found.scores.tolist() == pytest.approx([0.8])
    for value in ({'num_queries': 0}, {'hidden_dim': 40}):
        with pytest.raises(ValueError, match=next(iter(value))):
            Mask2FormerOptions(**value)


@pytest.mark.slow
def test_panoptic_fpn_learns_fields_and_houses(write_panoptic, tmp_path):
    """PQ 0.69 when this was written, of things 0.78; stuff laid over things would leave nothing of the latter."""
    data = prepare_data(
        write_panoptic(tmp_path / 'chips', 256, 64),
        chip_size=64,
        batch_size=4,
        val_split_pct=0.25,
        working_dir=tmp_path,
    )
    torch.manual_seed(0)
    model = PanopticFPN(data, small_backbone(), head=replace(FEW, width=32))
    scores = model.fit(20, lr=4e-3, checkpoint=False).scores()
    assert scores['pq'] > 0.6
    assert scores['pq_things'] > 0.6
    assert scores['covered'] > 0.9


class Exact(torch.nn.Module):
    """Sees in the first band what class a pixel is of, and in the second which object it belongs to."""

    backbone = SimpleNamespace(has_position_grid=False, strides=(1,), coarsest_stride=1, trunk=None)
    context, finer = None, 1

    def __init__(self, *, objects):
        super().__init__()
        self.objects = objects
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        classes, numbers = images.nan_to_num(0)[:, 0].round().long(), images.nan_to_num(0)[:, 1].round().long()
        if not self.objects:
            # grass, water and all things together, as the network has them
            return torch.stack([classes == 1, classes == 2, classes > 2], 1).float()
        return [self._objects(*pair) for pair in zip(classes, numbers)], {}

    def _objects(self, classes, numbers):
        found = [number for number in numbers.unique().tolist() if number]
        masks = [numbers == number for number in found]
        labels = [int(classes[mask][0]) - 1 for mask in masks]
        boxes = [[mask.any(0).nonzero().min(), mask.any(1).nonzero().min(), mask.any(0).nonzero().max() + 1,
                  mask.any(1).nonzero().max() + 1] for mask in masks]  # fmt: skip
        planes = torch.stack(masks) if masks else torch.zeros((0, *numbers.shape), dtype=torch.bool)
        # the order of the numbers, so that touching objects are told apart by score too
        scores = torch.tensor([0.9 - number / 1e4 for number in found])
        return Detections(torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(labels).long(), scores, planes)


@pytest.fixture
def exact(trained, monkeypatch):
    """The trained model with networks that are right on every pixel."""
    monkeypatch.setattr('geolearn.models.panoptic.Things', lambda network: Exact(objects=True))
    monkeypatch.setattr('geolearn.models.panoptic.Classes', lambda network: Exact(objects=False))
    return trained


def write_answer(save, path, scene, objects):
    """Write what `Exact` reads: classes, and the number of the object at each pixel, which is returned too."""
    numbers = np.zeros(scene.label.shape, np.uint8)
    for number, (_, mask) in enumerate(objects, 1):
        numbers[mask] = number
    image = np.stack([scene.label, numbers, numbers])
    return save(path, image, names=['Red', 'Green', 'Blue'], transform=PLACE), numbers


def test_whole_rasters_come_out_as_they_are_across_tiles(exact, save, tmp_path):
    scene, objects = make_panoptic_scene(160, seed=3)
    path, numbers = write_answer(save, tmp_path / 'scene.tif', scene, objects)
    out = exact.predict_raster(path, tmp_path / 'map.tif', tile_size=64, overlap=32, scale=1.0)
    frame = geopandas.read_file(tmp_path / 'map.gpkg')
    with rasterio.open(out) as src, rasterio.open(path) as original:
        assert (src.count, src.dtypes[0], src.descriptions) == (2, 'uint32', ('class', 'id'))
        assert src.bounds == original.bounds
        classes, ids = src.read().astype(np.int64)
    small = classes == 0
    truth = PanopticMap(torch.from_numpy(np.where(small, 255, scene.label - 1)), torch.from_numpy(numbers).long())
    found = PanopticMap(torch.from_numpy(np.where(small, 255, classes - 1)), torch.from_numpy(ids))
    assert small.mean() < 0.01  # regions of stuff under 64 pixels
    # nothing is split at a tile's edge, nothing joined, nothing moved
    assert len(frame) == len(objects)
    assert count_segments(found, truth, 4)[:, 1:].tolist() == [[1, 0, 0], [1, 0, 0], *(
        [sum(value == kind for value, _ in objects), 0, 0] for kind in (3, 4)
    )]  # fmt: skip
    assert np.nanmin(panoptic_quality(count_segments(found, truth, 4))[0]) > 0.999
    # the layer and the map agree
    assert frame['id'].tolist() == list(range(1, len(objects) + 1))
    for number, value, area in zip(frame['id'], frame['value'], frame['area']):
        assert (classes[ids == number] == value).all()
        assert area == pytest.approx((ids == number).sum() / 4)
    assert not np.isin(classes[ids == 0], [3, 4]).any()
    with pytest.raises(RasterError, match='exists; pass overwrite=True'):
        exact.predict_raster(path, tmp_path / 'map.tif')
    assert not [part for part in tmp_path.iterdir() if part.name.startswith('.geolearn')]


class ExactNetwork(PanopticNetwork):
    """Is right on every pixel of small images; larger ones are refused."""

    def __init__(self, window):
        backbone = SimpleNamespace(strides=(4, 8), takes_missing=False)
        super().__init__(Normalize([0], [1]), backbone, 4, (2, 3), MergeOptions(min_area=1))
        self.window = window

    def segments(self, images):
        assert max(images.shape[-2:]) <= self.window
        return Exact(objects=True)(images)[0], Exact(objects=False)(images)


def test_chips_larger_than_the_images_are_scored_and_drawn_whole(write_panoptic, tmp_path, monkeypatch):
    """In windows, of which the objects and classes are joined as those of the tiles of rasters."""
    chips = write_panoptic(tmp_path / 'chips', 300, 100, told=True)
    data = prepare_data(chips, chip_size=64, batch_size=2, val_split_pct=0.4, transforms=False, working_dir=tmp_path)
    model = PanopticFPN(data, 'test_resnet', head=FEW, pretrained=False)
    model.network = ExactNetwork(64)
    evaluation = model.evaluate()
    assert evaluation.metrics == {name: 1 for name in ('pq', 'sq', 'rq', 'pq_things', 'pq_stuff', 'covered')}
    assert evaluation.per_chip == [1] * len(data.valid_ds)
    assert evaluation.segments.pixels.tolist() == [100 * 100 * len(data.valid_ds)] * 2
    report = panoptic_report(model.spec, model.network, data, evaluation, typical_side=20)
    assert report.headline[0] == ('PQ', '1.000')
    for ax in model.show_results(rows=2).axes:
        assert {shown.get_array().shape[:2] for shown in ax.images} == {(100, 100)}
    # before the training, not after it
    monkeypatch.setitem(sys.modules, 'shapely', None)
    with pytest.raises(MissingExtraError, match='to evaluate segments on chips larger than chip_size; install it with'):
        model.make_scores()


class Interrupted(BaseException):
    """Stands for a signal: nothing catches it."""


def interrupt(*_, **__):
    raise Interrupted


@pytest.mark.parametrize('at', [3, 'vectors.write_layer', 'RasterWriter'])
def test_an_interrupted_run_is_resumed_to_the_same_bytes_and_polygons(exact, save, tmp_path, monkeypatch, at):
    """It stops while objects are sought, and before and after the layer is written."""
    scene, objects = make_panoptic_scene(128, seed=3)
    path, _ = write_answer(save, tmp_path / 'scene.tif', scene, objects)
    options = {'tile_size': 64, 'overlap': 32, 'scale': 1.0, 'batch_size': 1}
    whole = exact.predict_raster(path, tmp_path / 'whole.tif', **options)
    target = tmp_path / 'map.tif'
    with pytest.raises(CheckpointError, match=r'no .*map\.tif\.part to resume; run without resume=True'):
        exact.predict_raster(path, target, **options, resume=True)
    plain, calls = Exact.forward, []

    def forward(self, images):
        calls.append(self.objects)
        if calls.count(True) == at:
            raise Interrupted
        return plain(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Exact, 'forward', forward)
        if isinstance(at, str):
            patch.setattr(f'geolearn.inference.panoptic.{at}', interrupt)
        with pytest.raises(Interrupted):
            exact.predict_raster(path, target, **options)
    assert not target.exists()
    everything, calls[:] = (calls.count(False), calls.count(True)), []
    with pytest.raises(CheckpointError, match='threshold'):
        exact.predict_raster(path, target, **options, threshold=0.2, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(Exact, 'forward', lambda self, images: calls.append(self.objects) or plain(self, images))
        exact.predict_raster(path, target, **options, resume=True)
    if at == 3:
        assert calls.count(False) == 0 < calls.count(True) < 9
    else:
        assert not calls
        assert min(everything) > 3
    assert target.read_bytes() == whole.read_bytes()
    one, other = (geopandas.read_file(each.with_suffix('.gpkg')) for each in (target, whole))
    assert one.equals(other)
    assert not list(tmp_path.glob('*.part'))


KILLED = """
import json, os, signal, sys
import torch
import geolearn.models.panoptic as model
from geolearn.inference import panoptic, store
from geolearn.models import load_model
from geolearn.raster.writing import RasterWriter
from test_panoptic_models import Exact

torch.set_num_threads(1)
store.PIECE_SECONDS = 0.0
model.Things = lambda network: Exact(objects=True)
model.Classes = lambda network: Exact(objects=False)

def killing(function, count, counts=lambda *given: True):
    calls = []

    def call(*given, **named):
        calls.extend([1] * counts(*given))
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **named)

    return call

def run(holder, name, *when, **options):
    # forks before any thread is begun
    if (child := os.fork()) == 0:
        setattr(holder, name, killing(getattr(holder, name), *when))
        load_model(sys.argv[1]).predict_raster(sys.argv[2], sys.argv[3], **json.loads(sys.argv[4]), **options)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, name

run(Exact, 'forward', 5, lambda self, _: not self.objects)
run(Exact, 'forward', 3, lambda self, _: self.objects, resume=True)
run(panoptic.vectors, 'write_layer', 1, resume=True)
run(RasterWriter, 'write', 1, resume=True)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='forks')
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes_and_polygons(exact, save, tmp_path):
    """While classes are mapped, while objects are sought, before the layer is written, and in the map after it."""
    scene, objects = make_panoptic_scene(128, seed=3)
    path, _ = write_answer(save, tmp_path / 'scene.tif', scene, objects)
    options = {'tile_size': 64, 'overlap': 32, 'scale': 1.0, 'batch_size': 1}
    bundle, target = exact.save(tmp_path / 'm.dlpk', compute_metrics=False), tmp_path / 'map.tif'
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    arguments = [str(bundle), str(path), str(target), json.dumps(options)]
    done = subprocess.run(
        [sys.executable, '-c', KILLED, *arguments], env=environment, capture_output=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert not target.exists()
    assert (tmp_path / 'map.tif.part').is_dir()
    model = load_model(bundle)
    model.predict_raster(path, target, **options, resume=True)
    whole = model.predict_raster(path, tmp_path / 'whole.tif', **options)
    assert target.read_bytes() == whole.read_bytes()
    one, other = (geopandas.read_file(each.with_suffix('.gpkg')) for each in (target, whole))
    assert len(one) == len(objects)
    assert one.equals(other)
    beside = [each.name for each in tmp_path.iterdir()]
    assert not [name for name in beside if name.endswith('.part') or name.startswith('.geolearn')], beside


def test_a_run_that_cannot_begin_leaves_nothing(exact, save, tmp_path):
    path = save(tmp_path / 'scene.tif', np.ones((3, 64, 64), np.uint8), names=['a', 'b', 'c'], transform=PLACE)
    with pytest.raises(RasterError):
        exact.predict_raster(path, tmp_path / 'map.tif')
    assert [part.name for part in tmp_path.iterdir()] == ['scene.tif']


def test_objects_are_laid_over_classes_by_falling_score():
    masks = torch.zeros(3, 20, 20, dtype=torch.bool)
    masks[0, 2:10, 2:10] = masks[1, 4:10, 2:10] = masks[2, 12:18, 12:18] = True
    found = Detections(torch.zeros(3, 4), torch.tensor([2, 3, 2]), torch.tensor([0.9, 0.8, 0.4]), masks)
    logits = torch.zeros(3, 20, 20)
    logits[0] = 1
    logits[1, :, 15:] = 2
    logits[1, 0, 0] = 2  # a region of one pixel
    logits[2, 12:18, 12:18] = 3
    merged, kept = merge_segments(found, logits, (0, 1), MergeOptions(min_area=4))
    assert kept.scores.tolist() == pytest.approx([0.9])  # hidden, and unlikely
    assert (merged.ids == 1).sum() == 64
    assert (merged.classes[masks[0]] == 2).all()
    assert merged.classes[0, 0] == 255
    assert (merged.classes[masks[2]] == 255).all()
    assert (merged.classes[19, 16:] == 1).all()
    assert len(merge_segments(found, logits, (0, 1), MergeOptions(0.3, 0.0))[1]) == 2
    with pytest.raises(ValueError, match='min_area'):
        MergeOptions(min_area=-1)


def test_labels_without_stuff_or_things_are_refused(write_panoptic, tmp_path):
    chips = write_panoptic(tmp_path / 'chips', 96, 48)
    for ignored, match in (([3, 4], 'no trained class .* has objects'), ([1, 2], 'none is stuff')):
        data = prepare_data(chips, chip_size=48, batch_size=2, val_split_pct=0.5, ignore_classes=ignored)
        with pytest.raises(ChipFolderError, match=match):
            PanopticFPN(data, 'test_resnet', pretrained=False)


def test_many_objects_and_an_area_where_a_class_has_the_value_of_no_data(exact, save, tmp_path):
    infos = (ClassInfo(0, 'grass', (0, 99, 0)), *exact.spec.class_infos[1:])
    model = PanopticFPN.of(replace(exact.spec, class_infos=infos), exact.network)
    classes, numbers = np.ones((112, 112), np.uint16), np.zeros((112, 112), np.uint16)
    for number, (row, col) in enumerate(np.ndindex(17, 16), 1):
        part = np.s_[6 * row + 2 : 6 * row + 6, 6 * col + 2 : 6 * col + 6]
        classes[part], numbers[part] = 3, number
    image = np.stack([classes, numbers, numbers])
    path = save(tmp_path / 'scene.tif', image, names=['Red', 'Green', 'Blue'], transform=PLACE)
    triangle = shapely.Polygon([PLACE @ corner for corner in ((0, 0), (112, 0), (0, 111))])
    for area in (None, triangle):
        out = model.predict_raster(
            path, tmp_path / 'map.tif', tile_size=128, scale=1.0, threshold=0.1, aoi=area, overwrite=True
        )
        with rasterio.open(out) as src:
            found, ids = src.read()
            inside = found != src.nodata
            seen = src.read_masks(2) > 0
        if area is None:
            assert len(np.unique(ids)) == 17 * 16 + 1
            assert inside.all()
            assert seen.all()
        else:
            outside = ~geometry_mask([triangle], ids.shape, PLACE, invert=True)
            assert outside.sum() > 6000
            assert not ids[outside].any()
            assert not inside[outside].any()
            assert len(np.unique(ids)) > 100


def test_outlines_that_segments_cannot_have_are_refused(exact, tmp_path):
    with pytest.raises(UnknownNameError, match="'rectangle'.*exact, orthogonal, simplified"):
        exact.predict_raster(tmp_path / 'none.tif', tmp_path / 'map.tif', outline='rectangle')


def test_objects_of_rasters_have_the_least_score_that_the_model_was_made_with(exact, save, tmp_path):
    options = {**exact.spec.options, 'merge': {**exact.spec.options['merge'], 'threshold': 0.95}}
    model = PanopticFPN.of(replace(exact.spec, options=options), exact.network)
    numbers = np.zeros((64, 64), np.uint8)
    numbers[20:40, 20:40] = 1
    image = np.stack([np.where(numbers, 3, 1), numbers, numbers]).astype(np.uint8)
    path = save(tmp_path / 'scene.tif', image, names=['Red', 'Green', 'Blue'], transform=PLACE)
    for threshold, count in ((None, 1), (0.5, 2)):
        out = model.predict_raster(path, tmp_path / 'map.tif', scale=1.0, threshold=threshold, overwrite=True)
        with rasterio.open(out) as src:
            assert len(np.unique(src.read(2))) == count
