from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.chips.splits.split import order_rarest_first, split_stratified, take_share
from geolearn.errors import ChipFolderError


def presence_table(chips, classes, seed, *, density=0.2):
    return np.random.default_rng(seed).random((chips, classes)) < density


def covered(presence, split):
    """Classes in each part."""
    return [presence[list(part)].any(axis=0) for part in (split.train, split.valid, split.test)]


@settings(max_examples=60)
@given(st.integers(3, 60), st.integers(0, 9), st.floats(0.05, 0.5), st.sampled_from([0, 0.1, 0.3]), st.integers(0, 99))
def test_a_stratified_split_puts_every_chip_into_one_part(chips, classes, fraction, test_fraction, seed):
    presence = presence_table(chips, classes, seed)
    split = split_stratified(presence, fraction=fraction, test_fraction=test_fraction, seed=seed)
    assert sorted(split.train + split.valid + split.test) == list(range(chips))
    assert split.train
    assert split.valid
    assert bool(split.test) == bool(test_fraction)
    assert split == split_stratified(presence, fraction=fraction, test_fraction=test_fraction, seed=seed)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 7), min_size=3, max_size=60), st.floats(0.02, 0.6), st.booleans(), st.integers(0, 99))
def test_every_class_is_in_every_part_while_it_has_chips_enough(labels, fraction, testing, seed):
    presence = np.arange(8) == np.array(labels)[:, None]
    counts = presence.sum(axis=0)
    split = split_stratified(presence, fraction=fraction, test_fraction=0.2 if testing else 0, seed=seed)
    if counts.max() < 2 + testing:
        return  # no class has a chip to spare for every part, yet no part may be empty
    train, valid, test = covered(presence, split)
    assert train[counts >= 2].all()
    assert valid[counts >= 2].all()
    assert not testing or test[counts >= 3].all()


def test_classes_keep_their_proportions():
    presence = presence_table(2000, 12, 0) & (np.random.default_rng(1).random(12) < 0.9)
    presence[:5, 3] = True
    split = split_stratified(presence, fraction=0.2, test_fraction=0.1, seed=0)
    counts = presence.sum(axis=0)
    for part, share in ((split.valid, 0.2), (split.test, 0.1)):
        assert len(part) / 2000 == pytest.approx(share, abs=0.02)
        found = presence[list(part)].sum(axis=0)
        assert np.abs(found - share * counts).max() <= np.maximum(0.05 * counts, 1.5).max()


def test_a_class_in_two_chips_of_a_thousand_is_trained_and_validated_on():
    for seed in range(8):
        presence = np.zeros((1000, 3), bool)
        presence[:, 0] = True
        presence[[17, 423], 1] = True
        presence[5, 2] = True
        train, valid, _ = covered(presence, split_stratified(presence, fraction=0.1, seed=seed))
        assert train.all()
        assert valid.tolist() == [True, True, False]


def test_chips_that_hold_several_classes_are_shared_out_where_any_way_exists():
    # every table of 5 chips and 2 classes for which some division into 2 parts shows both parts both classes
    solvable = solved = 0
    for bits in product([False, True], repeat=10):
        presence = np.array(bits).reshape(5, 2)
        if (presence.sum(axis=0) < 2).any():
            continue
        ways = (np.array(way, bool) for way in product([0, 1], repeat=5))
        if any(presence[way].any(axis=0).all() and presence[~way].any(axis=0).all() for way in ways):
            solvable += 1
            train, valid, _ = covered(presence, split_stratified(presence, fraction=0.2, seed=0))
            solved += train.all() and valid.all()
    assert solvable > 500
    assert solved == solvable


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(ChipFolderError, match='val_split_pct must lie between 0 and 1, got 1.5'):
        split_stratified(np.ones((5, 1), bool), fraction=1.5, seed=0)
    with pytest.raises(ChipFolderError, match=r'leave chips to train on, got 0.5 beside val_split_pct=0.5'):
        split_stratified(np.ones((5, 1), bool), fraction=0.5, test_fraction=0.5, seed=0)
    with pytest.raises(ChipFolderError, match='found 2 chips; at least 4 are needed'):
        split_stratified(np.ones((2, 1), bool), fraction=0.2, test_fraction=0.2, seed=0)


# --- label share


@settings(max_examples=50)
@given(st.integers(1, 300), st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 99), st.booleans())
def test_the_smaller_share_lies_inside_the_larger(chips, one, other, seed, stratified):
    train = range(3, 3 + 2 * chips, 2)
    presence = presence_table(3 + 2 * chips, 4, seed) if stratified else None
    small, large = (take_share(train, share, seed=seed, presence=presence) for share in sorted((one, other)))
    assert set(small) <= set(large) <= set(train)
    assert len(small) == max(round(chips * min(one, other)), 1)
    assert take_share(train, 1, seed=seed, presence=presence) == tuple(train)


def test_a_share_depends_on_the_chips_and_the_seed_but_not_on_their_order():
    train = list(range(100))
    assert take_share(train, 0.1, seed=1) == take_share(train[::-1], 0.1, seed=1)
    assert take_share(train, 0.1, seed=1) != take_share(train, 0.1, seed=2)


def test_rare_classes_come_first_and_shares_keep_the_proportions():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    presence = np.arange(3) == labels[:, None]
    order = order_rarest_first(presence, seed=0)
    assert sorted(order) == list(range(1000))
    assert labels[order[:3]].tolist() == [2, 1, 0]
    for count in (100, 200, 500):
        found = np.bincount(labels[order[:count]], minlength=3)
        assert np.abs(found - count * np.array([0.9, 0.09, 0.01])).max() <= 2


def test_chips_without_a_class_take_part_in_shares():
    presence = np.zeros((100, 2), bool)
    presence[:20, 0] = True
    kept = take_share(range(100), 0.1, seed=0, presence=presence)
    assert sum(position < 20 for position in kept) == 2


@pytest.mark.parametrize('share', [0, -0.1, 1.01, float('nan')])
def test_a_share_of_nothing_or_more_than_all_is_refused(share):
    with pytest.raises(ChipFolderError, match=f'label_fraction must be over 0 and at most 1, got {share}'):
        take_share(range(10), share, seed=0)
