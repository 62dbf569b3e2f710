import subprocess
import sys
import textwrap

import numpy as np
import pytest
import rasterio
from affine import Affine
from rio_cogeo import cog_validate

from geolearn.cli import main
from geolearn.embed import Embeddings, embed, embed_many, embed_raster
from geolearn.embed.embeddings import write_features
from geolearn.errors import ArgumentError, CheckpointError, FileWriteError, RasterError
from geolearn.raster.writing import write_raster

GIVEN = {
    'backbone': 'dofa_tiny',
    'pretrained': False,
    'sensor': 'sentinel2_l2a',
    'normalize': ((1500,) * 4, (700,) * 4),
}
PLACE = {'transform': Affine(10, 0, 500_000, 0, -10, 5_200_000), 'crs': 'EPSG:32632'}
NAMES = ('B02', 'B03', 'B04', 'B08')


@pytest.fixture(scope='module')
def grid(scene, tmp_path_factory):
    """The grid of the scene in tiles of 64 px."""
    return embed_raster(scene, tmp_path_factory.mktemp('grid') / 'grid.tif', context=64, **GIVEN)


def test_a_grid_has_a_pixel_for_each_token_and_says_what_made_it(scene, grid):
    with rasterio.open(grid) as src:
        assert (src.count, src.shape) == (192, (7, 9))
        assert src.transform == Affine(160, 0, 500_000, 0, -160, 5_200_000)
        assert src.crs.to_epsg() == 32632
        assert src.descriptions[:2] == ('embedding 0', 'embedding 1')
    assert cog_validate(grid)[:2] == (True, [])
    found = Embeddings.load(grid)
    same = embed(scene, output='grid', context=64, **GIVEN)
    assert np.allclose(found, same, atol=1e-6)
    assert found.source == same.source
    assert found.geobox.transform == same.geobox.transform


def test_a_zarr_store_holds_the_same_vectors_in_the_same_order(scene, grid, tmp_path):
    """192 variables, which Zarr lists by the alphabet: embedding_10 comes before embedding_2."""
    store = embed_raster(scene, tmp_path / 'grid.zarr', context=64, **GIVEN)
    found, same = Embeddings.load(store), Embeddings.load(grid)
    assert np.array_equal(found, same, equal_nan=True)
    assert (found.source, found.geobox.transform) == (same.source, same.geobox.transform)
    assert 'EPSG:32632' in repr(found)
    assert '(dimension, y, x)' in repr(found)


def test_parts_of_a_raster_have_the_tokens_of_the_whole(scene, grid, tmp_path):
    whole = Embeddings.load(grid).values
    box = (500_000 + 330, 5_200_000 - 800, 500_000 + 900, 5_200_000 - 170)
    part = Embeddings.load(embed_raster(scene, tmp_path / 'part.tif', context=64, bbox=box, **GIVEN))
    assert np.array_equal(part.values[:, 1:, 1:], whole[:, 2:5, 3:6])
    assert part.geobox.transform == Affine(160, 0, 500_320, 0, -160, 5_200_000 - 160)


def test_less_memory_and_halves_change_little(scene, grid, tmp_path):
    small = embed_raster(scene, tmp_path / 'a.tif', context=64, max_memory=40_000, dtype='float16', cog=False, **GIVEN)
    assert np.allclose(Embeddings.load(small), Embeddings.load(grid), atol=2e-3)


def test_missing_pixels_are_missing_tokens(scene_pixels, tmp_path):
    pixels = scene_pixels.copy()
    pixels[:, :40, 100:] = 0
    path = write_raster(tmp_path / 'gap.tif', pixels, nodata=0, band_names=NAMES, **PLACE)
    found = Embeddings.load(embed_raster(path, tmp_path / 'grid.tif', context=64, **GIVEN)).values
    absent = (pixels[0] > 0).reshape(7, 16, 9, 16).mean((1, 3)) < 0.5
    assert 0 < absent.sum() < 9
    assert np.array_equal(np.isnan(found[0]), absent)


def test_tile_sizes_agree_where_vectors_depend_on_the_neighborhood_alone(scene_pixels, tmp_path):
    """A convolutional network sees the same around a place in any tile whose halo is as wide as it sees."""
    path = write_raster(tmp_path / 'large.tif', np.tile(scene_pixels, (1, 3, 2)), band_names=NAMES, **PLACE)
    given = {**GIVEN, 'backbone': 'resnet18', 'layer': 1}
    small = embed(path, output='grid', tile=128, **given).values
    large = embed(path, output='grid', tile=320, **given).values
    apart = np.abs(small - large).max(axis=0) / np.abs(large).max()
    assert apart.max() < 1e-5


def test_vectors_of_a_transformer_do_not_depend_on_the_tile_size(scene, grid, tmp_path):
    for side in (64, 128, 400):
        found = embed_raster(scene, tmp_path / f'{side}.tif', tile=side, context=64, **GIVEN)
        assert np.array_equal(Embeddings.load(found), Embeddings.load(grid))
    with pytest.raises(ValueError, match='resnet18 is convolutional and sees whole tiles; pass tile=, not context='):
        embed_raster(scene, tmp_path / 'x.tif', context=64, **{**GIVEN, 'backbone': 'resnet18'})


def test_an_interrupted_run_is_resumed_to_the_same_grid(scene, grid, tmp_path):
    target = tmp_path / 'grid.tif'

    def stop(progress):
        if progress.done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_raster(scene, target, context=64, progress=stop, **GIVEN)
    assert not target.exists()
    embed_raster(scene, target, context=64, resume=True, **GIVEN)
    assert target.read_bytes() == grid.read_bytes()
    with pytest.raises(RasterError, match='exists; pass overwrite=True'):
        embed_raster(scene, target, context=64, **GIVEN)


@pytest.fixture(scope='module')
def layer():
    geopandas, shapely = pytest.importorskip('geopandas'), pytest.importorskip('shapely')
    x, y = 500_000, 5_200_000
    shapes = [
        shapely.box(x + 160, y - 480, x + 560, y - 160),  # tokens 1 and 2 and half of 3, in rows 1 and 2
        shapely.box(x + 700, y - 705, x + 703, y - 700),  # within one pixel
        shapely.Point(x + 1000, y - 1000),
        shapely.box(x - 900, y + 100, x - 800, y + 200),  # outside
    ]
    return geopandas.GeoDataFrame({'crop': list('abcd')}, geometry=shapes, crs=32632)


def test_zones_are_pooled_by_the_share_of_tokens_that_they_cover(scene, grid, layer, tmp_path):
    tokens = Embeddings.load(grid).values
    # in another CRS, within half a meter
    path = embed_raster(scene, tmp_path / 'zones.parquet', context=64, zones=layer.to_crs(4326), **GIVEN)
    found = Embeddings.load(path)
    weights = np.array([1, 1, 0.5])
    block = tokens[:, 1:3, 1:4]
    expected = (block * weights).sum((1, 2)) / (2 * weights.sum())
    assert np.allclose(found.values[0], expected, atol=0.02)
    assert np.allclose(found.values[1], tokens[:, 4, 4], atol=1e-5)
    assert np.allclose(found.values[2], tokens[:, 6, 6], atol=1e-5)
    assert np.isnan(found.values[3]).all()
    geopandas = pytest.importorskip('geopandas')
    assert geopandas.read_parquet(path)['crop'].tolist() == list('abcd')
    assert found.source.pooling == 'mean'
    most = embed_raster(scene, tmp_path / 'max.parquet', context=64, zones=layer, pooling='max', **GIVEN)
    assert np.allclose(Embeddings.load(most).values[0], block.max((1, 2)), atol=1e-5)


def test_zones_that_cannot_be_embedded_are_refused_before_any_work(scene, layer, tmp_path):
    with pytest.raises(FileWriteError, match='must end in .parquet'):
        embed_raster(scene, tmp_path / 'zones.gpkg', zones=layer, **GIVEN)
    with pytest.raises(RasterError, match='no zone lies within the raster'):
        embed_raster(scene, tmp_path / 'zones.parquet', zones=layer.iloc[3:], **GIVEN)
    with pytest.raises(ValueError, match='a zone has no class token'):
        embed_raster(scene, tmp_path / 'zones.parquet', zones=layer, pooling='cls', **GIVEN)


@pytest.fixture(scope='module')
def catalog(scene_pixels, tmp_path_factory):
    """Three scenes and a file that is no raster."""
    folder = tmp_path_factory.mktemp('catalog')
    for number in range(3):
        write_raster(folder / f'scene{number}.tif', scene_pixels[:, :48, :64] + number, band_names=NAMES, **PLACE)
    (folder / 'broken.tif').write_text('no raster')
    return folder


def test_many_scenes_are_listed_with_what_became_of_them(catalog, layer, tmp_path):
    done = embed_many(catalog, tmp_path, **GIVEN)
    assert [result.state for result in done.scenes] == ['failed', 'done', 'done', 'done']
    assert Embeddings.load(tmp_path / 'scene2.tif').values.shape == (192, 3, 4)
    for other in ({'nodata': 7}, {'offset': 1.0}, {'wavelengths': [0.5, 0.55, 0.65, 0.85]}):
        with pytest.raises(CheckpointError, match='bands|units'):
            embed_many(catalog, tmp_path, **GIVEN | other)
    pooled = embed_many(catalog, tmp_path / 'zones', zones=layer.iloc[:1], **GIVEN)
    assert len(pooled.failed) == 1
    assert Embeddings.load(tmp_path / 'zones' / 'scene0.parquet').values.shape == (1, 192)
    with pytest.raises(ArgumentError, match='options of all scenes are'):
        embed_many(catalog, tmp_path / 'x', options={'bands': []}, **GIVEN)


def test_a_killed_run_goes_on_without_repeating(catalog, tmp_path):
    given = {**GIVEN, 'backbone': 'plain_unet'}
    script = f"""
        import os, signal
        from geolearn.embed import embed_many, grids
        write = grids.write_grid
        def count(*args, **options):
            done = write(*args, **options)
            if done.name == 'scene1.tif':
                os.kill(os.getpid(), signal.SIGKILL)
            return done
        grids.write_grid = count
        embed_many({str(catalog)!r}, {str(tmp_path)!r}, **{given!r})
    """
    killed = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(script)], capture_output=True, text=True, timeout=200
    )
    assert killed.returncode == -9, killed.stderr
    first = (tmp_path / 'scene0.tif').stat().st_mtime_ns
    assert not (tmp_path / 'scene2.tif').exists()
    done = embed_many(catalog, tmp_path, **given)
    assert [result.state for result in done.scenes] == ['failed', 'done', 'done', 'done']
    assert (tmp_path / 'scene0.tif').stat().st_mtime_ns == first
    text = (tmp_path / 'manifest.csv').read_text()
    assert [line.split(',')[2] for line in text.splitlines()[1:]] == ['failed', 'done', 'done', 'done']


def test_the_command_line_takes_the_same_names(scene, grid, catalog, tmp_path, capsys):
    words = ['--backbone', 'dofa_tiny', '--no-pretrained', '--sensor', 'sentinel2_l2a', '--context', '64']
    main(['embed', str(scene), str(tmp_path / 'grid.tif'), *words])
    assert 'wrote' in capsys.readouterr().out
    assert Embeddings.load(tmp_path / 'grid.tif').values.shape == Embeddings.load(grid).values.shape
    with pytest.raises(SystemExit):
        main(['embed', str(catalog), str(tmp_path / 'many'), '--each', *words])
    assert '1 of 4 scenes failed' in capsys.readouterr().err
    assert Embeddings.load(tmp_path / 'many' / 'scene1.tif').source.context == 64
    zones = tmp_path / 'zones.gpkg'
    zones.touch()
    for area in (['--bbox', '0', '0', '9', '9'], ['--aoi', str(zones)]):
        with pytest.raises(SystemExit):
            main(['embed', str(catalog), str(tmp_path / 'zoned'), '--each', '--zones', str(zones), *area, *words])
        assert 'zones say themselves what is embedded' in capsys.readouterr().err
    assert (tmp_path / 'many' / 'scene1.tif').exists()


def test_rasters_of_several_dates_are_refused_with_the_way_to_embed_them(scene, scene_pixels, tmp_path):
    later = tmp_path / 'later.tif'
    place = {'transform': Affine(10, 0, 500_000, 0, -10, 5_200_000), 'crs': 'EPSG:32632'}
    write_raster(later, scene_pixels + 5, **place, band_names=('B02', 'B03', 'B04', 'B08'))
    options = {'pretrained': False, 'sensor': 'sentinel2_l2a'}
    with pytest.raises(RasterError, match='hold the same bands of the same ground, so two dates; .*embed_many'):
        embed_raster([scene, later], tmp_path / 'grid.tif', 'vit_nano', **options)
    with pytest.raises(RasterError, match='2 lists of rasters are those of several dates'):
        embed_raster([[scene], [later]], tmp_path / 'grid.tif', 'vit_nano', **options)
    assert not (tmp_path / 'grid.tif').exists()


def test_embeddings_of_other_units_zones_or_pooling_are_not_taken_for_these(scene, layer, tmp_path):
    given = {**GIVEN, 'backbone': 'plain_unet'}
    embed_many([scene], tmp_path / 'a', **given)
    for changed in ({'offset': -1000.0}, {'nodata': 7}):
        with pytest.raises(CheckpointError, match='what differs: units'):
            embed_many([scene], tmp_path / 'a', **given, **changed)
    embed_many([scene], tmp_path / 'b', zones=layer.iloc[:1], **given)
    with pytest.raises(CheckpointError, match='what differs: zones'):
        embed_many([scene], tmp_path / 'b', zones=layer.iloc[1:2], **given)
    with pytest.raises(CheckpointError, match='what differs: pooling'):
        embed_many([scene], tmp_path / 'b', zones=layer.iloc[:1], pooling='max', **given)


def test_the_layer_of_zones_is_never_the_target(scene, layer, tmp_path):
    path = tmp_path / 'zones.parquet'
    layer.to_parquet(path)
    before = path.read_bytes()
    with pytest.raises(RasterError, match='is a layer that this run reads'):
        embed_raster(scene, path, zones=path, overwrite=True, **GIVEN)
    assert path.read_bytes() == before


@pytest.mark.parametrize('kind', ['scale in the file', 'STAC baseline', 'zones'])
def test_scenes_that_state_other_units_than_the_first_fail(scene_pixels, layer, tmp_path, kind):
    (tmp_path / 'in').mkdir()
    paths = [tmp_path / 'in' / f'scene{number}.tif' for number in range(3)]
    for path in paths:
        write_raster(path, scene_pixels[:, :48, :64], band_names=NAMES, **PLACE)
    catalog = tmp_path / 'in'
    if kind == 'STAC baseline':
        catalog = {
            'type': 'FeatureCollection',
            'features': [item_of(p, '05.09' if n == 1 else '03.00', n) for n, p in enumerate(paths)],
        }
    else:
        with rasterio.open(paths[1], 'r+') as dst:
            dst.scales, dst.offsets = (1.0,) * 4, (-1000.0,) * 4
    zones = {'zones': layer.iloc[:1]} if kind == 'zones' else {}
    done = embed_many(catalog, tmp_path / 'out', **GIVEN, **zones)
    assert [result.state for result in done.scenes] == ['done', 'failed', 'done']
    assert 'hold values of different units' in done.scenes[1].error
    assert '-1000' in done.scenes[1].error


def item_of(path, baseline, number):
    """Return a STAC item of a raster that states a processing baseline alone."""
    bands = [{'name': name} for name in NAMES]
    return {
        'type': 'Feature', 'id': f'item{number}',
        'properties': {
            'datetime': f'2022-01-0{number + 1}', 'constellation': 'sentinel-2', 's2:processing_baseline': baseline,
        },
        'assets': {'all': {'href': str(path), 'type': 'image/tiff', 'eo:bands': bands}},
    }  # fmt: skip


def test_zones_without_a_name_are_numbered_and_no_column_is_overwritten(scene, layer, tmp_path, caplog):
    named = layer.iloc[:3].assign(name=['field', None, float('nan')])
    path = embed_raster(scene, tmp_path / 'zones.parquet', context=64, zones=named, **GIVEN)
    assert Embeddings.load(path).names == ('field', '1', '2')
    assert '2 of 3 zones have no name; the numbers of their rows are taken' in caplog.text
    numbered = layer.iloc[:3].assign(name=[7, None, 9])
    path_of_numbers = embed_raster(scene, tmp_path / 'numbers.parquet', context=64, zones=numbered, **GIVEN)
    assert Embeddings.load(path_of_numbers).names == ('7.0', '1', '9.0')
    geopandas = pytest.importorskip('geopandas')
    # files that were written before have such rows too
    frame = geopandas.read_parquet(path).assign(name=['field', None, 'x'])
    write_features(frame, Embeddings.load(path).source, tmp_path / 'older.parquet')
    assert Embeddings.load(tmp_path / 'older.parquet').names == ('field', '1', 'x')
    with pytest.raises(ArgumentError, match="zones have a column 'embedding'.*rename it"):
        embed_raster(scene, tmp_path / 'b.parquet', zones=layer.assign(embedding=1), **GIVEN)
    assert not (tmp_path / 'b.parquet').exists()
