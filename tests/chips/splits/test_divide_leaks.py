import math
import time

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform

from geolearn import prepare_data
from geolearn.chips.splits.divide import Leaks, count_leaks, leak_note
from geolearn.chips.splits.overlaps import find_footprints, find_overlaps, overlap_any
from geolearn.chips.splits.split import Split
from geolearn.raster import GeoBox


def chip(x, y, *, size=10.0, crs='EPSG:32633', turn=0.0):
    c, s, pixel = math.cos(math.radians(turn)), math.sin(math.radians(turn)), size / 8
    return GeoBox((8, 8), Affine(c * pixel, s * pixel, x, s * pixel, -c * pixel, y), crs)


def overlap_slowly(boxes, others):
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (high - low > 1e-5).all(axis=2).any(axis=1)


@settings(max_examples=60)
@given(st.integers(0, 40), st.integers(0, 40), st.floats(1, 300), st.integers(0, 10**6))
def test_boxes_of_any_size_overlap_as_if_each_were_compared_with_each(count, other_count, extent, seed):
    rng = np.random.default_rng(seed)

    def draw(n):
        corner = np.round(rng.uniform(-extent, extent, (n, 2)))
        return np.concatenate([corner, corner + 2.0 ** rng.integers(0, 9, (n, 1))], axis=1)

    boxes, others = draw(count), draw(other_count)
    assert overlap_any(boxes, others).tolist() == overlap_slowly(boxes, others).tolist()


def test_a_hundred_thousand_chips_are_compared_in_seconds():
    columns, rows = np.meshgrid(np.arange(400.0), np.arange(250.0))
    corner = np.stack([columns.ravel(), rows.ravel()], axis=1) * 1280 + 5e5
    bounds = np.concatenate([corner, corner + 2560], axis=1)
    held = np.random.default_rng(0).random(len(bounds)) < 0.1
    start = time.perf_counter()
    hit = overlap_any(bounds[held], bounds[~held])
    assert time.perf_counter() - start < 20
    assert hit.all()


def test_chips_that_share_ground_with_training_are_counted_in_each_part():
    boxes = [chip(0, 0), chip(5, 0), chip(10, 0), chip(100, 0), chip(104, 4)]
    split = Split(train=(0, 3), valid=(1, 2), test=(4,))
    assert count_leaks(boxes, split) == Leaks(valid=1, test=1, unplaced=0)


def test_chips_that_touch_do_not_leak_whatever_rounding_does():
    boxes = [chip(500000.1 + 2.56 * i, 5400000.1, size=2.56) for i in range(50)]
    assert count_leaks(boxes, Split(tuple(range(0, 50, 2)), tuple(range(1, 50, 2)))).total == 0


def test_chips_of_other_crs_are_not_compared_but_other_spellings_are():
    first = chip(0, 0)
    assert count_leaks([first, chip(0, 0, crs='EPSG:32634')], Split((0,), (1,))).total == 0
    assert count_leaks([first, chip(0, 0, crs=None)], Split((0,), (1,))).total == 0
    assert count_leaks([first, chip(0, 0, crs=CRS.from_epsg(32633).to_wkt())], Split((0,), (1,))).total == 1
    assert count_leaks([chip(0, 0, crs='mine'), chip(1, 1, crs='mine')], Split((0,), (1,))).total == 1


def test_rotated_chips_are_taken_by_their_hull():
    turned = chip(0, 0, turn=45)
    corner = chip(0, 7, size=2)  # in the hull's corner, beside the chip itself
    assert count_leaks([turned, corner], Split((0,), (1,))).valid == 1


@pytest.mark.parametrize('flip', [Affine.identity(), Affine(1, 0, 0, 0, -1, 0), Affine(1, 0, 0, 0, -1, 8)])
def test_chips_in_pixel_space_are_counted_as_unknown(flip):
    boxes = [GeoBox((8, 8), flip, None)] * 3
    assert count_leaks(boxes, Split((0, 1), (2,))) == Leaks(0, 0, 3)


def test_chips_with_nonsense_for_a_place_have_none():
    odd = [
        GeoBox((8, 8), Affine(1, 0, float('nan'), 0, -1, 0), None),
        GeoBox((8, 8), Affine(1, 0, 1e300, 0, -1, 0), None),
        GeoBox((8, 8), Affine(0, 0, 5, 0, 0, 5), None),
    ]
    assert count_leaks(odd, Split((0, 1), (2,))) == Leaks(0, 0, 3)


def test_the_warning_tells_how_many_and_what_to_do():
    split = Split((0,), tuple(range(1, 2001)), tuple(range(2001, 2501)))
    note = leak_note(Leaks(1234, 0, 0), split, 'move them')
    assert note == (
        '1,234 of 2,000 validation chips share ground with training chips, so scores will be too good; move them'
    )
    assert leak_note(Leaks(1, 2, 0), split, '').startswith('1 of 2,000 validation chips and 2 of 500 test chips share')
    assert leak_note(Leaks(0, 0, 5), split, '') is None


@pytest.mark.parametrize('several', [False, True])
def test_chips_without_crs_are_compared_within_one_image_only(tmp_path, save, several):
    """Two images of one size, cut alike, without a CRS: their chips lie on one another in pixels, not on the ground."""
    paths = []
    for image in range(2):
        for index in range(4):
            folder = tmp_path / (f'e{image}' if several else 'e')
            for name in ('images', 'labels'):
                (folder / name).mkdir(parents=True, exist_ok=True)
                pixels = np.full((1, 8, 8), 1 + index % 2, np.uint8)
                place = Affine(10, 0, 80 * index, 0, -10, 1000)
                save(folder / name / f'{image}_{index}.tif', pixels, transform=place, crs=None)
        paths.append(folder)
    options = {'chip_size': 8, 'batch_size': 2, 'val_split_pct': 0.5, 'extract_bands': [0]}
    save_noise(tmp_path, save)
    data = prepare_data(paths if several else paths[0], **options)
    assert not any('share ground' in note for note in data.notes)


def save_noise(tmp_path, save):
    """Give the images of the chips some spread, as bands of one value are left out."""
    for number, path in enumerate(sorted(tmp_path.rglob('images/*.tif'))):
        with rasterio.open(path, 'r+') as dst:
            dst.write(np.random.default_rng(number).integers(1, 99, (1, 8, 8)).astype(np.uint8))


def test_overlaps_within_one_image_without_crs_are_still_found(tmp_path, save):
    for index in range(6):
        for name in ('images', 'labels'):
            (tmp_path / 'e' / name).mkdir(parents=True, exist_ok=True)
            pixels = np.full((1, 8, 8), 1 + index % 2, np.uint8)
            save(
                tmp_path / 'e' / name / f'{index}.tif',
                pixels,
                transform=Affine(10, 0, 40 * index, 0, -10, 1000),
                crs=None,
            )
    save_noise(tmp_path, save)
    data = prepare_data(tmp_path / 'e', chip_size=8, batch_size=2, val_split_pct=0.5)
    assert any('share ground' in note for note in data.notes)


def in_zone(lon, lat, zone, *, size=1280.0, north=0.0):
    """Return a chip of a UTM zone whose middle lies at a place, moved north by some meters."""
    crs = CRS.from_epsg(32600 + zone)
    (x,), (y,) = transform(CRS.from_epsg(4326), crs, [lon], [lat])
    return GeoBox((8, 8), Affine(size / 8, 0, x - size / 2, 0, -size / 8, y + size / 2 + north), crs.to_wkt())


@pytest.mark.parametrize(
    ('north', 'shared'), [(0.0, True), (600.0, True), (1200.0, True), (1330.0, False), (1400.0, False), (3000.0, False)]
)
def test_scenes_of_neighboring_utm_zones_are_compared(north, shared):
    # at the border of the zones 32 and 33 their grids are turned by about 4.5 degrees against each other
    boxes = [in_zone(12.0, 48.5, 32), in_zone(12.0, 48.5, 33, north=north), in_zone(12.9, 48.5, 33)]
    assert count_leaks(boxes, Split((0,), (1, 2))).valid == int(shared)
    assert count_leaks(boxes, Split((1, 2), (0,), ())).valid == int(shared)


def test_what_shares_ground_across_zones_is_what_shares_it_on_the_globe():
    shapely = pytest.importorskip('shapely')
    rng, globe = np.random.default_rng(0), CRS.from_epsg(4326)
    boxes = [
        in_zone(12 + rng.uniform(-0.15, 0.15), 48 + rng.uniform(-0.1, 0.1), int(rng.integers(32, 34)))
        for _ in range(200)
    ]

    def outline(box):
        left, bottom, right, top = box.bounds
        xs, ys = [left, right, right, left], [bottom, bottom, top, top]
        return shapely.Polygon(list(zip(*transform(CRS.from_wkt(box.crs), globe, xs, ys))))

    outlines = [outline(box) for box in boxes]
    places, chosen = find_footprints(boxes), range(100)
    found = find_overlaps(places, chosen, range(100, 200))
    areas = [max(outlines[i].intersection(other).area for other in outlines[100:]) / outlines[i].area for i in chosen]
    assert all(hit for hit, area in zip(found, areas) if area > 1e-3)
    assert not any(hit for hit, area in zip(found, areas) if area == 0)
    assert 10 < found.sum() < 90


def test_chips_of_many_zones_and_of_unknown_crs_are_compared_in_seconds():
    boxes = [in_zone(6 * zone - 183 + 0.02 * n, 40, zone) for zone in range(1, 61, 4) for n in range(20)]
    boxes += [chip(0, 0, crs='mine'), chip(0, 0, crs=None)]
    start = time.perf_counter()
    assert count_leaks(boxes, Split(tuple(range(0, 302, 2)), tuple(range(1, 302, 2)))).valid == 0
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize('degrees_first', [False, True])
def test_chips_all_over_the_world_are_compared_with_those_of_a_zone(degrees_first):
    """PROJ refuses to move some of them into the zone; the others are compared all the same."""
    places = [(15.0, 49.65), (105.0, 0.0), (-60.0, -89.97), (179.99, 10.0)]
    world = [GeoBox((8, 8), Affine(0.003, 0, x, 0, -0.003, y), 'EPSG:4326') for x, y in places]
    boxes = [in_zone(15.01, 49.64, 33), in_zone(16, 49.64, 33), *world]
    zone, degrees = (0, 1), (2, 3, 4, 5)
    found = find_overlaps(find_footprints(boxes), *((degrees, zone) if degrees_first else (zone, degrees)))
    assert found.tolist() == [True, False, False, False][: len(found)]


def test_chips_of_a_crs_used_far_from_its_place_are_compared_where_that_is_possible():
    far = [GeoBox((8, 8), Affine(160, 0, x, 0, -160, 5e6), 'EPSG:32633') for x in (5e5, 3e7)]
    world = [GeoBox((8, 8), Affine(0.003, 0, x, 0, -0.003, y), 'EPSG:4326') for x, y in ((15.0, 45.15), (105.0, 0.0))]
    assert find_overlaps(find_footprints(far + world), (0, 1), (2, 3)).tolist() == [True, False]
