"""Objects of whole rasters: found once, in the right place, written as layers."""

from typing import get_args

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geolearn.classes import ClassInfo
from geolearn.inference.detecting import detect_tiles
from geolearn.inference.merging import Merge
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.outlines import outline_mask
from geolearn.inference.placing import DetectOptions, merge_tiles
from geolearn.inference.source import Source
from geolearn.inference.vectors import objects_to_features, write_layer
from geolearn.raster import open_raster, raster_geobox
from geolearn.tiling import make_grid

CLASSES = (ClassInfo(5, 'tree', (0, 200, 0)),)
CRS = 'EPSG:32633'
PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)

pytestmark = pytest.mark.usefixtures('one_thread')


def detect(path, network, *, tile=64, halo=16, **options):
    with open_raster(path) as dataset:
        grid = make_grid(dataset.shape, tile_size=tile, halo=halo)
        given = {'read': ReadOptions(), 'tiling': TilingOptions(), 'options': DetectOptions(**options)}
        parts = detect_tiles([Source(dataset, (1,))], network, grid, **given)
        return merge_tiles(parts, grid, given['options'], None), raster_geobox(dataset)


def sorted_boxes(found):
    return sorted(found.boxes.round().astype(int).tolist())


PLACED = st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(4, 20))


@given(
    places=st.lists(PLACED, max_size=8, unique_by=lambda place: place[:2]),
    shift=st.integers(0, 8),
    tile=st.sampled_from([64, 96]),
    masks=st.booleans(),
    merge=st.sampled_from(get_args(Merge)),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_square_is_found_once_wherever_tiles_meet(
    places, shift, tile, masks, merge, draw, save, detector, tmp_path
):
    boxes = [
        (30 * c + shift, 30 * r + shift, 30 * c + shift + side, 30 * r + shift + side) for c, r, side in places
    ]  # fmt: skip
    image = draw((160, 220), boxes)
    found, _ = detect(save(tmp_path / 'squares.tif', image), detector(masks=masks), tile=tile, merge=merge)
    assert sorted_boxes(found) == sorted(map(list, boxes))
    if masks and boxes:
        assert sorted(outline.bounds for outline in found.outlines) == sorted(boxes)


@pytest.mark.parametrize('merge', get_args(Merge))
def test_a_long_object_is_put_together_from_many_tiles(draw, save, detector, tmp_path, merge):
    found, _ = detect(save(tmp_path / 'road.tif', draw((200, 300), [(5, 90, 290, 100)])), detector(), merge=merge)
    assert sorted_boxes(found) == [[5, 90, 290, 100]]


@pytest.mark.parametrize('merge', get_args(Merge))
def test_outlines_that_bend_are_put_together_from_many_tiles(draw, save, detector, tmp_path, merge):
    image = draw((200, 300), [(5, 90, 290, 100), (150, 20, 160, 90)])  # a T upside down, in one piece
    found, _ = detect(save(tmp_path / 'road.tif', image), detector(masks=True), merge=merge)
    assert sorted_boxes(found) == [[5, 20, 290, 100]]
    assert found.outlines[0].area == 285 * 10 + 10 * 70


@pytest.mark.parametrize('merge', get_args(Merge))
def test_flipped_looks_find_the_same(draw, save, detector, tmp_path, merge):
    boxes = [(3, 4, 20, 14), (60, 50, 75, 70), (100, 90, 118, 96)]
    path = save(tmp_path / 'a.tif', draw((128, 128), boxes))
    found, _ = detect(path, detector(), augment=True, merge=merge)
    assert sorted_boxes(found) == sorted(map(list, boxes))
    assert found.scores == pytest.approx([0.9] * 3)


def test_a_raster_smaller_than_a_tile_is_looked_at_whole(draw, save, detector, tmp_path):
    found, _ = detect(save(tmp_path / 'small.tif', draw((20, 33), [(10, 5, 33, 20)])), detector(masks=True))
    assert sorted_boxes(found) == [[10, 5, 33, 20]]
    assert found.outlines[0].bounds == (10, 5, 33, 20)


def test_nothing_is_found_where_nothing_is(draw, save, detector, tmp_path):
    found, box = detect(save(tmp_path / 'dark.tif', draw((100, 100), [])), detector())
    frame = objects_to_features(found, box, CLASSES, outlined=False)
    assert len(frame) == 0
    assert list(frame.columns) == ['Class', 'value', 'Confidence', 'area', 'geometry']


def test_features_carry_class_confidence_and_area(draw, save, detector, tmp_path):
    path = save(tmp_path / 'a.tif', draw((100, 100), [(10, 20, 30, 50)]), transform=PLACE)
    frame = objects_to_features(*detect(path, detector()), CLASSES, outlined=False)
    row = frame.iloc[0]
    assert (row['Class'], row['value'], row['Confidence'], row['area']) == ('tree', 5, 90, 200 * 300)
    assert row.geometry.bounds == (500_100, 4_999_500, 500_300, 4_999_800)
    assert frame.crs == CRS
    read = geopandas.read_file(write_layer(frame, tmp_path / 'trees.geojson'))
    assert read.crs == 'EPSG:4326'
    assert read.to_crs(CRS).geometry[0].area == pytest.approx(60_000, rel=1e-3)


def test_a_turned_raster_gives_turned_boxes(draw, save, detector, tmp_path):
    turned = PLACE @ Affine.rotation(30)
    path = save(tmp_path / 'turned.tif', draw((100, 100), [(10, 20, 30, 50)]), transform=turned)
    frame = objects_to_features(*detect(path, detector()), CLASSES, outlined=False)
    corners = [turned @ corner for corner in ((10, 20), (30, 20), (30, 50), (10, 50))]
    assert frame.geometry[0].equals_exact(shapely.normalize(shapely.Polygon(corners)), 1e-6)
    assert frame['area'][0] == pytest.approx(60_000)


def test_in_degrees_areas_are_square_meters(draw, save, detector, tmp_path):
    place = Affine(0.0001, 0, 15, 0, -0.0001, 48)
    path = save(tmp_path / 'degrees.tif', draw((100, 100), [(10, 20, 30, 50)]), transform=place, crs='EPSG:4326')
    frame = objects_to_features(*detect(path, detector()), CLASSES, outlined=False)
    meters = frame.to_crs(CRS).geometry.area
    assert frame['area'][0] == pytest.approx(meters[0], rel=2e-3)


def test_in_feet_areas_are_square_feet(draw, save, detector, tmp_path):
    place = Affine(2, 0, 900_000, 0, -2, 200_000)
    path = save(tmp_path / 'feet.tif', draw((100, 100), [(10, 20, 30, 50)]), transform=place, crs='EPSG:2263')
    frame = objects_to_features(*detect(path, detector()), CLASSES, outlined=False)
    assert frame['area'][0] == 20 * 30 * 2 * 2


def test_outlines_become_multipolygons(draw, save, detector, tmp_path):
    path = save(tmp_path / 'a.tif', draw((100, 100), [(10, 20, 30, 50), (60, 60, 70, 80)]), transform=PLACE)
    frame = objects_to_features(*detect(path, detector(masks=True)), CLASSES, outlined=True)
    assert set(frame.geom_type) == {'MultiPolygon'}
    assert sorted(frame['area']) == [20_000, 60_000]


def test_simplified_outlines_have_few_corners_and_orthogonal_ones_right_angles():
    rows, cols = np.mgrid[:80, :80]
    turned = (
        np.cos(0.4) * (cols - 40) + np.sin(0.4) * (rows - 40),
        np.cos(0.4) * (rows - 40) - np.sin(0.4) * (cols - 40),
    )
    mask = (np.abs(turned[0]) < 25) & (np.abs(turned[1]) < 14)
    box = np.array([0.0, 0, 80, 80])
    exact, simple, square = (outline_mask(mask, box, kind=kind) for kind in ('exact', 'simplified', 'orthogonal'))
    assert exact.area == mask.sum()
    assert shapely.get_num_coordinates(simple) < shapely.get_num_coordinates(exact) / 3
    sides = np.diff(shapely.get_coordinates(square), axis=0)
    assert len(sides) == 4
    assert abs((sides[:-1] * sides[1:]).sum(axis=1)).max() < 1e-6
    assert square.intersection(exact).area / square.union(exact).area > 0.9


def test_what_has_no_right_angles_stays_simplified():
    rows, cols = np.mgrid[:80, :80]
    thin = np.abs(rows - cols) + 4 * np.abs(rows + cols - 80) / 10 < 12
    box = np.array([0.0, 0, 80, 80])
    found = outline_mask(thin, box, kind='orthogonal')
    assert found.is_valid
    assert found.intersection(outline_mask(thin, box)).area > 0.7 * thin.sum()
