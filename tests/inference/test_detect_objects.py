"""`detect_objects` from raster to layer: options, formats, and runs that were killed and go on."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import distributed
import geopandas
import numpy as np
import pyarrow.parquet
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from square_detector import SquareDetector

from geolearn.errors import CheckpointError, UnknownNameError
from geolearn.inference import cluster
from geolearn.models import load_model
from geolearn.models.object_detector import FasterRCNN, MaskRCNN
from geolearn.prepare import prepare_data

pytestmark = pytest.mark.usefixtures('one_thread')

CRS = 'EPSG:32633'
PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
BOXES = [(10, 20, 30, 50), (60, 60, 78, 70), (100, 130, 112, 148), (170, 20, 190, 35), (40, 230, 62, 250)]
COLUMNS = ['Class', 'value', 'Confidence', 'area']


@pytest.fixture(scope='module')
def bundles(square_chips, tmp_path_factory):
    """A detector of boxes and one of outlines, untrained, as files."""
    folder = tmp_path_factory.mktemp('bundles')

    def save(cls, kind):
        data = prepare_data(square_chips(kind, side=256), chip_size=64, batch_size=4, working_dir=folder)
        model = cls(data, 'test_resnet', pretrained=False)
        model.spec = replace(model.spec, cell_size=None)  # scenes here are of other pixel sizes
        return model.save(folder / f'{cls.__name__}.dlpk')

    return {False: save(FasterRCNN, 'PASCAL_VOC_rectangles'), True: save(MaskRCNN, 'RCNN_Masks')}


@pytest.fixture
def make(bundles):
    """A detector whose network finds bright squares exactly."""

    def make(*, masks=False, **options):
        model = load_model(bundles[masks])
        model.network = SquareDetector(masks=masks, **options)
        return model

    return make


@pytest.fixture
def scene(draw, save, tmp_path):
    """A raster of five bright squares, 15 tiles of 64 pixels."""
    return save(tmp_path / 'scene.tif', draw((260, 200), BOXES, bands=3), transform=PLACE, crs=CRS)


OPTIONS = {'scale': 1, 'bands': ['Red', 'Green', 'Blue'], 'tile_size': 64, 'overlap': 32, 'batch_size': 2}


def detect(model, src, dst, **options):
    return model.detect_objects(src, dst, **OPTIONS | options)


def read(path):
    return geopandas.read_parquet(path) if path.suffix == '.parquet' else geopandas.read_file(path)


def placed(box, transform=PLACE):
    left, top, right, bottom = box
    corners = [(left, top), (left, bottom), (right, bottom), (right, top)]
    return shapely.Polygon([transform @ corner for corner in corners])


def same_layers(one, other):
    return one.geometry.geom_equals(other.geometry).all() and one.drop(columns='geometry').equals(
        other.drop(columns='geometry')
    )


# -- layers


@pytest.mark.parametrize('masks', [False, True])
@pytest.mark.parametrize('suffix', ['.gpkg', '.shp', '.parquet', '.geojson'])
def test_objects_are_written_with_class_confidence_and_area(make, scene, tmp_path, suffix, masks):
    frame = read(detect(make(masks=masks), scene, tmp_path / f'found{suffix}'))
    assert list(frame.columns) == [*COLUMNS, 'geometry']
    assert set(frame['Class']) == {'white'}
    assert set(frame['value']) == {1}
    assert frame['Confidence'].tolist() == [90] * 5
    assert sorted(frame['area']) == sorted(100 * (r - le) * (b - t) for le, t, r, b in BOXES)
    assert frame.crs == ('EPSG:4326' if suffix == '.geojson' else CRS)
    found = frame.geometry.to_crs(CRS)
    for box in BOXES:
        assert found.intersection(placed(box)).area.max() == pytest.approx(placed(box).area, rel=1e-4)
    assert sorted(path.name for path in tmp_path.glob('found*.part')) == []


def test_qgis_draws_outlines_in_the_colors_of_the_classes(make, scene, tmp_path):
    model = make()
    info = replace(model.spec.class_infos[0], name='a < b & c', color=(1, 2, 3))
    model.spec = replace(model.spec, class_infos=(info,))
    style = detect(model, scene, tmp_path / 'found.gpkg').with_suffix('.qml')
    root = ElementTree.parse(style).getroot()
    assert root.find('renderer-v2').get('attr') == 'value'
    assert [(row.get('value'), row.get('label')) for row in root.iter('category')] == [('1', 'a < b & c')]
    options = {row.get('name'): row.get('value') for row in root.iter('Option')}
    assert (options['outline_color'], options['style']) == ('1,2,3,255', 'no')
    other = detect(model, scene, tmp_path / 'scene.gpkg')  # scene.tif would be loaded with scene.qml
    assert other.with_name('scene.gpkg.qml').is_file()
    assert not other.with_suffix('.qml').exists()


@pytest.mark.parametrize('suffix', ['.gpkg', '.shp', '.parquet'])
@pytest.mark.parametrize('masks', [False, True])
def test_without_objects_the_layer_has_the_schema_of_others(make, draw, save, tmp_path, suffix, masks):
    dark = save(tmp_path / 'dark.tif', draw((100, 90), [], bands=3), transform=PLACE, crs=CRS)
    bright = save(tmp_path / 'bright.tif', draw((100, 90), BOXES[:2], bands=3), transform=PLACE, crs=CRS)
    none, some = (detect(make(masks=masks), src, tmp_path / f'{src.stem}{suffix}') for src in (dark, bright))
    assert len(read(none)) == 0
    assert read(none).crs == CRS
    if suffix == '.parquet':
        one, other = (pyarrow.parquet.read_schema(path) for path in (none, some))
        assert one.names == other.names
        assert one.types == other.types
    else:
        one, other = (pyogrio.read_info(path) for path in (none, some))
        assert list(one['fields']) == list(other['fields']) == COLUMNS
        assert list(one['ogr_types']) == list(other['ogr_types'])
        assert one['geometry_type'] == other['geometry_type']


def test_geojson_without_objects_is_an_empty_collection(make, draw, save, tmp_path):
    dark = save(tmp_path / 'dark.tif', draw((100, 90), [], bands=3), transform=PLACE, crs=CRS)
    path = detect(make(), dark, tmp_path / 'none.geojson')
    assert json.loads(path.read_text())['features'] == []


def test_shapes_of_rasters_in_degrees_and_turned_ones_lie_on_the_ground(make, draw, save, tmp_path):
    turned = Affine(1e-4, 2e-5, 15, 2e-5, -1e-4, 48)
    path = save(tmp_path / 'turned.tif', draw((50, 90), BOXES[:1], bands=3), transform=turned, crs='EPSG:4326')
    frame = read(detect(make(), path, tmp_path / 'found.gpkg'))
    assert frame.geometry[0].equals_exact(shapely.normalize(placed(BOXES[0], turned)), 1e-9)
    assert frame['area'][0] == pytest.approx(frame.to_crs(CRS).geometry.area[0], rel=2e-3)


def test_outlines_across_the_files_of_a_mosaic_are_those_of_one_raster(make, scene, save, tmp_path):
    """The seam cuts two objects, and the later file is of other pixels beyond its NoData."""
    with rasterio.open(scene) as src:
        pixels = src.read()
    upper, lower = pixels[:, :120].copy(), pixels[:, 60:].copy()
    lower[:, :5] = -1  # which may not cover what the upper file holds
    below = PLACE @ Affine.translation(0, 60)
    tiles = [
        save(tmp_path / 'a.tif', upper, transform=PLACE, crs=CRS, nodata=-1),
        save(tmp_path / 'b.tif', lower, transform=below, crs=CRS, nodata=-1),
    ]
    one = read(detect(make(masks=True), scene, tmp_path / 'one.gpkg'))
    many = read(detect(make(masks=True), tiles, tmp_path / 'many.gpkg'))
    assert len(one) == len(BOXES)
    assert same_layers(one, many)


def test_a_raster_without_data_and_areas_that_are_none_are_said(make, save, scene, tmp_path, caplog):
    pixels = np.full((3, 70, 70), 1e300)
    pixels[:, :35] = np.nan
    detect(make(), save(tmp_path / 'a.tif', pixels, transform=PLACE, crs=CRS), tmp_path / 'a.gpkg')
    assert 'a.tif holds no data where objects are detected; none can be' in caplog.text
    square = placed(BOXES[0])
    area = geopandas.GeoSeries([square, square.centroid, square.exterior], crs=CRS)
    assert len(read(detect(make(), scene, tmp_path / 'b.gpkg', aoi=area))) == 1
    assert '2 of 3 features of aoi are points or lines; they have no area and are left out' in caplog.text


@pytest.mark.parametrize('outline', ['simplified', 'orthogonal'])
def test_plainer_outlines_on_request(make, save, tmp_path, outline):
    rows, cols = np.mgrid[:128, :128]
    along, across = (rows - 64) * 0.8 + (cols - 64) * 0.6, (cols - 64) * 0.8 - (rows - 64) * 0.6
    bright = np.repeat(((abs(along) < 24) & (abs(across) < 13))[None], 3, axis=0).astype(np.float32)
    path = save(tmp_path / 'turned.tif', bright, transform=PLACE, crs=CRS)
    model = make(masks=True)
    exact, plain = (
        read(detect(model, path, tmp_path / f'{kind}.gpkg', outline=kind, tile_size=128)) for kind in ('exact', outline)
    )
    assert len(plain) == 1
    assert plain.geometry.count_coordinates()[0] < exact.geometry.count_coordinates()[0] / 3
    assert plain.intersection(exact).area[0] / plain.union(exact).area[0] > 0.85


def test_looking_four_times_finds_the_same_and_computes_four_times_as_much(make, scene, tmp_path):
    once, often = make(), make()
    one = read(detect(once, scene, tmp_path / 'one.gpkg'))
    other = read(detect(often, scene, tmp_path / 'other.gpkg', augment=True))
    assert same_layers(one, other)
    assert often.network.calls == 4 * once.network.calls
    pixels = np.zeros((3, 40, 50), np.float32)
    pixels[:, 5:20, 8:30] = 1
    assert often.predict(pixels, scale=1, augment=True).boxes.tolist() == [[8, 5, 30, 20]]


def test_ways_to_merge_that_do_not_exist_are_refused(make, scene, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown merge 'soft-nms'; did you mean 'soft_nms'"):
        detect(make(), scene, tmp_path / 'found.gpkg', merge='soft-nms')


# -- resuming


class Stopped(Exception):
    """What ends a run in these tests."""


def stop():
    raise Stopped


def begin(model_of, scene, dst, *, ends_at=4, **options):
    with pytest.raises(Stopped):
        detect(model_of(ends_at=ends_at, end=stop, masks=options.pop('masks', False)), scene, dst, **options)
    return dst.with_name(f'{dst.name}.part')


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from square_detector import SquareDetector
from geolearn.inference import cluster
from geolearn.models import load_model
model = load_model(sys.argv[2])
model.network = SquareDetector(masks=True, ends_at=4)
options = {'scale': 1, 'bands': ['Red', 'Green', 'Blue'], 'tile_size': 64, 'overlap': 32, 'batch_size': 2}
model.detect_objects(sys.argv[3], sys.argv[4], **options)
"""


def test_a_killed_run_goes_on_where_it_was(make, bundles, scene, tmp_path):
    wanted, dst = make(masks=True), tmp_path / 'killed.gpkg'
    arguments = [str(path) for path in (Path(__file__).parent, bundles[True], scene, dst)]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, '-c', SCRIPT, *arguments], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not dst.exists()
    unbroken = read(detect(wanted, scene, tmp_path / 'whole.gpkg'))
    rest = make(masks=True)
    found = read(detect(rest, scene, dst, resume=True))
    assert same_layers(found, unbroken)
    assert len(found) == len(BOXES)
    assert rest.network.calls == wanted.network.calls - 4
    assert not list(tmp_path.glob('*.part'))


@pytest.mark.parametrize('ends_at', [0, 1, 7])
@pytest.mark.parametrize('options', [{}, {'masks': True, 'merge': 'soft_nms'}, {'merge': 'weighted', 'augment': True}])
def test_a_resumed_run_ends_as_the_unbroken_one(make, scene, tmp_path, ends_at, options):
    dst, masks = tmp_path / 'broken.parquet', options.get('masks', False)
    begin(make, scene, dst, ends_at=ends_at, **options)
    options = {name: value for name, value in options.items() if name != 'masks'}
    found = read(detect(make(masks=masks), scene, dst, resume=True, **options))
    assert same_layers(found, read(detect(make(masks=masks), scene, tmp_path / 'whole.parquet', **options)))


def test_a_run_may_be_killed_again_and_again(make, scene, tmp_path):
    dst = tmp_path / 'broken.gpkg'
    begin(make, scene, dst, ends_at=2)
    for _ in range(2):
        begin(make, scene, dst, ends_at=2, resume=True)
    rest = make()
    assert len(read(detect(rest, scene, dst, resume=True))) == len(BOXES)
    whole = make()
    detect(whole, scene, tmp_path / 'whole.gpkg')
    assert rest.network.calls == whole.network.calls - 6


@pytest.mark.parametrize('torn', [b'{"tiles_done": 12, "boxes": [[1.0, 2', b'\0' * 30])
def test_a_line_that_a_kill_broke_off_counts_as_never_written(make, scene, tmp_path, torn):
    dst = tmp_path / 'broken.gpkg'
    part = begin(make, scene, dst)
    with part.open('ab') as file:
        file.write(torn)
    assert len(read(detect(make(), scene, dst, resume=True))) == len(BOXES)


def test_a_layer_that_could_not_be_written_is_written_without_looking_again(make, scene, tmp_path, monkeypatch):
    dst = tmp_path / 'full.gpkg'
    with monkeypatch.context() as patch:
        patch.setattr('geolearn.inference.vectors.write_layer', lambda *_, **__: stop())
        with pytest.raises(Stopped):
            detect(make(), scene, dst)
    rest = make()
    assert len(read(detect(rest, scene, dst, resume=True))) == len(BOXES)
    assert rest.network.calls == 0


def test_there_must_be_a_run_to_resume(make, scene, tmp_path):
    with pytest.raises(CheckpointError, match=r'there is no .*new\.gpkg\.part to resume; run without resume=True'):
        detect(make(), scene, tmp_path / 'new.gpkg', resume=True)
    (tmp_path / 'new.gpkg.part').write_bytes(b'')
    with pytest.raises(CheckpointError, match='holds nothing to resume'):
        detect(make(), scene, tmp_path / 'new.gpkg', resume=True)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'threshold': 0.4}, r'threshold \(then 0\.5, now 0\.4\)'),
        ({'merge': 'soft_nms'}, r'merge \(then nms, now soft_nms\)'),
        ({'overlap': 0}, 'differs: tiles'),
        ({'batch_size': 3}, r'batch_size \(then 2, now 3\)'),
        ({'augment': True}, r'augment \(then False, now True\)'),
    ],
)
def test_a_run_with_other_options_is_refused(make, scene, tmp_path, change, said):
    dst = tmp_path / 'broken.gpkg'
    part = begin(make, scene, dst)
    kept = part.read_bytes()
    with pytest.raises(CheckpointError, match=f'is of another run; what differs: .*{said.removeprefix("differs: ")}'):
        detect(make(), scene, dst, resume=True, **change)
    assert part.read_bytes() == kept


def test_a_run_of_another_raster_or_other_weights_is_refused(make, scene, tmp_path):
    dst = tmp_path / 'broken.gpkg'
    begin(make, scene, dst)
    other = make()
    other.network.weight.data += 1
    with pytest.raises(CheckpointError, match='what differs: weights'):
        detect(other, scene, dst, resume=True)
    os.utime(scene, (1, 1))
    with pytest.raises(CheckpointError, match=r'what differs: raster\. Resume with the same raster, model and options'):
        detect(make(), scene, dst, resume=True)


@pytest.mark.parametrize(
    'line',
    [
        b'no JSON',
        b'[]',
        b'{}',
        b'{"tiles_done": 12, "boxes": [[1, 2, 3]], "labels": [0], "scores": [1], "tiles": [0]}',
        b'{"tiles_done": 12, "boxes": [[1, 2, 3, 4]], "labels": [], "scores": [1], "tiles": [0]}',
        b'{"tiles_done": 12, "boxes": [[1, 2, 3, NaN]], "labels": [0], "scores": [1], "tiles": [0]}',
        b'{"tiles_done": 12, "boxes": [[1, 2, 3, 4]], "labels": [0], "scores": [1], "tiles": [0], "outlines": ["0x"]}',
        b'{"tiles_done": 0, "boxes": [], "labels": [], "scores": [], "tiles": []}',
        b'{"tiles_done": 1e999, "boxes": [], "labels": [], "scores": [], "tiles": []}',
    ],
)
def test_what_geolearn_did_not_write_is_refused(make, scene, tmp_path, line):
    dst = tmp_path / 'broken.gpkg'
    part = begin(make, scene, dst, ends_at=1)
    part.write_bytes(part.read_bytes() + line + b'\n')
    with pytest.raises(CheckpointError, match='is broken, or was not written by geolearn; run without resume=True'):
        detect(make(), scene, dst, resume=True)


def test_a_new_run_replaces_an_unfinished_one_and_says_so(make, scene, tmp_path, caplog):
    dst = tmp_path / 'broken.gpkg'
    begin(make, scene, dst)
    model = make()
    assert len(read(detect(model, scene, dst))) == len(BOXES)
    assert 'of an unfinished run is replaced; pass resume=True to continue' in caplog.text
    whole = make()
    detect(whole, scene, tmp_path / 'whole.gpkg')
    assert model.network.calls == whole.network.calls


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(make, scene, tmp_path):
    (tmp_path / 'found.gpkg.part').mkdir()
    model = make()
    with pytest.raises(CheckpointError, match=r'found\.gpkg\.part, which keeps the finished tiles, cannot be opened'):
        detect(model, scene, tmp_path / 'found.gpkg')
    assert model.network.calls == 0


@pytest.mark.parametrize('masks', [False, True])
def test_parts_make_the_layer_of_one_machine(make, scene, tmp_path, masks):
    parts, whole = tmp_path / 'parts.geojson', tmp_path / 'whole.geojson'
    for number in (3, 1):
        assert detect(make(masks=masks), scene, parts, part=(number, 3)) == tmp_path / f'{parts.name}.part'
    with pytest.raises(CheckpointError, match=r'2 of 3 parts of .* are computed; missing: 2\.'):
        detect(make(masks=masks), scene, parts, merge_parts=True)
    with pytest.raises(CheckpointError, match='holds parts of a run; compute the others and pass merge_parts=True'):
        detect(make(masks=masks), scene, parts)
    network = make(masks=masks)
    detect(network, scene, parts, part=(2, 3))
    again = make(masks=masks)
    detect(again, scene, parts, part=(2, 3))
    assert network.network.calls > again.network.calls == 0
    detect(make(masks=masks), scene, parts, merge_parts=True)
    detect(make(masks=masks), scene, whole)
    found, expected = (json.loads(path.read_text())['features'] for path in (parts, whole))
    assert found == expected != []
    assert not list(tmp_path.glob('*.part'))


@pytest.mark.slow
def test_workers_of_a_cluster_detect_what_one_machine_does(bundles, scene, tmp_path):
    model, options = load_model(bundles[False]), {'threshold': 0.05, 'nms_overlap': 0.5}
    whole = detect(model, scene, tmp_path / 'whole.geojson', **options)
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=':0') as local,
        distributed.Client(local) as client,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(cluster, 'BLOCK_PIXELS', 10_000)
        found = detect(model, scene, tmp_path / 'found.geojson', client=client, **options)
    features, expected = (json.loads(path.read_text())['features'] for path in (found, whole))
    assert features == expected != []
    assert not list(tmp_path.glob('*.part'))
