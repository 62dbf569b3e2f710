"""Roads of a raster become lines: connected across tiles, in place, and up to the edge where they leave it."""

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from small_cnn import small_backbone

from geolearn.chips.export import export_training_data
from geolearn.classes import ClassInfo
from geolearn.cli import main
from geolearn.errors import RasterError
from geolearn.inference import lines as tracing
from geolearn.inference.lines import LineOptions, vectorize_lines
from geolearn.losses import PixelLossOptions
from geolearn.metrics import average_path_length_similarity
from geolearn.models import UNet, load_model
from geolearn.prepare import prepare_data
from geolearn.raster.centerlines import thin
from geolearn.synthetic import ROAD_CLASSES, make_road_scene, write_scene

pytestmark = pytest.mark.usefixtures('one_thread')

ROAD = {1: ClassInfo(1, 'road', (9, 9, 9))}
PLACE = Affine(2, 0, 300_000, 0, -2, 5_000_000)


@pytest.fixture
def write(save, tmp_path):
    """Write probabilities in percent of a mask, and trace them; returns the lines."""

    def traced(mask, *, place=PLACE, crs='EPSG:32633', name='lines.gpkg', **options):
        path = save(tmp_path / 'p.tif', (90 * mask).astype(np.uint8), transform=place, crs=crs)
        with rasterio.open(path, 'r+') as src:
            src.scales = (0.01,)
        return geopandas.read_file(vectorize_lines(path, tmp_path / name, ROAD, LineOptions(**options)))

    return traced


def diagonal(shape, width, *, gap=None):
    """A road from the left edge to the right one, that leaves the raster at both."""
    rows, cols = np.indices(shape)
    off = rows - (20 + 0.5 * cols)
    mask = np.abs(off) * np.cos(np.arctan(0.5)) < width / 2
    if gap:
        mask[:, gap[0] : gap[1]] = False
    return mask


def test_a_road_that_leaves_the_raster_is_one_line_from_edge_to_edge(write):
    frame = write(diagonal((120, 160), 8))
    assert len(frame) == 1
    assert frame.crs == 'EPSG:32633'
    left, _, right, _ = frame.total_bounds
    assert (left, right) == (pytest.approx(300_000, abs=2), pytest.approx(300_320, abs=2))
    # where it lies: half a pixel of a column and row more is half a pixel off
    truth = shapely.LineString([PLACE @ (0.5, 20.5), PLACE @ (159.5, 100)])
    assert shapely.hausdorff_distance(frame.geometry[0], truth) < 3
    assert frame['width'][0] == pytest.approx(16, abs=3)
    assert frame['length'][0] == pytest.approx(truth.length, rel=0.03)
    assert frame['Confidence'][0] == 90
    assert (frame['Class'][0], frame['value'][0]) == ('road', 1)


def test_strips_change_nothing(write, monkeypatch):
    scene, _ = make_road_scene(256, seed=1)
    whole = write(scene.label, most_width=16)
    monkeypatch.setattr(tracing, 'STRIP_PIXELS', 1)
    parts = write(scene.label, most_width=16, name='parts.gpkg')
    assert len(whole) == len(parts)
    assert shapely.equals_exact(whole.geometry.to_numpy(), parts.geometry.to_numpy(), 1e-9).all()


def test_gaps_are_bridged_where_ends_point_at_each_other(write):
    mask = diagonal((120, 160), 8, gap=(70, 84))
    assert len(write(mask, bridge=4.0)) == 2
    joined = write(mask, bridge=30.0, name='joined.gpkg')
    assert len(joined) == 1
    assert joined['length'][0] == pytest.approx(write(diagonal((120, 160), 8), name='w.gpkg')['length'][0], rel=0.02)


def test_spurs_blobs_and_short_pieces_are_left_out(write):
    mask = diagonal((160, 160), 6)
    mask[60:66, 60:64] = True  # a bump at the road
    mask[120:124, 8:20] = True  # shorter than min_length
    mask[4:34, 110:140] = True  # a square of 30 pixels is no line
    frame = write(mask, most_width=16, min_length=20.0)
    assert len(frame) == 1
    assert len(write(mask, most_width=16, min_length=5.0, name='short.gpkg')) == 2


def test_lengths_in_degrees_are_meters_and_no_lines_are_an_empty_layer(write):
    degrees = Affine(2e-5, 0, 15.0, 0, -2e-5, 45.0)
    frame = write(diagonal((120, 160), 8), place=degrees, crs='EPSG:4326')
    assert 200 < frame['length'][0] < 400
    assert 8 < frame['width'][0] < 20
    empty = write(np.zeros((40, 40), bool), name='empty.gpkg')
    assert len(empty) == 0
    assert {'Class', 'value', 'length', 'width', 'Confidence'} <= set(empty.columns)


@pytest.mark.parametrize(
    ('options', 'match'),
    [({'threshold': 0.0}, 'threshold'), ({'bridge': -1.0}, 'bridge'), ({'most_width': 1}, 'most_width')],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        LineOptions(**options)


@pytest.fixture(scope='module')
def roads(tmp_path_factory):
    """A road scene as chips, and a small network trained on it with centerline dice."""
    folder = tmp_path_factory.mktemp('roads')
    scene, _ = make_road_scene(256, seed=0, trees=0.0)
    write_scene(scene, folder / 'scene.tif', folder / 'labels.tif')
    export_training_data(folder / 'scene.tif', folder / 'labels.tif', folder / 'chips', classes=ROAD_CLASSES,
                         tile_size=32)  # fmt: skip
    data = prepare_data(folder / 'chips', chip_size=32, batch_size=4, val_split_pct=0.25, working_dir=folder)
    torch.manual_seed(0)
    loss = PixelLossOptions(dice_fraction=0.3, cldice_fraction=0.3, cldice_steps=4)
    model = UNet(data, 'test_resnet', pretrained=False, loss=loss)
    return model.fit(8, lr=4e-3, checkpoint=False), folder


def test_a_trained_network_draws_the_roads_of_a_raster(roads, tmp_path):
    model, folder = roads
    scores = model.scores()
    assert {'completeness', 'correctness', 'quality', 'apls', 'miou'} <= scores.keys()
    assert {'quality', 'apls'} <= model.history.epochs[-1].keys()
    frame = geopandas.read_file(model.predict_lines(folder / 'scene.tif', tmp_path / 'roads.gpkg', tile_size=128))
    _, truth = make_road_scene(256, seed=0)
    place = Affine(0.5, 0, 400_000, 0, -0.5, 5_400_000)
    true = shapely.unary_union([shapely.LineString([place @ point for point in line]) for line in truth])
    inside = shapely.intersection(true, shapely.box(400_000, 5_399_872, 400_128, 5_400_000))
    found = shapely.unary_union(frame.geometry.to_numpy())
    assert shapely.intersection(inside, found.buffer(1.5)).length > 0.8 * inside.length
    assert shapely.intersection(found, true.buffer(1.5)).length > 0.45 * found.length
    # a raster that is shifted by 3 m would not be found
    moved = shapely.affinity.translate(found, 3, 3)
    assert shapely.intersection(inside, moved.buffer(1.5)).length < 0.5 * inside.length
    assert list(tmp_path.iterdir()) == [tmp_path / 'roads.gpkg']
    with pytest.raises(RasterError, match='exists; pass overwrite=True'):
        model.predict_lines(folder / 'scene.tif', tmp_path / 'roads.gpkg')
    again = load_model(model.save(tmp_path / 'roads.dlpk', compute_metrics=False))
    again.predict_lines(folder / 'scene.tif', tmp_path / 'roads.gpkg', tile_size=128, overwrite=True)
    assert geopandas.read_file(tmp_path / 'roads.gpkg').geometry.equals(frame.geometry)


def test_the_command_line_traces_the_same_lines(roads, tmp_path, capsys):
    model, folder = roads
    path = model.save(tmp_path / 'roads.dlpk', compute_metrics=False)
    main(['lines', str(path), str(folder / 'scene.tif'), str(tmp_path / 'a.gpkg'), '--tile-size', '128',
          '--threshold', '0.4', '--bridge', '10', '--min-length', '30', '--classes', '1'])  # fmt: skip
    assert f'wrote {tmp_path / "a.gpkg"}' in capsys.readouterr().out
    options = {'tile_size': 128, 'threshold': 0.4, 'bridge': 10.0, 'min_length': 30.0}
    frame = geopandas.read_file(model.predict_lines(folder / 'scene.tif', tmp_path / 'b.gpkg', **options))
    assert len(frame) > 0
    assert geopandas.read_file(tmp_path / 'a.gpkg').geometry.equals(frame.geometry)
    with pytest.raises(SystemExit):
        main(['lines', str(path), str(folder / 'scene.tif'), str(tmp_path / 'c.tif')])
    assert 'c.tif' in capsys.readouterr().err


def test_classes_that_are_no_lines_are_refused(roads, scene_data, tmp_path):
    model, folder = roads
    with pytest.raises(ValueError, match=r'among the label values \[0, 1\], got \[7\]'):
        model.predict_lines(folder / 'scene.tif', tmp_path / 'r.gpkg', classes=[7])
    with pytest.raises(ValueError, match='pass cldice_values='):
        UNet(scene_data, 'test_resnet', pretrained=False, loss=PixelLossOptions(cldice_fraction=0.3))


def test_pixels_without_data_are_no_line_at_the_lowest_thresholds(write):
    mask = diagonal((120, 150), 6)
    assert write(mask, threshold=0.002).geometry.length.sum() == pytest.approx(
        write(mask, threshold=0.5, name='usual.gpkg').geometry.length.sum()
    )


@pytest.mark.slow
def test_roads_of_another_scene_are_found_and_connected(tmp_path):
    """Centerline dice 0.91, IoU 0.72 and APLS 0.58 when this was written; a shift of 4 pixels has an APLS near 0."""
    place = Affine(0.5, 0, 400_000, 0, -0.5, 5_400_000)
    for name, size, seed in (('train', 768, 0), ('test', 512, 1)):
        scene, truth = make_road_scene(size, seed=seed, trees=0.0)
        write_scene(scene, tmp_path / f'{name}.tif', tmp_path / f'{name}_labels.tif')
    export_training_data(tmp_path / 'train.tif', tmp_path / 'train_labels.tif', tmp_path / 'chips',
                         classes=ROAD_CLASSES, tile_size=128)  # fmt: skip
    data = prepare_data(tmp_path / 'chips', chip_size=128, batch_size=4, val_split_pct=0.25, working_dir=tmp_path)
    torch.manual_seed(0)
    loss = PixelLossOptions(dice_fraction=0.3, cldice_fraction=0.3, cldice_steps=4)
    model = UNet(data, small_backbone(), loss=loss).fit(20, lr=4e-3, checkpoint=False)
    # tiles as large as the chips: a network this small learns where their edges are
    mapped = model.predict_raster(tmp_path / 'test.tif', tmp_path / 'map.tif', tile_size=128)
    with rasterio.open(mapped) as src:
        guess = src.read(1) == 1
    true = scene.label == 1
    precision, recall = (thin(one)[other].sum() / thin(one).sum() for one, other in ((guess, true), (true, guess)))
    assert 2 * precision * recall / (precision + recall) > 0.8
    frame = geopandas.read_file(model.predict_lines(tmp_path / 'test.tif', tmp_path / 'roads.gpkg', tile_size=128))
    found = [points_of(shapely.LineString([~place @ point for point in line.coords])) for line in frame.geometry]
    inside = shapely.intersection(shapely.multilinestrings([shapely.LineString(line) for line in truth]),
                                  shapely.box(0, 0, 512, 512))  # fmt: skip
    lines = [points_of(line) for line in shapely.node(inside).geoms]
    assert average_path_length_similarity(lines, found) > 0.4
    assert average_path_length_similarity(lines, [line + 4 for line in found]) < 0.2


def points_of(line):
    """The points of a line, a pixel apart."""
    return np.array(shapely.segmentize(line, 1.0).coords)
