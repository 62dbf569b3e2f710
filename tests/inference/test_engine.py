"""Outputs, blending, resuming and the memory of the engine that maps rasters."""

import multiprocessing
import signal
import sys
import time
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window
from torch import nn

from geolearn import precision as precisions
from geolearn.classes import ClassInfo
from geolearn.errors import CheckpointError, RasterError, UnknownNameError
from geolearn.inference import map_progress, store
from geolearn.inference.encoding import ClassEncoding, find_largest, make_layers
from geolearn.inference.mapping import MapOptions, map_raster
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.plan import plan_parts
from geolearn.inference.source import Source
from geolearn.inference.stitching import STITCHERS
from geolearn.inference.tiles import QUEUE_BATCHES, prefetch, read_batches
from geolearn.models import DeepLab
from geolearn.raster import open_raster, pieces
from geolearn.raster.pieces import PieceFile
from geolearn.tiling import make_grid

pytestmark = pytest.mark.usefixtures('one_thread')

CLASSES = tuple(ClassInfo(value, f'class {value}', (40 * value, 9, 200)) for value in (1, 2, 3))


class Blurred(nn.Module):
    """Logits that are smooth in the image, and with `context` depend on the place in the tile, as transformers' do."""

    def __init__(self, context=0.0, stops_after=None):
        super().__init__()
        self.backbone = SimpleNamespace(has_position_grid=context > 0, strides=(16,))
        self.context, self.finer = None, 1
        self.weight = nn.Parameter(torch.tensor([1.0, -0.7, 0.2]))
        self.fade, self.calls, self.stops_after = context, 0, stops_after

    def forward(self, x):
        self.calls += len(x)
        if self.stops_after is not None and self.calls > self.stops_after:
            raise RasterError('the disk is gone')
        x = torch.nan_to_num(x, nan=20.0)[:, :1] / 20 - 1
        x = nn.functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
        row, col = (torch.linspace(-1, 1, length) for length in x.shape[2:])
        x = x + self.fade * (row[:, None] + col)
        return torch.cat([x * weight + 0.01 * index for index, weight in enumerate(self.weight)], dim=1)


@pytest.fixture(scope='module')
def scene(tmp_path_factory, save):
    """600 x 110 pixels in 0..40, of which some have no data."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 41, (2, 600, 110)).astype(np.int16)
    pixels[:, 100:160, 30:70] = -1
    path = tmp_path_factory.mktemp('scene') / 'scene.tif'
    return save(path, pixels, nodata=-1, names=['Red', 'Green'], blockysize=64)


def run(make_spec, scene, dst, network=None, *, tiling=None, **options):
    spec = make_spec(classes=3)
    return map_raster(
        spec,
        Blurred() if network is None else network,
        ClassEncoding(CLASSES, options.pop('temperature', 1.0)),
        scene,
        dst,
        read=ReadOptions(),
        tiling=TilingOptions(**{'tile_size': 96, 'halo': 8, **(tiling or {})}),
        options=MapOptions(**options),
    )


def read_all(path):
    with rasterio.open(path) as src:
        return src.read()


# -- outputs


@pytest.mark.parametrize('dtype', ['uint8', 'float16', 'float32'])
def test_probabilities_and_confidence_lie_beside_the_map(make_spec, scene, tmp_path, dtype):
    outputs = ('classes', 'probabilities', 'confidence')
    run(make_spec, scene, tmp_path / 'map.tif', outputs=outputs, probability_dtype=dtype, temperature=2.0)
    classes = read_all(tmp_path / 'map.tif')[0]
    with rasterio.open(tmp_path / 'map_probabilities.tif') as src:
        shares, stored = src.read() * src.scales[0], src.dtypes[0]
        assert src.descriptions == tuple(f'probability of class {value}' for value in (1, 2, 3))
        assert src.scales == ((0.004,) * 3 if dtype == 'uint8' else (1.0,) * 3)
        known = src.read_masks(1) > 0
        assert src.tags(1, ns='IMAGE_STRUCTURE').get('NBITS') == ('16' if dtype == 'float16' else None)
    assert stored == ('uint8' if dtype == 'uint8' else 'float32')
    with rasterio.open(tmp_path / 'map_confidence.tif') as src:
        confidence = src.read(1) * src.scales[0]
        assert src.descriptions == ('confidence',)
    assert np.array_equal(known, classes > 0)
    assert np.abs(shares.sum(0)[known] - 1).max() < {'uint8': 0.007, 'float16': 2e-3, 'float32': 1e-5}[dtype]
    assert np.allclose(confidence[known], shares.max(0)[known], atol=1e-6)
    agrees = np.take_along_axis(shares, (classes[None].astype(int) - 1) % 3, axis=0)[0] >= shares.max(0) - 1e-6
    assert agrees[known].all()
    cold = tmp_path / 'cold.tif'
    run(make_spec, scene, cold, outputs=('confidence',), probability_dtype='float32', temperature=0.5)
    assert (read_all(cold)[0][known] >= confidence[known] - 0.004).all()


def test_all_outputs_may_be_bands_of_one_file(make_spec, scene, tmp_path):
    outputs = ('confidence', 'classes', 'probabilities')
    run(make_spec, scene, tmp_path / 'map.tif', outputs=outputs, layout='bands')
    run(make_spec, scene, tmp_path / 'plain.tif')
    with rasterio.open(tmp_path / 'map.tif') as src:
        assert src.descriptions[:3] == ('class', 'probability of class 1', 'probability of class 2')
        assert src.descriptions[-1] == 'confidence'
        assert (src.nodata, src.scales) == (255, (1.0, *(0.004,) * 4))
        found = src.read(1)
    plain = read_all(tmp_path / 'plain.tif')[0]
    assert np.array_equal(np.where(found == 255, 0, found), plain)
    assert not list(tmp_path.glob('map_*.tif'))


def test_what_one_file_cannot_hold_is_refused_with_the_way_out():
    encoding = ClassEncoding((*CLASSES, ClassInfo(255, 'rest', (0, 0, 0))))
    both = ('classes', 'confidence')
    with pytest.raises(ValueError, match=r"class value 255 does not fit .* layout='files', or probability_dtype='f"):
        make_layers(encoding, both, bands=True)
    assert make_layers(encoding, both, bands=True, dtype='float32')
    assert len(make_layers(encoding, both)) == 2


@pytest.mark.parametrize(
    ('wrong', 'error', 'said'),
    [
        ({'outputs': ()}, ValueError, 'outputs must name one or several of classes, probabilities, confidence'),
        ({'outputs': ('classes', 'classes')}, ValueError, 'each once'),
        ({'outputs': 'probability'}, UnknownNameError, 'probabilities'),
        ({'probability_dtype': 'int8'}, UnknownNameError, 'uint8'),
        ({'layout': 'band'}, UnknownNameError, 'bands'),
    ],
)
def test_outputs_that_are_not_there_are_refused(wrong, error, said):
    with pytest.raises(error, match=said):
        MapOptions(**wrong)


def test_maps_state_what_they_hold(make_spec, scene, tmp_path):
    run(make_spec, scene, tmp_path / 'map.tif', outputs=('classes', 'confidence'), probability_dtype='float32')
    classes, confidence = (read_all(tmp_path / name)[0] for name in ('map.tif', 'map_confidence.tif'))
    text = (tmp_path / 'map.tif.aux.xml').read_text()
    for info in CLASSES:
        count = int((classes == info.value).sum())
        assert f'<F>{info.value}</F><F>{count}</F><F>{info.name}</F><F>{info.color[0]}</F>' in text
    with rasterio.open(tmp_path / 'map_confidence.tif') as src:
        stated = {key: float(text) for key, text in src.tags(1).items() if key.startswith('STATISTICS')}
    known = confidence[~np.isnan(confidence)].astype(float)
    assert stated == pytest.approx(
        {
            'STATISTICS_MINIMUM': known.min(),
            'STATISTICS_MAXIMUM': known.max(),
            'STATISTICS_MEAN': known.mean(),
            'STATISTICS_STDDEV': known.std(),
        },
        rel=1e-6,
    )


# -- blending, augmentation


def changes_at(lines, mapped):
    """How often labels change at tile lines, over how often elsewhere."""
    changes = (np.diff(mapped.astype(int), axis=0) != 0).mean(1)
    at = np.array(lines) - 1
    return changes[at].mean() / np.delete(changes, at).mean()


def test_blended_tiles_show_no_lines_and_depend_less_on_where_they_start(make_spec, save, tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.round(20 + 12 * np.sin(np.linspace(0, 9, 512)[:, None] + rng.random(96))).astype(np.int16)
    whole = save(tmp_path / 'whole.tif', np.stack([pixels] * 2), names=['Red', 'Green'])
    lower = save(tmp_path / 'lower.tif', np.stack([pixels[32:]] * 2), names=['Red', 'Green'])
    found = {}
    for blend, side in (('crop', 128), ('hann', 64)):
        network, tiling = Blurred(context=0.3), {'tile_size': side, 'halo': 8, 'blend': blend}
        maps = [
            read_all(run(make_spec, path, tmp_path / f'{blend}_{path.stem}.tif', network, tiling=tiling))[0]
            for path in (whole, lower)
        ]
        lines = [core for _, core, _ in make_grid((512, 96), tile_size=side, halo=8, multiple=32).rows][1:]
        found[blend] = changes_at(lines, maps[0]), (maps[0][64:] != maps[1][32:]).mean()
    assert found['crop'][0] > 2
    assert found['hann'][0] < 1.1
    assert found['hann'][1] <= 0.5 * found['crop'][1]


def test_transformers_blend_unless_told_otherwise(make_spec, scene, tmp_path):
    maps = {
        name: read_all(run(make_spec, scene, tmp_path / f'{name}.tif', Blurred(context=0.3), tiling={'blend': blend}))
        for name, blend in (('usual', None), ('hann', 'hann'), ('crop', 'crop'))
    }
    assert np.array_equal(maps['usual'], maps['hann'])
    assert not np.array_equal(maps['usual'], maps['crop'])


@pytest.mark.parametrize(('augment', 'passes'), [('flips', 4), (True, 8)])
def test_augmented_maps_are_those_of_the_mean_of_flips_and_turns(make_spec, scene, tmp_path, augment, passes):
    plain, augmented = Blurred(context=0.3), Blurred(context=0.3)
    tiling = {'tile_size': 600, 'blend': 'crop'}
    first = read_all(run(make_spec, scene, tmp_path / 'a.tif', Blurred(), tiling=tiling))
    run(make_spec, scene, tmp_path / 'b.tif', plain, tiling=tiling)
    second = read_all(run(make_spec, scene, tmp_path / 'c.tif', augmented, tiling={**tiling, 'augment': augment}))
    assert augmented.calls == passes * plain.calls
    # what depends on the place in the tile cancels out
    assert (first != second).mean() < 0.001
    assert (first != read_all(tmp_path / 'b.tif')).mean() > 0.1


# -- the same bytes


OUTPUTS = {'outputs': ('classes', 'probabilities')}


@pytest.mark.parametrize('blend', ['hann', 'crop'])
def test_batches_and_parts_make_no_difference_to_a_byte(make_spec, scene, tmp_path, blend):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 3, 3, padding=1))
    network.backbone = SimpleNamespace(has_position_grid=True, strides=(16,))
    network.context, network.finer = None, 1
    forward = network.forward
    network.forward = lambda x: forward(torch.nan_to_num(x))
    results = []
    for number, options in enumerate(({'batch_size': 1}, {'batch_size': 5}, {'max_memory': 120_000})):
        path = run(make_spec, scene, tmp_path / f'{number}.tif', network, tiling={'blend': blend, **options}, **OUTPUTS)
        results.append((path.read_bytes(), (tmp_path / f'{number}_probabilities.tif').read_bytes()))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize('blend', ['hann', 'crop'])
def test_parts_cover_a_raster_once(blend):
    grid = make_grid((64, 1000), tile_size=96, halo=16)
    parts = plan_parts(grid, Window(0, 0, 1000, 64), blend=blend, most_columns=300)
    assert len(parts) > 3
    assert [int(part.core.col_off) for part in parts[1:]] == [
        int(part.core.col_off + part.core.width) for part in parts[:-1]
    ]
    assert int(parts[-1].core.col_off + parts[-1].core.width) == 1000
    assert len(plan_parts(grid, Window(0, 0, 1000, 64), blend=blend)) == 1


# -- resuming


@pytest.fixture
def small_pieces(monkeypatch):
    """Keep each row of blocks as soon as it is finished."""
    monkeypatch.setattr(store, 'PIECE_SECONDS', 0.0)


@pytest.mark.parametrize('blend', ['hann', 'crop'])
def test_a_failed_map_is_resumed_and_ends_in_the_same_bytes(make_spec, scene, tmp_path, small_pieces, blend):
    tiling = {'blend': blend, 'batch_size': 1}
    whole = Blurred(context=0.3)
    run(make_spec, scene, tmp_path / 'whole.tif', whole, tiling=tiling, **OUTPUTS)
    with pytest.raises(RasterError, match='the disk is gone'):
        run(make_spec, scene, tmp_path / 'map.tif', Blurred(0.3, stops_after=14), tiling=tiling, **OUTPUTS)
    assert sorted(path.name for path in tmp_path.glob('map*')) == ['map.tif.part']
    rest, seen = Blurred(context=0.3), []
    run(make_spec, scene, tmp_path / 'map.tif', rest, tiling=tiling, **OUTPUTS, resume=True, progress=seen.append)
    assert 0 < rest.calls < whole.calls
    for name in ('', '_probabilities'):
        for suffix in ('.tif', '.tif.aux.xml') if not name else ('.tif',):
            found, expected = ((tmp_path / f'{stem}{name}{suffix}').read_bytes() for stem in ('map', 'whole'))
            assert found == expected
    assert not (tmp_path / 'map.tif.part').exists()
    assert seen[0].done > seen[0].total // 5
    assert seen[-1].done == seen[-1].total
    assert seen[-1].megapixels == pytest.approx(0.066)
    assert seen[-1].megapixels_per_second > 0


def test_progress_goes_on_while_files_are_made(make_spec, scene, tmp_path, monkeypatch, capsys):
    copy = pieces.copy

    def copy_slowly(source, path, **options):
        for name in (f'{path}.ovr.tmp', path):
            for size in (1, 10_000):
                Path(name).write_bytes(bytes(size))
                time.sleep(0.05)
        Path(f'{path}.ovr.tmp').unlink()
        copy(source, path, **options)

    seen = []
    run(make_spec, scene, tmp_path / 'expected.tif', **OUTPUTS)
    monkeypatch.setattr(pieces, 'copy', copy_slowly)
    monkeypatch.setattr(pieces, 'WATCH_SECONDS', 0.02)
    monkeypatch.setattr(map_progress, 'LARGE_FILES', 0)
    run(make_spec, scene, tmp_path / 'map.tif', **OUTPUTS, progress=seen.append)
    assert (tmp_path / 'map.tif').read_bytes() == (tmp_path / 'expected.tif').read_bytes()
    stages = [stage for stage, _ in groupby(progress.stage for progress in seen)]
    assert stages == ['mapping', 'overviews', 'joining', 'overviews', 'joining']
    of_files = [progress.share for progress in seen if progress.stage != 'mapping']
    assert of_files == sorted(of_files)
    assert (seen[-1].share, seen[-1].done) == (1, seen[-1].total)
    assert len(of_files) > 8
    assert 'joining pieces: 100 % (1 of 1 megapixel)' in capsys.readouterr().err

    def stop(progress):
        if progress.stage == 'overviews':
            raise RuntimeError('cancelled')

    with pytest.raises(RuntimeError, match='cancelled'):
        run(make_spec, scene, tmp_path / 'other.tif', progress=stop)
    assert sorted(path.name for path in tmp_path.glob('other*')) == ['other.tif.part']
    run(make_spec, scene, tmp_path / 'other.tif', Blurred(stops_after=0), resume=True)


@pytest.mark.parametrize('damage', [lambda piece: piece[:-1] + b'?', lambda piece: piece[:50], lambda piece: b''])
def test_pieces_that_are_damaged_are_computed_again(make_spec, scene, tmp_path, small_pieces, caplog, damage):
    run(make_spec, scene, tmp_path / 'whole.tif')
    with pytest.raises(RasterError):
        run(make_spec, scene, tmp_path / 'map.tif', Blurred(stops_after=14), tiling={'batch_size': 1})
    (piece,) = (tmp_path / 'map.tif.part').glob('*.piece.tif')
    piece.write_bytes(damage(piece.read_bytes()))
    run(make_spec, scene, tmp_path / 'map.tif', resume=True)
    assert 'is damaged; it is computed again' in caplog.text
    assert (tmp_path / 'map.tif').read_bytes() == (tmp_path / 'whole.tif').read_bytes()


def test_a_map_is_resumed_only_as_it_was_begun(make_spec, scene, tmp_path, small_pieces, caplog):
    target = tmp_path / 'map.tif'
    with pytest.raises(CheckpointError, match=r'there is no .*map\.tif\.part to resume; run without resume=True'):
        run(make_spec, scene, target, resume=True)
    with pytest.raises(RasterError):
        run(make_spec, scene, target, Blurred(stops_after=14), tiling={'batch_size': 1})
    with pytest.raises(CheckpointError, match='is of another run; what differs: blend'):
        run(make_spec, scene, target, tiling={'blend': 'hann'}, resume=True)
    with pytest.raises(CheckpointError, match='what differs: outputs'):
        run(make_spec, scene, target, outputs=('classes', 'confidence'), resume=True)
    run(make_spec, scene, target)
    assert 'of an unfinished run is replaced; pass resume=True to continue it' in caplog.text


def test_a_map_that_fails_before_anything_is_finished_leaves_nothing(make_spec, scene, tmp_path):
    with pytest.raises(RasterError):
        run(make_spec, scene, tmp_path / 'map.tif', Blurred(stops_after=2))
    assert not list(tmp_path.iterdir())


def test_a_map_that_cannot_be_written_at_the_end_is_written_without_computing(make_spec, scene, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(store, 'join_pieces', fail)
        with pytest.raises(
            RasterError, match=r'cannot write .*map\.tif: .*No space left.*pass resume=True to continue'
        ):
            run(make_spec, scene, tmp_path / 'map.tif')
    assert [path.name for path in tmp_path.iterdir()] == ['map.tif.part']
    network = Blurred()
    run(make_spec, scene, tmp_path / 'map.tif', network, resume=True)
    assert network.calls == 0
    assert read_all(tmp_path / 'map.tif').any()


def test_a_full_disk_keeps_what_is_done(make_spec, scene, tmp_path, small_pieces, monkeypatch):
    write = PieceFile.write

    def fail_later(piece, row, pixels):
        if not piece.path.name.startswith('0-0-'):
            raise OSError(28, 'No space left on device')
        write(piece, row, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(PieceFile, 'write', fail_later)
        with pytest.raises(RasterError, match=r'cannot write .*map\.tif: .*Is the disk full\? What is done is kept in'):
            run(make_spec, scene, tmp_path / 'map.tif')
    run(make_spec, scene, tmp_path / 'map.tif', resume=True)
    run(make_spec, scene, tmp_path / 'whole.tif')
    assert (tmp_path / 'map.tif').read_bytes() == (tmp_path / 'whole.tif').read_bytes()


def test_two_runs_to_one_target_are_refused(make_spec, scene, tmp_path):
    target, said = tmp_path / 'map.tif', []

    def begin_another(_):
        if said:
            return
        with pytest.raises(CheckpointError, match='another process writes .*; wait for it, or write to another file'):
            run(make_spec, scene, target)
        said.append(True)

    run(make_spec, scene, target, progress=begin_another)
    assert said
    assert target.exists()


class Slow(Blurred):
    """Takes its time, so that it can be killed."""

    def forward(self, x):
        time.sleep(0.05)
        return super().forward(x)


@pytest.mark.timeout(60)
@pytest.mark.skipif(sys.platform != 'linux', reason='forks')
def test_a_killed_map_is_resumed_and_ends_in_the_same_bytes(make_spec, scene, tmp_path, small_pieces):
    target, tiling = tmp_path / 'map.tif', {'batch_size': 1}
    journal = tmp_path / 'map.tif.part' / 'journal'
    killed = multiprocessing.get_context('fork').Process(
        target=run, args=(make_spec, scene, target, Slow(context=0.3)), kwargs={'tiling': tiling}
    )
    killed.start()
    while killed.is_alive() and not (journal.exists() and journal.read_bytes().count(b'\n') > 1):
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not target.exists()
    network, whole = Blurred(context=0.3), Blurred(context=0.3)
    run(make_spec, scene, target, network, resume=True)
    run(make_spec, scene, tmp_path / 'whole.tif', whole)
    assert network.calls < whole.calls
    assert target.read_bytes() == (tmp_path / 'whole.tif').read_bytes()


# -- what models offer


def test_models_take_the_options_of_maps(make_spec, scene, tmp_path):
    model = DeepLab.of(make_spec(classes=3), Blurred())
    options = {'outputs': ('classes', 'confidence'), 'blend': 'hann', 'augment': 'flips', 'max_memory': 10**8}
    model.predict_raster(scene, tmp_path / 'map.tif', **options, progress=lambda _: None)
    assert (tmp_path / 'map_confidence.tif').exists()
    (tmp_path / 'map.tif').unlink()
    with pytest.raises(RasterError, match=r'map_confidence\.tif exists; pass overwrite=True'):
        model.predict_raster(scene, tmp_path / 'map.tif', **options)


def test_tiles_meet_in_the_ways_that_are_documented():
    assert set(STITCHERS) == {'hann', 'crop'}
    with pytest.raises(UnknownNameError, match='hann'):
        TilingOptions(blend='han')
    with pytest.raises(ValueError, match='max_memory must be a number of bytes above 0'):
        TilingOptions(max_memory=0)


# -- speed


def test_batches_that_are_overwritten_are_whole_while_they_are_used(scene):
    with open_raster(scene) as src:
        given = {'batch_size': 2, 'read': ReadOptions()}
        grid = make_grid(src.shape, tile_size=32, halo=4)
        plain = [batch.pixels for batch in read_batches([Source(src, (1, 2))], grid, **given)]
        ahead = prefetch(read_batches([Source(src, (1, 2))], grid, **given, reuse=True))
        assert len(plain) > 2 * QUEUE_BATCHES
        places = set()
        for batch, expected in zip(ahead, plain, strict=True):
            time.sleep(0.002)  # the reader would run ahead
            assert np.array_equal(batch.pixels, expected, equal_nan=True)
            places.add(batch.pixels.ctypes.data)
        assert len(places) <= QUEUE_BATCHES + 2


@pytest.mark.parametrize('channels', [1, 3, 300])
def test_the_largest_channel_is_that_of_torch(channels):
    random = torch.Generator().manual_seed(0)
    outputs = torch.randint(0, 4, (2, channels, 9, 9), generator=random).float()
    for given in (outputs, outputs[:, :, 1:7, 2:], outputs.half()):
        assert np.array_equal(find_largest(given), given.max(1).indices.numpy())
    outputs[0, channels // 2, 3] = torch.nan
    outputs[1, :, 4] = -torch.inf
    assert np.array_equal(find_largest(outputs), outputs.max(1).indices.numpy())


# -- half precision


class Mixed(Blurred):
    """Blurred, then a matrix product over the bands, and the type that it computed in."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)
        self.types = set()

    def forward(self, x):
        outputs = self.mix(super().forward(x))
        self.types.add(outputs.dtype)
        return outputs


def test_half_precision_computes_in_bfloat16_and_writes_as_float32_does(make_spec, scene, tmp_path):
    torch.manual_seed(0)
    network, maps = Mixed(), {}
    outputs = {'outputs': ('classes', 'confidence'), 'probability_dtype': 'float32'}
    for precision, batch_size in ((None, 1), ('bf16', 1), ('bf16', 7), (True, 1), (False, 1)):
        network.types.clear()
        path = tmp_path / f'{precision}_{batch_size}.tif'
        tiling = {'mixed_precision': precision, 'batch_size': batch_size}
        run(make_spec, scene, path, network, tiling=tiling, **outputs)
        assert network.types == {torch.bfloat16 if precision == 'bf16' else torch.float32}
        maps[path.stem] = read_all(path)[0], read_all(path.with_name(f'{path.stem}_confidence.tif'))[0]
    full, half = maps['None_1'], maps['bf16_1']
    assert np.array_equal(full[0] > 0, half[0] > 0)
    assert (full[0] == half[0]).mean() > 0.95
    assert 0 < np.nanmax(np.abs(full[1] - half[1])) < 0.02
    for same, other in (('bf16_1', 'bf16_7'), ('None_1', 'True_1'), ('None_1', 'False_1')):
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(maps[same], maps[other]))


def test_a_map_in_half_precision_is_not_continued_in_another(make_spec, scene, tmp_path, small_pieces):
    half = {'mixed_precision': 'bf16', 'batch_size': 1}
    run(make_spec, scene, tmp_path / 'whole.tif', tiling=half)
    with pytest.raises(RasterError):
        run(make_spec, scene, tmp_path / 'map.tif', Blurred(stops_after=14), tiling=half)
    with pytest.raises(CheckpointError, match='precision'):
        run(make_spec, scene, tmp_path / 'map.tif', tiling={'batch_size': 1}, resume=True)
    run(make_spec, scene, tmp_path / 'map.tif', tiling=half, resume=True)
    assert (tmp_path / 'map.tif').read_bytes() == (tmp_path / 'whole.tif').read_bytes()


def test_half_precision_that_cannot_be_is_refused(make_spec, scene, tmp_path, caplog, monkeypatch):
    with pytest.raises(ValueError, match="must be 'bf16'"):
        TilingOptions(mixed_precision='half')
    with pytest.raises(ValueError, match='leave out mixed_precision, or pass engine='):
        TilingOptions(mixed_precision='bf16', engine='onnx')
    with pytest.raises(ValueError, match='needs a CUDA device'):
        run(make_spec, scene, tmp_path / 'map.tif', tiling={'mixed_precision': 'fp16', 'device': 'cpu'})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(precisions, 'bfloat16_slowdown', lambda: 16.0)
    run(make_spec, scene, tmp_path / 'map.tif', tiling={'mixed_precision': 'bf16'})
    assert 'is 16 times as slow as float32 on this CPU' in caplog.text
