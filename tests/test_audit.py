"""Libraries that geolearn needs, as they are installed here, have no known weakness; asks the advisory database."""

import configparser
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.network
def test_no_library_has_a_known_weakness(tmp_path):
    pytest.importorskip('pip_audit', reason='needs pip-audit: pip install pip-audit')
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    lines = [line for line in config['options']['install_requires'].split('\n') if line and line[0] != '#']
    pinned = []
    for line in lines:
        name = line.partition('>=')[0]
        try:
            pinned.append(f'{name}=={version(name).partition("+")[0]}')
        except PackageNotFoundError:
            continue
    (tmp_path / 'requirements.txt').write_text('\n'.join(pinned))
    words = ['-m', 'pip_audit', '--no-deps', '--disable-pip', '-r', str(tmp_path / 'requirements.txt')]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=240)
    if 'onnection' in done.stderr or 'resolve' in done.stderr:
        pytest.skip('the advisory database cannot be reached')
    assert done.returncode == 0, done.stdout + done.stderr
