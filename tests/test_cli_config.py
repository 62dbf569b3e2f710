"""Configuration files: the words of a command as YAML, checked key by key, and written by every training."""

import os
import shlex
import subprocess
import sys

import pytest

from geolearn.cli import COMMANDS, build_parser, build_parsers, main
from geolearn.cli.config import config_words, write_config
from geolearn.cli.examples import EXAMPLES
from geolearn.cli.messages import rename_options

TRAIN = """
command: train
chips: [here, there]
name: floods
epochs: 3
lr: 1e-4
from_scratch: true
mixup: no
nodata: [0, none]
class-mapping: {1: Water, 2: Dry land}
val_split_pct: 0.25   # as prepare_data calls it
unlabelled: []
wavelengths:
"""


def parse(text, tmp_path, command='train'):
    path = tmp_path / 'c.yaml'
    path.write_text(text)
    parser, commands = build_parsers()
    return parser.parse_args([command, *config_words(commands[command], command, path)])


def values(arguments):
    return {name: value for name, value in vars(arguments).items() if name != 'command_parser'}


def test_a_file_says_what_the_words_would(tmp_path):
    words = 'train here there floods --epochs 3 --lr 1e-4 --from-scratch --nodata 0 none --valid 0.25 --unlabelled'
    expected = build_parser().parse_args([*words.split(), '--class-mapping', '1=Water', '2=Dry land'])
    assert values(parse(TRAIN, tmp_path)) == values(expected)


def test_what_a_run_writes_runs_it_again(tmp_path):
    arguments = parse(TRAIN, tmp_path)
    written = write_config(tmp_path / 'again.yaml', arguments)
    assert values(parse(written.read_text(), tmp_path)) == values(arguments)
    assert 'batch_size: 8' in written.read_text(), 'defaults may change in later versions'


def test_files_of_the_user_are_never_replaced(tmp_path):
    arguments = parse(TRAIN, tmp_path)
    own = tmp_path / 'floods.yaml'
    own.write_text('# my floods\nchips: a\nname: floods')
    assert write_config(own, arguments).name == 'floods_run.yaml'
    assert own.read_text().startswith('# my floods')
    arguments.config_file = str(tmp_path / 'floods_run.yaml')
    assert write_config(tmp_path / 'floods_run.yaml', arguments).name == 'floods_run_run.yaml'
    arguments.config_file = None
    assert write_config(tmp_path / 'floods_run.yaml', arguments).name == 'floods_run.yaml', 'of an earlier run'


def test_paths_are_written_in_full(tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path)
    text = write_config(tmp_path / 'again.yaml', parse('chips: [here, absent]\nname: m', tmp_path)).read_text()
    assert f'- {tmp_path / "here"}\n- absent\n' in text


def test_files_of_lists_and_what_is_written_are_in_full_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'lists.csv').write_text('1,valid\n')
    (tmp_path / 'random').mkdir()
    text = 'chips: c\nname: out/m.dlpk\nsplit: lists.csv\nreport: report.html\nbackbone: resnet18\n'
    written = write_config(tmp_path / 'again.yaml', parse(text, tmp_path)).read_text()
    for line in ('name: {}/out/m.dlpk', 'split: {}/lists.csv', 'report: {}/report.html'):
        assert line.format(tmp_path) in written
    bare = write_config(tmp_path / 'bare.yaml', parse('chips: c\nname: m\nsplit: random\n', tmp_path)).read_text()
    assert 'name: m\n' in bare
    assert 'split: random\n' in bare


def test_a_switch_that_is_on_by_default_is_turned_off(tmp_path):
    base = 'model: m.dlpk\nsrc: a.tif\ndst: b.tif\n'
    assert parse(f'{base}cog: false', tmp_path, 'predict').cog is False
    assert parse(f'{base}cog: true', tmp_path, 'predict').cog is None
    with pytest.raises(ValueError, match="unknown key 'no-cog'"):
        parse(f'{base}no-cog: true', tmp_path, 'predict')


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        (f'{TRAIN}epoch: 3', "c.yaml:14: unknown key 'epoch'; did you mean 'epochs'"),
        (f'{TRAIN}epochs: 4', "'epochs' stands in lines 5 and 14; keep one"),
        (f'{TRAIN}valid: 0.1', "'valid' and another key stand for the same option"),
        (f'{TRAIN}loss: [focal, dice]', 'loss takes one value, got a list of 2'),
        (f'{TRAIN}resume: perhaps', "resume must be true or false, got 'perhaps'"),
        (f'{TRAIN}loss: {{a: {{b: c}}}}', 'not deeper'),
        ('command: predict\nchips: a\nname: b', "the file is for 'predict', not for 'train'"),
        ('name: b', 'lacks chips; add a line such as "chips: ..."'),
        ('- chips', 'must hold lines such as "epochs: 10"'),
        ('chips: [a', 'is not YAML'),
        ('? [a]\n: b', 'a key must be a word'),
        ('chips: &a [*a]\nname: b', 'c.yaml'),
    ],
)
def test_a_mistake_is_named_with_its_line(text, said, tmp_path):
    with pytest.raises(ValueError, match='c.yaml') as caught:
        parse(text, tmp_path)
    assert said in str(caught.value)


def test_a_value_is_checked_as_on_the_command_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(f'{TRAIN}dice_fraction: 3', tmp_path)
    assert "argument --dice-fraction: must be a number in 0..1, got '3'" in capsys.readouterr().err


def test_options_after_the_file_win_and_nothing_else_follows(tmp_path, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr('geolearn.cli.train.run', seen.append)
    (tmp_path / 'chips').mkdir()
    path = tmp_path / 'c.yaml'
    path.write_text(f'chips: {tmp_path / "chips"}\nname: m\nepochs: 3')
    main(['train', str(path), '--epochs', '7'])
    assert (seen[0].epochs, seen[0].chips) == (7, [str(tmp_path / 'chips')])
    with pytest.raises(SystemExit):
        main(['train', str(path), 'more'])
    assert "after it only options may follow, found 'more'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(['train', str(tmp_path / 'none.yaml')])
    assert 'cannot read' in capsys.readouterr().err


def test_negative_numbers_are_values_however_they_are_written():
    words = 'train c m --nodata -3.4028235e+38 -1 --unlabelled -1. --class-mapping -1=void 1=a'
    arguments = build_parser().parse_args(words.split())
    assert (arguments.nodata, arguments.unlabelled) == ([-3.4028235e38, -1.0], [-1.0])
    assert arguments.class_mapping == [(-1, 'void'), (1, 'a')]


def test_every_example_of_the_help_parses_and_is_shown():
    assert set(EXAMPLES) == set(COMMANDS)
    commands = build_parsers()[1]
    for command, lines in EXAMPLES.items():
        for line in lines:
            words = shlex.split(line)
            assert words[:2] == ['geolearn', command]
            if not words[2:3] or not words[2].endswith('.yaml'):
                assert build_parser().parse_args(words[1:]).run
            assert f'  {line}\n' in commands[command].format_help()


@pytest.mark.parametrize(
    'line', ['train none x', 'train . x --model UNett', 'predict none.dlpk a.tif b.tif', 'show none a.png']
)
def test_a_wrong_argument_is_answered_before_torch_is_imported(line):
    code = 'import sys; from geolearn.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit as e: '
    code += "print(e.code, [m for m in ('torch', 'rasterio', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, '-c', code, *line.split()], capture_output=True, text=True, timeout=60)
    assert done.stdout == '2 []\n'
    assert len(done.stderr.splitlines()) == 1


def test_names_and_places_of_results_are_checked_before_torch_is_imported_too(tmp_path):
    lines = {
        'train . x --split foo': "unknown split 'foo'",
        'train . x --normalize foo': "invalid choice: 'foo'",
        'train . x --sensor foo': "unknown sensor 'foo'",
        'train . x --dates 31.5.2024': "must be a day such as 2024-05-31, got '31.5.2024'",
        'train . x --freeze foo': '--freeze must be one of',
        'train . x --report none/r.html': 'the folder none does not exist',
        'compare . x --models UNett': "did you mean 'UNet'",
        'embed . there.tif --aoi none.gpkg': 'none.gpkg: does not exist',
        'embed . there.tif': 'there.tif exists; name the result to write last',
        'vectorize there.tif none/v.gpkg': 'the folder none does not exist',
        'predict there.tif there.tif m.tif': 'is no readable .dlpk',
        'serve none.dlpk': 'none.dlpk does not exist',
    }
    (tmp_path / 'there.tif').write_text('')
    code = 'import sys; from geolearn.cli import main\nfor line in sys.argv[1:]:\n try: main(line.split())\n'
    code += " except SystemExit as e: print(e.code, 'torch' in sys.modules)"
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, '-c', code, *lines], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == '2 False\n' * len(lines)
    for said, expected in zip(done.stderr.splitlines(), lines.values(), strict=True):
        assert expected in said


@pytest.mark.parametrize(
    ('given', 'meant'),
    [
        ('train c m --val-split-pct 0.2 --no-pretrained', 'train c m --valid 0.2 --from-scratch'),
        ('train c m --val_split_pct=0.2 --resolution-m 10', 'train c m --valid=0.2 --resolution 10'),
        ('train c m --mixed-precision bf16', 'train c m --precision bf16'),
        ('export-chips a b --class-value-field use', 'export-chips a b --class-field use'),
        ('export-chips a b --in-class-data l --metadata-format COCO', 'export-chips a b --labels l --format COCO'),
        ('embed a b --no-pretrained --resolution-m 10', 'embed a b --no-pretrained --resolution-m 10'),
        ('train c -- --val-split-pct', 'train c -- --val-split-pct'),
    ],
)
def test_options_may_be_called_as_in_python(given, meant):
    command, *words = given.split()
    assert [command, *rename_options(words, build_parsers()[1][command])] == meant.split()


def test_an_unknown_option_is_an_error_of_its_command_with_the_nearest_name(capsys):
    with pytest.raises(SystemExit):
        main(['train', 'c', 'm', '--epochz', '3'])
    said = (
        'geolearn train: error: unrecognized arguments: --epochz 3; did you mean --epochs?; see geolearn train --help'
    )
    assert capsys.readouterr().err == f'{said}\n'
