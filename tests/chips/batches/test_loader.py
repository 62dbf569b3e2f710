"""The loader: every chip comes, in an order the seed fixes, and nothing is left behind."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from affine import Affine

from geolearn.augment import Augmentation
from geolearn.batch import Batch
from geolearn.chips.batches.collate import CollateConfig
from geolearn.chips.batches.loader import ChipDataset, ChipLoader, LoaderOptions
from geolearn.chips.label import Label, Task, mask_boxes
from geolearn.chips.packing.pack import Pack, PackWriter
from geolearn.chips.packing.read_chip import Chip, TableBuilder, measure_chip
from geolearn.prepare import prepare_data
from geolearn.raster import GeoBox
from geolearn.training.distributed import SharedLoader


@pytest.fixture
def chip_folder(tmp_path, write_export):
    rng = np.random.default_rng(6)
    images = [rng.integers(0, 3000, (3, 32, 32), np.uint16) for _ in range(16)]
    labels = [rng.integers(0, 3, (32, 32), np.uint8) for _ in range(16)]
    return write_export(tmp_path / 'chips', images, labels, image_profile={'nodata': 0})


class Chips:
    """Chips in memory, of which one may be broken."""

    def __init__(self, chips, *, broken=None):
        self.chips, self.broken = chips, broken

    def chip(self, position):
        if position == self.broken:
            raise RuntimeError(f'chip {position} is broken')
        return self.chips[position]


def numbered(count, *, size=12, outlines=0):
    """Chips whose first pixel values tell their number."""
    chips = []
    for number in range(count):
        rows, cols = np.mgrid[:size, :size]
        pixels = np.stack([np.full((size, size), number), rows * size + cols]).astype(np.uint16)
        masks = tuple(np.roll(np.eye(size, dtype=bool), k, axis=1) for k in range(outlines * (number % 3)))
        label = Label(np.full((size, size), 1, np.uint8), np.ones(len(masks), np.int64), mask_boxes(masks), masks)
        chips.append(Chip(pixels, None, label, GeoBox((size, size), Affine(1, 0, 0, 0, -1, 0), None)))
    return chips


def make_loader(store, count, *, task=Task.PIXELS, random_crop=True, **options):
    config = CollateConfig(task, (0, 1), 1, 1, np.array([-1, 0]), 8, random_crop=random_crop, seed=5)
    known = {'batch_size': 4, 'shuffle': True, 'transform': None, 'seed': 5, 'num_workers': 0}
    made = LoaderOptions(**(known | {'device': torch.device('cpu')} | options))
    return ChipLoader(ChipDataset(store, tuple(range(count)), config), made)


def numbers(batches):
    return [int(batch.images[row, 0, 0, 0]) for batch in batches for row in range(len(batch.images))]


def add_noise(batch: Batch, generator: torch.Generator) -> Batch:
    return replace(batch, images=batch.images + torch.rand(batch.images.shape, generator=generator))


def assert_equal(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two):
        assert torch.equal(a.images, b.images)
        assert (a.masks is None) == (b.masks is None)
        assert a.masks is None or torch.equal(a.masks, b.masks)
        for x, y in zip(a.objects or (), b.objects or (), strict=True):
            assert torch.equal(x.boxes, y.boxes)
            assert torch.equal(x.labels, y.labels)
            assert (x.masks is None) == (y.masks is None)
            assert x.masks is None or torch.equal(x.masks, y.masks)


@pytest.mark.parametrize('task', [Task.PIXELS, Task.OBJECTS, Task.INSTANCES, Task.PANOPTIC])
def test_worker_processes_give_the_same_batches(task, tmp_path):
    path = tmp_path / 'a.pack'
    with path.open('wb') as file:
        writer, builder = PackWriter(file), TableBuilder()
        for chip in numbered(11, outlines=1):
            builder.add(str(len(builder)), measure_chip(chip, sampled=1))
            writer.add(chip)
        writer.finish(builder.result(()))
    runs = []
    for workers in (0, 2):
        loader = make_loader(Pack(path), 11, task=task, num_workers=workers, transform=add_noise)
        runs.append([batch for _ in range(2) for batch in loader.batches()])
    assert_equal(*runs)
    assert len(runs[0]) == 6


def test_worker_processes_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    for workers in (0, 1):
        list(make_loader(Chips(numbered(4)), 4, num_workers=workers))
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(sys.platform == 'win32', reason='counts open files as Unix does')
def test_many_outlined_chips_from_workers_need_few_open_files():
    resource = pytest.importorskip('resource')
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    loader = make_loader(Chips(numbered(256, outlines=1)), 256, task=Task.INSTANCES, num_workers=2, batch_size=32)
    used = len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(used + 150, soft), hard))
    try:
        kept = list(loader.batches())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sum(len(batch.objects) for batch in kept) == 256


def test_every_chip_comes_once_in_an_epoch():
    loader = make_loader(Chips(numbered(10)), 10)
    assert sorted(numbers(loader.batches())) == list(range(10))
    assert len(loader) == 3


def test_runs_repeat_and_epochs_differ():
    def run(seed):
        loader = make_loader(Chips(numbered(10)), 10, seed=seed, transform=add_noise)
        return [list(loader.batches()) for _ in range(2)]

    first, again, other = run(1), run(1), run(2)
    for one, two in zip(first, again):
        assert_equal(one, two)
    assert numbers(first[0]) != numbers(first[1])
    assert numbers(first[0]) != numbers(other[0])


def test_crops_differ_from_epoch_to_epoch():
    loader = make_loader(Chips(numbered(1, size=60)), 1)
    corners = {int(next(loader.batches()).images[0, 1, 0, 0]) for _ in range(5)}
    assert len(corners) == 5


def test_validation_comes_in_order_and_always_the_same():
    loader = make_loader(Chips(numbered(9)), 9, shuffle=False, random_crop=False)
    one, two = list(loader.batches()), list(loader.batches())
    assert_equal(one, two)
    assert numbers(one) == list(range(9))
    assert [len(batch.images) for batch in one] == [4, 4, 1]


def test_a_last_batch_of_one_chip_is_left_out_of_training_only():
    assert [len(batch.images) for batch in make_loader(Chips(numbered(9)), 9).batches()] == [4, 4]
    assert [len(batch.images) for batch in make_loader(Chips(numbered(1)), 1).batches()] == [1]


def test_batches_of_one_leave_no_chip_out():
    loader = make_loader(Chips(numbered(3)), 3, batch_size=1)
    assert sorted(numbers(loader.batches())) == [0, 1, 2]
    assert len(loader) == 3


def test_peeking_shows_the_coming_epoch_and_does_not_begin_it():
    loader = make_loader(Chips(numbered(10)), 10, transform=add_noise)
    peeked = loader.peek()
    assert loader.epoch == 0
    assert_equal([peeked], [next(loader.batches())])
    assert len(loader.peek(7).images) == 7


def test_a_huge_seed_is_a_seed():
    loader = make_loader(Chips(numbered(4)), 4, seed=2**70, transform=add_noise)
    assert len(list(loader.batches())) == 1


def test_repeated_chips_come_several_times():
    repeats = np.array([1.0, 3.0, 1.0, 2.5])
    loader = make_loader(Chips(numbered(4)), 4, repeats=repeats, batch_size=2)
    counts = np.zeros(4)
    for _ in range(20):
        expected = len(loader)
        batches = list(loader.batches())
        assert len(batches) == expected
        counts += np.bincount(numbers(batches), minlength=4)
    assert counts[1] > 50
    assert 35 < counts[3] < 62
    assert counts[0] <= 20


@pytest.mark.parametrize('workers', [0, 2])
def test_a_fault_while_gathering_reaches_the_caller(workers):
    loader = make_loader(Chips(numbered(12), broken=5), 12, num_workers=workers)
    with pytest.raises(RuntimeError, match='chip 5 is broken') as kept:
        list(loader.batches())
    assert_nothing_left()
    del kept


def test_a_fault_in_the_augmentation_reaches_the_caller():
    def fail(batch, generator):
        raise ZeroDivisionError('of mine')

    with pytest.raises(ZeroDivisionError, match='of mine'):
        list(make_loader(Chips(numbered(12)), 12, transform=fail).batches())
    assert_nothing_left()


@pytest.mark.parametrize('workers', [0, 2])
def test_leaving_an_epoch_early_leaves_nothing_behind(workers):
    loader = make_loader(Chips(numbered(40)), 40, num_workers=workers)
    for _ in range(3):
        for _ in loader:
            break
    assert_nothing_left()
    assert sorted(numbers(loader.batches())) == list(range(40))


def assert_nothing_left():
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith('collate')]
    assert not torch.multiprocessing.active_children()


LEAVE_EARLY = """
import sys
from geolearn.prepare import prepare_data
data = prepare_data(sys.argv[1], batch_size=2, num_workers=int(sys.argv[2]))
kept = iter(data.train_dl)
next(kept)
print('left')
"""


@pytest.mark.parametrize('workers', [0, 1])
def test_a_program_that_ends_in_mid_epoch_ends_quietly(chip_folder, workers):
    command = [sys.executable, '-c', LEAVE_EARLY, str(chip_folder), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, 'left\n')
    assert 'Error' not in done.stderr
    assert 'Exception' not in done.stderr


def test_items_one_by_one_are_those_of_batches():
    dataset = make_loader(Chips(numbered(3)), 3, random_crop=False).dataset
    image, mask = dataset[2]
    assert image.shape == (2, 8, 8)
    assert mask.shape == (8, 8)
    assert torch.equal(dataset[-1][0], image)
    assert [int(item[0][0, 0, 0]) for item in dataset] == [0, 1, 2]
    with pytest.raises(IndexError):
        dataset[3]


@pytest.mark.parametrize('pack', [True, False])
def test_packed_and_direct_training_sees_the_same(chip_folder, pack):
    options = {'batch_size': 4, 'chip_size': 24, 'seed': 3}
    one = prepare_data(chip_folder, pack=pack, **options)
    two = prepare_data(chip_folder, num_workers=2, **options)
    for images, again in zip(one.train_dl, two.train_dl, strict=True):
        assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(images, again, strict=True))
    assert json.dumps(one.statistics.mean) == json.dumps(two.statistics.mean)


EVERYTHING = Augmentation(
    (50.0, 20.0), scale_crop=(0.8, 1.3), noise=0.2, band_dropout=0.3, band_mean=(5.0, 70.0), clouds=0.5,
    cloud_brightness=(90.0, 200.0),
)  # fmt: skip


def by_chip(loaders, store, epochs=2):
    """What loaders give for each chip, whatever batch it is in: digests of images and masks by chip and epoch."""
    seen = []
    for epoch in range(epochs):
        for loader in loaders:
            items = [item for order in loader._orders(epoch) for item in order]
            batches = list(loader.batches())
            images = torch.cat([batch.images for batch in batches])
            masks = torch.cat([batch.masks for batch in batches])
            for item, image, mask in zip(items, images, masks, strict=True):
                seen.append((epoch, item, image.nan_to_num(-1).numpy().tobytes(), mask.numpy().tobytes()))
    return sorted(seen)


@pytest.mark.parametrize('transform', [None, EVERYTHING], ids=['plain', 'augmented'])
@pytest.mark.parametrize('repeats', [None, np.array([1.0, 3.0, 1.5] * 4)], ids=['once', 'oversampled'])
def test_a_chip_is_cropped_and_changed_alike_whatever_batch_or_process_it_is_in(transform, repeats):
    store = Chips(numbered(12, size=40))

    def loader(size, workers=0):
        return make_loader(store, 12, batch_size=size, transform=transform, repeats=repeats, num_workers=workers)

    wanted = by_chip([loader(12)], store)
    assert len({image for _, _, image, _ in wanted}) == len(wanted), 'each time that a chip is seen it is another'
    for size in (2, 3, 4):
        found = by_chip([loader(size)], store)
        # a last batch of one chip is left out of the training
        assert set(found) <= set(wanted)
        assert len(wanted) - len(found) <= 2
    shares = [SharedLoader(loader(3), rank, 2) for rank in range(2)]
    assert set(by_chip(shares, store)) <= set(wanted)
    assert by_chip([loader(12, workers=2)], store, epochs=1) == [row for row in wanted if row[0] == 0]
