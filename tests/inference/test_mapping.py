"""Mapping a raster in tiles gives what one pass over the whole of it would, and leaves nothing behind when it fails."""

import logging
import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate
from scipy import ndimage
from torch import nn

from geolearn.bands import Band
from geolearn.classes import ClassInfo
from geolearn.errors import RasterError
from geolearn.inference import map_parts
from geolearn.inference.encoding import ClassEncoding, RegressionEncoding, output_encoding
from geolearn.inference.mapping import map_raster, map_sources
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.source import Source
from geolearn.inference.targets import check_target
from geolearn.inference.tiles import QUEUE_BATCHES, MicroBatches, RollingRows, fit_batch_size, prefetch, read_batches
from geolearn.models import DeepLab
from geolearn.networks.spec import ModelSpec
from geolearn.normalize import Normalization
from geolearn.raster import open_raster
from geolearn.raster.pieces import PieceFile
from geolearn.statistics import BandStatistics
from geolearn.tiling import blend_weights, make_grid

pytestmark = pytest.mark.usefixtures('one_thread')

FIELD = 3
"""Pixels that `Plain` sees in each direction."""


class Plain(nn.Module):
    """One 7 x 7 convolution of whole numbers: its logits are exact and never equal, wherever a tile lies."""

    def __init__(self, bands, classes):
        super().__init__()
        generator = torch.Generator().manual_seed(bands * 100 + classes)
        self.conv = nn.Conv2d(bands, classes, 2 * FIELD + 1, padding=FIELD)
        with torch.no_grad():
            weight = torch.randint(-4, 5, self.conv.weight.shape, generator=generator)
            self.conv.weight.copy_(weight - weight.flip(-1))  # sums are 0, so that every class has its turn
            self.conv.bias.copy_(torch.arange(classes) / 512)
        self.backbone = SimpleNamespace(has_position_grid=False, strides=(1,))
        self.context, self.finer = None, 1
        self.computed = 0

    def forward(self, x):
        self.computed += len(x)
        return self.conv(torch.nan_to_num(x, nan=0.0))


def infos(*values):
    return tuple(ClassInfo(v, f'class {v}', (v % 256, 10 * i, 200)) for i, v in enumerate(values))


def make_pixels(shape, *, bands=2, nodata=-1, seed=0, empty=0.1):
    """int16 pixels 0..40 with scattered and solid NoData."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 41, (bands, *shape)).astype(np.int16)
    pixels[0, rng.random(shape) < empty / 2] = nodata
    pixels[:, : int(shape[0] * empty), : shape[1] // 2] = nodata
    return pixels


def expected_map(network, pixels, values, *, nodata=-1, out_nodata=0):
    """The map of the whole raster at once."""
    missing = (pixels == nodata).any(0)
    x = torch.from_numpy(np.where(missing, np.nan, pixels).astype(np.float32))
    with torch.inference_mode():
        found = network(x[None]).argmax(1)[0].numpy()
    return np.where(missing, out_nodata, np.array(values)[found])


def run_map(
    path, network, dst, *, classes=None, tile_size=64, halo=FIELD, batch_size=2, wrap=lambda src: src, blend=False
):
    encoding = OneValue() if classes is None else ClassEncoding(classes)
    with open_raster(path) as src:
        grid = make_grid((src.height, src.width), tile_size=tile_size, halo=halo)
        given = {
            'read': ReadOptions(),
            'tiling': TilingOptions(batch_size=batch_size),
            'blend': 'hann' if blend else 'crop',
        }
        return map_sources([Source(wrap(src), tuple(src.indexes))], network, encoding, grid, dst, **given)


class InContext(nn.Module):
    """Outputs that depend on where a pixel lies in its tile and on all of the tile, as those of transformers do."""

    def __init__(self, classes=3):
        super().__init__()
        self.backbone = SimpleNamespace(has_position_grid=True, strides=(16,))
        self.context, self.finer = None, 1
        self.weight = nn.Parameter(torch.arange(2.0, 2.0 + classes))

    def forward(self, x):
        x = torch.nan_to_num(x, nan=20.0)[:, :1] / 20 - 1
        smooth = nn.functional.avg_pool2d(x, 15, 1, 7, count_include_pad=False)
        row, col = (torch.linspace(-1, 1, length) for length in x.shape[2:])
        context = 0.05 * (row[:, None] + col) + x.mean((1, 2, 3), keepdim=True)
        return torch.cat([(smooth + context) * weight.cos() for weight in self.weight], dim=1)


class OneValue:
    """A stand-in for an encoding: the first output as it is."""

    dtype, nodata, colors, class_names = 'float32', float('nan'), None, None

    def encode(self, outputs):
        return outputs[:, 0].numpy().copy()


def blended(network, pixels, grid):
    """The mean of all tiles at each pixel, weighted by the distance from their inner edges."""
    shape, (height, width) = pixels.shape[1:], grid.tile_shape
    sums, weights = np.zeros(shape), np.zeros(shape)
    down, across = (
        dict(zip(starts, blend_weights(starts, side, length)))
        for starts, side, length in (
            ([start for start, _, _ in grid.rows], height, shape[0]),
            ([start for start, _, _ in grid.cols], width, shape[1]),
        )
    )
    for tile in grid:
        row, col = tile.read.row_off, tile.read.col_off
        rows, cols = np.arange(row, row + height), np.arange(col, col + width)
        part = np.full((len(pixels), height, width), np.nan, np.float32)
        y, x = (rows >= 0) & (rows < shape[0]), (cols >= 0) & (cols < shape[1])
        part[np.ix_(range(len(pixels)), y, x)] = pixels[np.ix_(range(len(pixels)), rows[y], cols[x])]
        with torch.inference_mode():
            found = network(torch.from_numpy(part)[None])[0, 0].numpy()
        weight = np.outer(down[row], across[col])
        sums[np.ix_(rows[y], cols[x])] += (found * weight)[np.ix_(y, x)]
        weights[np.ix_(rows[y], cols[x])] += weight[np.ix_(y, x)]
    return sums, weights


def read(path):
    with rasterio.open(path) as src:
        return src.read(1)


def no_threads_left():
    return not [thread.name for thread in threading.enumerate() if thread.name.startswith('geolearn')]


@pytest.fixture(autouse=True)
def _threads_end():
    yield
    assert no_threads_left()


def model_of(network, *, bands=('Red', 'Green'), values=(1, 2, 3), mean=20.0, std=12.0):
    """A model of nothing but a convolution, for bands in 0..40."""
    wavelengths = {'Red': (0.665, 'red'), 'Green': (0.56, 'green'), 'Blue': (0.49, 'blue'), 'NIR': (0.842, 'nir')}
    n = len(bands)
    spec = ModelSpec(
        model='Plain',
        backbone='none',
        bands=tuple(Band(name, *wavelengths.get(name, (None, None))) for name in bands),
        class_infos=infos(*values),
        ignored_values=(0,),
        chip_size=64,
        statistics=BandStatistics((0,) * n, (2 * mean,) * n, (mean,) * n, (std,) * n),
        normalization=Normalization((mean,) * n, (std,) * n, 'the test'),
        dtype='int16',
    )
    return DeepLab.of(spec, network)


# -- the map is that of the whole

LAYOUTS = st.one_of(
    st.fixed_dictionaries({'blockysize': st.integers(1, 200)}),
    st.fixed_dictionaries(
        {'tiled': st.just(True), 'blockxsize': st.sampled_from([16, 64]), 'blockysize': st.sampled_from([16, 32, 128])}
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 160), st.integers(1, 160)),
    tile_size=st.integers(1, 128),
    halo=st.integers(FIELD, 15),
    batch_size=st.integers(1, 5),
    layout=LAYOUTS,
    compress=st.sampled_from(['none', 'deflate']),
    interleave=st.sampled_from(['pixel', 'band']),
    empty=st.sampled_from([0, 0.1, 0.9]),
    seed=st.integers(0, 99),
)
def test_the_map_is_that_of_the_whole_raster(
    tmp_path, save, shape, tile_size, halo, batch_size, layout, compress, interleave, empty, seed
):
    network, pixels = Plain(2, 4), make_pixels(shape, seed=seed, empty=empty)
    path = save(tmp_path / 'src.tif', pixels, nodata=-1, compress=compress, interleave=interleave, **layout)
    sizes = {'tile_size': tile_size, 'halo': halo, 'batch_size': batch_size}
    result = run_map(path, network, tmp_path / 'map.tif', classes=infos(1, 2, 3, 4), **sizes)
    assert np.array_equal(read(result), expected_map(network, pixels, [1, 2, 3, 4]))


def test_a_large_raster_is_written_in_blocks(tmp_path, save):
    network, pixels = Plain(2, 4), make_pixels((700, 300))
    path = save(tmp_path / 'src.tif', pixels, nodata=-1)
    result = run_map(path, network, tmp_path / 'map.tif', classes=infos(1, 2, 3, 4), tile_size=128)
    assert np.array_equal(read(result), expected_map(network, pixels, [1, 2, 3, 4]))
    with rasterio.open(result) as src:
        assert src.block_shapes == [(256, 256)]


@pytest.mark.parametrize('shape', [(1, 300), (300, 1), (1, 1), (20, 30)])
def test_rasters_smaller_than_a_tile_are_mapped(tmp_path, save, shape):
    network, pixels = Plain(2, 3), make_pixels(shape)
    path = save(tmp_path / 'src.tif', pixels, nodata=-1, names=['Red', 'Green'])
    result = model_of(network).predict_raster(path, tmp_path / 'map.tif')
    assert np.array_equal(read(result), expected_map(network, pixels, [1, 2, 3]))


def test_a_mosaic_gives_the_map_of_the_whole(tmp_path, save):
    network, pixels = Plain(2, 3), make_pixels((150, 200))
    parts = []
    for i, (rows, cols) in enumerate(
        [((0, 70), (0, 90)), ((0, 70), (90, 200)), ((70, 150), (0, 90)), ((70, 150), (90, 200))]
    ):
        place = Affine(10, 0, 10 * cols[0], 0, -10, -10 * rows[0])
        part = pixels[:, slice(*rows), slice(*cols)]
        parts.append(save(tmp_path / f'{i}.tif', part, nodata=-1, names=['Red', 'Green'], transform=place))
    result = model_of(network).predict_raster(parts, tmp_path / 'map.tif', tile_size=64, halo=FIELD)
    assert np.array_equal(read(result), expected_map(network, pixels, [1, 2, 3]))


def test_pixels_behind_a_mask_band_come_out_as_nodata(tmp_path, save):
    network, pixels = Plain(2, 3), make_pixels((90, 100), empty=0)
    path = save(tmp_path / 'src.tif', pixels, names=['Red', 'Green'])
    hidden = np.zeros((90, 100), bool)
    hidden[30:50, 20:60] = True
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, 'r+') as dst:
        dst.write_mask(~hidden)
    result = model_of(network).predict_raster(path, tmp_path / 'map.tif', tile_size=64, halo=FIELD)
    pixels[:, hidden] = -1
    assert np.array_equal(read(result), expected_map(network, pixels, [1, 2, 3]))


def test_nan_comes_out_as_nodata(tmp_path, save):
    network, pixels = Plain(2, 3), make_pixels((90, 100))
    path = save(tmp_path / 'src.tif', np.where(pixels == -1, np.nan, pixels).astype(np.float32), names=['Red', 'Green'])
    result = model_of(network).predict_raster(path, tmp_path / 'map.tif', tile_size=64, halo=FIELD)
    assert np.array_equal(read(result), expected_map(network, pixels, [1, 2, 3]))


def test_tiles_without_a_valid_pixel_are_not_computed(tmp_path, save):
    network, pixels = Plain(2, 3), make_pixels((256, 256), empty=0)
    pixels[:, :, :128] = -1
    pixels[:, 128:] = -1
    path = save(tmp_path / 'src.tif', pixels, nodata=-1)
    result = run_map(path, network, tmp_path / 'map.tif', classes=infos(1, 2, 3), tile_size=64, halo=0)
    assert network.computed == 4, 'of 16'
    assert ((read(result) == 0) == (pixels[0] == -1)).all()


def test_a_raster_without_a_valid_pixel_gives_an_empty_map(tmp_path, save):
    network = Plain(2, 3)
    path = save(tmp_path / 'src.tif', np.full((2, 300, 300), -1, np.int16), nodata=-1, names=['Red', 'Green'])
    result = model_of(network).predict_raster(path, tmp_path / 'map.tif')
    assert network.computed == 0
    assert (read(result) == 0).all()


# -- blending where positions are embedded


@pytest.mark.parametrize('shape', [(150, 170), (40, 300), (300, 40), (20, 20)])
@pytest.mark.parametrize('batch_size', [1, 5])
def test_outputs_of_tiles_fade_into_each_other(tmp_path, save, shape, batch_size):
    network, pixels = InContext(), make_pixels(shape, empty=0).astype(np.float32)
    pixels[:, 10:20, 5:90] = np.nan
    pixels[:, 64:128, :] = np.nan if shape[0] > 200 else pixels[:, 64:128, :]
    path = save(tmp_path / 'src.tif', pixels)
    options = {'tile_size': 96, 'halo': 16, 'batch_size': batch_size, 'blend': True}
    mapped = read(run_map(path, network, tmp_path / 'map.tif', **options))
    sums, weights = blended(network, pixels, make_grid(shape, tile_size=96, halo=16))
    known = ~np.isnan(pixels[0])
    assert np.array_equal(np.isnan(mapped), ~known)
    assert weights == pytest.approx(1)
    assert np.allclose(mapped[known], sums[known], atol=1e-5)


def test_a_map_shows_no_tile_lines_where_positions_are_embedded(tmp_path, save):
    rng = np.random.default_rng(0)
    pixels = ndimage.gaussian_filter(rng.normal(size=(400, 400)), 6)
    pixels = np.repeat((20 + 12 * pixels / pixels.std())[None], 2, axis=0).astype(np.float32)
    path = save(tmp_path / 'src.tif', pixels, names=['Red', 'Green'])
    mapped = read(model_of(InContext()).predict_raster(path, tmp_path / 'map.tif', tile_size=128))
    cut = read(run_map(path, InContext(), tmp_path / 'cut.tif', classes=infos(1, 2, 3), tile_size=128, halo=8))
    lines = [start for start, _, _ in make_grid((400, 400), tile_size=128, halo=8).cols][1:]

    def ratio(values):
        lines = [core for _, core, _ in make_grid((400, 400), tile_size=128, halo=8).cols][1:]
        changes = (np.diff(values.astype(int), axis=1) != 0).mean(0)
        others = np.delete(changes, np.array(lines) - 1)
        return changes[np.array(lines) - 1].mean() / others.mean()

    assert lines
    assert ratio(cut) > 2
    assert ratio(mapped) < 1.2


@pytest.mark.parametrize('network', [InContext(), Plain(2, 3)])
def test_a_map_does_not_depend_on_the_part_of_the_scene_that_is_mapped(tmp_path, save, network):
    pixels = make_pixels((220, 240), empty=0)
    place = Affine(10, 0, 257_070, 0, -10, 285_730)
    whole = save(tmp_path / 'whole.tif', pixels, names=['Red', 'Green'], transform=place)
    moved = place @ Affine.translation(29, 13)
    part = save(tmp_path / 'part.tif', pixels[:, 13:, 29:], names=['Red', 'Green'], transform=moved)
    model = model_of(network)
    options = {'tile_size': 64, 'halo': 8}
    first, second = (
        read(model.predict_raster(path, tmp_path / f'{path.stem}_map.tif', **options)) for path in (whole, part)
    )
    assert (first[13:, 29:] != second)[16:, 16:].mean() <= (0.05 if network.backbone.has_position_grid else 0)


# -- what the map says of itself


def test_place_colours_names_and_nodata_go_with_the_map(tmp_path, save):
    place = Affine(10, 0, 399960, 0, -10, 5400000)
    path = save(tmp_path / 'src.tif', make_pixels((80, 90)), nodata=-1, names=['Red', 'Green'], transform=place)
    result = model_of(Plain(2, 3), values=(7, 9, 200)).predict_raster(path, tmp_path / 'map.tif')
    with rasterio.open(result) as src:
        assert (src.crs.to_epsg(), src.transform, src.shape) == (32633, place, (80, 90))
        assert (src.count, src.dtypes, src.nodata) == (1, ('uint8',), 0)
        colors, tags = src.colormap(1), src.tags(1)
        assert {v: colors[v][:3] for v in (7, 9, 200)} == {i.value: i.color for i in infos(7, 9, 200)}
        assert {k: v for k, v in tags.items() if k.startswith('class_')} == {
            'class_7': 'class 7',
            'class_9': 'class 9',
            'class_200': 'class 200',
        }
        assert (src.tags()['MODEL'], src.tags()['BACKBONE']) == ('Plain', 'none')


@pytest.mark.parametrize(
    ('values', 'dtype', 'nodata'),
    [((7, 255), 'uint8', 0), ((7, 255, 300), 'uint16', 0), ((0, 7, 9), 'uint8', 255), ((0, 255), 'uint8', 254)],
)
def test_class_values_come_back_as_they_were(tmp_path, save, values, dtype, nodata):
    network, pixels = Plain(2, len(values)), make_pixels((70, 80))
    path = save(tmp_path / 'src.tif', pixels, nodata=-1, names=['Red', 'Green'])
    result = model_of(network, values=values).predict_raster(path, tmp_path / 'map.tif')
    assert np.array_equal(read(result), expected_map(network, pixels, values, out_nodata=nodata))
    assert set(values) <= set(np.unique(read(result)))
    with rasterio.open(result) as src:
        assert (src.dtypes[0], src.nodata) == (dtype, nodata)


def test_the_nodata_value_is_never_a_classs():
    assert output_encoding(infos(0, 1, 65535)) == ('uint16', 65534)
    assert output_encoding(infos(*range(255))) == ('uint8', 255)
    # value 0 was trained as well where labels do not name it
    assert output_encoding((ClassInfo(0, 'NoData', (0, 0, 0)), *infos(1))) == ('uint8', 255)
    assert output_encoding((ClassInfo(0, 'NoData', (0, 0, 0)), *infos(1, 255))) == ('uint8', 254)


def test_background_of_labels_without_names_differs_from_nodata(tmp_path, save):
    network, pixels = Plain(2, 2), make_pixels((70, 80))
    path = save(tmp_path / 'src.tif', pixels, nodata=-1, names=['Red', 'Green'])
    model = model_of(network, values=(0, 1))
    unnamed = (ClassInfo(0, 'NoData', (0, 0, 0)), ClassInfo(1, '1', (200, 0, 0)))
    model.spec = replace(model.spec, class_infos=unnamed)
    mapped = read(model.predict_raster(path, tmp_path / 'map.tif'))
    assert np.array_equal(mapped, expected_map(network, pixels, [0, 1], out_nodata=255))
    assert set(np.unique(mapped)) == {0, 1, 255}


# -- bands and units


def test_bands_are_matched_by_name(tmp_path, save):
    pixels, network = make_pixels((70, 80), bands=3, empty=0), Plain(2, 3)
    a = save(tmp_path / 'a.tif', pixels, nodata=-1, names=['Red', 'Green', 'NIR'])
    b = save(tmp_path / 'b.tif', pixels[[2, 1, 0]], nodata=-1, names=['nir', 'GREEN', 'red'])
    model = model_of(network)
    first, second = (model.predict_raster(path, tmp_path / f'{path.stem}_map.tif') for path in (a, b))
    assert np.array_equal(read(first), read(second))
    assert np.array_equal(read(first), expected_map(network, pixels[:2], [1, 2, 3]))


def test_bands_that_the_file_does_not_name_can_be_named(tmp_path, save):
    pixels, network = make_pixels((70, 80), bands=3, empty=0), Plain(2, 3)
    path = save(tmp_path / 'src.tif', pixels, nodata=-1)
    model = model_of(network)
    with pytest.raises(
        RasterError, match=r'holds 3 bands, which cannot be told apart by name; the model needs 2.*bands='
    ):
        model.predict_raster(path, tmp_path / 'map.tif')
    result = model.predict_raster(path, tmp_path / 'map.tif', bands=['Blue', 'Green', 'Red'])
    assert np.array_equal(read(result), expected_map(network, pixels[[2, 1]], [1, 2, 3]))
    with pytest.raises(RasterError, match='bands= names 2 bands but .* holds 3'):
        model.predict_raster(path, tmp_path / 'other.tif', bands=['Green', 'Red'])


def test_a_band_too_few_is_refused(tmp_path, save):
    path = save(tmp_path / 'src.tif', make_pixels((70, 80)), nodata=-1, names=['Red', 'Blue'])
    with pytest.raises(RasterError, match="no bands fit 'Green'; found 'Red' .*needed"):
        model_of(Plain(2, 3)).predict_raster(path, tmp_path / 'map.tif')
    assert [p.name for p in tmp_path.iterdir()] == ['src.tif']


def test_scale_and_offset_bring_pixels_to_the_models_units(tmp_path, save):
    pixels, network = make_pixels((70, 80)), Plain(2, 3)
    stored = np.where(pixels == -1, -9999, pixels * 4 - 1000).astype(np.int16)
    path = save(tmp_path / 'src.tif', stored, nodata=-9999, names=['Red', 'Green'])
    result = model_of(network).predict_raster(path, tmp_path / 'map.tif', scale=0.25, offset=250.0)
    assert np.array_equal(read(result), expected_map(network, pixels, [1, 2, 3]))


def test_pixels_in_other_units_are_refused(tmp_path, save):
    pixels = make_pixels((70, 80), empty=0)
    path = save(tmp_path / 'src.tif', (pixels * 10000.0).astype(np.float32), names=['Red', 'Green'])
    model = model_of(Plain(2, 3))
    with pytest.raises(RasterError, match=r'other units than the training chips: medians Red .*Pass scale='):
        model.predict_raster(path, tmp_path / 'map.tif')
    assert model.predict_raster(path, tmp_path / 'map.tif', scale=1e-4).exists()


def test_pixels_ten_times_too_small_get_a_warning(tmp_path, save, caplog):
    path = save(tmp_path / 'src.tif', (make_pixels((70, 80), empty=0) / 10).astype(np.float32), names=['Red', 'Green'])
    with caplog.at_level(logging.WARNING, 'geolearn'):
        model_of(Plain(2, 3)).predict_raster(path, tmp_path / 'map.tif')
    assert 'may be in other units' in caplog.text


def test_pixels_far_too_small_are_refused_unless_the_caller_vouches_for_them(tmp_path, save, caplog):
    path = save(tmp_path / 'src.tif', (make_pixels((70, 80), empty=0) / 1e4).astype(np.float32), names=['Red', 'Green'])
    with pytest.raises(RasterError, match='scale=1 if it is already'):
        model_of(Plain(2, 3)).predict_raster(path, tmp_path / 'map.tif')
    with caplog.at_level(logging.WARNING, 'geolearn'):
        assert model_of(Plain(2, 3)).predict_raster(path, tmp_path / 'map.tif', scale=1.0).exists()
    assert 'may be in other units' in caplog.text


@pytest.mark.parametrize('bad', [{'scale': 0.0}, {'scale': float('nan')}, {'offset': float('inf')}, {'tile_size': 0}])
def test_numbers_that_make_no_sense_are_refused(tmp_path, save, bad):
    path = save(tmp_path / 'src.tif', make_pixels((70, 80)), nodata=-1, names=['Red', 'Green'])
    with pytest.raises(ValueError, match=f'{next(iter(bad))} must be'):
        model_of(Plain(2, 3)).predict_raster(path, tmp_path / 'map.tif', **bad)


def test_targets_that_cannot_be_written_are_refused_before_the_work(tmp_path, save):
    path = save(tmp_path / 'src.tif', make_pixels((70, 80)), nodata=-1, names=['Red', 'Green'])
    with pytest.raises(RasterError, match='src.tif is the raster to map; write the map to another file'):
        model_of(Plain(2, 3)).predict_raster(path, path)
    with pytest.raises(RasterError, match='is a folder; pass the file to write, such as '):
        model_of(Plain(2, 3)).predict_raster(path, tmp_path)
    os.link(path, tmp_path / 'hard.tif')
    with pytest.raises(RasterError, match='hard.tif is the raster to map; write the map to another file'):
        check_target(path, tmp_path / 'hard.tif', overwrite=True)


def test_no_tiles_at_a_time_are_refused(tmp_path, save):
    path = save(tmp_path / 'src.tif', make_pixels((70, 80)), nodata=-1, names=['Red', 'Green'])
    with pytest.raises(ValueError, match='batch_size must be at least 1, got 0'):
        model_of(Plain(2, 3)).predict_raster(path, tmp_path / 'map.tif', batch_size=0)
    with pytest.raises(ValueError, match='halo must be at least 0 and under half the tile size 64, got 32'):
        model_of(Plain(2, 3)).predict_raster(path, tmp_path / 'map.tif', tile_size=64, halo=32)


# -- reading


class Counting:
    """A raster that notes the windows that are read."""

    def __init__(self, src):
        self.src, self.windows = src, []

    def __getattr__(self, name):
        return getattr(self.src, name)

    def read_masked(self, window, *args):
        self.windows.append(window)
        return self.src.read_masked(window, *args)


@pytest.mark.parametrize('tiled', [True, False])
def test_wide_rasters_of_tiles_are_mapped_in_parts_and_those_of_strips_at_once(tmp_path, save, monkeypatch, tiled):
    layout = {'tiled': True, 'blockxsize': 32, 'blockysize': 32} if tiled else {'blockysize': 32}
    path = save(tmp_path / 'src.tif', make_pixels((64, 600)), nodata=-1, **layout)
    given = {'classes': infos(1, 2, 3), 'halo': FIELD}
    whole = run_map(path, Plain(2, 3), tmp_path / 'whole.tif', **given).read_bytes()
    counters = []

    def wrap(src):
        counters.append(Counting(src))
        return counters[0]

    monkeypatch.setattr(map_parts, 'TILED_BUFFER_BYTES', 2**17)
    narrow = run_map(path, Plain(2, 3), tmp_path / 'narrow.tif', **given, wrap=wrap).read_bytes()
    columns = {(window.col_off, window.width) for window in counters[0].windows}
    assert columns == {(0, 600)} if not tiled else len(columns) > 2
    assert whole == narrow


def test_rows_are_read_ahead_while_those_before_them_stay(tmp_path, save):
    path = save(tmp_path / 'src.tif', make_pixels((60, 40)), nodata=-1, blockysize=4)
    with open_raster(path) as src, ThreadPoolExecutor(1) as pool:
        counting = Counting(src)
        rolling = RollingRows(Source(counting, (1, 2)), 24, pool=pool)
        pixels, valid = rolling.rows(0, 22)
        held = pixels.copy(), valid.copy()
        rolling.read_ahead(18, 40)
        pool.submit(int).result()  # waits for what was asked for before
        assert [(w.row_off, w.height) for w in counting.windows] == [(0, 24), (24, 16)]
        assert np.array_equal(pixels, held[0])
        assert np.array_equal(valid, held[1])
        ahead = [part.copy() for part in rolling.rows(18, 40)]
        assert len(counting.windows) == 2
        expected = RollingRows(Source(src, (1, 2)), 24).rows(18, 40)
    assert all(np.array_equal(part, other) for part, other in zip(ahead, expected))


def test_the_next_block_row_is_read_while_all_tiles_of_the_last_are_cut(tmp_path, save):
    """Block rows of two rows of tiles: reading begins with the first of these, and not only with the second."""
    path = save(tmp_path / 'src.tif', make_pixels((128, 64)), nodata=-1, blockysize=64)
    with open_raster(path) as src:
        counting = Counting(src)
        grid = make_grid((128, 64), tile_size=32, halo=0)
        batches = read_batches([Source(counting, (1, 2))], grid, batch_size=1, read=ReadOptions())
        first = next(batches)
        deadline = time.time() + 10
        while len(counting.windows) < 2 and time.time() < deadline:
            time.sleep(0.01)
        assert [(w.row_off, w.height) for w in counting.windows] == [(0, 64), (64, 64)]
        found = [first, *batches]
        assert len(counting.windows) == 2
        expected, _ = src.read_masked(Window(0, 0, 64, 128), [1, 2])
    for batch in found:
        (tile,) = batch.tiles
        row, col = int(tile.read.row_off), int(tile.read.col_off)
        part = expected[:, row : row + 32, col : col + 32]
        assert np.array_equal(np.nan_to_num(batch.pixels[0], nan=-1), np.where((part == -1).any(0), -1, part))


def test_dates_in_one_file_are_read_by_one_thread_at_a_time(tmp_path, save):
    path = save(tmp_path / 'src.tif', make_pixels((200, 64)), nodata=-1, blockysize=4)
    threads = set()

    class Noting(Counting):
        def read_masked(self, *args):
            threads.add(threading.get_ident())
            return super().read_masked(*args)

    with open_raster(path) as src:
        noting = Noting(src)
        grid = make_grid((200, 64), tile_size=32, halo=0)
        dates = [Source(noting, (1,)), Source(noting, (2,))]
        batches = list(read_batches(dates, grid, batch_size=1, read=ReadOptions()))
    assert len(threads) == 1
    assert threads.isdisjoint({threading.get_ident()})
    assert {tuple(batch.pixels.shape) for batch in batches} == {(1, 2, 1, 32, 32)}
    assert no_threads_left()


@pytest.mark.parametrize('layout', [{'blockysize': 7}, {'tiled': True, 'blockxsize': 64, 'blockysize': 32}, {}])
@pytest.mark.parametrize('halo', [0, 20])
def test_each_block_is_read_once(tmp_path, save, layout, halo):
    path = save(tmp_path / 'src.tif', make_pixels((500, 150)), nodata=-1, **layout)
    counters = []

    def wrap(src):
        counters.append(Counting(src))
        return counters[0]

    run_map(path, Plain(2, 3), tmp_path / 'map.tif', classes=infos(1, 2, 3), halo=halo, wrap=wrap)
    windows = counters[0].windows
    rows = layout.get('blockysize', counters[0].block_shapes[0][0])
    assert sum(w.height for w in windows) == 500
    assert len(windows) > 3
    assert {(w.col_off, w.width) for w in windows} == {(0, 150)}
    assert all(w.row_off % rows == 0 for w in windows)


def test_reading_stays_a_few_batches_ahead_of_the_network():
    made = []

    def batches():
        for i in range(100):
            made.append(i)
            yield i

    ahead = prefetch(batches())
    assert next(ahead) == 0
    time.sleep(0.3)
    assert len(made) <= QUEUE_BATCHES + 2
    assert [next(ahead) for _ in range(5)] == [1, 2, 3, 4, 5]
    ahead.close()
    assert no_threads_left()
    assert len(made) < 12


@pytest.mark.timeout(20)
@pytest.mark.parametrize('error', [RasterError('gone'), MemoryError('full'), ValueError('odd'), SystemExit(3)])
def test_whatever_goes_wrong_while_reading_is_raised_where_it_is_waited_for(error):
    def batches():
        yield 1
        raise error

    ahead = prefetch(batches())
    assert next(ahead) == 1
    with pytest.raises(type(error)) as caught:
        next(ahead)
    assert caught.value is error
    assert no_threads_left()


def test_batches_are_full_but_for_the_last(tmp_path, save):
    path = save(tmp_path / 'src.tif', make_pixels((128, 160), empty=0), nodata=-1)
    with open_raster(path) as src:
        grid = make_grid((128, 160), tile_size=32, halo=0)
        batches = list(read_batches([Source(src, (1, 2))], grid, batch_size=3, read=ReadOptions()))
    assert [len(batch.tiles) for batch in batches] == [3] * 6 + [2]
    assert all(batch.pixels.shape == (len(batch.tiles), 2, 32, 32) for batch in batches)


@pytest.mark.parametrize('first', [3, 6, 18])
def test_batches_from_a_tile_on_are_those_of_the_whole_run(tmp_path, save, first):
    path = save(tmp_path / 'src.tif', make_pixels((300, 90)), nodata=-1, blockysize=7)
    grid = make_grid((300, 90), tile_size=64, halo=8)
    with open_raster(path) as src:
        whole = list(read_batches([Source(src, (1, 2))], grid, batch_size=3, read=ReadOptions()))
        counting = Counting(src)
        rest = list(read_batches([Source(counting, (1, 2))], grid, batch_size=3, read=ReadOptions(), first=first))
    tiles = list(grid)
    begin = [batch.tiles[0] for batch in whole].index(tiles[first]) if first < len(tiles) else len(whole)
    assert [batch.tiles for batch in rest] == [batch.tiles for batch in whole[begin:]]
    for one, other in zip(rest, whole[begin:]):
        assert np.array_equal(one.pixels, other.pixels, equal_nan=True)
    # rows of tiles that are done are not read again
    assert bool(counting.windows) == (first < len(tiles))
    assert all(window.row_off >= tiles[first].read.row_off for window in counting.windows)


# -- failing


def leaves_nothing(folder, kept):
    return sorted(p.name for p in folder.iterdir()) == sorted(kept)


@pytest.mark.timeout(60)
def test_a_raster_that_breaks_off_leaves_no_map(tmp_path, save):
    path = save(tmp_path / 'src.tif', make_pixels((1000, 300)), nodata=-1, blockysize=16)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    model = model_of(Plain(2, 3))
    with pytest.raises(RasterError, match=r'cannot read rows \d+\.\.\d+ of .*src\.tif'):
        model.predict_raster(path, tmp_path / 'map.tif')  # the look at its values finds out
    with pytest.raises(RasterError, match=r'cannot read rows \d+\.\.\d+ of .*src\.tif'):
        run_map(path, Plain(2, 3), tmp_path / 'map.tif', classes=infos(1, 2, 3))  # the reading thread does
    assert leaves_nothing(tmp_path, ['src.tif'])


@pytest.mark.timeout(60)
@pytest.mark.parametrize('after', [0, 3])
def test_a_failing_network_leaves_no_map_and_an_older_one_as_it_was(tmp_path, save, after):
    class Failing(Plain):
        def forward(self, x):
            if self.computed >= after:
                raise RuntimeError('CUDA out of memory')
            return super().forward(x)

    path = save(tmp_path / 'src.tif', make_pixels((600, 300)), nodata=-1)
    (tmp_path / 'map.tif').write_text('older')
    with pytest.raises(RuntimeError, match='CUDA out of memory'):
        run_map(path, Failing(2, 3), tmp_path / 'map.tif', classes=infos(1, 2, 3), batch_size=1)
    assert leaves_nothing(tmp_path, ['src.tif', 'map.tif'])
    assert (tmp_path / 'map.tif').read_text() == 'older'


@pytest.mark.timeout(60)
def test_a_failing_writer_is_heard(tmp_path, save, monkeypatch):
    def fail(self, row, pixels):
        raise RasterError(f'row {row} cannot be written')

    monkeypatch.setattr(PieceFile, 'write', fail)
    path = save(tmp_path / 'src.tif', make_pixels((900, 300)), nodata=-1)
    with pytest.raises(RasterError, match='row 0 cannot be written'):
        run_map(path, Plain(2, 3), tmp_path / 'map.tif', classes=infos(1, 2, 3))
    assert leaves_nothing(tmp_path, ['src.tif'])


@contextmanager
def small_files(limit):
    """Let no file grow beyond `limit` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.timeout(60)
@pytest.mark.parametrize('limit', [2000, 20_000])
def test_a_full_disk_leaves_no_map(tmp_path, save, limit):
    path = save(tmp_path / 'src.tif', make_pixels((600, 600), empty=0), nodata=-1)
    with small_files(limit), pytest.raises(RasterError, match=r'cannot write .*map\.tif: .*Nothing was left behind'):
        run_map(path, Plain(2, 3), tmp_path / 'map.tif', classes=infos(1, 2, 3), tile_size=128)
    assert leaves_nothing(tmp_path, ['src.tif'])


def test_a_folder_that_does_not_exist_is_named(tmp_path, save):
    path = save(tmp_path / 'src.tif', make_pixels((70, 80)), nodata=-1, names=['Red', 'Green'])
    with pytest.raises(RasterError, match='the folder .*none does not exist; create it first'):
        model_of(Plain(2, 3)).predict_raster(path, tmp_path / 'none' / 'map.tif')


# -- what the caller says of NoData, and of a file that is there


@pytest.mark.parametrize('nodata', [7, [7, None, 7], (7, 7, 7)])
def test_nodata_that_the_file_does_not_name_can_be_named(tmp_path, save, nodata):
    pixels, network = make_pixels((70, 80), bands=3, nodata=7, empty=0.2), Plain(2, 3)
    pixels[1][pixels[1] == 7] = 8
    path = save(tmp_path / 'src.tif', pixels, names=['Red', 'Blue', 'Green'])
    result = model_of(network).predict_raster(path, tmp_path / 'map.tif', nodata=nodata)
    assert np.array_equal(read(result), expected_map(network, pixels[[0, 2]], [1, 2, 3], nodata=7))


def test_nodata_of_another_number_of_bands_is_refused(tmp_path, save):
    path = save(tmp_path / 'src.tif', make_pixels((70, 80)), names=['Red', 'Green'])
    with pytest.raises(ValueError, match=r'nodata must be a number, or one for each of 2 bands; got 3'):
        model_of(Plain(2, 3)).predict_raster(path, tmp_path / 'map.tif', nodata=[1, 2, 3])
    for bad in ('none', [1, 'x'], True):
        with pytest.raises(ValueError, match='nodata must be a number'):
            model_of(Plain(2, 3)).predict_raster(path, tmp_path / 'map.tif', nodata=bad)


def test_values_that_mean_nodata_do_not_count_as_units(tmp_path, save):
    pixels = make_pixels((70, 80), nodata=30_000, empty=0)
    pixels[:, :60] = 30_000
    path = save(tmp_path / 'src.tif', pixels, names=['Red', 'Green'])
    with pytest.raises(RasterError, match='other units'):
        model_of(Plain(2, 3)).predict_raster(path, tmp_path / 'map.tif')
    assert model_of(Plain(2, 3)).predict_raster(path, tmp_path / 'map.tif', nodata=30_000).exists()


def test_a_map_that_exists_is_replaced_only_on_request(tmp_path, save):
    path = save(tmp_path / 'src.tif', make_pixels((70, 80)), nodata=-1, names=['Red', 'Green'])
    model, dst = model_of(Plain(2, 3)), tmp_path / 'map.tif'
    dst.write_text('older')
    with pytest.raises(RasterError, match=r'map\.tif exists; pass overwrite=True to replace it, or another name'):
        model.predict_raster(path, dst)
    assert model.network.computed == 0
    assert dst.read_text() == 'older'
    assert read(model.predict_raster(path, dst, overwrite=True)).shape == (70, 80)


# -- cloud-optimized maps


@pytest.mark.parametrize('regression', [False, True])
def test_maps_are_cloud_optimized_with_overviews_and_all_that_they_say(tmp_path, save, regression):
    path = save(tmp_path / 'src.tif', make_pixels((700, 900)), nodata=-1, names=['Red', 'Green'])
    model, dst = model_of(Plain(2, 3)), tmp_path / 'map.tif'
    if regression:
        given = {'read': ReadOptions(), 'tiling': TilingOptions()}
        map_raster(model.spec, model.network, RegressionEncoding(), path, dst, **given)
    else:
        model.predict_raster(path, dst)
    valid, errors, warned = cog_validate(dst)
    assert (valid, errors, warned) == (True, [], [])
    plain = tmp_path / 'plain.tif'
    with rasterio.open(dst) as src:
        assert src.overviews(1)
        assert src.descriptions == ('prediction' if regression else 'class',)
        assert src.tags()['MODEL'] == 'Plain'
        if not regression:
            assert src.colormap(1)[2][:3] == infos(1, 2, 3)[1].color
            assert src.tags(1)['class_2'] == 'class 2'
            assert src.nodata == 0
    if not regression:
        model.predict_raster(path, plain, cog=False)
        assert np.array_equal(read(plain), read(dst))
        with rasterio.open(plain) as src:
            assert not src.overviews(1)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith('.aux.xml')) == sorted(
        {'src.tif', 'map.tif'} | ({'map.qml', 'plain.tif', 'plain.qml'} if not regression else set())
    )


# -- batches that memory does not hold


class Narrow(Plain):
    """Runs out of memory with more than two tiles at once."""

    def forward(self, x):
        if len(x) > 2:
            raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')
        return super().forward(x)


def test_batches_that_memory_does_not_hold_are_halved(caplog):
    images = torch.from_numpy(make_pixels((36, 24), bands=2 * 36).reshape(36, 2, 36, 24).astype(np.float32))
    parts = list(MicroBatches(Narrow(2, 3)).parts(images))
    assert torch.equal(torch.cat([outputs for _, outputs in parts]), Plain(2, 3)(images))
    assert [index for part, _ in parts for index in range(36)[part]] == list(range(36))
    assert 'out of memory with 36 tiles at once; continuing with 18' in caplog.text
    assert 'continuing with 2' in caplog.text


def test_an_absurd_batch_size_gives_the_same_map(tmp_path, save):
    network, pixels = Narrow(2, 3), make_pixels((200, 200))
    path = save(tmp_path / 'src.tif', pixels, nodata=-1)
    result = run_map(path, network, tmp_path / 'map.tif', classes=infos(1, 2, 3), batch_size=10**9)
    assert np.array_equal(read(result), expected_map(Plain(2, 3), pixels, [1, 2, 3]))


def test_an_absurd_number_of_tiles_is_halved_before_they_are_read(caplog):
    assert fit_batch_size(10**9, 12, 1000) == 12
    assert not caplog.text
    assert fit_batch_size(10**9, 10**7, 10 * 2**20) < 2**14
    assert 'memory does not hold batches of 1000000000 tiles' in caplog.text
    assert fit_batch_size(4, 10, 2**50) == 1


def test_linear_backscatter_is_refused_and_made_decibels_on_request(tmp_path, save):
    rng = np.random.default_rng(0)
    power = (rng.gamma(4, 0.25, (2, 70, 80)) * np.array([0.08, 0.015])[:, None, None]).astype(np.float32)
    decibels, network = (10 * np.log10(power)).astype(np.float32), Plain(2, 3)
    columns = (decibels.min((1, 2)), decibels.max((1, 2)), decibels.mean((1, 2)), decibels.std((1, 2)))
    statistics = BandStatistics(*(tuple(column.tolist()) for column in columns))
    model = model_of(network)
    bands = tuple(Band(name, None, name.lower(), is_radar=True) for name in ('VV', 'VH'))
    model.spec = replace(model.spec, bands=bands, statistics=statistics)
    linear = save(tmp_path / 'linear.tif', power, names=['VV', 'VH'])
    with pytest.raises(RasterError, match="look like linear power, the training chips like dB; pass scale='db'"):
        model.predict_raster(linear, tmp_path / 'no.tif')
    one = model.predict_raster(linear, tmp_path / 'one.tif', scale='db')
    other = model.predict_raster(save(tmp_path / 'db.tif', decibels, names=['VV', 'VH']), tmp_path / 'other.tif')
    assert (read(one) == read(other)).mean() > 0.999
    with pytest.raises(ValueError, match="or 'db' for a model with radar bands"):
        model_of(network).predict_raster(linear, tmp_path / 'no.tif', scale='db')
