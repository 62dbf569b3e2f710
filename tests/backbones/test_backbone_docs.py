"""Every block of docs/backbones.md runs."""

import re
import shutil
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / 'docs' / 'backbones.md'
BLOCKS = re.findall(r'```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.DOTALL)


@pytest.mark.usefixtures('one_thread', 'small_dofa')
@pytest.mark.parametrize('number', range(len(BLOCKS)))
def test_a_block_runs(number, scene_chips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scene_chips, tmp_path / 'chips')
    exec(BLOCKS[number], {})
