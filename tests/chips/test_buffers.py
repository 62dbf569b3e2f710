"""Buffers: memory is given out again once nobody can see it, and never before."""

import copy
import gc
import pickle
import threading

import numpy as np
import pytest
import torch

from geolearn.chips.batches.collate import KEPT, Buffers

HOLDERS = {
    'array': lambda array: array,
    'view': lambda array: array[1:],
    'reshaped': lambda array: array.reshape(-1),
    'view of a view': lambda array: array[1:].T[:2],
    'tensor': torch.from_numpy,
    'view of a tensor': lambda array: torch.from_numpy(array)[0],
    'array of a tensor': lambda array: torch.from_numpy(array).numpy(),
    'storage': lambda array: torch.from_numpy(array).untyped_storage(),
    'memoryview': memoryview,
    'graph': lambda array: (torch.from_numpy(array) * torch.ones(3, requires_grad=True)).grad_fn,
    'list': lambda array: [[array]],
}


def address(array):
    return array.__array_interface__['data'][0]


def test_memory_is_used_again():
    buffers = Buffers()
    assert len({address(buffers.empty((4, 3), np.float32)) for _ in range(20)}) == 1
    assert len(buffers._kept) == 1


@pytest.mark.parametrize('holder', list(HOLDERS))
def test_memory_that_can_be_seen_is_left_alone(holder):
    buffers = Buffers()
    array = buffers.empty((4, 3), np.float32)
    array[:] = 7
    kept, place = HOLDERS[holder](array), address(array)
    del array
    other = buffers.empty((4, 3), np.float32)
    assert address(other) != place
    del kept
    gc.collect()
    assert place in {address(buffers.empty((4, 3), np.float32)), address(other)}


def test_two_at_once_differ():
    buffers = Buffers()
    one, two = buffers.empty((4,), np.uint8), buffers.empty((4,), np.uint8)
    assert address(one) != address(two)


@pytest.mark.parametrize(('shape', 'dtype'), [((3, 4), np.float32), ((4, 3), np.int32), ((12,), np.float32)])
def test_another_shape_or_type_is_another_array(shape, dtype):
    buffers = Buffers()
    buffers.empty((4, 3), np.float32)
    found = buffers.empty(shape, dtype)
    assert (found.shape, found.dtype) == (shape, dtype)


def test_few_are_kept():
    buffers = Buffers()
    held = [buffers.empty((4,), np.uint8) for _ in range(3 * KEPT)]
    assert len({address(array) for array in held}) == 3 * KEPT
    for size in range(3 * KEPT):
        buffers.empty((size,), np.uint8)
    assert len(buffers._kept) == KEPT


def test_threads_never_share_an_array():
    buffers, broken = Buffers(), []

    def fill(number):
        for _ in range(300):
            array = buffers.empty((256,), np.int64)
            array[:] = number
            if (array != number).any():
                broken.append(number)

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not broken


def unpickled(buffers):
    return pickle.loads(pickle.dumps(buffers))  # noqa: S301


@pytest.mark.parametrize('copied', [copy.copy, copy.deepcopy, unpickled])
def test_a_copy_begins_without_any(copied):
    buffers = Buffers()
    place = address(buffers.empty((4,), np.uint8))
    assert address(copied(buffers).empty((4,), np.uint8)) != place
