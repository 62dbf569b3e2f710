"""The pack file: what goes in comes out, and a damaged one is refused."""

import io
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.chips.label import Label, mask_boxes
from geolearn.chips.packing.pack import MAGIC, Pack, PackWriter
from geolearn.chips.packing.read_chip import Chip, TableBuilder, measure_chip
from geolearn.errors import ChipFolderError
from geolearn.raster import GeoBox

DTYPES = ('uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'float32', 'float64')


def write_pack(path, chips, *, skipped=()):
    with path.open('wb') as file:
        writer, builder = PackWriter(file), TableBuilder()
        for index, chip in enumerate(chips):
            builder.add(f'chip {index} é', measure_chip(chip, sampled=3))
            writer.add(chip)
        writer.finish(builder.result(skipped))
    return path


def make_chip(rng, *, shape=(8, 8), channels=3, dtype='uint16', mask=0, label=None, dates=1):
    if np.dtype(dtype).kind == 'f':
        pixels = rng.normal(0, 1e3, (channels, *shape)).astype(dtype)
    else:
        info = np.iinfo(dtype)
        pixels = rng.integers(info.min, info.max, (channels, *shape), dtype, endpoint=True)
    valid = rng.random((mask, *shape)) < 0.7 if mask else None
    place = GeoBox(
        shape, Affine(10, 0, float(rng.integers(1000)), 0, -10, 0), 'EPSG:32633' if rng.random() < 0.5 else None
    )
    return Chip(pixels, valid, label or Label(), place, dates)


def some_outlines(rng, shape, count):
    masks = []
    for _ in range(count):
        mask = rng.random(shape) < 0.2
        mask[rng.integers(shape[0]), rng.integers(shape[1])] = True
        masks.append(mask)
    return tuple(masks)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.pixels.dtype == expected.pixels.dtype
    assert (found.mask is None) == (expected.mask is None)
    if expected.mask is not None:
        np.testing.assert_array_equal(found.mask, expected.mask)
        assert found.mask.dtype == bool
    assert (found.label.raster is None) == (expected.label.raster is None)
    if expected.label.raster is not None:
        np.testing.assert_array_equal(found.label.raster, expected.label.raster)
        assert found.label.raster.dtype == expected.label.raster.dtype
    assert found.label.class_ids.tolist() == expected.label.class_ids.tolist()
    for name in ('boxes', 'masks'):
        one, two = getattr(found.label, name), getattr(expected.label, name)
        assert len(() if one is None else one) == len(() if two is None else two)
        for a, b in zip(() if one is None else one, () if two is None else two):
            np.testing.assert_array_equal(a, b)
    assert (found.geobox, found.dates) == (expected.geobox, expected.dates)


@st.composite
def chip_lists(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dates, bands = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dtype, kind = (
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(['raster', 'numbers', 'objects', 'outlines', 'values', 'all'])),
    )
    chips = []
    for _ in range(draw(st.integers(1, 5))):
        shape = draw(st.tuples(st.integers(1, 19), st.integers(1, 19)))
        count = draw(st.integers(0, 4))
        masks = some_outlines(rng, shape, count)
        raster = rng.integers(0, draw(st.sampled_from([2, 256, 65536])), shape)
        values = rng.integers(0, 65536, count)
        boxes = mask_boxes(masks)
        label = {
            'raster': Label(raster.astype(np.uint8 if raster.max() < 256 else np.uint16)),
            'numbers': Label(np.where(rng.random(shape) < 0.2, np.nan, rng.normal(0, 9, shape)).astype(np.float32)),
            'objects': Label(None, values, boxes),
            'outlines': Label(None, values, boxes, masks),
            'values': Label(None, values),
            'all': Label(raster.astype(np.uint16), values, boxes, masks),
        }[kind]
        mask = draw(st.sampled_from([0, 1, dates * bands]))
        chips.append(
            make_chip(rng, shape=shape, channels=dates * bands, dtype=dtype, mask=mask, label=label, dates=dates)
        )
    return chips


@settings(max_examples=60)
@given(chips=chip_lists())
def test_what_goes_in_comes_out(tmp_path_factory, chips):
    pack = Pack(write_pack(tmp_path_factory.mktemp('pack') / 'a.pack', chips))
    assert len(pack) == len(chips)
    for position, chip in enumerate(chips):
        assert_same(pack.chip(position), chip)


def test_chips_of_a_pack_cannot_be_written_to(tmp_path, rng):
    label = Label(np.ones((8, 8), np.uint8))
    chip = Pack(write_pack(tmp_path / 'a.pack', [make_chip(rng, label=label)])).chip(0)
    for array in (chip.pixels, chip.label.raster):
        with pytest.raises(ValueError, match='read-only'):
            array[...] = 0


def test_a_pickled_pack_is_its_path(tmp_path, rng):
    chip = make_chip(rng, shape=(64, 64))
    pack = Pack(write_pack(tmp_path / 'a.pack', [chip]))
    pickled = pickle.dumps(pack)
    assert len(pickled) < 1000
    assert_same(pickle.loads(pickled).chip(0), chip)  # noqa: S301  our own


def test_threads_may_read_one_pack_together(tmp_path, rng):
    masks = some_outlines(rng, (16, 16), 3)
    label = Label(None, np.array([1, 2, 3]), mask_boxes(masks), masks)
    chips = [make_chip(rng, shape=(16, 16), mask=3, label=label) for _ in range(20)]
    pack, faults = Pack(write_pack(tmp_path / 'a.pack', chips)), []

    def read(order):
        try:
            for position in order:
                assert_same(pack.chip(position), chips[position])
        except AssertionError as error:
            faults.append(error)

    threads = [threading.Thread(target=read, args=(rng.integers(0, 20, 100).tolist(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_pack_cut_short_anywhere_is_refused(tmp_path, whole):
    for length in [0, 1, 8, 15, 16, *range(17, len(whole), 97), len(whole) - 1]:
        (tmp_path / 'cut.pack').write_bytes(whole[:length])
        with pytest.raises(ChipFolderError, match=r'cut\.pack is no whole pack of chips'):
            Pack(tmp_path / 'cut.pack')


def test_an_absent_pack_is_refused(tmp_path):
    with pytest.raises(ChipFolderError, match='no whole pack'):
        Pack(tmp_path / 'none.pack')


@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_pack_opens_or_is_refused_and_never_anything_else(tmp_path_factory, whole_file, data):
    whole_bytes = whole_file.read_bytes()
    start = int.from_bytes(whole_bytes[-16:-8], 'little')
    content = bytearray(whole_bytes)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(start, len(content) - 1))] = data.draw(st.integers(0, 255))
    pack = _open(tmp_path_factory, bytes(content))
    assert pack is None or _is_readable(pack)


@settings(max_examples=60)
@given(tail=st.binary(max_size=200), start=st.integers(0, 2**64 - 1))
def test_a_hostile_end_is_refused(tmp_path_factory, tail, start):
    for place in (start, 8):
        assert _open(tmp_path_factory, MAGIC + tail + place.to_bytes(8, 'little') + MAGIC) is None


@settings(max_examples=150)
@given(data=st.data())
def test_a_hostile_table_is_refused_or_harmless(tmp_path_factory, whole_file, data):
    """The archive itself is sound here, with right checksums; its columns lie."""
    whole_bytes = whole_file.read_bytes()
    start = int.from_bytes(whole_bytes[-16:-8], 'little')
    with np.load(io.BytesIO(whole_bytes[start:-16])) as archive:
        columns = dict(archive)
    name = data.draw(st.sampled_from(sorted(columns)))
    change = data.draw(st.sampled_from(['drop', 'shorten', 'number', 'dtype', 'scalar']))
    column = columns.pop(name)
    if change == 'shorten':
        columns[name] = column[: len(column) // 2]
    elif change == 'number' and column.size:
        column = column.copy()
        lies = [-1, 0, 1, 2**31, 2**62, -(2**63)] if column.dtype.kind == 'i' else [0, 1, 255]
        column.reshape(-1)[data.draw(st.integers(0, max(column.size - 1, 0)))] = data.draw(st.sampled_from(lies))
        columns[name] = column
    elif change == 'dtype':
        with np.errstate(invalid='ignore', over='ignore'):
            columns[name] = column.astype(data.draw(st.sampled_from(['float32', 'U4', 'complex64', 'int8'])))
    elif change == 'scalar':
        columns[name] = np.array(1)
    tail = io.BytesIO()
    np.savez(tail, **columns)
    content = whole_bytes[:start] + tail.getvalue() + start.to_bytes(8, 'little') + MAGIC
    pack = _open(tmp_path_factory, content)
    assert pack is None or _is_readable(pack)


@pytest.mark.parametrize('column', ['place_raster_bytes', 'place_mask_channels'])
def test_parts_that_are_there_but_have_no_size_are_refused(tmp_path_factory, whole_file, column):
    content = _with_columns(whole_file.read_bytes(), lambda columns: columns[column].__setitem__(0, 0))
    path = tmp_path_factory.mktemp('hostile') / 'a.pack'
    path.write_bytes(content)
    with pytest.raises(ChipFolderError, match='no whole pack'):
        Pack(path)


def test_statistics_of_numbers_belong_to_rasters_of_numbers(tmp_path, rng, whole):
    label = Label(rng.normal(0, 1, (9, 7)).astype(np.float32))
    numbers = write_pack(
        tmp_path / 'a.pack', [make_chip(rng, shape=(9, 7), label=label) for _ in range(3)]
    ).read_bytes()
    for content, lie in ((whole, np.zeros((3, 5))), (numbers, np.zeros((0, 5))), (numbers, np.zeros((2, 5)))):
        path = tmp_path / 'b.pack'
        path.write_bytes(_with_columns(content, lambda columns, lie=lie: columns.update(label_statistics=lie)))
        with pytest.raises(ChipFolderError, match='no whole pack of chips: statistics of labels'):
            Pack(path)


@pytest.mark.parametrize('lie', ['object', 'complex64', 'nonsense', ''])
def test_pixels_of_a_strange_type_are_refused(tmp_path, whole, lie):
    start = int.from_bytes(whole[-16:-8], 'little')
    with np.load(io.BytesIO(whole[start:-16])) as archive:
        columns = dict(archive)
    text = columns['json'].tobytes().replace(b'"uint16"', f'"{lie}"'.encode())
    columns['json'] = np.frombuffer(text, np.uint8)
    tail = io.BytesIO()
    np.savez(tail, **columns)
    (tmp_path / 'a.pack').write_bytes(whole[:start] + tail.getvalue() + start.to_bytes(8, 'little') + MAGIC)
    with pytest.raises(ChipFolderError, match='no whole pack'):
        Pack(tmp_path / 'a.pack')


def test_a_pack_with_a_pickle_in_it_is_refused(tmp_path, whole):
    start = int.from_bytes(whole[-16:-8], 'little')
    with np.load(io.BytesIO(whole[start:-16])) as archive:
        columns = dict(archive)
    tail = io.BytesIO()
    np.savez(tail, **(columns | {'boxes': np.array([{}, None], object)}))
    (tmp_path / 'a.pack').write_bytes(whole[:start] + tail.getvalue() + start.to_bytes(8, 'little') + MAGIC)
    with pytest.raises(ChipFolderError, match='no whole pack'):
        Pack(tmp_path / 'a.pack')


def test_a_pack_of_five_thousand_chips_opens_at_once(tmp_path, rng):
    chip = make_chip(rng, shape=(8, 8), label=Label(np.ones((8, 8), np.uint8)))
    path = write_pack(tmp_path / 'a.pack', [chip] * 5000)
    Pack(path)
    began = time.perf_counter()
    pack = Pack(path)
    took = time.perf_counter() - began
    print(f'\nopened in {took * 1000:.0f} ms')
    assert len(pack) == 5000
    assert took < 2  # a machine with other work; alone it takes a hundredth


def test_memory_does_not_grow_with_what_is_read_of_a_pack(tmp_path, rng):
    status = Path('/proc/self/status')
    if not status.exists():
        pytest.skip('needs /proc to tell own memory from mapped files')

    def own() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith('RssAnon'))

    chip = make_chip(rng, shape=(256, 256))
    pack = Pack(write_pack(tmp_path / 'a.pack', [chip] * 150))
    total = float(pack.chip(0).pixels.sum())
    before = own()
    for position in range(len(pack)):
        assert pack.chip(position).pixels.sum() == total
    assert own() - before < 8 * 1024  # of 57 MB that were read


def _with_columns(whole, change):
    """The pack with its columns changed, sound in everything else."""
    start = int.from_bytes(whole[-16:-8], 'little')
    with np.load(io.BytesIO(whole[start:-16])) as archive:
        columns = {name: archive[name].copy() for name in archive}
    change(columns)
    tail = io.BytesIO()
    np.savez(tail, **columns)
    return whole[:start] + tail.getvalue() + start.to_bytes(8, 'little') + MAGIC


def _open(tmp_path_factory, content):
    """The pack, or None where it is refused; any other error is a failure."""
    path = tmp_path_factory.mktemp('hostile') / 'a.pack'
    path.write_bytes(content)
    try:
        return Pack(path)
    except ChipFolderError:
        return None


def _is_readable(pack):
    """Whether every chip of a pack can be read, to its last pixel, and has the shape that the table tells."""
    pack.table.value_counts()
    for position, shape in enumerate(pack.table.shapes.tolist()):
        pixels = pack.chip(position).pixels
        pixels.sum(dtype=float)
        if pixels.shape != (pack.table.channels, *shape):
            return False
    return True


@pytest.fixture(scope='module')
def whole_file(tmp_path_factory) -> Path:
    """A pack with everything in it; a path, since hypothesis prints what it is given."""
    rng = np.random.default_rng(0)
    masks = some_outlines(rng, (9, 7), 2)
    label = Label(np.full((9, 7), 300, np.uint16), np.array([1, 2]), mask_boxes(masks), masks)
    chips = [make_chip(rng, shape=(9, 7), mask=3, label=label) for _ in range(3)]
    return write_pack(tmp_path_factory.mktemp('whole') / 'a.pack', chips)


@pytest.fixture
def whole(whole_file) -> bytes:
    return whole_file.read_bytes()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)
