"""Maps that are computed in shares: the same bytes, nothing twice, and what is missing is named."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from rasterio.windows import Window
from torch import nn

from geolearn.classes import ClassInfo
from geolearn.errors import CheckpointError, RasterError
from geolearn.inference import reading, store
from geolearn.inference.area import AreaOfInterest
from geolearn.inference.encoding import ClassEncoding, RegressionEncoding
from geolearn.inference.mapping import MapOptions, MapRequest, map_request
from geolearn.inference.options import ReadOptions, TilingOptions
from geolearn.inference.plan import Share, choose_share, plan_parts
from geolearn.inference.shares import map_in_shares
from geolearn.models import DeepLab
from geolearn.raster.opening import burn_polygons
from geolearn.tiling import make_grid

pytestmark = pytest.mark.usefixtures('one_thread')

CLASSES = tuple(ClassInfo(value, f'class {value}', (40 * value, 9, 200)) for value in (1, 2, 3))


class Placed(nn.Module):
    """Logits that depend on the place in the tile, where `context` says so, as those of transformers do."""

    def __init__(self, outputs=3, context=0.3, stops_after=None):
        super().__init__()
        self.backbone = SimpleNamespace(has_position_grid=context > 0, strides=(16,))
        self.context, self.finer = None, 1
        self.weight = nn.Parameter(torch.linspace(1, -0.7, outputs))
        self.fade, self.calls, self.stops_after = context, 0, stops_after

    def forward(self, x):
        self.calls += len(x)
        if self.stops_after is not None and self.calls > self.stops_after:
            raise RasterError('the disk is gone')
        x = nn.functional.avg_pool2d(torch.nan_to_num(x, nan=20.0)[:, :1] / 20 - 1, 5, 1, 2)
        row, col = (torch.linspace(-1, 1, length) for length in x.shape[2:])
        return (x + self.fade * (row[:, None] + col)) * self.weight[:, None, None]


@pytest.fixture(scope='module')
def scene(tmp_path_factory, save):
    """330 x 290 pixels in 0..40, of which some have no data."""
    pixels = np.random.default_rng(0).integers(0, 41, (2, 330, 290)).astype(np.int16)
    pixels[:, 100:160, 30:70] = -1
    path = tmp_path_factory.mktemp('scene') / 'scene.tif'
    return save(path, pixels, nodata=-1, names=['Red', 'Green'], blockysize=64)


@pytest.fixture
def run(make_spec, scene):
    """Map the scene: as a whole, a share of it, or from its shares."""

    def run(
        dst, network=None, *, part=None, merge=False, encoding=None, area=None, tiling=MappingProxyType({}), **options
    ):
        network = Placed() if network is None else network
        blend, nodata = options.pop('blend', None), options.pop('nodata', None)
        tiling = TilingOptions(**{'tile_size': 96, 'halo': 8, 'batch_size': 2, 'blend': blend, **tiling})
        request = MapRequest(scene, dst, ReadOptions(nodata=nodata, area=area), tiling, MapOptions(**options), False)
        model = make_spec(classes=3), network, ClassEncoding(CLASSES) if encoding is None else encoding
        if part is None and not merge:
            return map_request(*model, request)
        return map_in_shares(*model, request, choose_share(part, merge_parts=merge))

    return run


@pytest.mark.parametrize('blend', ['hann', 'crop'])
@pytest.mark.parametrize('regression', [False, True])
def test_shares_make_the_map_of_one_machine_to_the_byte(run, tmp_path, blend, regression):
    given = {'blend': blend, 'outputs': ('classes', 'probabilities')}
    if regression:
        given = {'blend': blend, 'encoding': RegressionEncoding()}
    context = 0.3 if blend == 'hann' else 0.0
    for part in ((4, 7), (1, 7), (7, 7), (2, 7), (6, 7), (3, 7), (5, 7)):
        run(tmp_path / 'map.tif', Placed(1 if regression else 3, context), part=part, **given)
    assert not (tmp_path / 'map.tif').exists()
    rest, whole = Placed(1 if regression else 3, context), Placed(1 if regression else 3, context)
    run(tmp_path / 'map.tif', rest, merge=True, **given)
    run(tmp_path / 'whole.tif', whole, **given)
    assert rest.calls == 0
    names = sorted(path.name for path in tmp_path.glob('map*'))
    assert 'map.tif.part' not in names
    assert len(names) == (1 if regression else 4)
    for name in names:
        assert (tmp_path / name).read_bytes() == (tmp_path / name.replace('map', 'whole')).read_bytes(), name


AREAS = [(101, 37, 240, 222), (95, 0, 97, 290), (0, 0, 330, 3), (329, 280, 330, 290), (40, 80, 41, 82)]
"""First and last + 1 of rows and columns: across tiles, at edges, and smaller than what two tiles share."""


@pytest.mark.parametrize('blend', ['hann', 'crop'])
def test_an_area_has_the_pixels_of_the_whole_map(run, scene, tmp_path, blend):
    context = 0.3 if blend == 'hann' else 0.0
    run(tmp_path / 'whole.tif', Placed(3, context), blend=blend, outputs=('classes', 'confidence'))
    names = ('', '_confidence')
    whole = [rasterio.open(tmp_path / f'whole{name}.tif').read(1) for name in names]
    place = rasterio.open(scene).transform
    for top, left, bottom, right in AREAS:
        corners = place @ (left, top), place @ (right, bottom)
        bounds = [min(xy) for xy in zip(*corners)] + [max(xy) for xy in zip(*corners)]
        network, given = Placed(3, context), {'blend': blend, 'outputs': ('classes', 'confidence'), 'overwrite': True}
        run(tmp_path / 'part.tif', network, area=AreaOfInterest(bbox=bounds), **given)
        for name, expected in zip(names, whole):
            with rasterio.open(tmp_path / f'part{name}.tif') as found:
                assert found.transform == place @ Affine.translation(left, top)
                np.testing.assert_array_equal(found.read(1), expected[top:bottom, left:right])
    assert network.calls <= 4, 'tiles away from the area are not computed'


@pytest.mark.parametrize('blend', ['hann', 'crop'])
def test_an_area_is_computed_in_shares_and_narrow_parts_alike(run, scene, tmp_path, blend):
    context = 0.3 if blend == 'hann' else 0.0
    place = rasterio.open(scene).transform
    corners = [(30, 20), (250, 60), (200, 300), (90, 200)]
    triangle = shapely.Polygon([place @ corner for corner in corners])
    run(tmp_path / 'whole.tif', Placed(3, context), blend=blend)
    given = {'area': AreaOfInterest(triangle), 'blend': blend}
    for number in range(1, 6):
        run(tmp_path / 'shares.tif', Placed(3, context), part=(number, 5), **given)
    run(tmp_path / 'shares.tif', Placed(3, context), merge=True, **given)
    run(tmp_path / 'area.tif', Placed(3, context), **given)
    run(tmp_path / 'narrow.tif', Placed(3, context), tiling={'max_memory': 2**19}, **given)
    for name in ('shares.tif', 'narrow.tif'):
        assert (tmp_path / name).read_bytes() == (tmp_path / 'area.tif').read_bytes(), name
    with rasterio.open(tmp_path / 'whole.tif') as whole, rasterio.open(tmp_path / 'area.tif') as area:
        found, expected = area.read(1), whole.read(1)[20:300, 30:250]
        inside = burn_polygons([(shapely.Polygon(np.subtract(corners, (30, 20))), 1)], expected.shape) > 0
    np.testing.assert_array_equal(found, np.where(inside, expected, 0))


@pytest.mark.parametrize('blend', ['hann', 'crop'])
def test_shares_cover_a_raster_once_and_are_about_equally_large(blend):
    for shape, counts in (
        ((700, 500), (1, 2, 3, 7, 40, 999)),
        ((64, 3000), (5,)),
        ((3000, 64), (5,)),
        ((10, 10), (2,)),
    ):
        grid = make_grid(shape, tile_size=96, halo=16, origin=(7, 9))
        for count in counts:
            hits, sizes = np.zeros(shape, int), []
            for number in range(1, count + 1):
                parts = plan_parts(
                    grid, Window(0, 0, shape[1], shape[0]), blend=blend, most_columns=300, share=Share(number, count)
                )
                for part in parts:
                    hits[part.top : part.bottom, int(part.core.col_off) :][:, : int(part.core.width)] += 1
                sizes.append(sum(len(part.grid.rows) * len(part.grid.cols) for part in parts))
            assert (hits == 1).all()
            if count <= 7 and min(shape) > 64:
                assert max(sizes) <= 2 * np.mean(sizes)


def test_cut_tiles_are_computed_once_and_a_share_that_is_done_never_again(run, tmp_path):
    whole, shares, again = Placed(context=0), Placed(context=0), Placed(context=0)
    run(tmp_path / 'whole.tif', whole)
    for number in range(1, 4):
        run(tmp_path / 'map.tif', shares, part=(number, 3))
    assert shares.calls == whole.calls
    run(tmp_path / 'map.tif', again, part=(2, 3))
    assert again.calls == 0


def test_a_share_that_failed_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    monkeypatch.setattr(store, 'PIECE_SECONDS', 0.0)
    monkeypatch.setattr(store, 'BLOCK_SIZE', 32)
    monkeypatch.setattr('geolearn.inference.stitching.BLOCK_SIZE', 32)
    stopped, rest, whole = Placed(stops_after=40), Placed(), Placed()
    with pytest.raises(RasterError, match='the disk is gone'):
        run(tmp_path / 'map.tif', stopped, part=(1, 2), tiling={'tile_size': 64})
    run(tmp_path / 'map.tif', rest, part=(1, 2), tiling={'tile_size': 64})
    run(tmp_path / 'other.tif', whole, part=(1, 2), tiling={'tile_size': 64})
    assert 0 < rest.calls < whole.calls


def test_what_is_missing_is_named_and_nothing_is_written(run, tmp_path):
    target = tmp_path / 'map.tif'
    with pytest.raises(CheckpointError, match=r'there are no parts of .*map\.tif to merge; compute them first'):
        run(target, merge=True)
    for number in (1, 3):
        run(target, part=(number, 5))
    damaged = next((tmp_path / 'map.tif.part').rglob('3-*.piece.tif'))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    message = (
        r'1 of 5 parts of .*map\.tif are computed; missing: 2, 3, 4, 5\. Compute these, such as with part=\(2, 5\)'
    )
    with pytest.raises(CheckpointError, match=message):
        run(target, merge=True)
    for number in range(1, 6):
        run(target, part=(number, 5))
    assert run(target, merge=True) == target


def test_two_processes_do_not_compute_one_share(run, tmp_path):
    said = []

    def begin_again(_):
        for options, message in (({'part': (1, 2)}, 'another process writes'), ({'merge': True}, 'being computed: 1;')):
            with pytest.raises(CheckpointError, match=message):
                run(tmp_path / 'map.tif', **options)
            said.append(message)

    run(tmp_path / 'map.tif', part=(1, 2), progress=begin_again)
    assert said


def test_shares_that_fail_at_the_same_time_do_not_meet(tmp_path):
    """Each removes its journal and, where it is the last, the folder, which others are about to use."""

    def fail(number):
        for _ in range(150):
            journal = store.open_share_journal(tmp_path / 'map.tif', {'raster': 'a'}, Share(number, 4))
            journal.remove()
            with suppress(OSError):
                journal.path.parent.rmdir()
                journal.path.parent.parent.rmdir()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fail, range(1, 5)))
    assert not list(tmp_path.iterdir())


def test_values_are_checked_once_and_nan_as_nodata_is_the_same_run(run, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(reading, 'check_units', lambda *given: checked.append(given))
    for number in (1, 2, 2):
        run(tmp_path / 'map.tif', part=(number, 2), nodata=float('nan'))
    run(tmp_path / 'map.tif', merge=True, nodata=float('nan'))
    assert len(checked) == 1


def test_shares_of_another_map_are_refused_with_the_way_out(run, tmp_path):
    target = tmp_path / 'map.tif'
    run(target, part=(1, 2))
    with pytest.raises(CheckpointError, match=r'what differs: tiles.*delete .*map\.tif\.part to begin anew'):
        run(target, part=(1, 2), tiling={'tile_size': 64})
    # other parts too are refused before they are computed
    with pytest.raises(CheckpointError, match=r'what differs: tiles.*delete .*map\.tif\.part to begin anew'):
        run(target, part=(2, 2), tiling={'tile_size': 64})
    with pytest.raises(CheckpointError, match=r'holds a map in 2 parts, and part 1/3 is of another'):
        run(target, part=(1, 3))
    with pytest.raises(CheckpointError, match=r'holds parts of a map that is computed in 2 parts; compute the others'):
        run(target)
    with pytest.raises(ValueError, match=r'part must be \(number, count\) with number in 1\.\.count'):
        Share(3, 2)
    with pytest.raises(ValueError, match='pass it without part='):
        choose_share((1, 2), merge_parts=True)


@pytest.mark.parametrize('precision', [None, 'bf16'])
def test_models_compute_parts(make_spec, scene, tmp_path, precision):
    model = DeepLab.of(make_spec(classes=3), Placed())
    options = {'mixed_precision': precision}
    for number in (2, 1):
        folder = model.predict_raster(scene, tmp_path / 'map.tif', part=(number, 2), **options)
        assert folder == tmp_path / 'map.tif.part'
    with pytest.raises(CheckpointError, match='what differs: precision'):
        model.predict_raster(
            scene, tmp_path / 'map.tif', merge_parts=True, mixed_precision=None if precision else 'bf16'
        )
    model.predict_raster(scene, tmp_path / 'map.tif', merge_parts=True, **options)
    model.predict_raster(scene, tmp_path / 'whole.tif', **options)
    assert (tmp_path / 'map.tif').read_bytes() == (tmp_path / 'whole.tif').read_bytes()
