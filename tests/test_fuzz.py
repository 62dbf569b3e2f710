"""Hostile and damaged input at the doors that have no fuzz test of their own: configurations, weights, `info`."""

import io
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as as_safetensors

from geolearn.backbones.loading import load_weights_file
from geolearn.cli import COMMANDS, build_parsers, main
from geolearn.cli.config import config_words
from geolearn.cli.describe import describe_file
from geolearn.errors import ConfigError, GeoLearnError, WeightsError

CONFIG = 'command: train\nchips: [a, b]\nname: m\nepochs: 3\nlr: 1e-3\nclass_mapping: {0: dry, 1: "wet"}\nema: true\n'
TENSORS = as_safetensors({'a.weight': torch.ones(2, 3), 'a.bias': torch.zeros(3)})


PARSER, COMMAND_PARSERS = build_parsers()


def pickled(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


PICKLED = pickled({'a.weight': torch.ones(2, 3)})

STARTS = [b'PK\x03\x04', b'II*\0', b'{"type": "FeatureCollection"', b'PAR1', b'SQLite format 3\0']
ODD = ['--', '-', '--json', '--epochs', '-1', '', 'no_such', '--out', '\0', 'é\ud800', '--seed=x']

edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.text(max_size=6)), min_size=1, max_size=4)
"""Places, characters to drop there, and what to put there."""

cuts = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), st.binary(max_size=9)), min_size=1, max_size=3)
"""The same of bytes."""


def edited(content, changes):
    for where, drop, put in changes:
        at = round(where * len(content))
        content = content[:at] + put + content[at + drop :]
    return content


def written(content, name):
    """Yield a file of some bytes or text in a folder of its own."""
    folder = TemporaryDirectory()
    path = Path(folder.name) / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode('utf-8', 'surrogatepass'))
    return folder, path


@settings(max_examples=80)
@example('&a [*a]')
@example('a: &a [x]\nb: *a\n')
@example('!!python/object/apply:os.system [ls]')
@example('chips: ' + '[' * 500)
@given(st.text(max_size=80) | edits.map(lambda changes: edited(CONFIG, changes)))
def test_any_configuration_is_words_or_an_error_of_configuration(text):
    folder, path = written(text, 'c.yaml')
    with folder:
        try:
            words = config_words(COMMAND_PARSERS['train'], 'train', path)
        except ConfigError as error:
            found = str(error)
        else:
            found = ''
            assert all(isinstance(word, str) for word in words)
            with redirect_stderr(io.StringIO()), suppress(SystemExit):
                PARSER.parse_args(['train', *words])
        assert not found or 'c.yaml' in found


@settings(max_examples=60)
@example(b'', '.safetensors')
@example(b'\xff' * 16, '.safetensors')
@example((2**62).to_bytes(8, 'little') + b'{}', '.safetensors')
@given(
    st.binary(max_size=100)
    | cuts.map(lambda changes: edited(TENSORS, changes))
    | cuts.map(lambda changes: edited(PICKLED, changes)),
    st.sampled_from(['.safetensors', '.pth']),
)
def test_any_weights_are_tensors_or_an_error_of_weights(content, suffix):
    folder, path = written(content, f'w{suffix}')
    with folder:
        try:
            found = load_weights_file(path)
        except WeightsError as error:
            found = str(error)
        assert path.name in found if isinstance(found, str) else dict(found) is not None


def test_weights_that_run_code_are_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return Path.write_text, (tmp_path / 'ran', 'yes')

    (tmp_path / 'w.pth').write_bytes(pickled({'a': Runs()}))
    with pytest.raises(WeightsError):
        load_weights_file(tmp_path / 'w.pth')
    assert not (tmp_path / 'ran').exists()


@settings(max_examples=50)
@given(
    st.binary(max_size=60) | st.sampled_from(STARTS),
    st.sampled_from('.tif .png .json .geojson .gpkg .parquet .dlpk .emd .safetensors .pth .shp .nc .txt'.split()),
)
def test_info_of_any_file_is_a_text_or_an_error(content, suffix):
    folder, path = written(content, f'x{suffix}')
    with folder:
        try:
            text = describe_file(path, str(path))
        except GeoLearnError as error:
            text = str(error)
        assert text.strip()


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(COMMANDS)),
    st.lists(st.sampled_from(ODD), max_size=5),
)
def test_any_words_of_a_command_end_in_a_message(command, words):
    out = io.StringIO()
    if command == 'demo':
        words = [*words, '--no-such-option']  # it would run
    with redirect_stdout(out), redirect_stderr(out), pytest.raises(SystemExit) as end:
        main([command, *words, '--no-such-option'])
    assert end.value.code == 2
    assert 'Traceback' not in out.getvalue()
