import pickle
import sys

import pytest

from geolearn.errors import GeoLearnError, MissingExtraError
from geolearn.extras import require


def test_a_library_that_is_there_is_returned():
    assert require('json.decoder', extra='detection', to='read JSON') is sys.modules['json.decoder']


@pytest.mark.parametrize('module', ['no_such_library', 'no_such_library.mask'])
def test_one_that_is_not_comes_with_its_install_line(module):
    message = r"no_such_library is needed to read COCO outlines; install it with: pip install 'geolearn\[detection\]'"
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
