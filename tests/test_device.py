"""Memory that tensors freed stays with the process."""

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, threading
import torch
from geolearn.device import keep_freed_memory

def work():
    for _ in range(40):
        torch.zeros(2, 1024, 1024)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
keep_freed_memory()
print(given_back, faults())
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc alone has these thresholds')
def test_pages_of_freed_tensors_are_taken_again_and_not_asked_for_anew():
    """With the threshold that Dask gives its workers, in a thread, as theirs; a tensor of 8 MB has 2048 pages."""
    done = subprocess.run(
        [sys.executable, '-c', COUNT_FAULTS],
        env={'MALLOC_TRIM_THRESHOLD_': '65536'},
        check=True,
        capture_output=True,
        text=True,
    )
    given_back, kept = map(int, done.stdout.split())
    assert kept < given_back / 2
