"""OlmoEarth: the published numbers, files and their versions, bands by name, dates, patches and missing values."""

import json
import logging
from dataclasses import replace
from datetime import date

import pytest
import torch

from geolearn.backbones import building, catalog, create_backbone
from geolearn.backbones.olmoearth import OlmoEarth, convert_olmoearth
from geolearn.backbones.olmoearth_bands import SENSORS, choose_sets, find_sensor
from geolearn.backbones.trunk import ViTConfig
from geolearn.bands import Band, get_bands
from geolearn.errors import BackboneError, BandError, WeightsError
from geolearn.models.new_spec import weights_normalization
from geolearn.statistics import Percentiles

S2, S1, LANDSAT = SENSORS.values()
PLAIN = {sensor: ((0.0,) * 12, (1.0,) * 12) for sensor in SENSORS}
DAYS = (date(2021, 5, 3), date(2021, 6, 20), date(2022, 1, 31))


@pytest.fixture(scope='module')
def oracle(shared):
    return torch.load(shared / 'oracles' / 'olmoearth.pt', weights_only=True)['models']


def make(state, bands, version, patch):
    sets = choose_sets(bands, version)
    bare = {name.removeprefix('encoder.'): value for name, value in state.items()}
    config = ViTConfig(48, 2, 4, grid=16, eps=1e-5)
    trunk = OlmoEarth(config, sets, version, hidden=0 if version == '1' else 10, patch=patch)
    checkpoint = convert_olmoearth(building.Checkpoint(bare), sets, version, PLAIN)
    trunk.load_state_dict(checkpoint.state)
    return trunk.eval()


@pytest.mark.parametrize('version', ['1', '1.1', '1.2'])
def test_the_published_network_is_met(oracle, version):
    for case in oracle[f'v{version}']['cases'].values():
        sensors = list(case['inputs'])
        bands = [band for sensor in sensors for band in SENSORS[sensor]]
        trunk = make(oracle[f'v{version}']['state_dict'], bands, version, int(case['patch_size']))
        x = torch.cat([case['inputs'][sensor] for sensor in sensors], dim=-1).permute(0, 3, 4, 1, 2).clone()
        if not case['fast_pass']:
            for s in trunk.sets:
                missing = case['masks'][s.sensor][..., s.number].permute(0, 3, 1, 2) == 3
                x[:, :, list(s.at)] = torch.where(missing[:, :, None], float('nan'), x[:, :, list(s.at)])
        for i, stamps in enumerate(case['timestamps'].tolist()):
            trunk.acquired = tuple(date(year, month + 1, day) for day, month, year in stamps)
            with torch.no_grad():
                found = trunk.tokens(x[i : i + 1])[0]
                _, seen = trunk.embed(x[i : i + 1], trunk.acquired)
            if 'pooled_bhwd' in case:
                expected = case['pooled_bhwd'][i].flatten(0, 1)
            else:
                tokens = torch.cat([case['tokens'][sensor] for sensor in sensors], dim=4)[i]
                expected = (tokens * seen[0, ..., None]).sum((2, 3)) / seen[0].sum((2, 3))[..., None]
                expected = expected.flatten(0, 1)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize('version', ['v1', 'v1_1', 'v1_2'])
def test_the_authors_package_is_met(version, tmp_path, use_record):
    minimal = pytest.importorskip('olmoearth_pretrain_minimal', reason='pip install olmoearth-pretrain-minimal')
    name = f'olmoearth_{version}_nano'
    torch.manual_seed(0)
    reference = minimal.OlmoEarthPretrain_v1('nano', version.replace('_', '.')).model.encoder.eval()
    torch.save({f'encoder.{key}': value for key, value in reference.state_dict().items()}, tmp_path / 'weights.pth')
    bands = (*S2, *S1)
    net = create_backbone(name, bands, weights=tmp_path / 'weights.pth', form='tokens', patch=4, dates=DAYS[:1]).eval()
    x = torch.rand(2, 14, 16, 16)
    from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes import MaskedOlmoEarthSample

    when = torch.tensor([[[3, 4, 2021]]]).expand(2, -1, -1)
    pixels = x.permute(0, 2, 3, 1)[:, :, :, None]
    sets = 3 if version == 'v1' else 1
    sample = MaskedOlmoEarthSample(
        sentinel2_l2a=pixels[..., :12],
        sentinel2_l2a_mask=torch.zeros(2, 16, 16, 1, sets),
        sentinel1=pixels[..., 12:],
        sentinel1_mask=torch.zeros(2, 16, 16, 1, 1),
        timestamps=when,
    )
    with torch.no_grad():
        output = reference(sample, patch_size=4, input_res=10, fast_pass=True)['tokens_and_masks']
        found = net(x)
    both = [output.sentinel2_l2a.mean((3, 4)), output.sentinel1.mean((3, 4))]
    torch.testing.assert_close(found, (sum(both) / 2).flatten(1, 2), atol=1e-4, rtol=0)


@pytest.fixture
def folder(oracle, tmp_path, use_record):
    """A folder as published: weights.pth of three branches, config.json; records of its size."""
    for name in ('olmoearth_v1_nano', 'olmoearth_v1_1_nano', 'olmoearth_v1_2_nano'):
        use_record(replace(catalog.get_record(name), dim=48, depth=2, heads=4, sources=()))
    state = dict(oracle['v1']['state_dict'])
    state |= {name.replace('encoder.', 'target_encoder.', 1): value + 1 for name, value in state.items()}
    state |= {'decoder.norm.weight': torch.ones(48), 'encoder.composite_encodings.pos_embed': torch.ones(24, 12)}
    srtm = 'encoder.patch_embeddings.per_modality_embeddings.srtm.srtm__0.proj.'
    state |= {f'{srtm}weight': torch.ones(48, 1, 8, 8), f'{srtm}bias': torch.ones(48)}
    torch.save(state, tmp_path / 'weights.pth')
    config = {'embedding_size': 48, 'depth': 2, 'num_heads': 4, 'max_patch_size': 8}
    (tmp_path / 'config.json').write_text(json.dumps({'model': {'encoder_config': config}}))
    return tmp_path


def load(folder, bands, name='olmoearth_v1_nano', **options):
    return create_backbone(name, bands, weights=folder / 'weights.pth', form='tokens', **options).eval()


def test_the_published_layout_loads_strictly_and_its_license_is_said_once(folder, oracle, caplog):
    building.announce_license.cache_clear()
    with caplog.at_level(logging.WARNING, 'geolearn'):
        net = load(folder, S2[:4])
        load(folder, S2[:4])
    assert sum('OlmoEarth Artifact License' in message for message in caplog.messages) == 1
    assert 'no military' in caplog.text
    report = net.load_report
    assert report.missing == ()
    dropped = ' '.join(report.unexpected)
    assert all(word in dropped for word in ('target_encoder.', 'srtm', 'project_and_aggregate', 'decoder.', 'landsat'))
    assert torch.equal(net.trunk.norm.weight, oracle['v1']['state_dict']['encoder.norm.weight'])


def test_bands_take_the_statistics_of_the_sensor_whose_kernels_they_meet(caplog):
    landsat, optical = list(LANDSAT[1:8]), list(S2[:4])
    sentinel, record = ((300.0, 1500.0, 4200.0),) * 4, catalog.get_record('olmoearth_v1_nano')
    reflectance, numbers = ((300.0, 1500.0, 4200.0),) * 7, ((6500.0, 9000.0, 21000.0),) * 7

    def choose(rows, bands):
        return weights_normalization(Percentiles(*zip(*rows)), 'uint16', bands, record.name)

    with pytest.raises(BackboneError, match='in digital numbers of Level-1, and .* are reflectance x 10000'):
        choose(reflectance, landsat)
    assert choose(numbers, landsat).mean == record.inputs[2].mean[1:8]
    assert 'taken to be digital numbers of Level-1' in caplog.text
    both = record.inputs[2].mean[1:8] + record.inputs[0].mean[:4]
    assert choose((*numbers, *sentinel), landsat + optical).mean == both


def test_another_version_another_size_and_a_lost_tensor_are_refused(folder):
    with pytest.raises(WeightsError, match=r'are of OlmoEarth v1, needed v1.1; .* olmoearth_v1_base'):
        load(folder, S2, 'olmoearth_v1_1_nano')
    text = (folder / 'config.json').read_text()
    (folder / 'config.json').write_text(text.replace('"depth": 2', '"depth": 12'))
    with pytest.raises(WeightsError, match=r"config.json is not of olmoearth_v1_nano: found {'depth': 12}"):
        load(folder, S2)
    (folder / 'config.json').write_text(text)
    state = torch.load(folder / 'weights.pth')
    del state['encoder.blocks.1.attn.k.bias']
    torch.save(state, folder / 'weights.pth')
    with pytest.raises(WeightsError, match='but no blocks.1.attn.k.bias'):
        load(folder, S2)


def test_bands_are_known_by_name_so_their_order_does_not_matter(folder):
    bands = (*S2, *S1)
    x, order = torch.rand(1, 14, 16, 24), torch.randperm(14, generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        one, other = load(folder, bands)(x), load(folder, [bands[i] for i in order])(x[:, order])
    torch.testing.assert_close(one, other)


def test_a_missing_band_of_v1_is_a_copy_of_the_nearest_before_normalization(folder):
    inputs = catalog.get_record('olmoearth_v1_nano').inputs[0]
    mean, std = torch.tensor(inputs.mean)[:, None, None], torch.tensor(inputs.std)[:, None, None]
    stored = torch.rand(12, 16, 16) * 4000
    stored[2] = stored[1]  # red as green, of blue, green and near infrared the nearest
    keep = [i for i in range(12) if i != 2]
    normalized = ((stored - mean) / std)[None]
    with torch.no_grad():
        whole = load(folder, S2)(normalized)
        few = load(folder, [S2[i] for i in keep])(normalized[:, keep])
    torch.testing.assert_close(few, whole, atol=1e-4, rtol=1e-4)


def test_bands_that_two_sensors_share_are_of_their_neighbors():
    both = (*LANDSAT, *get_bands('sentinel2_l2a', ['B1', 'B2', 'B3', 'B8A']))
    assert [sensor for sensor, _ in find_sensor(both)] == ['landsat'] * 11 + ['sentinel2_l2a'] * 4
    assert find_sensor([Band('nir', 0.865, 'nir08')]) == [('sentinel2_l2a', 7)]
    with pytest.raises(BandError, match="knows no band 'B10'"):
        find_sensor([Band('B10', 5.0)])
    with pytest.raises(BandError, match="'blue' are both sentinel2_l2a B02"):
        find_sensor([S2[0], Band('blue', 0.49, 'blue')])


def test_a_date_that_is_missing_is_the_same_as_none(folder):
    x = torch.rand(1, 3, 4, 16, 24)
    x[:, 1] = float('nan')
    options = {'pretrained': False, 'strides': (8,), 'window': 0}
    torch.manual_seed(0)
    three = create_backbone('olmoearth_v1_2_nano', S2[:4], dates=DAYS, **options).eval()
    two = create_backbone('olmoearth_v1_2_nano', S2[:4], dates=(DAYS[0], DAYS[2]), **options).eval()
    two.load_state_dict(three.state_dict())
    assert two.trunk.acquired == (DAYS[0], DAYS[2])
    with torch.no_grad():
        filled = three.trunk.date_maps(x, [1], 0, DAYS)[0].mean(dim=1)
        torch.testing.assert_close(filled, two.trunk.maps(x[:, [0, 2]], [1], 0)[0], atol=1e-4, rtol=1e-4)
        x[..., :8] = float('nan')  # windows without any value among them
        assert three(x)[0].isfinite().all()


def test_dates_matter_and_are_asked_for(folder):
    x = torch.rand(1, 2, 4, 16, 16)
    with torch.no_grad():
        may, january = (load(folder, S2[:4], dates=[day])(x[:, 0]) for day in (DAYS[0], DAYS[2]))
        assert not torch.allclose(may, january, atol=1e-3)
        with pytest.raises(BackboneError, match='has to know when each of 2 dates was'):
            create_backbone('olmoearth_v1_nano', S2[:4], pretrained=False, dates=2)(x)


@pytest.mark.parametrize('patch', [1, 2, 4])
def test_small_patches_give_finer_tokens_and_the_same_strides(folder, patch):
    x = torch.rand(1, 4, 17, 24)
    with torch.no_grad():
        tokens = load(folder, S2[:4], patch=patch)(x)
        net = create_backbone('olmoearth_v1_nano', S2[:4], pretrained=False, patch=patch).eval()
        shapes = [tuple(m.shape[2:]) for m in net(x)]
    assert tokens.shape[1] == -(-17 // patch) * (24 // patch)
    assert shapes == [(5, 6), (3, 3), (2, 2), (1, 1)]


def test_patches_that_cannot_be_are_refused(folder):
    with pytest.raises(BackboneError, match='takes patches of 1 to 8 pixels, got patch=9'):
        load(folder, S2, patch=9)
    with pytest.raises(BackboneError, match="need patches of 1, 2, 4 or 8 pixels, got patch=3; or form='tokens'"):
        create_backbone('olmoearth_v1_nano', S2, pretrained=False, patch=3)
    with pytest.raises(BackboneError, match='takes patches of one size'):
        create_backbone('vit_nano', S2, pretrained=False, patch=4)


def test_padding_holds_no_values_and_is_not_attended_to():
    sets = choose_sets(S1, '1.2')
    torch.manual_seed(0)
    trunk = OlmoEarth(ViTConfig(48, 2, 4, grid=16, eps=1e-5), sets, '1.2', hidden=4, patch=8).eval()
    x = torch.randn(2, 2, 20, 20)
    x[0, :, 16:, 16:] = torch.nan
    _, seen = trunk.embed(x, DAYS[:1])
    assert seen[0, ..., 0, 0].tolist() == [[True, True, True], [True, True, True], [True, True, False]]
    with torch.no_grad():
        whole = trunk.maps(x[1:], [1], window=2)[0]
        beside_missing = trunk.maps(x, [1], window=2)[0][1:]
    torch.testing.assert_close(whole, beside_missing)
