"""Precomputed embeddings as bands: AlphaEarth's and TESSERA's codes are read as vectors, and products never mixed."""

import dataclasses
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window

from geolearn import PixelHead, export_training_data, from_rasters, load_model, prepare_data
from geolearn.errors import ChipFolderError, RasterError, UnknownNameError
from geolearn.inference.options import ReadOptions
from geolearn.inference.source import Source
from geolearn.raster import find_product, open_raster, read_window

NAMES = [f'A{number:02d}' for number in range(64)]
# south-up, as Google stores them: row 0 is the southern edge
PLACE = {'transform': Affine(10, 0, 500_000, 0, 10, 4_000_000), 'crs': 'EPSG:32633'}


def alphaearth_codes(side=32, seed=0, classes=2):
    """Codes (64, side, side) of vectors of length 1 in halves of two directions, and the class of each pixel."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.uint8) + 1
    labels[:, side // 2 :] = classes
    directions = np.random.default_rng(42).normal(size=(classes + 1, 64))
    vectors = directions[labels].transpose(2, 0, 1) + rng.normal(0, 0.3, (64, side, side))
    vectors /= np.linalg.norm(vectors, axis=0)
    return np.rint(np.sign(vectors) * np.sqrt(np.abs(vectors)) * 127.5).astype(np.int8), labels


def formula(codes):
    return np.sign(codes) * (np.abs(codes.astype(np.float64)) / 127.5) ** 2


def write(path, pixels, names=None, nodata=None, tags=None, **options):
    profile = {'driver': 'GTiff', 'count': len(pixels), 'height': pixels.shape[1], 'width': pixels.shape[2]}
    with rasterio.open(path, 'w', **profile, dtype=pixels.dtype.name, nodata=nodata, **(PLACE | options)) as dst:
        dst.write(pixels)
        if names:
            dst.descriptions = tuple(names)
        dst.update_tags(**(tags or {}))
    return path


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    """AlphaEarth's codes with a corner of NoData under the bucket's path, the same as floats, and labels."""
    folder = tmp_path_factory.mktemp('scene')
    place = folder / 'satellite_embedding' / 'v1' / 'annual' / '2021' / '33N'
    place.mkdir(parents=True)
    codes, labels = alphaearth_codes()
    codes[:, :3, :5] = -128
    raw = write(place / 'x1-0-0.tiff', codes, NAMES, nodata=-128)
    vectors = formula(codes).astype(np.float32)
    vectors[:, :3, :5] = np.nan
    plain = write(folder / 'floats.tif', vectors, NAMES, nodata=np.nan)
    truth = write(folder / 'labels.tif', labels[None], nodata=0)
    return raw, plain, truth, codes, labels


@pytest.fixture(scope='module')
def model(scene, tmp_path_factory):
    """A model of vectors that were dequantized, as its bundle."""
    raw, _, truth, _, _ = scene
    data = from_rasters(
        raw, truth, dequantize='alphaearth', chip_size=16, batch_size=2, split='random', transforms=False
    )
    assert data.dtype == 'float32'
    return PixelHead(data).fit(epochs=5).save(tmp_path_factory.mktemp('model') / 'm.dlpk', compute_metrics=False)


def test_codes_of_alphaearth_are_read_as_vectors(scene):
    raw, _, _, codes, _ = scene
    with open_raster(raw, dequantize='alphaearth') as src:
        whole, valid = read_window(src, Window(0, 0, 32, 32), src.indexes)
        part, gaps = read_window(src, Window(4, 2, 10, 9), [3, 1])
        assert src.dtypes == ('float32',) * 64
        assert src.transform.e == 10
    known = (codes != -128).all(axis=0)
    assert (valid == known).all()
    np.testing.assert_allclose(whole[:, known], formula(codes)[:, known], atol=1e-7)
    assert np.isnan(whole[:, ~known]).all()
    assert abs(np.median(np.linalg.norm(whole[:, known], axis=0)) - 1) < 0.03
    np.testing.assert_array_equal(part, whole[[2, 0], 2:11, 4:14])
    assert (gaps == known[2:11, 4:14]).all()
    with open_raster(raw) as src:
        assert (src.read(1) == codes[0]).all()


@pytest.mark.parametrize('declared', [-128, None])
def test_maps_hold_codes_until_tiles_are_cut(scene, tmp_path, declared):
    codes = scene[3]
    path = write(tmp_path / 'codes.tif', codes, NAMES, nodata=declared)
    with open_raster(path, dequantize='alphaearth') as src:
        source = Source(src, src.indexes)
        assert (source.held_dtype, source.dtype) == (np.dtype('int8'), 'float32')
        held, valid = source.read_held(Window(0, 0, 32, 16))
        values = np.empty(held.shape, np.float32)
        source.put_model_units(held, values, ReadOptions(scale=2.0))
        expected, known = source.read(Window(0, 0, 32, 16))
        assert (valid == known).all()
        np.testing.assert_array_equal(values[:, known], 2 * expected[:, known])
        # what a user names as NoData is a number of the vectors, not a code
        assert replace(source, nodata=(0.5,) * 64).held_dtype == 'float32'


def test_the_product_is_known_by_names_and_paths_and_said_by_the_user(scene):
    raw, plain, *_ = scene
    with open_raster(raw) as src:
        found = find_product(src)
        assert (found.name, found.version, found.year, found.form) == ('AlphaEarth', 'v1', '2021', 'codes')
        with pytest.raises(RasterError, match=r'product= says AlphaEarth v2, but .* holds AlphaEarth v1'):
            find_product(src, stated='alphaearth v2')
    with open_raster(plain) as src:
        assert (find_product(src).version, find_product(src).form) == ('', 'floats')
        assert find_product(src, stated='alphaearth v1 2020').version == 'v1'


def test_tessera_has_a_scale_for_each_pixel(tmp_path):
    rng = np.random.default_rng(1)
    codes = rng.integers(-127, 128, (128, 8, 9)).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, (8, 9)).astype(np.float32)
    codes[:, 0, :2], scales[0, :2] = 0, 0
    wanted = codes * scales
    raw = write(tmp_path / 'grid_13.05_36.15_2024.tiff', codes)
    with (
        pytest.raises(RasterError, match='scale for each pixel.*grid_13.05_36.15_2024_scales.tiff'),
        open_raster(raw, dequantize='tessera'),
    ):
        pass
    write(tmp_path / 'grid_13.05_36.15_2024_scales.tiff', scales[None])
    # a tile as it is stored: arrays, and a land mask that knows the place
    np.save(tmp_path / 'grid_13.05_36.25.npy', codes.transpose(1, 2, 0))
    np.save(tmp_path / 'grid_13.05_36.25_scales.npy', scales)
    write(tmp_path / 'grid_13.05_36.25.tiff', np.ones((1, 8, 9), np.uint8))
    floats = write(
        tmp_path / 'grid_13.05_36.15.tiff', wanted.astype(np.float32), tags={'TESSERA_DATASET_VERSION': 'v1'}
    )
    for path in (raw, tmp_path / 'grid_13.05_36.25.npy', floats):
        with open_raster(path, dequantize='tessera') as src:
            values, valid = read_window(src, Window(0, 0, 9, 8), src.indexes)
            assert find_product(src).name == 'TESSERA'
            assert src.crs.to_epsg() == 32633
        assert (valid == (scales > 0)).all()
        np.testing.assert_allclose(values[:, valid], wanted[:, valid], rtol=1e-6)


def test_versions_and_products_are_not_mixed_in_a_mosaic(tmp_path, scene):
    tiles = []
    for number, version in enumerate(('v1', 'v2')):
        place = PLACE['transform'] @ Affine.translation(8 * number, 0)
        pixels = np.ones((128, 8, 8), np.float32)
        path = tmp_path / f'grid_{number}_1.tiff'
        tiles.append(write(path, pixels, tags={'TESSERA_DATASET_VERSION': version}, transform=place))
    with (
        pytest.raises(RasterError, match='TESSERA v1 as float vectors.*TESSERA v2 as float vectors'),
        open_raster(tiles),
    ):
        pass
    with pytest.raises(UnknownNameError, match='alphaearth'), open_raster(scene[0], dequantize='alpha'):
        pass
    with (
        pytest.raises(RasterError, match="'alphaearth' takes int8 codes"),
        open_raster(scene[2], dequantize='alphaearth'),
    ):
        pass


def test_a_model_of_vectors_dequantizes_by_itself(scene, model, tmp_path, caplog):
    raw, plain, *_ = scene
    again = load_model(model)
    product = again.spec.product
    assert (product.name, product.version, product.year, product.dequantize) == (
        'AlphaEarth',
        'v1',
        '2021',
        'alphaearth',
    )
    with caplog.at_level(logging.WARNING):
        maps = [again.predict_raster(path, tmp_path / f'{path.stem}.tif', cog=False) for path in (raw, plain)]
    assert 'one names no version' in caplog.text  # the floats do not say which version they are
    codes, floats = (rasterio.open(path) for path in maps)
    assert codes.transform.e == floats.transform.e
    assert (codes.read(1) == floats.read(1)).mean() > 0.99
    assert (codes.read(1)[:3, :5] == codes.nodata).all()
    unnamed = write(tmp_path / 'unnamed.tif', rasterio.open(plain).read(), nodata=np.nan)
    caplog.clear()
    again.predict_raster(unnamed, tmp_path / 'n.tif')
    assert 'does not say which embeddings it holds; it is taken as AlphaEarth v1' in caplog.text


def test_rasters_of_another_product_version_or_form_are_refused(scene, model, tmp_path):
    raw, plain, truth, *_ = scene
    again = load_model(model)
    with pytest.raises(
        RasterError, match=r'holds AlphaEarth v2 as float vectors, but the model was trained on AlphaEarth v1'
    ):
        again.predict_raster(plain, tmp_path / 'a.tif', product='alphaearth v2')
    with pytest.raises(RasterError, match=r'holds TESSERA.* but the model was trained on AlphaEarth v1'):
        again.predict_raster(
            write(tmp_path / 't.tif', np.ones((64, 32, 32), np.float32), tags={'TESSERA_DATASET_VERSION': 'v1'}),
            tmp_path / 'a.tif',
        )
    other = write(tmp_path / 'l.tif', np.nan_to_num(rasterio.open(plain).read()) * 3, NAMES)
    with pytest.raises(RasterError, match='vectors have length 1, but their median length is'):
        again.predict_raster(other, tmp_path / 'a.tif')
    options = {'chip_size': 16, 'batch_size': 2, 'split': 'random'}
    floats = PixelHead(from_rasters(plain, truth, **options))
    with pytest.raises(
        RasterError, match=r"int8 codes, but the model was trained on .* float vectors; pass dequantize='alphaearth'"
    ):
        floats.predict_raster(raw, tmp_path / 'a.tif')
    assert floats.predict_raster(raw, tmp_path / 'a.tif', dequantize='alphaearth').exists()
    stored = PixelHead(from_rasters(raw, truth, **options))
    assert stored.spec.product.form == 'codes'
    with pytest.raises(
        RasterError, match='as float vectors, but the model was trained on AlphaEarth v1 .2021. as int8 codes'
    ):
        stored.predict_raster(plain, tmp_path / 'b.tif')
    assert not (tmp_path / 'b.tif').exists()


def test_chips_keep_the_product_exported_as_vectors_or_as_codes(scene, tmp_path):
    raw, _, truth, codes, _ = scene
    vectors = export_training_data(raw, truth, tmp_path / 'vectors', tile_size=16, dequantize='alphaearth')
    stored = export_training_data(raw, truth, tmp_path / 'codes', tile_size=16)
    assert json.loads((vectors / 'esri_model_definition.emd').read_text())['geolearn']['product']['version'] == 'v1'
    options = {'chip_size': 16, 'batch_size': 2, 'transforms': False}
    ready = prepare_data(vectors, **options)
    made = prepare_data(stored, dequantize='alphaearth', **options)
    plain = prepare_data(stored, **options)
    assert (ready.dtype, made.dtype, plain.dtype) == ('float32', 'float32', 'int8')
    assert dataclasses.asdict(ready.product) == dataclasses.asdict(made.product)
    assert (plain.product.form, plain.product.dequantize) == ('codes', None)
    np.testing.assert_allclose(made.statistics.mean, ready.statistics.mean, atol=1e-6)
    known = formula(codes)[:, (codes != -128).all(axis=0)]
    np.testing.assert_allclose(made.statistics.mean, known.mean(axis=1), atol=1e-5)
    with pytest.raises(ChipFolderError, match='cannot be mixed'):
        prepare_data([vectors, stored], **options)
    with pytest.raises(ChipFolderError, match='product= says TESSERA'):
        prepare_data(vectors, product='tessera v1', **options)


def test_resampled_vectors_have_length_1_again(scene, model, tmp_path):
    raw = scene[0]
    again = load_model(model)
    seen = []
    again.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    again.predict_raster(raw, tmp_path / 'coarse.tif', resolution=20.0)
    lengths = seen[-1].norm(dim=1)
    lengths = lengths[~lengths.isnan()]
    assert len(lengths) > 100
    assert (lengths - 1).abs().max() < 1e-3
