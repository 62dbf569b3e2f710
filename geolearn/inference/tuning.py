"""Choices that a short measurement makes: the engine, the side and the number of tiles that take least time.

What was measured is kept in the cache folder (GEOLEARN_CACHE, else the platform's), so that a second run on the same
machine makes the same choice and the same map.
"""

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from geolearn import errors, files
from geolearn.chips.packing.store import cache_folder

log = logging.getLogger('geolearn')

Job = Callable[[], object]

LEAST_ROUNDS, MOST_ROUNDS = 2, 8
"""Of measurements, after one to warm up: other work on the machine slows down some, and the fastest counts."""

TILE_MARGIN = 0.1
"""Other tiles than the usual ones must cost less by this share: noise must not decide how a map is cut."""

ENGINE_MARGIN = 0.01
"""Torch computes unless another engine takes less time by this share."""

ENGINE_REST_S = 0.1
"""Seconds between tiles of different engines, whose threads wait busily for a while and would slow down the next."""

BATCH_MARGIN = 0.05
"""Larger batches must take less time by this share."""

MEASURED_SHARE = 0.05
"""Share of the pixels of a map that a measurement may compute on top; smaller maps take what is usual."""

KNOWN: dict[str, dict[str, float]] = {}
"""What this process has measured or read, by the hash of what it depends on."""


def count_rounds(pixels: int, measured: int) -> int:
    """Return how many rounds a measurement has, besides one to warm up; 0 where the map is too small for any.

    Args:
        pixels: That the map computes.
        measured: Pixels that each round computes, of all candidates together.
    """
    rounds = int(MEASURED_SHARE * pixels / measured) - 1
    return min(rounds, MOST_ROUNDS) if rounds >= LEAST_ROUNDS else 0


def measure(jobs: Mapping[str, Job], *, rounds: int = LEAST_ROUNDS, rest: float = 0.0) -> dict[str, float]:
    """Return the least seconds that each job took, in rounds, so that other work on the machine hits all alike.

    Every second round goes backwards. Jobs for which memory does not suffice are left out.

    Args:
        jobs: By name.
        rounds: After one to warm up.
        rest: Seconds between two jobs.
    """
    seconds: dict[str, float] = {}
    remaining = dict(jobs)
    for number in range(rounds + 1):
        for name, job in list(remaining.items())[:: -1 if number % 2 else 1]:
            if rest:
                time.sleep(rest)
            started = time.perf_counter()
            try:
                job()
            except RuntimeError as error:
                from geolearn.device import is_out_of_memory

                if not is_out_of_memory(error):
                    raise
                del remaining[name]
                seconds.pop(name, None)
                continue
            if number:
                seconds[name] = min(seconds.get(name, float('inf')), time.perf_counter() - started)
    return seconds


def pick(costs: Mapping[str, float], usual: str, margin: float) -> str:
    """Return what costs least; what is usual, unless another costs less by a share of `margin`."""
    best = min(costs, key=lambda name: costs[name], default=usual)
    return best if usual not in costs or costs[best] < (1 - margin) * costs[usual] else usual


def recall(facts: Mapping[str, Any]) -> dict[str, float] | None:
    """Return what was measured before on this machine, by name; None where nothing was.

    Args:
        facts: What the measurement depends on, as JSON.
    """
    key = _key(facts)
    if key not in KNOWN:
        with suppress(OSError, ValueError, TypeError, AttributeError):
            text = (cache_folder() / 'tuning' / f'{key}.json').read_text(encoding='ascii')
            stated = {str(name): float(value) for name, value in json.loads(text)['costs'].items()}
            if stated and all(value > 0 for value in stated.values()):
                KNOWN[key] = stated
    return KNOWN.get(key)


def keep(facts: Mapping[str, Any], costs: Mapping[str, float]) -> None:
    """Keep what was measured; where the cache cannot be written to, for this process alone."""
    key = _key(facts)
    KNOWN[key] = dict(costs)
    path = cache_folder() / 'tuning' / f'{key}.json'
    try:
        with files.atomic_write(path, make_folder=True, sync=False) as part:
            part.write_text(json.dumps({'facts': dict(facts), 'costs': dict(costs)}), encoding='ascii')
    except errors.FileWriteError as error:
        log.debug('what was measured is not kept: %s', error)


def machine_facts() -> dict[str, Any]:
    """Return what speed depends on besides the network: the processor and its cores."""
    return {'machine': platform.machine(), 'processor': _processor(), 'cores': os.cpu_count()}


def _processor() -> str:
    with suppress(OSError), open('/proc/cpuinfo', encoding='utf-8', errors='replace') as file:
        for line in file:
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor()


def _key(facts: Mapping[str, Any]) -> str:
    text = json.dumps({**machine_facts(), **facts}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
