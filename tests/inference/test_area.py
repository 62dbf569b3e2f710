"""A part of a raster is mapped as that part of the whole map, wherever its outline comes from."""

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from brighter import Brighter
from rasterio.warp import transform_geom

from geolearn.errors import RasterError
from geolearn.inference.area import AreaOfInterest
from geolearn.inference.detect_raster import detect_raster
from geolearn.inference.encoding import ClassEncoding
from geolearn.inference.mapping import MapOptions, map_raster
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.placing import DetectOptions
from geolearn.raster import GeoBox, write_raster

UTM = Affine(10, 0, 500000, 0, -10, 4000000)


@pytest.fixture
def scene(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 41, (2, 70, 90)).astype(np.int16)
    return write_raster(
        tmp_path / 'scene.tif', pixels, transform=UTM, crs='EPSG:32631', nodata=-1, band_names=('Red', 'Green')
    )


@pytest.fixture
def run(make_spec):
    def run(src, dst, **area):
        spec = make_spec()
        read = ReadOptions(area=AreaOfInterest(**area)) if area else ReadOptions()
        map_raster(
            spec,
            Brighter(),
            ClassEncoding(spec.class_infos),
            src,
            dst,
            read=read,
            tiling=TilingOptions(tile_size=32, halo=4, device='cpu'),
            options=MapOptions(overwrite=True),
        )
        with rasterio.open(dst) as found:
            return found.read(1), found.transform

    return run


def test_a_bounding_box_cuts_the_map_of_the_whole(scene, run, tmp_path):
    whole, _ = run(scene, tmp_path / 'whole.tif')
    part, place = run(scene, tmp_path / 'part.tif', bbox=(500104, 3999500, 500596, 3999899))
    assert (place.c, place.f) == (500100, 3999900)
    np.testing.assert_array_equal(part, whole[10:50, 10:60])


def test_polygons_of_any_source_and_crs_cut_the_same_map(scene, run, tmp_path):
    whole, _ = run(scene, tmp_path / 'whole.tif')
    triangle = shapely.Polygon([(500100, 3999900), (500600, 3999900), (500100, 3999400)])
    frame = geopandas.GeoDataFrame(geometry=[triangle], crs='EPSG:32631')
    frame.to_crs('EPSG:4326').to_file(tmp_path / 'area.geojson')
    frame.to_crs('EPSG:3035').to_parquet(tmp_path / 'area.parquet')
    expected = np.zeros((50, 50), np.uint8)
    rows, cols = np.indices((50, 50))
    inside = rows + cols < 49
    expected[inside] = whole[10:60, 10:60][inside]
    on_edge = rows + cols == 49
    for aoi in (triangle, frame, frame.to_crs('EPSG:4326'), tmp_path / 'area.geojson', str(tmp_path / 'area.parquet'),
                shapely.geometry.mapping(triangle)):  # fmt: skip
        part, place = run(scene, tmp_path / 'part.tif', aoi=aoi)
        assert (place.c, place.f) == (500100, 3999900)
        np.testing.assert_array_equal(part[:50, :50][~on_edge], expected[~on_edge])
    # what lies in both
    part, _ = run(scene, tmp_path / 'part.tif', aoi=triangle, bbox=(500100, 3999700, 500300, 3999900))
    np.testing.assert_array_equal(part, expected[:20, :20])


def test_a_bounding_box_in_degrees_is_reprojected(scene, run, tmp_path):
    outline = transform_geom(
        'EPSG:32631', 'EPSG:4326', shapely.geometry.mapping(shapely.box(500200, 3999500, 500500, 3999800))
    )
    bounds = shapely.geometry.shape(outline).bounds
    part, place = run(scene, tmp_path / 'part.tif', bbox=bounds, bbox_crs='EPSG:4326')
    assert 500170 <= place.c <= 500200
    assert 30 <= part.shape[1] <= 33


def test_holes_and_several_polygons_are_kept(scene, run, tmp_path):
    ring = shapely.box(500000, 3999800, 500200, 4000000).difference(shapely.box(500050, 3999850, 500150, 3999950))
    both = shapely.MultiPolygon([ring, shapely.box(500700, 3999400, 500900, 3999500)])
    part, _ = run(scene, tmp_path / 'part.tif', aoi=both)
    expected = np.zeros((60, 90), bool)
    expected[:20, :20] = True
    expected[5:15, 5:15] = False
    expected[50:60, 70:90] = True
    np.testing.assert_array_equal(part != 0, expected)


def test_rasters_that_are_turned_or_south_up_have_areas_too():
    turned = GeoBox((40, 40), Affine(7, 7, 500000, 7, -7, 4000000), 'EPSG:32631')
    area = AreaOfInterest(bbox=(500200, 3999950, 500300, 4000050)).locate(turned, shown='x')
    inside = area.mask(area.window)
    assert inside.sum() == pytest.approx(100 * 100 / 98, abs=4)
    south = GeoBox((40, 50), Affine(10, 0, 0, 0, 10, 0), None)
    window = AreaOfInterest(bbox=(100, 50, 200, 120)).locate(south, shown='x').window
    assert (window.col_off, window.row_off, window.width, window.height) == (10, 5, 10, 7)


def test_no_overlap_is_refused_with_both_extents(scene, run, tmp_path):
    message = r'bbox covers \(0, 0, 1, 1\) and .*scene.tif covers \(500000, 3999300, 500900, 4000000\).*share no pixel'
    with pytest.raises(RasterError, match=message):
        run(scene, tmp_path / 'part.tif', bbox=(0, 0, 1, 1))
    with pytest.raises(RasterError, match=r'aoi covers \(0, 0, 1, 1\) and .*EPSG:32631.*share no pixel'):
        run(scene, tmp_path / 'part.tif', aoi=shapely.box(0, 0, 1, 1))
    with pytest.raises(RasterError, match='holds the center of none'):
        run(scene, tmp_path / 'part.tif', aoi=shapely.box(500001, 3999991, 500003, 3999993))
    assert not (tmp_path / 'part.tif').exists()


def test_what_is_no_area_is_refused_in_words(scene, run, tmp_path):
    with pytest.raises(ValueError, match='left < right'):
        AreaOfInterest(bbox=(5, 0, 1, 1))
    with pytest.raises(ValueError, match='four numbers'):
        AreaOfInterest(bbox=(5, 0, 1))
    with pytest.raises(ValueError, match='bbox_crs must be a CRS'):
        AreaOfInterest(bbox=(0, 0, 1, 1), bbox_crs='Mars')
    with pytest.raises(RasterError, match='cannot read aoi'):
        run(scene, tmp_path / 'part.tif', aoi=tmp_path / 'none.gpkg')
    with pytest.raises(RasterError, match='set_crs'):
        run(scene, tmp_path / 'part.tif', aoi=geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)]))
    with pytest.raises(RasterError, match='holds no polygon'):
        run(scene, tmp_path / 'part.tif', aoi=shapely.Point(500100, 3999900))
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs='EPSG:4326')
    for layer in ('one', 'two'):
        frame.to_file(tmp_path / 'two.gpkg', layer=layer)
    with pytest.raises(RasterError, match=r'2 layers \(one, two\)'):
        run(scene, tmp_path / 'part.tif', aoi=tmp_path / 'two.gpkg')


@pytest.fixture
def detect(make_spec, draw, detector, tmp_path):
    boxes = [(10, 10, 16, 16), (40, 12, 46, 18), (12, 50, 18, 56), (27, 30, 35, 38), (100, 90, 108, 98)]
    src = write_raster(tmp_path / 'scene.tif', draw((128, 160), boxes), transform=UTM, crs='EPSG:32631')

    def detect(**area):
        dst = detect_raster(
            make_spec(bands=('Red',)),
            detector(),
            src,
            tmp_path / 'found.gpkg',
            typical_side=8,
            masks=False,
            read=ReadOptions(scale=1, area=AreaOfInterest(**area)),
            tiling=TilingOptions(tile_size=32, device='cpu'),
            options=DetectOptions(),
            overwrite=True,
        )
        bounds = (geopandas.read_file(dst).geometry.bounds - [500000, 4000000, 500000, 4000000]) / 10
        return sorted((left, -top, right, -bottom) for left, bottom, right, top in bounds.to_numpy().tolist())

    return detect


def test_objects_are_detected_in_the_area_alone(detect):
    assert detect(bbox=(500300, 3999700, 500640, 4000000)) == [(40, 12, 46, 18)]
    triangle = shapely.Polygon([(500000, 4000000), (500480, 4000000), (500000, 3999520)])
    assert detect(aoi=triangle) == [(10, 10, 16, 16)]


def test_objects_across_the_edge_of_an_area_are_whole_and_belong_to_one_side(detect):
    # the edge cuts the box from 27 to 35 at column 32, behind its middle
    assert detect(bbox=(500000, 3998720, 500320, 4000000)) == [(10, 10, 16, 16), (12, 50, 18, 56), (27, 30, 35, 38)]
    assert detect(bbox=(500320, 3998720, 501600, 4000000)) == [(40, 12, 46, 18), (100, 90, 108, 98)]


def test_the_layer_of_an_area_is_never_the_target(detect, tmp_path):
    layer = tmp_path / 'found.gpkg'
    triangle = shapely.Polygon([(500000, 4000000), (500480, 4000000), (500000, 3999520)])
    geopandas.GeoSeries([triangle], crs=32631).to_file(layer)
    before = layer.read_bytes()
    with pytest.raises(RasterError, match='is a layer that this run reads'):
        detect(aoi=layer)
    assert layer.read_bytes() == before
