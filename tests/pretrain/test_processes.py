"""Pretraining by two processes under torchrun: one run, one file, the measures of all images."""

import json
import os
import subprocess
import sys

import pytest

from geolearn.backbones import create_backbone

SCRIPT = """
import json, os, sys
import numpy as np
import torch
from pathlib import Path
from geolearn import from_arrays
from geolearn.pretrain import DinoOptions, MaeOptions, pretrain

torch.set_num_threads(1)
out, rank = Path(sys.argv[1]), os.environ['RANK']
options = {
    'dino': DinoOptions(prototypes=16, hidden=16, bottleneck=8, local_crops=1),
    'mae': MaeOptions(decoder_dim=16, decoder_depth=1, decoder_heads=2),
}
images = np.random.default_rng(0).normal(-12, 4, (20, 2, 16, 16)).astype(np.float32)
for method, chosen in options.items():
    data = from_arrays(images, bands=['VV', 'VH'], batch_size=4, val_split_pct=0.2, transforms=False, working_dir=out)
    result = pretrain(data, method=method, backbone='vit_nano', options=chosen, epochs=2, batch_size=4, name=method)
    rows = [{k: v for k, v in row.items() if k != 'seconds'} for row in result.history.epochs]
    (out / f'{method}{rank}.json').write_text(json.dumps({'rows': rows, 'steps': result.facts.steps}))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_pretrain_one_backbone(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path), 'OMP_NUM_THREADS': '1'}
    environment |= {'CUDA_VISIBLE_DEVICES': ''}
    starts = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(script)]
    done = subprocess.run([*starts, str(tmp_path)], capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for method in ('dino', 'mae'):
        first, second = (json.loads((tmp_path / f'{method}{rank}.json').read_text()) for rank in range(2))
        assert first == second
        assert first['steps'] == 4  # 16 images, 4 in each of two processes, two epochs
        weights = tmp_path / 'models' / f'{method}.safetensors'
        assert create_backbone(str(weights), ['VV', 'VH'], form='tokens').load_report.missing == ()
