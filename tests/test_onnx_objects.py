"""Objects of a bundle's ONNX graph are those of detect_objects, where torch cannot be imported."""

import json
import shutil
import signal
import subprocess
import sys
import zipfile
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
from torch import nn

import geolearn.models
from geolearn import extras
from geolearn.arcgis import DetectObjects, raster_functions
from geolearn.backbones.custom import ModuleBackbone, register_module
from geolearn.bands import Band
from geolearn.bundle import read_bundle, read_emd
from geolearn.classes import ClassInfo
from geolearn.errors import (
    ArgumentError,
    BundleError,
    CheckpointError,
    ExportError,
    GeoLearnError,
    MissingExtraError,
    RasterError,
)
from geolearn.inference import detecting, engines, overlapping, tuning
from geolearn.inference.geojson import write_geojson
from geolearn.inference.merging import TileDetections
from geolearn.inference.picking import pick_objects
from geolearn.inference.vectors import objects_to_features
from geolearn.models import (
    FCOS,
    FasterRCNN,
    FeatureClassifier,
    RetinaNet,
    RotatedFCOS,
    RTDetr,
    SingleShotDetector,
    base,
)
from geolearn.networks.detection.architecture import (
    DetectorOptions,
    RotatedOptions,
    SingleStageOptions,
    TransformerOptions,
)
from geolearn.networks.detection.detector import Places
from geolearn.networks.spec import ModelSpec
from geolearn.normalize import Normalization
from geolearn.onnx import OnnxModel, load_model
from geolearn.oriented import geometry
from geolearn.raster import GeoBox
from geolearn.stac import describe_bundle
from geolearn.statistics import BandStatistics

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
pytestmark = pytest.mark.usefixtures('one_thread')

CRS, PLACE = 'EPSG:32633', Affine(10, 0, 500_000, 0, -10, 5_000_000)
TILES = {'tile_size': 96, 'overlap': 32, 'threshold': 0.4}

NO_TORCH = """
import sys
for name in ('torch', 'torchvision', 'fastai', 'timm', 'shapely', 'scipy', 'pandas', 'geopandas', 'pyproj'):
    sys.modules[name] = None
"""


class Levels(nn.Module):
    """Three maps by convolutions whose windows do not overlap: an export takes as long as a network has layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(2, 8, 8, stride=8), *(nn.Conv2d(8, 8, 2, stride=2) for _ in range(2))])

    def forward(self, x):
        maps = []
        for layer in self.layers:
            x = layer(x).relu()
            maps.append(x)
        return maps


def build(cls, *, resize_to=None):
    """A detector whose random weights give objects everywhere."""
    torch.manual_seed(0)
    name = f'levels of {cls.__name__}'
    register_module(ModuleBackbone(Levels(), channels=(8, 8, 8), strides=(8, 16, 32), name=name))
    head = SingleStageOptions(width=64 if cls is FCOS else 32, topk_candidates=50, score_thresh=0.3)
    if cls is RotatedFCOS:
        head = RotatedOptions(width=8, depth=1, topk_candidates=50, score_thresh=0.3)
    if cls is RTDetr:
        head = TransformerOptions(num_queries=30, detections_per_img=20, decoder_layers=1, score_thresh=0.3)
    sizes, ratios = (), ()
    if cls.architecture.per_level:
        sizes, ratios = tuple((8.0 * 2**level, 12.0 * 2**level) for level in range(5)), (1.0, 2.0)
    options = DetectorOptions(sizes, ratios, resize_to, typical_side=20.0, head=head)
    spec = ModelSpec(
        model=cls.__name__,
        backbone=name,
        bands=(Band('Red', 0.66, 'red'), Band('NIR', 0.84, 'nir')),
        class_infos=(ClassInfo(3, 'ship', (200, 0, 0)), ClassInfo(300, 'quay & mole', (0, 0, 200))),
        ignored_values=(),
        chip_size=64,
        statistics=BandStatistics((0, 0), (255, 255), (100, 120), (20, 30)),
        normalization=Normalization((100.0, 120.0), (20.0, 30.0), 'given'),
        dtype='uint8',
        options=options.to_json(),
    )
    network = cls.build(spec).eval()
    for name, weight in network.named_parameters():
        if weight.dim() > 1:
            wide = name.startswith('head') and cls is not RTDetr
            nn.init.normal_(weight, std=(2.0 if wide else 1.0 if cls is RTDetr else 0.5) / weight[0].numel() ** 0.5)
        elif name.endswith('bias'):
            nn.init.zeros_(weight)
    return cls.of(spec, network)


@pytest.fixture(scope='module')
def models():
    """One of them has no pooled levels, whose odd sizes take most of the time of an export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RotatedFCOS, 'architecture', replace(RotatedFCOS.architecture, pooled=0))
        yield {cls: build(cls) for cls in (FCOS, RotatedFCOS)}


@pytest.fixture(scope='module')
def bundle(models, tmp_path_factory):
    return models[RotatedFCOS].save(tmp_path_factory.mktemp('bundle') / 'm.dlpk', export='onnx')


@pytest.fixture(scope='module')
def runner(models):
    return run_by_torch(models[FCOS])


def run_by_torch(model):
    """Torch in the place of a graph: writing towers of convolutions as one takes a minute."""

    def run(_, given):
        with torch.inference_mode():
            return [Places(model.network)(torch.from_numpy(given['images'])).numpy()]

    return OnnxModel(model.spec, model.graph_facts(model.network), SimpleNamespace(run=run))


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(110, 40, (2, *shape)).clip(1, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def scene(save, tmp_path_factory):
    """150 x 210 pixels, some without data."""
    pixels = noise((150, 210))
    pixels[:, :40, :70] = 0
    path = tmp_path_factory.mktemp('scene') / 's.tif'
    return save(path, pixels, names=('Red', 'NIR'), nodata=0, transform=PLACE, crs=CRS)


# -- picking


@pytest.mark.parametrize('cls', [RetinaNet, FCOS, SingleShotDetector, RotatedFCOS])
def test_picked_objects_are_those_of_the_network_for_images_of_any_size(cls):
    model = build(cls)
    images = torch.from_numpy(noise((50, 70)).astype(np.float32)).repeat(2, 1, 1, 1)
    images[0, :, :9] = torch.nan
    filled = nn.functional.pad(images, (0, 26, 0, 14), value=torch.nan)
    with torch.no_grad():
        expected = model.network(images)[0]
        outputs = Places(model.network)(filled).numpy()
    found = pick_objects(outputs, model.graph_facts(model.network).detection, (64, 96), (50, 70))
    for one, other in zip(found, expected):
        order = np.argsort(-other.scores.numpy(), kind='stable')
        assert len(one) == len(other) > 5
        assert np.allclose(one.boxes, other.boxes.numpy()[order], atol=1e-3)
        assert np.allclose(one.scores, other.scores.numpy()[order], atol=1e-6)
        assert np.array_equal(one.labels, other.labels.numpy()[order])
        if cls is RotatedFCOS:
            assert np.allclose(one.turned, other.turned.numpy()[order], atol=1e-3)
    few = pick_objects(outputs, model.graph_facts(model.network).detection, (64, 96), (50, 70), threshold=0.6)
    assert [len(each) for each in few] == [int((each.scores >= 0.6).sum()) for each in expected]


def test_picked_objects_of_zoomed_images_are_in_pixels_of_the_image():
    model = build(FCOS, resize_to=96)
    images = torch.from_numpy(noise((64, 96)).astype(np.float32))[None]
    with torch.no_grad():
        (expected,), outputs = model.network(images)[0], Places(model.network)(images).numpy()
    (found,) = pick_objects(outputs, model.graph_facts(model.network).detection, (64, 96), (64, 96))
    order = np.argsort(-expected.scores.numpy(), kind='stable')
    assert len(found) > 5
    assert np.allclose(found.boxes, expected.boxes.numpy()[order], atol=1e-3)


def test_boxes_are_compared_without_a_spatial_index_where_shapely_is_missing(monkeypatch):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 400, (900, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 30, (900, 2))], 1)
    labels = rng.integers(0, 2, 900)
    expected = set(zip(*(column.tolist() for column in overlapping.touching_pairs(boxes, labels))))
    monkeypatch.setattr(overlapping.extras, 'is_installed', lambda name: False)
    monkeypatch.setattr(overlapping, 'ROWS_AT_ONCE', 1000)
    assert set(zip(*(column.tolist() for column in overlapping.touching_pairs(boxes, labels)))) == expected


# -- rasters


def pixel_corners(path, transform=PLACE, crs=CRS):
    """Corners (n, 4, 2) of a layer's polygons in pixels of the raster, with classes and confidences, in one order."""
    frame = geopandas.read_file(path)
    if not len(frame):
        return np.zeros((0, 4, 2)), [], []
    inverse = ~transform
    rings = np.stack([np.sort(shapely.get_coordinates(shape)[:4], axis=0) for shape in frame.to_crs(crs).geometry])
    places = np.stack([np.stack(inverse @ (ring[:, 0], ring[:, 1]), -1) for ring in rings])
    order = np.lexsort(places[:, 0].round(2).T)
    return places[order], frame['Class'].to_numpy()[order], frame['Confidence'].to_numpy()[order]


@pytest.mark.parametrize('cls', [FCOS, RotatedFCOS])
@pytest.mark.parametrize('merge', ['nms', 'weighted'])
def test_objects_are_those_of_detect_objects(models, request, scene, tmp_path, cls, merge):
    options = TILES | {'merge': merge}
    expected = pixel_corners(models[cls].detect_objects(scene, tmp_path / 'torch.gpkg', **options))
    given = request.getfixturevalue('runner' if cls is FCOS else 'bundle')
    runner = given if cls is FCOS else load_model(given)
    for suffix in ('.gpkg', '.geojson'):
        found = pixel_corners(runner.detect_objects(scene, tmp_path / f'onnx{suffix}', **options))
        assert len(found[0]) == len(expected[0]) > 20
        assert np.abs(found[0] - expected[0]).max() < 1e-3
        assert np.array_equal(found[1], expected[1])
        assert np.allclose(found[2], expected[2], atol=0.011)


@pytest.mark.parametrize(('cls', 'augment'), [(RetinaNet, True), (FCOS, 'flips'), (RotatedFCOS, True)])
def test_augmented_objects_are_those_of_detect_objects(models, bundle, scene, tmp_path, cls, augment):
    options = TILES | {'threshold': 0.2}
    model = models[cls] if cls in models else build(cls)
    runner = load_model(bundle) if cls is RotatedFCOS else run_by_torch(model)
    expected = pixel_corners(model.detect_objects(scene, tmp_path / 'torch.gpkg', augment=augment, **options))
    found = pixel_corners(runner.detect_objects(scene, tmp_path / 'onnx.geojson', augment=augment, **options))
    assert len(found[0]) == len(expected[0]) > 20
    assert np.abs(found[0] - expected[0]).max() < 1e-2
    assert np.array_equal(found[1], expected[1])
    assert np.allclose(found[2], expected[2], atol=0.011)
    once = pixel_corners(runner.detect_objects(scene, tmp_path / 'once.geojson', **options))
    assert len(once[0]) != len(found[0]) or not np.allclose(once[2], found[2], atol=1)


def test_ways_to_augment_that_there_are_not_are_refused(models, bundle, scene, tmp_path):
    for model in (models[FCOS], load_model(bundle)):
        with pytest.raises(GeoLearnError, match='augment'):
            model.detect_objects(scene, tmp_path / 'o.geojson', augment='turns')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['bbox', 'features'])
def test_objects_of_a_part_are_those_of_detect_objects(models, bundle, scene, tmp_path, name):
    corners = [PLACE @ corner for corner in ((40, 20), (170, 60), (110, 130))]
    polygon = shapely.Polygon(corners)
    area = {
        'bbox': {'bbox': polygon.bounds},
        'features': {'aoi': geopandas.GeoSeries([polygon], crs=CRS).to_crs('EPSG:4326')},
    }[name]
    expected = pixel_corners(models[RotatedFCOS].detect_objects(scene, tmp_path / 'torch.gpkg', **TILES, **area))
    found = pixel_corners(load_model(bundle).detect_objects(scene, tmp_path / 'onnx.gpkg', **TILES, **area))
    whole = pixel_corners(load_model(bundle).detect_objects(scene, tmp_path / 'whole.gpkg', **TILES))
    assert 3 < len(found[0]) == len(expected[0]) < len(whole[0])
    assert np.abs(found[0] - expected[0]).max() < 1e-3
    assert np.array_equal(found[1], expected[1])


def test_a_layer_is_resumed_to_the_same_bytes_and_is_written_by_one_run_at_once(bundle, scene, tmp_path, monkeypatch):
    options = TILES | {'batch_size': 1}
    (tmp_path / 'whole').mkdir()  # a layer holds its name
    whole = load_model(bundle).detect_objects(scene, tmp_path / 'whole' / 'onnx.geojson', **options).read_bytes()
    target, runner, count = tmp_path / 'onnx.geojson', load_model(bundle), []
    run = runner.run

    def stop(images):
        count.append(len(images))
        with pytest.raises(CheckpointError, match='another process writes'):
            load_model(bundle).detect_objects(scene, target, **options)
        if len(count) == 4:
            raise KeyboardInterrupt
        return run(images)

    monkeypatch.setattr(runner, 'run', stop)
    with pytest.raises(KeyboardInterrupt):
        runner.detect_objects(scene, target, **options)
    runner.detect_objects(scene, target, resume=True, **options)
    assert len(count) > 4
    assert target.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir() if 'onnx' in path.name) == ['onnx.geojson']


KILLED = """
import os, signal, sys
for name in ('torch', 'torchvision', 'fastai', 'timm'):
    sys.modules[name] = None
from geolearn import onnx
calls, step = [], sys.argv[4]

def die_in(owner, name, count):
    plain = getattr(owner, name)
    def dying(*given, **more):
        calls.append(name)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*given, **more)
    setattr(owner, name, dying)

die_in(*{'tile': (onnx.OnnxModel, 'run', 8), 'layer': (os, 'replace', 1)}[step])
options = {'tile_size': 96, 'overlap': 32, 'threshold': 0.3, 'batch_size': 1, 'augment': step == 'tile'}
onnx.load_model(sys.argv[1]).detect_objects(sys.argv[2], sys.argv[3], **options)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='SIGKILL')
@pytest.mark.parametrize(('step', 'suffix'), [('tile', '.geojson'), ('tile', '.gpkg'), ('layer', '.geojson')])
def test_a_killed_detection_is_resumed_to_the_same_layer(bundle, scene, tmp_path, monkeypatch, step, suffix):
    """Killed in the second of six tiles, each of which is computed four times, or while the layer is written."""
    options = TILES | {'threshold': 0.3, 'batch_size': 1, 'augment': step == 'tile'}
    target, whole = (tmp_path / name / f'onnx{suffix}' for name in ('killed', 'whole'))
    for path in (target, whole):
        path.parent.mkdir()
    arguments = [str(path) for path in (bundle, scene, target)]
    done = subprocess.run([sys.executable, '-c', KILLED, *arguments, step], capture_output=True, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not target.exists()
    assert target.with_name(f'{target.name}.part').exists()
    count, run = [], OnnxModel.run
    monkeypatch.setattr(OnnxModel, 'run', lambda self, images: count.append(1) or run(self, images))
    runner = load_model(bundle)
    runner.detect_objects(scene, whole, **options)
    tiles = len(count)
    count.clear()
    runner.detect_objects(scene, target, resume=True, **options)
    assert len(count) == (tiles - 4 if step == 'tile' else 0)
    if suffix == '.geojson':
        assert target.read_bytes() == whole.read_bytes()
    found, expected = (pixel_corners(path) for path in (target, whole))
    assert len(found[0]) > 5
    assert all(np.array_equal(one, other) for one, other in zip(found, expected))
    assert not [path for path in target.parent.iterdir() if 'part' in path.name or 'tmp' in path.name]


@pytest.mark.parametrize('augment', [False, True])
def test_it_runs_where_neither_torch_nor_shapely_can_be_imported(models, bundle, scene, tmp_path, augment):
    code = '\n'.join((NO_TORCH, 'from geolearn.onnx import main', 'main(sys.argv[1:])'))
    arguments = [str(bundle), str(scene), str(tmp_path / 'onnx.geojson'), '--threshold', '0.4']
    arguments += ['--augment'] * augment
    done = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    options = {'threshold': 0.4, 'augment': augment}
    expected = pixel_corners(models[RotatedFCOS].detect_objects(scene, tmp_path / 'torch.gpkg', **options))
    found = pixel_corners(tmp_path / 'onnx.geojson')
    assert len(found[0]) == len(expected[0]) > (5 if augment else 20)
    assert np.abs(found[0] - expected[0]).max() < (1e-2 if augment else 1e-3)


@pytest.mark.parametrize('crs', ['EPSG:32601', 'EPSG:4326', 'EPSG:2263'])
def test_geojson_without_libraries_has_the_columns_of_layers(tmp_path, crs):
    """In meters across the antimeridian, in degrees, in feet."""
    places = {
        'EPSG:32601': Affine(10, 0, 207_900, 0, -10, 5_700_000),
        'EPSG:4326': Affine(1e-4, 2e-5, 15, 2e-5, -1e-4, 48),
        'EPSG:2263': Affine(3, 0, 980_000, 0, -3, 200_000),
    }
    box = GeoBox((200, 2000), places[crs], crs)
    turned = geometry.canonical(np.array([[20.0, 30, 14, 6, 0.4], [400, 60, 30, 5, -1.2], [1500, 20, 9, 8.5, 1.0]]))
    objects = TileDetections(
        geometry.hulls(turned), np.array([0, 1, 0]), np.array([0.5, 0.9, 0.7]), np.zeros(3, np.int64), turned=turned
    )
    classes = (ClassInfo(3, 'ship', (200, 0, 0)), ClassInfo(300, 'quay', (0, 0, 200)))
    expected = objects_to_features(objects, box, classes, outlined=False, oriented=True)
    path = write_geojson(objects, tmp_path / 'a.geojson', box, classes, oriented=True)
    rows = json.loads(path.read_text())['features']
    for number, row in enumerate(rows):
        wanted = expected.iloc[number]
        assert list(row['properties']) == [name for name in expected.columns if name != 'geometry']
        for name in ('Class', 'value', 'Confidence'):
            assert row['properties'][name] == wanted[name]
        for name in ('area', 'length', 'width', 'angle'):
            assert row['properties'][name] == pytest.approx(wanted[name], rel=1e-5, abs=0.011)
    found = geopandas.read_file(path).to_crs(crs)
    for one, other in zip(found.geometry, expected.geometry):
        assert one.normalize().symmetric_difference(other).area < 1e-4 * other.area
    parts = [shapely.get_parts(shapely.geometry.shape(row['geometry'])) for row in rows]
    assert all(shape.exterior.is_ccw for row in parts for shape in row)
    assert any(len(row) == 2 for row in parts) == (crs == 'EPSG:32601' and bool(crosses(expected)))


def crosses(frame):
    degrees = frame.to_crs('EPSG:4326').geometry
    return [shape for shape in degrees if shape.bounds[2] - shape.bounds[0] > 180]


def test_odd_rasters(runner, models, save, tmp_path, caplog):
    model = models[FCOS]
    given = {'names': ('Red', 'NIR'), 'nodata': 0, 'transform': PLACE, 'crs': CRS}
    empty = save(tmp_path / 'empty.tif', np.zeros((2, 70, 90), np.uint8), **given)
    path = runner.detect_objects(empty, tmp_path / 'empty.geojson')
    assert json.loads(path.read_text())['features'] == []
    assert 'empty.tif holds no data where objects are detected' in caplog.text
    for name, shape in (('line', (90, 1)), ('dot', (1, 1)), ('small', (40, 50))):
        raster = save(tmp_path / f'{name}.tif', noise(shape, 3), **given)
        one, other = (
            pixel_corners(each.detect_objects(raster, tmp_path / f'{name}-{number}.gpkg', threshold=0.4))
            for number, each in enumerate((model, runner))
        )
        assert len(one[0]) == len(other[0])
        assert np.allclose(one[0], other[0], atol=1e-3)
    pixels = noise((60, 80))
    straight = save(tmp_path / 'straight.tif', pixels, **given)
    extra = np.concatenate([pixels[1:], np.full_like(pixels[:1], 9), pixels[:1]])
    swapped = save(tmp_path / 'swapped.tif', extra, **given | {'names': ('NIR', 'Blue', 'Red')})
    one, other = (runner.detect_objects(p, p.with_suffix('.geojson'), threshold=0.4) for p in (straight, swapped))
    assert json.loads(one.read_text())['features'] == json.loads(other.read_text())['features'] != []


def test_what_does_not_fit_is_refused(bundle, save, scene, tmp_path, monkeypatch):
    runner = load_model(bundle)
    copied = Path(shutil.copy(scene, tmp_path / 'scene.geojson'))
    with pytest.raises(RasterError, match='is the raster to map'):
        runner.detect_objects(copied, copied, overwrite=True)
    copied.unlink()
    other = save(tmp_path / 'other.tif', noise((40, 40))[:1], names=('Red',), transform=PLACE, crs=CRS)
    with pytest.raises(RasterError, match="no bands fit 'NIR'"):
        runner.detect_objects(other, tmp_path / 'o.geojson')
    nowhere = save(tmp_path / 'nowhere.tif', noise((40, 40)), names=('Red', 'NIR'), transform=PLACE, crs=None)
    with pytest.raises(RasterError, match='GeoJSON is in WGS84'):
        runner.detect_objects(nowhere, tmp_path / 'o.geojson')
    with pytest.raises(ValueError, match='threshold must be in 0..1'):
        runner.detect_objects(scene, tmp_path / 'o.geojson', threshold=2)
    with pytest.raises(BundleError, match='detects objects; call detect_objects'):
        runner.predict_raster(scene, tmp_path / 'o.tif')
    monkeypatch.setitem(sys.modules, 'geopandas', None)
    with pytest.raises(MissingExtraError):
        runner.detect_objects(scene, tmp_path / 'o.gpkg')
    assert not [path for path in tmp_path.iterdir() if path.suffix != '.tif']
    wrong = replace(runner.facts.detection, strides=(8, 16))
    runner.facts = replace(runner.facts, detection=wrong)
    with pytest.raises(BundleError, match='its manifest says that there are'):
        runner.detect_objects(scene, tmp_path / 'o.geojson')
    assert not (tmp_path / 'o.geojson').exists()


@pytest.mark.parametrize(
    'change',
    [
        {'detection': None},
        {'output': 'classes'},
        {'detection': {'strides': [0]}},
        {'detection': {'most_candidates': 10**9}},
        {'detection': {'score_thresh': 'low'}},
        {'detection': {'unknown': 1}},
    ],
)
def test_manifests_that_no_detector_has_are_refused(bundle, tmp_path, change):
    emd = read_emd(bundle)
    row = emd['geolearn']['exports']['onnx']
    detection = change.get('detection')
    row |= {'detection': row['detection'] | detection} if isinstance(detection, dict) else change
    broken = tmp_path / 'broken.dlpk'
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(broken, 'w') as new:
        for name in old.namelist():
            new.writestr(name, json.dumps(emd) if name.endswith('.emd') else old.read(name))
    with pytest.raises(BundleError, match='the manifest is broken'):
        load_model(broken)


# -- bundles


def test_the_manifest_states_differences_of_boxes_and_of_scores(bundle):
    row = read_bundle(bundle).manifest['exports']['onnx']
    assert 0 <= row['largest_difference'] <= row['bound']
    assert 0 <= row['largest_score_difference'] <= row['score_bound'] <= 1e-3
    assert (row['output'], row['size'], row['detection']['strides']) == ('objects', None, [8, 16, 32])


def test_detectors_of_two_stages_say_why_they_are_not_written():
    assert 'differs from image to image' in FasterRCNN.not_exported
    assert not RetinaNet.not_exported
    assert not FeatureClassifier.not_exported
    model = build(FCOS)
    model.not_exported = FasterRCNN.not_exported
    with pytest.raises(ExportError, match='use detect_objects'):
        model.save('m.dlpk', export='onnx')


@pytest.fixture(scope='module')
def transformer():
    pytest.importorskip('transformers')
    return build(RTDetr)


@pytest.fixture(scope='module')
def transformer_bundle(transformer, tmp_path_factory):
    return transformer.save(tmp_path_factory.mktemp('rtdetr') / 'm.dlpk', export=('onnx', 'torch'))


@pytest.mark.parametrize(
    ('shape', 'resize_to'), [((50, 70), None), ((200, 130), None), ((20, 97), None), ((70, 90), 96)]
)
def test_queries_of_every_window_are_picked_as_the_network_picks_them(shape, resize_to):
    pytest.importorskip('transformers')
    model = build(RTDetr, resize_to=resize_to)
    facts = model.graph_facts(model.network).detection
    images = torch.from_numpy(noise(shape).astype(np.float32))[None]
    filled = [-(-side // 32) * 32 for side in shape]
    padded = nn.functional.pad(images, (0, filled[1] - shape[1], 0, filled[0] - shape[0]), value=torch.nan)
    with torch.no_grad():
        (expected,), outputs = model.network(padded)[0], Places(model.network)(padded).numpy()
    (found,) = pick_objects(outputs, facts, tuple(filled), tuple(filled))
    order = np.argsort(-expected.scores.numpy(), kind='stable')
    assert len(found) == len(expected) > 5
    assert np.allclose(found.boxes, expected.boxes.numpy()[order], atol=1e-3)
    assert np.allclose(found.scores, expected.scores.numpy()[order], atol=1e-5)
    assert np.array_equal(found.labels, expected.labels.numpy()[order])


@pytest.mark.parametrize('augment', [False, True])
def test_objects_of_a_transformer_are_those_of_detect_objects(
    transformer, transformer_bundle, scene, tmp_path, monkeypatch, augment
):
    options = TILES | {'augment': augment}
    expected = pixel_corners(transformer.detect_objects(scene, tmp_path / 'torch.gpkg', **options))
    loaded = geolearn.models.load_model(transformer_bundle)
    monkeypatch.setattr(base, 'export_network', None)  # the bundle's graph is taken
    runner = load_model(transformer_bundle)
    found = (
        runner.detect_objects(scene, tmp_path / 'onnx.geojson', **options),
        loaded.detect_objects(scene, tmp_path / 'onnx.gpkg', engine='onnx', **options),
    )
    for one in map(pixel_corners, found):
        assert len(one[0]) == len(expected[0]) > (5 if augment else 20)
        assert np.abs(one[0] - expected[0]).max() < (1e-2 if augment else 2e-3)
        assert np.array_equal(one[1], expected[1])
        assert np.allclose(one[2], expected[2], atol=0.011)


def test_the_manifest_states_the_windows_of_a_transformer(transformer, transformer_bundle, tmp_path):
    exports = read_bundle(transformer_bundle).manifest['exports']
    for row in exports.values():
        assert 0 <= row['largest_difference'] <= row['bound']
        assert 0 <= row['largest_score_difference'] <= row['score_bound'] <= 1e-3
        assert (row['size'], row['detection']['window'], row['detection']['boxes_per_place']) == (None, 64, 30)
    assert set(exports) == {'onnx', 'torch'}
    with pytest.raises(ExportError, match='takes its queries from other places'):
        transformer.save(tmp_path / 'm.dlpk', export='onnx-int8')


def test_a_stac_item_describes_a_detector(bundle):
    pystac = pytest.importorskip('pystac')
    row = describe_bundle(bundle)
    output = row['properties']['mlm:output'][0]
    assert output['result']['shape'] == [-1, -1, 7]
    assert output['result']['dim_order'] == ['batch', 'place', 'box-and-class']
    assert 'ONNX graph' in row['assets']['model']['description']
    pystac.Item.from_dict(row | {'links': []})


def detect_in_arcgis(bundle, pixels, folder, **parameters):
    """Call the raster function of an unpacked bundle as ArcGIS Pro does, for one block."""
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    (emd,) = Path(folder).glob('*.emd')
    function = DetectObjects()
    function.initialize(model=str(emd), device=-1)
    names = [row['name'] for row in function.getParameterInfo()]
    function.getConfiguration(tile_size='96', padding='8', threshold='0.4', **parameters)
    mask = (pixels > 0).astype('u1')
    features = json.loads(function.vectorize(raster_pixels=pixels, raster_mask=mask)['output_vectors'])['features']
    return names, function, features


@pytest.mark.parametrize('augment', ['False', 'True'])
def test_the_raster_function_of_arcgis_runs_the_graph_without_torch(bundle, scene, tmp_path, monkeypatch, augment):
    given = {'test_time_augmentation': augment}
    with rasterio.open(scene) as src:
        pixels = src.read()[:, :96, :96]
    names, function, expected = detect_in_arcgis(bundle, pixels, tmp_path / 'torch', **given)
    padding = function._usual_tiling()
    monkeypatch.setattr(raster_functions, 'find_spec', lambda name: None)
    without, function, found = detect_in_arcgis(bundle, pixels, tmp_path / 'graph', **given)
    assert function._usual_tiling() == padding
    assert names == without
    assert len(found) == len(expected) > (2 if augment == 'True' else 5)
    for one, other in zip(found, expected):
        assert one['attributes'] == pytest.approx(other['attributes'], abs=0.011)
        assert np.allclose(one['geometry']['rings'], other['geometry']['rings'], atol=1e-2)
    nothing = function.vectorize(raster_pixels=0 * pixels, raster_mask=0 * pixels)['output_vectors']
    assert json.loads(nothing)['features'] == []


# -- engines


@pytest.mark.parametrize('engine', ['onnx', 'openvino'])
def test_engines_detect_as_torch_does(models, bundle, scene, tmp_path, monkeypatch, engine):
    if not extras.is_installed(engines.LIBRARIES[engine]):
        pytest.skip(f'{engine} is not installed')
    loaded = geolearn.models.load_model(bundle)
    monkeypatch.setattr(base, 'export_network', None)  # the bundle's graph is taken
    options = TILES | {'augment': True}
    expected = pixel_corners(models[RotatedFCOS].detect_objects(scene, tmp_path / 'torch.gpkg', **options))
    found = pixel_corners(loaded.detect_objects(scene, tmp_path / 'found.gpkg', engine=engine, **options))
    assert len(found[0]) == len(expected[0]) > 10
    assert np.abs(found[0] - expected[0]).max() < 1e-2


def test_the_fastest_engine_is_taken_and_a_run_is_resumed_with_it(bundle, scene, tmp_path, monkeypatch):
    loaded = geolearn.models.load_model(bundle)
    monkeypatch.setattr(engines, 'installed_engines', lambda precision: ('torch', 'onnx'))
    monkeypatch.setattr(tuning, 'count_rounds', lambda *_: 1)
    monkeypatch.setattr(tuning, 'measure', lambda jobs, **_: {name: 9 * float(name == 'torch') + 1 for name in jobs})
    expected = loaded.detect_objects(scene, tmp_path / 'whole.gpkg', engine='auto', **TILES)
    monkeypatch.setattr(tuning, 'recall', lambda facts: pytest.fail('it is measured again'))
    target, pick = tmp_path / 'broken.gpkg', detecting.pick_objects
    calls = []

    def stop(*given, **more):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return pick(*given, **more)

    monkeypatch.setattr(detecting, 'pick_objects', stop)
    with pytest.raises(KeyboardInterrupt):
        loaded.detect_objects(scene, target, engine='onnx', **TILES)
    loaded.detect_objects(scene, target, engine='auto', resume=True, **TILES)
    for one, other in zip(pixel_corners(expected), pixel_corners(target)):
        assert np.array_equal(one, other)


def test_engines_that_cannot_be_are_refused(models, scene, tmp_path):
    with pytest.raises(ArgumentError, match="leave out engine='onnx'"):
        models[FCOS].detect_objects(scene, tmp_path / 'o.gpkg', engine='onnx', part=(1, 2))
    model = build(FCOS)
    model.not_exported, model._detection_facts = FasterRCNN.not_exported, lambda network: None
    with pytest.raises(ExportError, match='differs from image to image'):
        model.detect_objects(scene, tmp_path / 'o.gpkg', engine='onnx')
    assert not list(tmp_path.iterdir())
    model.detect_objects(scene, tmp_path / 'o.gpkg', engine='auto')
