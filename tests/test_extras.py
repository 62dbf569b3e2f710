import configparser
import pickle
import re
import shlex
import sys
from pathlib import Path

import pytest

from geolearn.errors import GeoLearnError, MissingExtraError
from geolearn.extras import EXTRAS, install_command, require

ROOT = Path(__file__).parents[1]


def declared():
    """Requirements of each extra in setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    return {
        name: tuple(line for line in text.split('\n') if line and not line.startswith('#'))
        for name, text in config['options.extras_require'].items()
    }


def test_a_library_that_is_there_is_returned():
    assert require('json.decoder', extra='detection', to='read JSON') is sys.modules['json.decoder']


@pytest.mark.parametrize('module', ['no_such_library', 'no_such_library.mask'])
def test_one_that_is_not_comes_with_its_install_line(module):
    message = r"no_such_library is needed to read COCO outlines; install it with: pip install 'pycocotools>=2.0.7'"
    with pytest.raises(MissingExtraError, match=message) as caught:
        require(module, extra='detection', to='read COCO outlines')
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, GeoLearnError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


def test_a_library_that_lacks_another_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / 'half_a_library.py').write_text('import no_such_library')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_library'") as caught:
        require('half_a_library', extra='detection', to='try')
    assert not isinstance(caught.value, MissingExtraError)


def test_errors_name_what_setup_cfg_installs():
    assert {name: lines for name, lines in declared().items() if name not in ('test', 'docs')} == EXTRAS


def test_tests_need_no_less_than_users():
    ours = {line for lines in EXTRAS.values() for line in lines}
    bounds = dict(line.split('>=') for line in ours)
    for line in declared()['test']:
        name, _, bound = line.partition('>=')
        assert bounds.get(name, bound) == bound


def test_only_what_is_missing_is_named():
    assert install_command('vector', without='shapely') == "pip install 'shapely>=2.0.3'"


@pytest.mark.parametrize('extra', EXTRAS)
def test_the_command_is_one_that_a_shell_reads(extra):
    words = shlex.split(install_command(extra, without=EXTRAS[extra][0].partition('>=')[0]))
    assert words[:2] == ['pip', 'install']
    assert set(words[2:]) <= set(EXTRAS[extra])


def test_nothing_tells_to_install_the_project_of_a_stranger():
    files = [ROOT / 'README.md', *ROOT.glob('docs/*.md'), *ROOT.glob('examples/*'), *(ROOT / 'geolearn').rglob('*.py')]
    told = re.compile(r"pip install ['\"]?geolearn|geolearn\[")
    wrong = [path.name for path in files if told.search(path.read_text(encoding='utf-8'))]
    assert wrong == []
