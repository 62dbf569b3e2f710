"""Every process gets its own share of every batch."""

import pytest

from geolearn.training.distributed import SharedLoader


@pytest.mark.parametrize('count', [1, 2, 3])
def test_shares_are_disjoint_and_cover_what_one_process_would_see(scene_data, count):
    loader = scene_data.train_dl
    shares = [SharedLoader(loader, index, count) for index in range(count)]
    for epoch in (0, 1):
        orders = [share._orders(epoch) for share in shares]
        assert len({len(order) for order in orders}) == 1, 'as many steps in each'
        for together in zip(*orders):
            sizes = [len(part) for part in together]
            assert max(sizes) - min(sizes) <= 1
        seen = [index for order in orders for part in order for index in part]
        assert sorted(seen) == list(range(12))
        flat = [index for part in loader._orders(epoch) for index in part]
        assert [index for together in zip(*orders) for part in together for index in part] == flat


def test_augmentation_differs_between_processes_and_not_between_runs(scene_data):
    first, second, again = (SharedLoader(scene_data.train_dl, index, 2)._changes(1) for index in (0, 1, 0))
    assert first.initial_seed() == again.initial_seed() != second.initial_seed()
    assert first.initial_seed() == scene_data.train_dl._changes(1).initial_seed()


def test_a_share_begins_at_the_loaders_epoch_and_names_its_chips(scene_data):
    loader = scene_data.train_dl
    next(iter(loader))
    share = SharedLoader(loader, 1, 2)
    assert share.epoch == loader.epoch == 1
    assert len(next(iter(share))[0]) == len(share.batch_names(0)) == 4
