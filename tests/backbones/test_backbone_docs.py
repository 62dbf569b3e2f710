"""Every block of docs/backbones.md runs."""

import re
import shutil
from pathlib import Path

import pytest

from geolearn.backbones import catalog

PAGE = Path(__file__).parents[2] / 'docs' / 'backbones.md'
BLOCKS = re.findall(r'```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.DOTALL)


@pytest.mark.usefixtures('one_thread', 'small_dofa')
@pytest.mark.parametrize('number', range(len(BLOCKS)))
def test_a_block_runs(number, scene_chips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scene_chips, tmp_path / 'chips')
    exec(BLOCKS[number], {})


def test_the_tables_name_every_backbone_of_the_catalog():
    text = PAGE.read_text(encoding='utf-8')
    assert text.index('## Choose a backbone') < text.index('## All of them')
    missing = [r.name for r in catalog.read_catalog().values() if r.family != 'timm' and f'| `{r.name}` |' not in text]
    assert missing == [], 'run python docs/write_backbones.py'
