"""The state of every random generator, and runs that give the same numbers twice."""

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_all(seed: int) -> None:
    """Start the generators of Python, numpy and torch anew."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_tensors() -> dict[str, Tensor]:
    """Return the state of torch's generators, and of numpy's long one."""
    tensors = {'cpu': torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f'cuda.{index}': state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    tensors['numpy'] = torch.from_numpy(np.random.get_state(legacy=False)['state']['key'].astype(np.int64))
    return tensors


def random_facts() -> dict[str, Any]:
    """Return the rest of the state, as JSON."""
    state: dict[str, Any] = dict(np.random.get_state(legacy=False))
    version, numbers, gauss = random.getstate()
    return {
        'numpy': {'pos': state['state']['pos'], 'has_gauss': state['has_gauss'], 'gauss': state['gauss']},
        'python': [version, list(numbers), gauss],
    }


def restore_random(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Put the generators back to where `random_tensors` and `random_facts` found them."""
    torch.set_rng_state(tensors['cpu'].to(torch.uint8))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if (state := tensors.get(f'cuda.{index}')) is not None:
                torch.cuda.set_rng_state(state.to(torch.uint8), index)
    numpy = facts['numpy']
    key = tensors['numpy'].numpy().astype(np.uint32)
    np.random.set_state(('MT19937', key, numpy['pos'], numpy['has_gauss'], numpy['gauss']))
    version, numbers, gauss = facts['python']
    random.setstate((version, tuple(numbers), gauss))


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Let torch use only algorithms that give the same numbers each time, until the end of the block."""
    if not wanted:
        yield
        return
    # cuBLAS reads it when it is first used
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
