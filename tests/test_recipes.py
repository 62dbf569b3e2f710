"""The recipes: what they say is what the class of models takes."""

import shlex
from pathlib import Path

import pytest

from geolearn.cli import build_parsers
from geolearn.cli.config import config_words
from geolearn.cli.train import choose_options
from geolearn.metrics.lookup import find_monitor
from geolearn.models.registry import find_model

RECIPES = sorted((Path(__file__).parents[1] / 'recipes').glob('*.yaml'))


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_it_parses_and_fits_its_model(path):
    parser, commands = build_parsers()
    arguments = parser.parse_args(['train', *config_words(commands['train'], 'train', path)])
    cls = find_model(arguments.model)
    assert choose_options(cls, arguments)['backbone'] == arguments.backbone
    assert arguments.name == path.stem
    assert find_monitor(arguments.monitor)
    assert arguments.split == 'blocks', 'neighboring chips in both parts make any score too good'


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_the_commands_in_its_comments_parse(path):
    lines = [line.partition('geolearn ')[2] for line in path.read_text().splitlines() if 'geolearn ' in line]
    assert lines
    for line in lines:
        assert build_parsers()[0].parse_args(shlex.split(line)).run


def test_there_is_one_for_each_task():
    assert {path.stem for path in RECIPES} == {'burn_scars', 'floods', 'crops', 'buildings', 'trees', 'clouds'}
