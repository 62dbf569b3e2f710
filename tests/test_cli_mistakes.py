"""The command line against what people type by mistake: one line in its own words, exit status 2, nothing written."""

import functools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from geolearn.cli import COMMANDS, build_parser, main
from geolearn.cli.messages import as_options

pytestmark = pytest.mark.usefixtures('one_thread')

SMALL = '--backbone test_resnet --from-scratch --chip-size 32 --batch-size 4 --valid 0.25 --epochs 1 --lr 1e-3'.split()
SQUARE = (
    '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {"use": "a"}, "geometry": '
    '{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}}]}'
)
PYTHON_ARGUMENT = re.compile(r"(?<![\w.'\"\-/?&])[a-z_]+=(?!=)")


@pytest.fixture(scope='module')
def bundle(scene_chips, tmp_path_factory):
    path = tmp_path_factory.mktemp('mistakes') / 'm.dlpk'
    main(['train', str(scene_chips), str(path), *SMALL, '--model', 'PSPNet', '--ignore-classes', '0'])
    return path


@pytest.fixture
def files(bundle, scene_files, scene_chips, tmp_path):
    """Names that the command lines below stand for."""
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'empty').write_bytes(b'')
    (tmp_path / 'text.tif').write_text('no raster')
    (tmp_path / 'text.gpkg').write_text('no layer')
    (tmp_path / 'l.geojson').write_text(SQUARE)
    (tmp_path / 'none.geojson').write_text('{"type": "FeatureCollection", "features": []}')
    (tmp_path / 'text.dlpk').write_text('no bundle')
    (tmp_path / 'cut.dlpk').write_bytes(bundle.read_bytes()[:20000])
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'file').write_text('mine')
    return {
        'MODEL': bundle,
        'IMAGE': scene_files[0],
        'LABELS': scene_files[1],
        'CHIPS': scene_chips,
        'SMALL': ' '.join(SMALL),
        'HERE': tmp_path,
    }


def words_of(line, files):
    """Return the words of a line, with names for the paths that they stand for; SMALL stands for several words."""
    line = line.replace('SMALL', files['SMALL'])
    return [
        word if word.startswith('-') else functools.reduce(lambda w, n: w.replace(n, str(files[n])), files, word)
        for word in line.split()
    ]


def fails(capsys, line, files):
    """Run a line that must fail on purpose; returns what is said after ``geolearn: ``, or by argparse."""
    with pytest.raises(SystemExit) as caught:
        main(words_of(line, files))
    out, err = capsys.readouterr()
    assert caught.value.code == 2, err
    assert 'wrote' not in out
    assert 'Traceback' not in err
    said = err.splitlines()[-1]
    assert said.startswith('geolearn')
    assert not err.startswith('geolearn: ') or len(err.splitlines()) == 1, err
    assert not PYTHON_ARGUMENT.search(said), said
    return said


MISTAKES = [
    ('predict HERE/none.dlpk IMAGE HERE/m.tif', 'does not exist'),
    ('serve HERE/none.dlpk', 'does not exist'),
    ('predict HERE/folder IMAGE HERE/m.tif', 'folder'),
    ('predict HERE/text.dlpk IMAGE HERE/m.tif', 'text.dlpk'),
    ('predict HERE/cut.dlpk IMAGE HERE/m.tif', 'cut.dlpk'),
    ('predict HERE/empty IMAGE HERE/m.tif', 'empty'),
    ('predict MODEL HERE/none.tif HERE/m.tif', 'none.tif'),
    ('predict MODEL HERE/folder HERE/m.tif', 'folder'),
    ('predict MODEL HERE/text.tif HERE/m.tif', 'text.tif'),
    ('predict MODEL HERE/empty HERE/m.tif', 'empty'),
    ('predict MODEL IMAGE HERE/none/m.tif', 'does not exist'),
    ('predict MODEL IMAGE HERE/folder', 'exists'),
    ('predict MODEL IMAGE HERE/folder --overwrite', 'should end in one of'),
    ('predict MODEL IMAGE HERE/m.png', 'should end in one of'),
    ('predict MODEL IMAGE /dev/full', 'exists'),
    ('predict MODEL IMAGE HERE/m.tif --device foo', "unknown device 'foo'"),
    ('predict MODEL IMAGE HERE/m.tif --device cuda:99', "device 'cuda:99' is not on this machine; it has cpu"),
    (
        'predict MODEL IMAGE HERE/m.tif --precision fp16 --device cpu',
        "--precision fp16 needs a CUDA device and this is 'cpu'; pass --precision bf16, or no --precision for float32",
    ),
    (
        'predict MODEL IMAGE HERE/m.tif --precision bf16 --engine onnx',
        'leave out --precision, or pass --engine torch or --engine openvino',
    ),
    ('predict MODEL IMAGE HERE/m.tif --scale nan', '--scale: must be a finite number'),
    ('predict MODEL IMAGE HERE/m.tif --scale inf', '--scale: must be a finite number'),
    ('predict MODEL IMAGE HERE/m.tif --scale 0', '--scale: must not be 0'),
    ('predict MODEL IMAGE HERE/m.tif --offset nan', '--offset: must be a finite number'),
    ('predict MODEL IMAGE HERE/m.tif --batch-size 0', '--batch-size: must be a whole number from 1'),
    ('predict MODEL IMAGE HERE/m.tif --batch-size 99999999999999999999', '--batch-size: must be at most'),
    ('predict MODEL IMAGE HERE/m.tif --tile-size ٣', '--tile-size: must be a whole number from 1'),
    ('predict MODEL IMAGE HERE/m.tif --sensor nowhere', "unknown sensor 'nowhere'"),
    ('predict MODEL IMAGE HERE/m.tif --bands a b', '--bands'),
    ('predict MODEL IMAGE HERE/m.tif --threshold 0.5', '--threshold does not apply to a PSPNet'),
    ('predict MODEL IMAGE HERE/m.tif --polygons x.gpkg', '--polygons does not apply to a PSPNet'),
    ('predict MODEL IMAGE', 'arguments are required: dst'),
    ('train HERE/none m SMALL', 'none'),
    ('train IMAGE m SMALL', 'scene.tif'),
    ('train HERE/folder m SMALL', '--dataset-type Classified_Tiles'),
    ('train CHIPS m SMALL --model Nothing', "unknown model 'Nothing'"),
    ('train CHIPS m SMALL --backbone nothing', "unknown backbone 'nothing'"),
    ('train CHIPS m SMALL --weights HERE/none.pth', 'there is no file at'),
    ('train CHIPS m SMALL --wavelengths 0.4 -1', '--wavelengths: must be a number above 0'),
    ('train CHIPS m SMALL --wavelengths 0.4', 'found 1 wavelengths, needed 10'),
    ('train CHIPS m SMALL --class-mapping 1', '--class-mapping: must be VALUE=NAME'),
    ('train CHIPS m SMALL --ignore-classes nothing', 'nothing'),
    ('train CHIPS m SMALL --ignore-classes 0 1 2 3 4 5 6', 'class'),
    ('train CHIPS m SMALL --extract-bands 99', '--extract-bands'),
    ('train CHIPS m SMALL --bands a b', '--bands names 2 bands'),
    ('train CHIPS m SMALL --sensor nowhere', "unknown sensor 'nowhere'"),
    ('train CHIPS m SMALL --split HERE/none.txt', 'none.txt'),
    ('train CHIPS m SMALL --block-size 100', '--block-size 100.0 has no effect without --split blocks'),
    ('train CHIPS m SMALL --valid 1', '--valid must lie'),
    ('train CHIPS m SMALL --normalize nothing', "'nothing'"),
    ('train CHIPS m SMALL --monitor nothing', "'nothing'"),
    ('train CHIPS m SMALL --temporal nothing', "'nothing'"),
    ('train CHIPS m SMALL --freeze nothing', '--freeze must be one of'),
    ('train CHIPS m SMALL --lora-rank 4', 'lora'),
    ('train CHIPS m SMALL --dataset-type Nothing', "'Nothing'"),
    ('train CHIPS m SMALL --valid-path HERE/none', 'none'),
    ('train CHIPS m SMALL --lr inf', '--lr: must be a number'),
    ('train CHIPS m SMALL --seed -1', '--seed: must be a whole number from 0'),
    ('train CHIPS m SMALL --resume', 'no checkpoint'),
    ('evaluate HERE/none.dlpk CHIPS', 'does not exist'),
    ('evaluate MODEL HERE/none', 'none'),
    ('evaluate MODEL CHIPS --csv HERE/folder', 'folder'),
    ('report MODEL CHIPS HERE/folder', 'is a folder'),
    ('report MODEL HERE/none HERE/r.html', 'none'),
    ('info HERE/none', 'none'),
    ('info HERE/folder', '--dataset-type Classified_Tiles'),
    ('info HERE/text.tif', 'text.tif'),
    ('info HERE/text.dlpk', 'text.dlpk'),
    ('export-chips HERE/none.tif HERE/out --labels LABELS', 'none.tif'),
    ('export-chips IMAGE HERE/out --labels HERE/none.tif', 'none.tif'),
    ('export-chips IMAGE HERE/out --labels HERE/none.gpkg', 'none.gpkg'),
    ('export-chips IMAGE HERE/out --labels HERE/text.gpkg', 'text.gpkg'),
    ('export-chips IMAGE HERE/out --labels HERE/folder', 'folder'),
    ('export-chips IMAGE HERE/out', 'no labels are given'),
    ('export-chips IMAGE HERE/full --labels LABELS --tile-size 32', 'full'),
    ('export-chips IMAGE HERE/out --labels LABELS --format Nothing', "'Nothing'"),
    ('export-chips IMAGE HERE/out --labels LABELS --tile-size 2000000000', '--tile-size'),
    ('export-chips IMAGE HERE/out --labels LABELS --stride 0', '--stride: must be a whole number from 1'),
    ('export-chips IMAGE HERE/out --labels LABELS --tile-size -32', '--tile-size: must be a whole number from 1'),
    ('export-chips IMAGE HERE/out --labels LABELS --buffer-radius nan', '--buffer-radius: must be a number above 0'),
    ('export-chips IMAGE HERE/out --labels LABELS --buffer-radius 5', '--buffer-radius is for vector labels, but'),
    ('export-chips IMAGE HERE/out --labels LABELS --class-field use --layer a', '--class-field, --layer is for vector'),
    (
        'export-chips IMAGE HERE/out --labels HERE/l.geojson --labels-crs EPSG:0',
        "--labels-crs is 'EPSG:0', which is no",
    ),
    (
        'export-chips IMAGE HERE/out --labels HERE/none.geojson --labels-crs EPSG:4326',
        'no feature can be used (it is empty)',
    ),
    ('export-chips IMAGE HERE/out --labels HERE/l.geojson --values', '--values needs a raster of numbers as labels'),
    (
        'export-chips IMAGE HERE/out --labels LABELS --tile-size 32 --bands a a b c d e f g h i',
        "--bands names 'a' 2 ti",
    ),
    ('export-chips IMAGE HERE/out --labels LABELS --tile-size 32 --nodata 1 2', '--nodata holds 2 values but'),
    ('export-chips IMAGE HERE/full/file --labels LABELS --tile-size 32', 'file is a file; export into a new folder'),
    ('export-chips HERE/l.geojson HERE/out --labels LABELS', 'is no STAC item: it has no assets, and so is no raster'),
    ('export-chips IMAGE HERE/out --labels LABELS --sensor nowhere --bands a', "unknown sensor 'nowhere'"),
    ('weights verify nothing', "unknown weights record 'nothing'"),
    ('weights download nothing', "unknown weights record 'nothing'"),
    ('weights', 'required: action'),
    ('demo --out HERE/full', 'is not empty'),
]


@pytest.mark.parametrize(('line', 'said'), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_answered_in_one_line(line, said, files, capsys):
    assert said in fails(capsys, line, files)


# -- words


@pytest.mark.parametrize(
    ('command', 'said', 'expected'),
    [
        ('train', 'leave it out with ignore_classes=[0]', 'leave it out with --ignore-classes 0'),
        ('train', 'pass ignore_classes=[0, 7] or class_mapping=', 'pass --ignore-classes 0 7 or --class-mapping'),
        ('train', "pass class_mapping={1: 'dry land'}", "pass --class-mapping '1=dry land'"),
        ('train', "pass split='blocks' to hold out", 'pass --split blocks to hold out'),
        ('train', 'val_split_pct must lie between 0 and 1', '--valid must lie between 0 and 1'),
        ('train', 'continue with fit(..., resume=True)', 'continue with geolearn train --resume'),
        ('train', 'call fit() first', 'call geolearn train first'),
        ('train', 'pass pretrained=False to train from scratch', 'pass --from-scratch to train from scratch'),
        ('train', "mixed_precision='bf16'", '--precision bf16'),
        ('train', 'on this CPU; pass mixed_precision=None', 'on this CPU; pass no --precision'),
        ('train', 'epochs must be at least 1', '--epochs must be at least 1'),
        ('train', "or freeze='all but norms'", 'or --freeze "all but norms"'),
        ('predict', 'Pass scale= (and offset=) so', 'Pass --scale (and --offset) so'),
        ('predict', 'halo must be under half of tile_size', '--halo must be under half of --tile-size'),
        ('predict', 'pass data= to load_model', 'pass data= to load_model'),
        ('predict', 'read /data/scale=2/tile_size=64/a.tif', 'read /data/scale=2/tile_size=64/a.tif'),
        ('export-chips', 'no bands; pass bands=', 'no bands; pass --bands'),
    ],
)
def test_messages_for_python_name_options_here(command, said, expected):
    assert as_options(said, build_parser().parse_args(EXAMPLES[command]).option_names) == expected


EXAMPLES = {
    'benchmark': ['benchmark', 'a.yaml'],
    'show': ['show', 'a', 'b.png'],
    'detect': ['detect', 'a', 'b', 'c'],
    'export-chips': ['export-chips', 'a', 'b'],
    'train': ['train', 'a', 'b'],
    'compare': ['compare', 'a', 'b'],
    'pretrain': ['pretrain', 'a'],
    'evaluate': ['evaluate', 'a', 'b'],
    'report': ['report', 'a', 'b', 'c'],
    'predict': ['predict', 'a', 'b', 'c'],
    'vectorize': ['vectorize', 'a', 'b'],
    'lines': ['lines', 'a', 'b', 'c'],
    'embed': ['embed', 'a', 'b'],
    'probe': ['probe', 'a'],
    'study': ['study', 'bigearthnet', 'a'],
    'serve': ['serve', 'a'],
    'weights': ['weights', 'list'],
    'info': ['info', 'a'],
    'demo': ['demo'],
}


def test_every_option_has_a_help_text_and_tells_its_default():
    assert set(EXAMPLES) == set(COMMANDS)
    commands = next(action for action in build_parser()._actions if action.dest == 'command').choices
    for name, parser in commands.items():
        text = ' '.join(parser.format_help().split())
        for action in parser._actions:
            assert action.help, (name, action.dest)
            if isinstance(action.default, int | float | str) and not isinstance(action.default, bool):
                assert f'(default {action.default})' in text or action.default == '==SUPPRESS==', (name, action.dest)


def test_the_version_is_printed(capsys):
    from geolearn import __version__

    with pytest.raises(SystemExit) as caught:
        main(['--version'])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f'geolearn {__version__}\n'


ODD = st.sampled_from(['', ' ', '\x00', *'-1 0 1e400 nan None [0] 1= =a ä 🌍 -- 1.5 999999999999999999999'.split()])
OPTIONS = st.sampled_from(sorted(set(build_parser().parse_args(EXAMPLES['predict']).option_names.values()) - {'-h'}))


@settings(max_examples=60)
@given(options=st.lists(st.tuples(OPTIONS, ODD), min_size=1, max_size=4))
def test_any_options_end_in_a_message(options):
    words = [word for option, value in options for word in ([option, value] if value else [option])]
    with pytest.raises(SystemExit) as caught:
        main(['predict', 'no_such.dlpk', 'no_such.tif', 'no_such_map.tif', *words])
    assert caught.value.code in (0, 2)


# -- streams


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
@pytest.mark.parametrize('argv', [['--help'], ['--version'], ['predict', '--help']], ids=str)
@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_output_that_cannot_be_written_is_said_in_one_line(argv, unbuffered):
    command = [sys.executable, '-m', 'geolearn', *argv]
    environment = os.environ | {'PYTHONUNBUFFERED': unbuffered}
    with open('/dev/full', 'w') as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (2, 'geolearn: standard output: No space left on device\n')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_results_that_cannot_be_printed_are_said_in_one_line(files, capsys, monkeypatch):
    monkeypatch.setattr('geolearn.demo.run_demo', lambda out, *, say: say('a step'))
    for line in (
        'train CHIPS HERE/trained.dlpk SMALL --model PSPNet --ignore-classes 0',
        'report MODEL CHIPS HERE/report.html',
        'demo --out HERE/demo',
        'serve MODEL --port 0',
        'info IMAGE',
        'weights list',
        'export-chips IMAGE HERE/out --labels LABELS --tile-size 32',
        'evaluate MODEL CHIPS',
        'predict MODEL IMAGE HERE/m.tif',
        'vectorize HERE/m.tif HERE/v.gpkg',
    ):
        with open('/dev/full', 'w') as full:
            monkeypatch.setattr(sys, 'stdout', full)
            with pytest.raises(SystemExit) as caught:
                main(words_of(line, files))
        said = capsys.readouterr().err
        assert caught.value.code == 2, line
        assert said.splitlines()[-1] == 'geolearn: standard output: No space left on device', line
        assert 'Traceback' not in said


@pytest.mark.parametrize(
    ('command', 'unbuffered'), [('predict --help', ''), ('predict --help', '1'), ('weights list', '1')]
)
def test_a_reader_that_has_seen_enough_is_no_error(command, unbuffered):
    script = f'set -o pipefail; PYTHONUNBUFFERED={unbuffered} {sys.executable} -m geolearn {command} | true'
    done = subprocess.run(['bash', '-c', script], capture_output=True, text=True, check=False)
    assert done.stderr == ''
    assert done.returncode in (0, 1)


@pytest.mark.parametrize(
    ('line', 'at', 'said'),
    [
        ('export-chips IMAGE HERE/out --labels LABELS --tile-size 32', 'chips.exporting.run.ChipWriter.write', None),
        ('train CHIPS HERE/trained.dlpk SMALL --ignore-classes 0', 'training.learner.ChipLearner.begin_pass', None),
        ('vectorize LABELS HERE/v.gpkg', 'inference.vectors.LayerWriter.add', None),
        ('evaluate MODEL CHIPS', 'models.PixelClassifier.evaluate', None),
        ('report MODEL CHIPS HERE/report.html', 'models.PixelClassifier.evaluate', None),
        (
            'predict MODEL IMAGE HERE/m.tif --part 1/2',
            'models.PixelClassifier.predict_raster',
            'predict MODEL IMAGE HERE/m.tif --part 1/2',
        ),
        (
            'predict MODEL IMAGE HERE/maps --each --overwrite',
            'inference.catalog.Manifest.add',
            'predict MODEL IMAGE HERE/maps --each',
        ),
        ('serve MODEL --port 0', 'serve.app.make_app', 'stopped'),
    ],
)
def test_an_interruption_says_how_to_continue_where_that_is_possible(files, capsys, monkeypatch, line, at, said):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    before = set(files['HERE'].rglob('*'))
    monkeypatch.setattr(f'geolearn.{at}', interrupt)
    with pytest.raises(SystemExit) as caught:
        main(words_of(line, files))
    assert caught.value.code == 130
    last = capsys.readouterr().err.splitlines()[-1]
    if said is None:
        assert last == 'geolearn: interrupted; nothing was written'
        assert set(files['HERE'].rglob('*')) == before
    elif said == 'stopped':
        assert last == 'geolearn: stopped'
    else:
        kept = 'geolearn: interrupted; what is finished was kept. Continue with: geolearn '
        assert last == kept + ' '.join(words_of(said, files))


def test_an_interrupted_map_leaves_nothing(files, capsys, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr('geolearn.models.PixelClassifier.predict_raster', interrupt)
    with pytest.raises(SystemExit) as caught:
        main(['predict', str(files['MODEL']), str(files['IMAGE']), str(files['HERE'] / 'm.tif')])
    assert caught.value.code == 130
    words = capsys.readouterr().err
    assert words.startswith('geolearn: interrupted; what is finished was kept. Continue with: geolearn predict ')
    assert words.endswith('m.tif --resume\n')
    assert not (files['HERE'] / 'm.tif').exists()


def test_chips_that_nobody_trained_on_are_evaluated_altogether(bundle, scene_chips, tmp_path, capsys):
    main(['evaluate', str(bundle), str(scene_chips), '--all', '--csv', str(tmp_path / 'classes.csv')])
    out = capsys.readouterr().out
    assert 'on the validation chips' in out
    assert 'built-up' in (tmp_path / 'classes.csv').read_text()
    from geolearn import load_model, prepare_data

    data = prepare_data(scene_chips, chip_size=32, batch_size=4, ignore_classes=[0]).validating_on_all()
    assert len(data.valid_ds) == 16
    accuracy = load_model(bundle, data).accuracy()
    assert f'accuracy {accuracy:.4f}' in out


def test_values_without_a_label_or_data_are_named(save, scene_files, tmp_path, capsys):
    with rasterio.open(scene_files[1]) as src:
        labels = src.read(1).astype('int16')
    save(tmp_path / 'labels.tif', np.where(labels == 0, -1, labels), transform=src.transform, crs=src.crs)
    words = ['--labels', tmp_path / 'labels.tif', '--tile-size', 32, '--unlabelled', -1, '--nodata', 0]
    main([str(word) for word in ['export-chips', scene_files[0], tmp_path / 'chips', *words]])
    assert 'wrote 16 chips' in capsys.readouterr().out
    argv = ['train', tmp_path / 'chips', tmp_path / 'm.dlpk', *SMALL, '--model', 'PSPNet', '--nodata', 0]
    main([str(word) for word in [*argv, '--class-mapping', '1=wet', '--unlabelled', 0]])
    out = capsys.readouterr().out
    assert 'wet' in out
    assert 'ignored     -1' not in out
