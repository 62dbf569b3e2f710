"""Thousands of small rasters in one process: files, threads and memory stay flat. GEOLEARN_SOAK sets how many."""

import os
import threading
from pathlib import Path

import pytest

from geolearn import FCN, load_model, prepare_data

COUNT = int(os.environ.get('GEOLEARN_SOAK', '2000'))
WARM = 100
"""Maps after which caches are full."""

MOST_GROWTH_MB = 24


def memory_mb():
    """What the process holds in memory, without what the system merely keeps of files."""
    rows = Path('/proc/self/status').read_text().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith('RssAnon')) / 1024


def descriptors():
    return len(os.listdir('/proc/self/fd'))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='needs /proc')
@pytest.mark.usefixtures('one_thread')
def test_descriptors_threads_and_memory_stay_flat(scene_chips, tmp_path):
    data = prepare_data(scene_chips, chip_size=32, batch_size=4, ignore_classes=[0], working_dir=tmp_path)
    model = load_model(FCN(data, 'test_resnet', pretrained=False).save(tmp_path / 'm'))
    images = sorted((scene_chips / 'images').glob('*.tif'))
    target = tmp_path / 'map.tif'
    held, threads, memory = [], [], []
    for index in range(COUNT):
        model.predict_raster(images[index % len(images)], target, overwrite=True)
        if index >= WARM:
            held.append(descriptors())
            threads.append(threading.active_count())
            memory.append(memory_mb())
    print(f'{COUNT} maps: descriptors {held[0]} to {held[-1]}, threads {threads[0]} to {threads[-1]}, ', end='')
    print(f'memory {memory[0]:.1f} to {memory[-1]:.1f} MB, highest {max(memory):.1f} MB')
    assert max(held) <= held[0] + 2
    assert max(threads) <= threads[0] + 1
    assert max(memory) - memory[0] < MOST_GROWTH_MB
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith('.')) == []
