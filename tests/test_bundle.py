"""The .dlpk: what goes in comes out, and nothing in it is trusted."""

import errno
import importlib.util
import io
import json
import pickle
import random
import stat
import struct
import sys
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as format_safetensors

from geolearn import arcgis
from geolearn import bundle as bundle_module
from geolearn.bands import Band
from geolearn.bundle import FORMAT, Bundle, find_bundle, read_bundle, write_bundle
from geolearn.classes import ClassInfo
from geolearn.errors import BundleError, FileWriteError
from geolearn.models import DeepLab, load_model
from geolearn.models.bundling import inference_file
from geolearn.networks.spec import ModelSpec
from geolearn.normalize import Normalization
from geolearn.statistics import BandStatistics

pytestmark = pytest.mark.usefixtures('one_thread')

GOLDEN = """{
 "Framework": "geolearn", "ModelType": "ImageClassification", "ModelName": "DeepLab", "Name": "golden",
 "ModelFile": "golden.safetensors", "ExtractBands": [3, 0], "ImageHeight": 64, "ImageWidth": 64,
 "geolearn": {
  "format": 1, "version": "0.1.0", "model": "DeepLab", "backbone": "test_resnet",
  "bands": [
   {"name": "Red", "wavelength_um": 0.665, "common_name": "red", "is_radar": false},
   {"name": "elevation", "wavelength_um": null, "common_name": null, "is_radar": false}
  ],
  "class_infos": [
   {"value": 1, "name": "water", "color": [0, 0, 255]},
   {"value": 300, "name": "land", "color": [0, 128, 0]}
  ],
  "ignored_values": [0], "chip_size": 64,
  "statistics": {"minimum": [0, 1.5], "maximum": [255, 900], "mean": [100, 300], "std": [20, 50.5]},
  "dtype": "uint16", "cell_size": {"x": 10, "y": 10, "spatialReference": {"wkid": 32633}},
  "band_indexes": [3, 0], "image_space": "PIXEL_SPACE", "pretrained": true, "learning_rate": 0.001,
  "history": [{"epoch": 1, "train_loss": 0.7, "valid_loss": 0.6, "accuracy": 0.9, "miou": null, "seconds": 1.5}],
  "metrics": {"accuracy": 0.9, "miou": null}
 }
}"""
"""The .emd of a bundle of format 1. It is kept for ever: every later geolearn must read it."""

SPEC = ModelSpec(
    model='DeepLab',
    backbone='test_resnet',
    bands=(Band('Red', 0.665, 'red'), Band('elevation')),
    class_infos=(ClassInfo(1, 'water', (0, 0, 255)), ClassInfo(300, 'land', (0, 128, 0))),
    ignored_values=(0,),
    chip_size=64,
    statistics=BandStatistics((0, 1.5), (255, 900), (100, 300), (20, 50.5)),
    normalization=Normalization((100.0, 300.0), (20.0, 50.5), 'mean and std of the chips'),
    dtype='uint16',
    cell_size={'x': 10, 'y': 10, 'spatialReference': {'wkid': 32633}},
    band_indexes=(3, 0),
    image_space='PIXEL_SPACE',
    pretrained=True,
)
WEIGHTS = {'w': torch.arange(6.0).view(2, 3), 'n': torch.tensor(3)}


@pytest.fixture(scope='module')
def network_weights():
    torch.manual_seed(0)
    return DeepLab.build(SPEC).state_dict()


def write_zip(path, members, **options):
    """A zip of (name, content) pairs; names may be ZipInfo."""
    with zipfile.ZipFile(path, 'w', **options) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def golden(**changes):
    """The golden .emd as a dict, with keys of its manifest replaced."""
    emd = json.loads(GOLDEN)
    emd['geolearn'] |= changes
    return emd


def members(emd=GOLDEN, weights=WEIGHTS):
    text = emd if isinstance(emd, str) else json.dumps(emd)
    return [('golden.emd', text), ('golden.safetensors', format_safetensors(weights))]


def assert_refused(path, match):
    with pytest.raises(BundleError, match=match):
        read_bundle(path)


# -- what goes in comes out


def test_a_bundle_reads_back_as_it_was_written(tmp_path):
    extras = {'ModelCharacteristics/loss_graph.png': b'png'}
    written = write_bundle(tmp_path / 'm.dlpk', Bundle(golden(), WEIGHTS, extras))
    found = read_bundle(written)
    assert found.manifest == golden()['geolearn']
    assert found.emd['ModelFile'] == 'm.safetensors'
    assert found.extras == extras
    assert found.weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in WEIGHTS.items())
    assert [path.name for path in tmp_path.iterdir()] == ['m.dlpk']


def test_views_and_parameters_are_written_as_plain_tensors(tmp_path):
    weights = {'t': torch.arange(6.0).view(2, 3).T, 'p': torch.nn.Parameter(torch.ones(2))}
    found = read_bundle(write_bundle(tmp_path / 'm.dlpk', Bundle(golden(), weights))).weights
    assert torch.equal(found['t'], weights['t'])
    assert torch.equal(found['p'], torch.ones(2))


def test_the_golden_manifest_of_format_1_is_read_for_ever(tmp_path, network_weights):
    path = write_zip(tmp_path / 'golden.dlpk', members(weights=network_weights))
    assert ModelSpec.from_manifest(read_bundle(path).manifest) == SPEC
    model = load_model(path)
    assert model.spec == SPEC
    assert len(model.history.epochs) == 1
    assert model.history.learning_rate == 0.001
    assert model.evaluation.metrics == {'accuracy': 0.9, 'miou': None}
    with torch.inference_mode():
        assert model.network(torch.rand(1, 2, 64, 64)).shape == (1, 2, 64, 64)


def test_a_spec_survives_json():
    assert ModelSpec.from_manifest(json.loads(json.dumps(SPEC.to_manifest()))) == SPEC


def test_fields_that_may_be_absent_have_defaults():
    optional = ('cell_size', 'band_indexes', 'image_space', 'pretrained')
    manifest = {key: value for key, value in golden()['geolearn'].items() if key not in optional}
    spec = ModelSpec.from_manifest(manifest)
    assert (spec.cell_size, spec.band_indexes, spec.image_space, spec.pretrained) == (None, (0, 1), 'MAP_SPACE', False)


def test_esris_keys_say_which_bands_of_the_raster_and_which_space():
    emd = SPEC.to_emd(chip_name='m')
    assert emd['ExtractBands'] == [3, 0]
    assert emd['ImageSpaceUsed'] == 'PIXEL_SPACE'


@pytest.mark.parametrize(
    ('stem', 'inside'),
    [
        ('run 10:30', 'run 10_30'),
        ('a\\b', 'a_b'),
        ('größe_1.5-b', 'größe_1.5-b'),
        ('line\nbreak*?', 'line_break__'),
        ('..', '..'),
        ('odd\udcff', 'odd_'),
    ],
)
def test_any_file_name_gives_a_bundle_that_is_read(tmp_path, stem, inside):
    path = write_bundle(tmp_path / f'{stem}.dlpk', Bundle(golden(), WEIGHTS))
    assert path == tmp_path / f'{stem}.dlpk'
    assert read_bundle(path).emd['ModelFile'] == f'{inside}.safetensors'
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [f'{inside}.emd', f'{inside}.safetensors']


@pytest.mark.parametrize('name', ['../x.png', 'C:x.png', 'M.EMD', 'other.emd'])
def test_what_would_be_refused_is_not_written(tmp_path, name):
    with pytest.raises(BundleError):
        write_bundle(tmp_path / 'm.dlpk', Bundle(golden(), WEIGHTS, {name: b'x'}))
    assert list(tmp_path.iterdir()) == []


def test_the_model_definition_has_esris_keys(scene_data, tmp_path):
    torch.manual_seed(0)
    path = DeepLab(scene_data, 'test_resnet', pretrained=False).fit(1, lr=1e-3).save(tmp_path / 'm.dlpk')

    def refuse(name):
        raise AssertionError(f'{name} is no strict JSON')

    with zipfile.ZipFile(path) as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {'m.emd', 'm.safetensors', 'ModelCharacteristics/loss_graph.png'} <= set(archive.namelist())
        emd = json.loads(archive.read('m.emd'), parse_constant=refuse)
    assert emd['Framework'] == 'geolearn'
    assert (emd['ModelType'], emd['ModelName'], emd['ModelFormat']) == ('ImageClassification', 'DeepLab', 'NCHW')
    assert emd['ModelFile'] == 'm.safetensors'
    assert emd['ExtractBands'] == list(range(10))
    assert emd['Classes'][0] == {'Value': 1, 'Name': 'water', 'Color': [46, 116, 196]}
    assert [c['Value'] for c in emd['Classes']] == [1, 2, 3, 4, 5, 6]
    assert emd['ignore_mapped_class'] == [0]
    assert (emd['ImageHeight'], emd['ImageWidth'], emd['ImageSpaceUsed']) == (32, 32, 'MAP_SPACE')
    assert (emd['MinCellSize']['x'], emd['MaxCellSize']['y']) == (10, 10)
    assert emd['SupportsVariableTileSize'] is True
    assert (emd['IsMultispectral'], emd['IsImageNetNormalization'], emd['DoNormalize']) == (True, False, True)
    assert emd['Bands'] == [band.name for band in scene_data.bands]
    assert emd['ModelParameters']['backbone'] == 'test_resnet'
    assert emd['ModelParameters']['wavelengths'] == [band.wavelength_um for band in scene_data.bands]
    assert emd['ModelParameters']['band_names'] == emd['Bands']
    assert float(emd['accuracy']) == pytest.approx(emd['geolearn']['metrics']['accuracy'], abs=1e-4)
    assert set(json.loads(emd['per_class_metrics'])['water']) == {'precision', 'recall', 'f1'}
    assert emd['LearningRate'] == '0.001'
    assert emd['resize_to'] is None
    assert emd['InferenceFunction'] == 'GeolearnClassifyPixels.py'
    assert not {'ArcGISLearnVersion', 'ModelConfiguration'} & set(emd)
    stats = emd['NormalizationStats']
    assert {len(column) for column in stats.values()} == {10}
    assert set(stats) == {
        f'{kind}_{what}_values' for kind in ('band', 'scaled') for what in ('min', 'max', 'mean', 'std')
    }
    low, high, mean = stats['band_min_values'][0], stats['band_max_values'][0], stats['band_mean_values'][0]
    assert stats['scaled_mean_values'][0] == pytest.approx((mean - low) / (high - low))


def test_a_class_called_nodata_is_not_listed_for_arcgis():
    infos = (ClassInfo(0, 'NoData', (0, 0, 0)), *SPEC.class_infos)
    spec = ModelSpec.from_manifest(golden(class_infos=[vars_of(info) for info in infos])['geolearn'])
    assert [c['Value'] for c in spec.to_emd(chip_name='m')['Classes']] == [1, 300]


def vars_of(info):
    return {'value': info.value, 'name': info.name, 'color': list(info.color)}


def test_a_bundle_is_found_by_its_folder_and_beside_its_emd(tmp_path):
    path = write_zip(tmp_path / 'golden.dlpk', members())
    (tmp_path / 'golden.emd').write_text(GOLDEN)
    for start in (path, tmp_path, tmp_path / 'golden.emd', str(path)):
        assert find_bundle(start) == path
    write_zip(tmp_path / 'second.dlpk', members())
    assert_refused(tmp_path, r'must hold exactly one .dlpk file, found golden.dlpk, second.dlpk; pass the file itself')
    assert_refused(tmp_path / 'none.dlpk', r'does not exist; pass the .dlpk that model.save\(\) wrote')


@pytest.mark.parametrize(
    ('model_type', 'base'),
    [
        ('ImageClassification', 'ClassifyPixels'),
        ('ObjectDetection', 'DetectObjects'),
        ('InstanceDetection', 'DetectInstances'),
        ('ObjectClassification', 'ClassifyObjects'),
    ],
)
def test_arcgis_finds_a_class_that_is_called_as_its_file(tmp_path, model_type, base):
    name, content = inference_file(model_type)
    (tmp_path / name).write_bytes(content)
    spec = importlib.util.spec_from_file_location(name.removesuffix('.py'), tmp_path / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, name.removesuffix('.py'))
    assert found.__base__ is getattr(arcgis, base)
    assert found.home == str(tmp_path / name)


# -- unpacked, as ArcGIS Pro keeps them


def unpack(path, folder):
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def test_an_unpacked_bundle_is_read_by_its_folder_or_its_emd(tmp_path, network_weights):
    packed = write_zip(tmp_path / 'golden.dlpk', members(weights=network_weights))
    folder = unpack(packed, tmp_path / 'unpacked')
    for start in (folder, folder / 'golden.emd'):
        assert load_model(start).spec == SPEC
    (folder / 'second.emd').write_text(GOLDEN)
    assert load_model(folder / 'golden.emd').spec == SPEC
    assert_refused(folder, 'must hold exactly one .dlpk file, found golden.emd, second.emd; pass the file itself')


@pytest.mark.parametrize('name', ['../secret.safetensors', 'none.safetensors', '/etc/x.safetensors', 'golden.emd', 5])
def test_the_weights_of_an_unpacked_bundle_lie_in_its_folder(tmp_path, name):
    (tmp_path / 'secret.safetensors').write_bytes(format_safetensors(WEIGHTS))
    folder = unpack(write_zip(tmp_path / 'm.dlpk', members()), tmp_path / 'unpacked')
    (folder / 'golden.emd').write_text(json.dumps(golden() | {'ModelFile': name}))
    assert_refused(folder, 'the name of a .safetensors member is needed')


def test_a_broken_unpacked_bundle_is_refused(tmp_path, monkeypatch):
    folder = unpack(write_zip(tmp_path / 'm.dlpk', members()), tmp_path / 'unpacked')
    (folder / 'golden.safetensors').write_bytes(b'x')
    assert_refused(folder, 'the weights in .*golden.emd are broken')
    (folder / 'golden.emd').write_text('{')
    assert_refused(folder, 'golden.emd is not valid JSON')
    monkeypatch.setattr(bundle_module, 'MAX_MANIFEST_BYTES', 0)
    assert_refused(folder, 'golden.emd is 1 bytes; that is no model definition')


@pytest.mark.parametrize('unpacked', [False, True])
def test_the_file_for_arcgis_is_never_run_by_geolearn(tmp_path, network_weights, unpacked):
    trap = tmp_path / 'sprung'
    code = f"""open({str(trap)!r}, 'w').close()\nraise SystemExit('run')"""
    names = ['Trap.py', 'golden.py', 'sitecustomize.py', '__init__.py', 'ModelConfiguration.py', 'safetensors.py']
    emd = golden() | {'InferenceFunction': 'Trap.py', 'ModelConfiguration': 'ModelConfiguration', 'Framework': 'Trap'}
    path = write_zip(tmp_path / 'm.dlpk', [*members(emd, network_weights), *((name, code) for name in names)])
    before = list(sys.path)
    model = load_model(unpack(path, tmp_path / 'unpacked') if unpacked else path)
    assert not trap.exists()
    assert sys.path == before
    with zipfile.ZipFile(model.save(tmp_path / 'again.dlpk')) as archive:
        written = {name: archive.read(name) for name in archive.namelist() if name.endswith('.py')}
    assert written == dict([inference_file('ImageClassification')]), 'nor carried on'


# -- writing is atomic


def test_a_failing_write_keeps_the_older_bundle(tmp_path, monkeypatch):
    path = write_bundle(tmp_path / 'm.dlpk', Bundle(golden(), WEIGHTS))
    before = path.read_bytes()

    def full(self, name, content):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(zipfile.ZipFile, 'writestr', full)
    with pytest.raises(
        FileWriteError, match=r'cannot write .*m\.dlpk: No space left on device. Nothing was left behind'
    ):
        write_bundle(path, Bundle(golden(), {}))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['m.dlpk']


def test_a_bundle_that_would_not_be_strict_json_is_not_written(tmp_path):
    with pytest.raises(ValueError, match='not JSON compliant'):
        write_bundle(tmp_path / 'm.dlpk', Bundle(golden(odd=float('nan')), WEIGHTS))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileWriteError, match=r'the folder .*none does not exist; create it first'):
        write_bundle(tmp_path / 'none' / 'm.dlpk', Bundle(golden(), WEIGHTS))


# -- hostile containers


@pytest.mark.parametrize('name', ['../x', 'a/../../x', '/etc/x', '..\\x', 'C:x', 'a\\b', '..'])
def test_a_member_that_points_out_of_the_bundle_is_refused(tmp_path, name):
    path = write_zip(tmp_path / 'm.dlpk', [*members(), (name, b'x')])
    assert_refused(path, 'points out of the bundle; do not trust it')


def test_a_link_in_the_bundle_is_refused(tmp_path):
    link = zipfile.ZipInfo('link')
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert_refused(write_zip(tmp_path / 'm.dlpk', [*members(), (link, '/etc/passwd')]), 'points out of the bundle')


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('name', ['golden.emd', 'Golden.EMD', './golden.emd'])
def test_a_member_that_is_there_twice_is_refused(tmp_path, name):
    assert_refused(write_zip(tmp_path / 'm.dlpk', [*members(), (name, GOLDEN)]), 'twice; do not trust it')


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    bomb = [*members(), ('ModelCharacteristics/bomb.png', bytes(20_000_000))]
    path = write_zip(tmp_path / 'm.dlpk', bomb, compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipfile.ZipFile, 'open', lambda *a, **k: pytest.fail('a member was opened'))
    assert_refused(path, 'unpacks to 20000000 bytes; that is no model')


@pytest.mark.parametrize('name', ['golden.safetensors', 'ModelCharacteristics/a.png', 'model_metrics.html'])
def test_a_member_that_packs_better_than_any_model_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, name):
    content = random.Random(0).randbytes(2**18) + bytes(30 * 2**18)  # thirty times its packed size
    others = [member for member in members() if member[0] != name]
    path = write_zip(tmp_path / 'm.dlpk', [*others, (name, content)], compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipfile.ZipFile, 'open', lambda *a, **k: pytest.fail('a member was opened'))
    assert_refused(path, 'unpacks to 8126464 bytes; that is no model')


def test_members_that_share_their_bytes_are_refused(tmp_path):
    path = write_zip(tmp_path / 'm.dlpk', [*members(), ('a', bytes(5000))])
    content = bytearray(path.read_bytes())
    directory = content.index(b'PK\x01\x02')
    while directory != -1:  # every member claims 10 kB more than it has
        for field in (20, 24):
            size = int.from_bytes(content[directory + field : directory + field + 4], 'little')
            content[directory + field : directory + field + 4] = (size + 10_000).to_bytes(4, 'little')
        directory = content.find(b'PK\x01\x02', directory + 4)
    path.write_bytes(content)
    assert_refused(path, r'claims \d+ bytes of packed members in a file of \d+; do not trust it')


def test_memory_that_does_not_suffice_is_a_bundle_error(tmp_path, monkeypatch):
    path = write_zip(tmp_path / 'm.dlpk', members())

    def full(content):
        raise MemoryError

    monkeypatch.setattr(bundle_module, 'parse_weights', full)
    assert_refused(path, 'needs more memory than there is')


@pytest.mark.parametrize('value', ['NaN', 'Infinity', '-Infinity', '1e999', '"\\ud800"', '["a", {"b": "\\udfff"}]'])
def test_what_is_no_strict_json_is_refused(tmp_path, value):
    emd = GOLDEN.decode() if isinstance(GOLDEN, bytes) else GOLDEN
    broken = '{"odd": ' + value + ', ' + emd.lstrip().removeprefix('{')
    others = [member for member in members() if not member[0].endswith('.emd')]
    assert_refused(write_zip(tmp_path / 'm.dlpk', [('golden.emd', broken), *others]), 'is not valid JSON')


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_module, 'MAX_MEMBERS', 3)
    assert_refused(
        write_zip(tmp_path / 'm.dlpk', [*members(), ('a', ''), ('b', '')]), 'holds 4 members; at most 3 are read'
    )


def test_members_that_are_absurd_only_together_are_refused(tmp_path, monkeypatch):
    path = write_zip(tmp_path / 'm.dlpk', [*members(), ('a', bytes(600)), ('b', bytes(600))])
    monkeypatch.setattr(bundle_module, 'MAX_BYTES', len(GOLDEN) + 1300)
    assert_refused(path, r'its members unpack to \d+ bytes; at most \d+ are read')
    monkeypatch.undo()
    figures = [(f'ModelCharacteristics/{name}.png', bytes(600)) for name in 'ab']
    write_zip(path, [*members(), *figures])
    monkeypatch.setattr(bundle_module, 'MAX_FIGURE_BYTES', 1000)
    assert_refused(path, 'its figures unpack to 1200 bytes; at most 1000 are read')


def test_only_figures_are_read_besides_the_model(tmp_path):
    names = ['ModelCharacteristics/a.png', 'ModelCharacteristics/b.py', 'c.png']
    path = write_zip(tmp_path / 'm.dlpk', [*members(), *((name, b'x') for name in names)])
    assert read_bundle(path).extras == {'ModelCharacteristics/a.png': b'x'}


def test_a_model_definition_of_absurd_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_module, 'MAX_MANIFEST_BYTES', 100)
    assert_refused(write_zip(tmp_path / 'm.dlpk', members()), 'bytes; that is no model definition')


def test_a_bundle_packed_with_deflate_is_read_and_one_packed_oddly_is_not(tmp_path):
    path = write_zip(tmp_path / 'm.dlpk', members(), compression=zipfile.ZIP_DEFLATED)
    assert read_bundle(path).weights.keys() == WEIGHTS.keys()
    assert_refused(write_zip(path, members(), compression=zipfile.ZIP_BZIP2), 'encrypted or oddly packed')


def test_an_encrypted_member_is_refused(tmp_path):
    path = write_zip(tmp_path / 'm.dlpk', members())
    content = bytearray(path.read_bytes())
    content[content.index(b'PK\x01\x02') + 8] |= 1
    path.write_bytes(content)
    assert_refused(path, 'encrypted or oddly packed')


def test_a_truncated_file_is_refused_at_any_length(tmp_path):
    whole = write_zip(tmp_path / 'm.dlpk', members()).read_bytes()
    for length in [0, 1, 30, *range(100, len(whole), 97), len(whole) - 1]:
        (tmp_path / 'm.dlpk').write_bytes(whole[:length])
        assert_refused(tmp_path / 'm.dlpk', r'is no readable \.dlpk.*copy it again')


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_byte_never_goes_unnoticed_nor_crashes(tmp_path, compression):
    path = write_zip(tmp_path / 'm.dlpk', members(), compression=compression)
    whole, right = path.read_bytes(), read_bundle(path)
    for position in range(0, len(whole), 5):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            found = read_bundle(path)
        except BundleError:
            continue
        assert found.emd == right.emd, 'only bytes that mean nothing, such as dates, may differ'
        assert all(torch.equal(found.weights[name], tensor) for name, tensor in right.weights.items())


def test_flipped_weights_are_refused(tmp_path):
    path = write_bundle(tmp_path / 'm.dlpk', Bundle(golden(), WEIGHTS))
    content = path.read_bytes()
    place = content.index(struct.pack('<f', 5.0))
    path.write_bytes(content[:place] + b'\xff' + content[place + 1 :])
    assert_refused(path, 'Bad CRC-32')


@pytest.mark.parametrize('content', [b'', b'not a zip', b'PK\x03\x04', pickle.dumps({'model': 1})])
def test_what_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / 'm.dlpk').write_bytes(content)
    assert_refused(tmp_path / 'm.dlpk', r'is no readable \.dlpk')


# -- hostile content


def test_one_model_definition_is_needed(tmp_path):
    assert_refused(write_zip(tmp_path / 'm.dlpk', members()[1:]), 'exactly one .emd at its root, found 0')
    assert_refused(
        write_zip(tmp_path / 'm.dlpk', [*members(), ('b.emd', GOLDEN)]), 'exactly one .emd at its root, found 2'
    )
    read_bundle(write_zip(tmp_path / 'm.dlpk', [*members(), ('sub/b.emd', GOLDEN)]))


@pytest.mark.parametrize('text', ['', '{', '[' * 100_000, '\xff', '{"geolearn": ' + '9' * 5000 + '}'])
def test_a_model_definition_that_is_no_json_is_refused(tmp_path, text):
    assert_refused(write_zip(tmp_path / 'm.dlpk', members(text)), 'is not valid JSON')


@pytest.mark.parametrize('text', ['[]', '3', 'null', '{"ModelName": "DeepLab"}', '{"geolearn": []}'])
def test_a_bundle_of_other_software_is_refused(tmp_path, text):
    assert_refused(
        write_zip(tmp_path / 'm.dlpk', members(text)), 'was not written by geolearn: .*train the model again'
    )


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    path = write_zip(tmp_path / 'm.dlpk', members(golden(format=FORMAT + 1)))
    assert_refused(path, f'has format {FORMAT + 1} but this geolearn reads up to {FORMAT}; upgrade geolearn')


@pytest.mark.parametrize('number', ['x', True, None, 0, -1, 1.0, [1]])
def test_a_format_that_is_no_number_is_refused(tmp_path, number):
    assert_refused(write_zip(tmp_path / 'm.dlpk', members(golden(format=number))), 'a whole number from 1 is needed')


@pytest.mark.parametrize(
    'name', [None, 3, 'absent.safetensors', '../golden.safetensors', '/x.safetensors', 'golden.emd']
)
def test_the_weights_must_be_a_member(tmp_path, name):
    assert_refused(write_zip(tmp_path / 'm.dlpk', members(golden() | {'ModelFile': name})), 'ModelFile is .*is needed')


def test_a_pickle_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / 'created'), 'w')

    payload = pickle.dumps(Bomb())
    stream = io.BytesIO()
    torch.save({'w': Bomb()}, stream)
    for content in (payload, stream.getvalue()):
        for name in ('golden.pth', 'golden.pkl'):
            path = write_zip(tmp_path / 'm.dlpk', [members(golden() | {'ModelFile': name})[0], (name, content)])
            assert_refused(path, r'the name of a \.safetensors member is needed')
        path = write_zip(tmp_path / 'm.dlpk', [members()[0], ('golden.safetensors', content)])
        assert_refused(path, 'the weights in .* are broken')
    assert not (tmp_path / 'created').exists()


def test_code_in_a_bundle_is_never_imported(tmp_path, network_weights, monkeypatch):
    code = f'open({str(tmp_path / "created")!r}, "w")'
    names = ['golden.py', '__init__.py', 'ArcGISImageClassifier.py', 'test_resnet.py', 'geolearn/models.py']
    emd = golden() | {'InferenceFunction': 'golden.py', 'ModelConfiguration': 'golden', 'Framework': 'golden'}
    path = write_zip(tmp_path / 'm.dlpk', [*members(emd, network_weights), *((name, code) for name in names)])
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    load_model(path)
    assert not (tmp_path / 'created').exists()
    assert not {name for name in set(sys.modules) - modules if 'golden' in name or 'ArcGIS' in name}
    assert [p.name for p in tmp_path.iterdir()] == ['m.dlpk']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model': 'DeepLap'}, "unknown model 'DeepLap'; did you mean 'DeepLab'"),
        ({'model': 'os.system'}, "unknown model 'os.system'"),
        ({'backbone': 'resnet5'}, "unknown backbone 'resnet5'; did you mean"),
        ({'backbone': 'hf-hub:evil/model'}, 'unknown backbone'),
        ({'backbone': 'test_vit'}, 'cannot be loaded: '),
        ({'backbone': 'dofa_tiny'}, "unresolved: 'elevation'"),
        ({'backbone': 'test_efficientnet'}, 'do not fit the network'),
    ],
)
def test_a_model_that_cannot_be_built_is_a_broken_bundle(tmp_path, network_weights, changes, message):
    path = write_zip(tmp_path / 'm.dlpk', members(golden(**changes), network_weights))
    with pytest.raises(BundleError, match=message):
        load_model(path)


def test_weights_that_do_not_fit_are_listed(tmp_path, network_weights):
    def load(weights):
        return load_model(write_zip(tmp_path / 'm.dlpk', members(weights=weights)))

    name = 'decoder.classifier.weight'
    other = network_weights | {name: torch.zeros(3, 256, 1, 1)}
    with pytest.raises(BundleError, match=r'classifier.weight: found \(3, 256, 1, 1\), needed \(2, 256, 1, 1\)'):
        load(other)
    with pytest.raises(BundleError, match='1 missing: decoder.classifier.weight'):
        load({key: value for key, value in network_weights.items() if key != name})
    with pytest.raises(BundleError, match='1 unexpected: extra'):
        load(network_weights | {'extra': torch.zeros(1)})
    with pytest.raises(BundleError, match='do not fit'):
        load({})


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'bands': []}, '0 bands with statistics of 2'),
        ({'bands': golden()['geolearn']['bands'][:1]}, '1 bands with statistics of 2'),
        ({'bands': [{'name': 'a'}] * 2}, "lacks 'wavelength_um'"),
        ({'bands': 'ab'}, 'the manifest is broken'),
        ({'chip_size': 0}, 'chip_size 0 must lie in 1'),
        ({'chip_size': 10**9}, 'chip_size 1000000000 must lie in 1'),
        ({'band_indexes': [0]}, r'2 bands at the positions \(0,\)'),
        ({'band_indexes': [0, -1]}, r'2 bands at the positions \(0, -1\)'),
        ({'band_indexes': [0, 1.5]}, r'Expected `int`, got `float` - at `\$.band_indexes\[1\]`'),
        ({'image_space': 3}, r'Expected `str`, got `int` - at `\$.image_space`'),
        ({'chip_size': True}, r'Expected `int`, got `bool` - at `\$.chip_size`'),
        ({'cell_size': 5}, r'Expected `object . null`, got `int` - at `\$.cell_size`'),
        ({'class_infos': golden()['geolearn']['class_infos'][:1] * 2}, r'class values \[1, 1\] must be'),
        ({'class_infos': [{'value': v, 'name': 'a', 'color': [0, 0, 0]} for v in (1, 70000)]}, 'in 0..65535'),
        ({'class_infos': [{'value': v, 'name': 'a', 'color': [0, 0, 256]} for v in (1, 2)]}, 'three parts in 0..255'),
        ({'statistics': {'minimum': [0], 'maximum': [1], 'mean': [0.5], 'std': [1e400]}}, 'inf is not a finite number'),
        ({'statistics': {'minimum': [0], 'maximum': [10**400], 'mean': [0.5], 'std': [1]}}, 'the manifest is broken'),
        ({'statistics': {'minimum': [0], 'maximum': [1, 2], 'mean': [1], 'std': [1]}}, 'different lengths'),
    ],
)
def test_a_manifest_with_an_odd_field_is_refused(changes, message):
    with pytest.raises(BundleError, match=message):
        ModelSpec.from_manifest(golden(**changes)['geolearn'])


@pytest.mark.parametrize(
    'key',
    'model backbone bands class_infos ignored_values chip_size statistics dtype'.split(),
)
def test_a_manifest_that_lacks_a_field_names_it(key):
    manifest = golden()['geolearn']
    del manifest[key]
    with pytest.raises(BundleError, match=f"the manifest lacks '{key}'"):
        ModelSpec.from_manifest(manifest)


# -- anything may stand anywhere

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def places(value, path=()):
    """All places in nested JSON."""
    yield path
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in rows:
        yield from places(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    changed = value.copy()
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


PLACES = [path for path in places(golden()['geolearn']) if path]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PLACES), JSON)
def test_a_manifest_gives_a_usable_spec_or_a_bundle_error(place, value):
    manifest = replaced(golden()['geolearn'], place, value)
    try:
        spec = ModelSpec.from_manifest(manifest)
    except BundleError:
        return
    again = ModelSpec.from_manifest(json.loads(json.dumps(spec.to_manifest())))
    assert repr(again) == repr(spec)  # NaN in an Esri object is kept, and differs from itself
    spec.to_emd(chip_name='m')


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from([p for p in PLACES if p[0] not in ('format', 'backbone')]), value=JSON)
def test_a_bundle_gives_a_model_or_a_bundle_error(tmp_path, network_weights, place, value):
    manifest = replaced(golden()['geolearn'], place, value)
    path = write_zip(tmp_path / 'm.dlpk', members(golden() | {'geolearn': manifest}, network_weights))
    try:
        model = load_model(path)
    except BundleError:
        return
    assert model.spec.backbone == 'test_resnet'
    assert all(isinstance(row, dict) for row in model.history.epochs)
    repr(model)
    model.save(tmp_path / 'again.dlpk')
