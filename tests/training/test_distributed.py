"""Several processes train as one with a batch as many times as large."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CODE = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from training_tools import Counts, PixelLoss, fit
from geolearn.history import History
from geolearn.prepare import prepare_data
from geolearn.training import make_learner


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(10, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1))

    def forward(self, images):
        return self.layers(images.nan_to_num() / 5000)


def train(chips, out, batch_size, rank):
    options = {'chip_size': 32, 'val_split_pct': 0.25, 'ignore_classes': [0], 'transforms': False, 'working_dir': out}
    data = prepare_data(chips, batch_size=batch_size, **options)
    torch.manual_seed(rank)  # the first process's weights are everybody's
    network = Small()
    learner = make_learner(
        network, data.train_dl, data.valid_dl, PixelLoss(), scores=Counts(), splitter=lambda n: [list(n.parameters())]
    )
    history = History()
    fit(learner, history, folder=out, epochs=4, checkpoint=True, ema=True, verbose=True)
    weights = [float(parameter.detach().double().abs().sum()) for parameter in network.parameters()]
    return {'losses': history.batch_losses, 'epochs': history.epochs, 'weights': weights}
"""

SCRIPT = (
    CODE
    + """
torch.set_num_threads(1)
rank = int(os.environ['RANK'])
out = Path(sys.argv[2])
(out / f'rank{rank}.json').write_text(json.dumps(train(Path(sys.argv[1]), out, 2, rank)))
"""
)


@pytest.mark.timeout(200)
@pytest.mark.usefixtures('one_thread')
def test_two_processes_are_one_with_the_doubled_batch(scene_chips, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    environment = os.environ | {
        'PYTHONPATH': os.pathsep.join([*sys.path, str(Path(__file__).parent)]),
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',
    }
    starts = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(script)]
    done = subprocess.run(
        [*starts, str(scene_chips), str(tmp_path)], capture_output=True, text=True, timeout=150, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('train_loss') == 1, 'only the first process writes'
    ranks = [json.loads((tmp_path / f'rank{rank}.json').read_text()) for rank in range(2)]
    code = {}
    exec(CODE, code)
    state = torch.get_rng_state()
    wanted = code['train'](scene_chips, tmp_path / 'one', 4, 0)
    torch.set_rng_state(state)
    assert len(wanted['losses']) == 12
    for found in ranks:
        assert found['losses'] == pytest.approx(wanted['losses'], abs=1e-4)
        assert found['weights'] == pytest.approx(wanted['weights'], rel=1e-4)
        for row, same in zip(found['epochs'], wanted['epochs'], strict=True):
            assert row['valid_loss'] == pytest.approx(same['valid_loss'], abs=1e-4)
            assert row['accuracy'] == pytest.approx(same['accuracy'], abs=2e-3)
    assert ranks[0]['weights'] == ranks[1]['weights']
