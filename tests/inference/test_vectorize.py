"""The polygons of a map: exact across the borders of strips, in bounded memory, with names, colors and a style."""

from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.features import shapes

from geolearn import ClassInfo, vectorize_map
from geolearn.chips.formats.styles import read_raster_style, read_vector_style
from geolearn.cli import main
from geolearn.errors import FileWriteError, RasterError
from geolearn.inference.polygonize import polygonize
from geolearn.raster import GeoBox, RasterWriter, open_raster, write_raster

UTM = Affine(10, 0, 500000, 0, -10, 4000000)


def strips(values, valid, rows):
    for top in range(0, len(values), rows):
        yield values[top : top + rows], None if valid is None else valid[top : top + rows]


def polygons_of(values, valid, rows, **options):
    found = list(polygonize(strips(values, valid, rows), values.shape[1], **options))
    return [np.concatenate([getattr(part, name) for part in found]) for name in ('values', 'pixels', 'shapes')]


def make_map(path, values, *, crs='EPSG:32631', transform=UTM, nodata=0, classes=((1, 'Wald'), (2, 'Wasser'))):
    writer = RasterWriter(
        path,
        GeoBox(values.shape, transform, crs),
        dtype=str(values.dtype),
        nodata=nodata,
        class_names=dict(classes),
        colors={1: (10, 120, 30), 2: (0, 90, 200)},
        band_names=('class',),
    )
    with writer:
        writer.write(0, values)
    return path


def test_polygons_are_those_of_gdal_whatever_the_strips():
    rng = np.random.default_rng(3)
    for trial in range(12):
        height, width = rng.integers(1, 16, 2)
        values = rng.integers(0, rng.integers(2, 5), (height, width)).astype(np.uint8)
        valid = None if trial % 3 == 0 else rng.random((height, width)) > 0.2
        expected = [(shapely.geometry.shape(outline), value) for outline, value in shapes(values, mask=valid)]
        for rows in (1, 3, 99):
            if valid is not None and not valid.any():
                continue
            found, pixels, outlines = polygons_of(values, valid, rows)
            assert shapely.is_valid(outlines).all()
            assert (shapely.area(outlines) == pixels).all()
            assert len(found) == len(expected)
            left = list(expected)
            for value, outline in zip(found, outlines):
                left.remove(next(pair for pair in left if pair[1] == value and pair[0].equals(outline)))


def test_a_group_that_touches_itself_at_a_corner_is_a_valid_polygon_with_a_hole():
    values = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint8)
    _, pixels, outlines = polygons_of(values, values > 0, 2)
    assert shapely.is_valid(outlines).all()
    assert pixels.tolist() == [7]
    assert len(outlines[0].interiors) == 1


def test_a_ring_of_many_strips_is_held_until_it_ends():
    values = np.ones((40, 30), np.uint8)
    values[5:35, 5:25] = 2
    found, pixels, outlines = polygons_of(values, None, 4)
    assert sorted(zip(found.tolist(), pixels.tolist())) == [(1, 600), (2, 600)]
    assert max(shapely.get_num_coordinates(outlines)) == 10


def test_simplified_neighbors_keep_their_common_border():
    rng = np.random.default_rng(0)
    values = np.kron(rng.integers(1, 4, (5, 6)), np.ones((8, 8))).astype(np.uint8)
    for _ in range(120):  # ragged borders
        row, col = rng.integers(1, values.shape[0] - 1), rng.integers(1, values.shape[1] - 1)
        values[row, col] = values[row, col - 1]
    _, _, exact = polygons_of(values, None, 7)
    _, _, simple = polygons_of(values, None, 7, tolerance=1.2)
    assert shapely.get_num_coordinates(simple).sum() < 0.75 * shapely.get_num_coordinates(exact).sum()
    # neither gaps nor overlaps: the areas add up to the whole, and so does the union
    kept = simple[shapely.area(simple) > 0]
    assert shapely.is_valid(kept).all()
    assert shapely.area(kept).sum() == pytest.approx(values.size, rel=1e-9)
    assert shapely.union_all(kept).area == pytest.approx(values.size, rel=1e-9)


def test_a_map_becomes_a_layer_with_names_colors_areas_and_no_nodata(tmp_path):
    values = np.zeros((60, 50), np.uint8)
    values[2:20, 3:30], values[20:58, 10:40], values[50, 49] = 1, 2, 1
    make_map(tmp_path / 'map.tif', values)
    for name in ('polygons.gpkg', 'polygons.parquet'):
        written = vectorize_map(tmp_path / 'map.tif', tmp_path / name)
        reader = geopandas.read_parquet if name.endswith('parquet') else geopandas.read_file
        frame = reader(written).sort_values('area')
        assert frame[['Class', 'value', 'color', 'area']].to_numpy().tolist() == [
            ['Wald', 1, '#0a781e', 100.0],
            ['Wald', 1, '#0a781e', 48600.0],
            ['Wasser', 2, '#005ac8', 114000.0],
        ]
        assert frame.crs == 'EPSG:32631'
        assert frame.geometry.area.tolist() == frame['area'].tolist()
        assert frame.total_bounds.tolist() == [500030, 3999420, 500500, 3999980]
    larger = geopandas.read_file(vectorize_map(tmp_path / 'map.tif', tmp_path / 'large.gpkg', min_area=101))
    assert larger['area'].min() == 48600


def test_a_layer_of_many_batches_is_written_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr('geolearn.inference.vectorize.BATCH', 500)
    monkeypatch.setattr('geolearn.inference.vectorize.STRIP_PIXELS', 40 * 8)
    values = (np.indices((40, 40)).sum(axis=0) % 2 + 1).astype(np.uint8)
    make_map(tmp_path / 'map.tif', values)
    for suffix in ('gpkg', 'parquet', 'geojson', 'shp'):
        written = vectorize_map(tmp_path / 'map.tif', tmp_path / f'many.{suffix}', style=False)
        reader = geopandas.read_parquet if suffix == 'parquet' else geopandas.read_file
        frame = reader(written)
        assert len(frame) == 1600
        assert sorted(frame.columns) == ['Class', 'area', 'color', 'geometry', 'value']


def test_the_styles_of_a_map_and_of_its_polygons_give_back_its_classes(tmp_path):
    values = np.ones((20, 20), np.uint8)
    values[:, 7:] = 2
    make_map(tmp_path / 'map.tif', values)
    vectorize_map(tmp_path / 'map.tif', tmp_path / 'map.gpkg')
    expected = {'1': ('Wald', (10, 120, 30)), '2': ('Wasser', (0, 90, 200))}
    assert read_vector_style(tmp_path / 'map.gpkg', 'value') == expected
    root = ElementTree.parse(tmp_path / 'map.qml').getroot()  # of the raster: both have one name
    assert [entry.attrib for entry in root.iter('paletteEntry')] == [
        {'value': '1', 'label': 'Wald', 'color': '#0a781e', 'alpha': '255'},
        {'value': '2', 'label': 'Wasser', 'color': '#005ac8', 'alpha': '255'},
    ]
    # GDAL's own copy has neither tags nor table, and the style beside it
    with rasterio.open(tmp_path / 'bare.tif', 'w', 'GTiff', 20, 20, 1, 'EPSG:32631', UTM, 'uint8') as bare:
        bare.write(values, 1)
    (tmp_path / 'map.qml').rename(tmp_path / 'bare.qml')
    with open_raster(tmp_path / 'bare.tif') as src:
        assert read_raster_style(src, tmp_path / 'bare.tif') == expected


def test_areas_in_degrees_are_square_meters_and_orthogonal_outlines_have_right_angles(tmp_path):
    values = np.zeros((40, 40), np.uint8)
    values[5:25, 5:30], values[5:6, 30], values[12, 4] = 1, 1, 1
    make_map(tmp_path / 'map.tif', values, crs='EPSG:4326', transform=Affine(1e-4, 0, 7, 0, -1e-4, 50))
    frame = geopandas.read_file(vectorize_map(tmp_path / 'map.tif', tmp_path / 'a.gpkg', outline='orthogonal'))
    assert frame['area'].tolist() == [pytest.approx(500 * 11.12 * 7.17, rel=0.02)]
    assert len(frame.geometry[0].geoms[0].exterior.coords) == 5
    assert vectorize_map(tmp_path / 'map.tif', tmp_path / 'none.gpkg', min_area=1e6).exists()
    assert len(geopandas.read_file(tmp_path / 'none.gpkg')) == 0


def test_names_of_the_caller_go_before_those_of_the_map(tmp_path):
    make_map(tmp_path / 'map.tif', np.ones((10, 10), np.uint8))
    written = vectorize_map(tmp_path / 'map.tif', tmp_path / 'a.gpkg', classes=[ClassInfo(1, 'forest', (1, 2, 3))])
    assert geopandas.read_file(written)[['Class', 'color']].to_numpy().tolist() == [['forest', '#010203']]


def test_what_is_no_map_of_classes_is_refused_in_words(tmp_path):
    path = tmp_path / 'map.tif'
    write_raster(path, np.zeros((2, 8, 8), np.uint8), transform=UTM, crs='EPSG:32631', band_names=('red', 'green'))
    with pytest.raises(RasterError, match='pass band= with the number of that which holds classes'):
        vectorize_map(path, tmp_path / 'a.gpkg')
    assert len(geopandas.read_file(vectorize_map(path, tmp_path / 'a.gpkg', band=2))) == 1
    write_raster(tmp_path / 'height.tif', np.zeros((8, 8), np.float32), transform=UTM, crs='EPSG:32631')
    with pytest.raises(RasterError, match='only classes'):
        vectorize_map(tmp_path / 'height.tif', tmp_path / 'b.gpkg')
    with pytest.raises(RasterError, match='overwrite=True'):
        vectorize_map(path, tmp_path / 'a.gpkg', band=1)
    with pytest.raises(FileWriteError, match='no suffix'):
        vectorize_map(path, tmp_path / 'a.tif')
    with pytest.raises(ValueError, match='min_area'):
        vectorize_map(path, tmp_path / 'b.gpkg', min_area=-1)


def test_the_command_line_vectorizes(tmp_path, capsys):
    make_map(tmp_path / 'map.tif', np.ones((10, 10), np.uint8))
    main(['vectorize', str(tmp_path / 'map.tif'), str(tmp_path / 'a.gpkg'), '--min-area', '5', '--no-style'])
    assert 'wrote' in capsys.readouterr().out
    assert not list(tmp_path.glob('a*.qml'))
    with pytest.raises(SystemExit):
        main(['vectorize', str(tmp_path / 'map.tif'), str(tmp_path / 'a.gpkg')])
    assert '--overwrite' in capsys.readouterr().err
