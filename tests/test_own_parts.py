"""What docs/own-parts.md shows is run as it stands there."""

import re
import shutil
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[1] / 'docs' / 'own-parts.md'


@pytest.mark.usefixtures('one_thread')
def test_the_page_is_run(scene_chips, tmp_path, monkeypatch):
    shutil.copytree(scene_chips, tmp_path / 'chips')
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
    torch.manual_seed(0)
    names = {'__name__': 'page'}
    exec(compile(block, str(PAGE), 'exec'), names)
    assert 0 < names['model'].history.epochs[0]['certainty'] <= 1
    assert len(names['again'].history.epochs) == 2
