"""The catalog of encoders, and what can be said of one before anything is loaded."""

import logging
import re
from dataclasses import replace

import pytest
import torch

from geolearn.backbones import backbone_table, building, catalog, create_backbone, describe_backbone, list_backbones
from geolearn.backbones.weights import (
    WEIGHTS_DIR,
    WeightsStatus,
    download_weights,
    find_weights,
    list_weights,
    verify_weights,
)
from geolearn.bands import Band, get_bands
from geolearn.errors import BackboneError, UnknownNameError, WeightsError

RGB = (Band('red', 0.665, 'red'), Band('green', 0.56, 'green'), Band('blue', 0.49, 'blue'))
PRITHVI_BANDS = ('B02', 'B03', 'B04', 'B8A', 'B11', 'B12')


@pytest.fixture(autouse=True)
def _nothing_cached(monkeypatch, tmp_path):
    monkeypatch.delenv(WEIGHTS_DIR, raising=False)
    monkeypatch.delenv('HF_HUB_CACHE', raising=False)
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf'))


class TestRecords:
    def test_a_revision_is_a_commit_and_a_hash_is_hexadecimal(self):
        for record in catalog.read_catalog().values():
            for source in record.sources:
                assert source.revision == 'main' or re.fullmatch('[0-9a-f]{40}', source.revision), record.name
                assert re.fullmatch('|[0-9a-f]{8}|[0-9a-f]{64}', source.sha256), record.name

    def test_every_band_of_an_input_is_known(self):
        for record in catalog.read_catalog().values():
            for inputs in record.inputs:
                assert len(inputs.get_bands()) == len(inputs.bands), record.name

    def test_every_record_has_a_license_and_is_a_backbone(self):
        for record in catalog.read_catalog().values():
            assert record.license, record.name
            assert record.name in list_backbones(), record.name

    def test_unknown_records_are_named(self):
        with pytest.raises(UnknownNameError, match="did you mean 'dofa_base'"):
            catalog.get_record('dofa_bass')

    def test_statistics_must_fit_their_bands(self):
        with pytest.raises(ValueError, match='one mean and one std for each'):
            catalog.InputStatistics('s2', '0-255', ('B4', 'B3'), (1.0,), (1.0,))

    @pytest.mark.parametrize('name', ['dofa_base', 'dofa_v2_base', 'prithvi_v1_100M', 'prithvi_v2_tiny_TL'])
    def test_parameters_are_those_of_the_trunk_for_its_own_bands(self, name):
        record = catalog.get_record(name)
        with torch.device('meta'):
            trunk = create_backbone(name, record.source_bands, pretrained=False, form='tokens').trunk
        assert sum(p.numel() for p in trunk.parameters()) == record.parameters

    @pytest.mark.parametrize(
        ('alias', 'name'),
        [
            ('prithvi', 'prithvi_v1_100M'),
            ('prithvi_v2_100M', 'prithvi_v2_100M_TL'),
            ('prithvi_eo_v2_600_tl', 'prithvi_v2_600M_TL'),
        ],
    )
    def test_aliases_stand_for_names(self, alias, name, use_record):
        assert catalog.read_aliases()[alias] == name
        assert describe_backbone(alias).name == name

    def test_an_alias_builds_the_backbone_it_stands_for(self):
        with torch.device('meta'):
            net = create_backbone('prithvi', get_bands('sentinel2_l2a', PRITHVI_BANDS), pretrained=False)
        assert net.name == 'prithvi_v1_100M'

    def test_an_alias_of_two_records_is_a_mistake(self, monkeypatch):
        first, second, *_ = catalog.read_catalog().values()
        clash = {first.name: first, 'other': replace(second, aliases=(first.name,))}
        monkeypatch.setattr(catalog, 'read_catalog', lambda: clash)
        with pytest.raises(ValueError, match='is the name or the alias of another record'):
            catalog.read_aliases.__wrapped__()


class TestDescribing:
    def test_it_says_what_people_ask_for(self):
        text = str(describe_backbone('prithvi'))
        assert text.startswith('prithvi_v1_100M\n')
        for line in (
            'also called: prithvi, prithvi_eo_v1_100',
            'network:     prithvi: width 768, 12 blocks, 12 heads, patches of 16 px',
            'bands:       B02, B03, B04, B8A, B11, B12',
            'license:     Apache-2.0',
            'in reflectance x 10000, 30 m; mean 775 1081 1229 2497 2204 1611; std 1282 ',
            'weights:     Prithvi_EO_V1_100M.pt of huggingface.co/ibm-nasa-geospatial/Prithvi-EO-1.0-100M, not on this',
        ):
            assert line in text

    def test_models_that_make_their_kernels_take_any_bands(self):
        info = describe_backbone('dofa_base')
        assert info.bands == ()
        assert 'bands:       any with a wavelength, or radar' in str(info)

    def test_convolutional_networks_have_no_heads_and_any_bands(self):
        text = str(describe_backbone('plain_unet'))
        assert 'network:     plain_cnn: width 512, 4 blocks\n' in text
        assert 'bands:       any\n' in text
        assert 'weights:     none are published' in text
        assert backbone_table('plain_unet').loc['plain_unet', 'bands'] == 'any'
        with torch.device('meta'):
            trunk = create_backbone('plain_unet', RGB, pretrained=False, strides=None).trunk
        assert sum(p.numel() for p in trunk.parameters()) == catalog.get_record('plain_unet').parameters

    def test_restrictions_are_named(self, monkeypatch):
        record = replace(catalog.get_record('dofa_tiny'), non_commercial=True, gated=True)
        monkeypatch.setattr(catalog, 'get_record', lambda name: record)
        info = describe_backbone('dofa_tiny')
        assert info.restrictions == 'no commercial use, gated'
        assert 'CC-BY-4.0 (no commercial use, gated)' in str(info)
        assert 'weights:     none are published' in str(info)

    def test_unknown_names_and_those_of_other_libraries_say_so(self):
        with pytest.raises(UnknownNameError, match="did you mean .*'dofa_base'"):
            describe_backbone('dofa_bas')
        with pytest.raises(BackboneError, match='resnet18 comes from timm, and geolearn keeps no record of it'):
            describe_backbone('resnet18')

    def test_the_table_has_a_row_for_each_name(self):
        table = backbone_table('*dofa*')
        assert set(table.index) == set(list_backbones('*dofa*'))
        assert table.loc['dofa_base'].to_dict() == {
            'aliases': '',
            'parameters_m': 111.2,
            'bands': 'any',
            'license': 'CC-BY-4.0',
            'weights': 'published',
        }
        assert table.loc['dofa_tiny', 'weights'] == 'none'

    def test_the_table_of_nothing_is_empty(self):
        assert list(backbone_table('no such thing').columns) == list(backbone_table('dofa_base').columns)


class TestWeightsOnThisMachine:
    def test_nothing_is_here_at_first(self):
        status = {s.name: s for s in list_weights('dofa_*')}
        source = catalog.get_record('dofa_base').sources[0]
        assert status['dofa_base'] == WeightsStatus('dofa_base', source.file, source.repo, None)
        assert 'dofa_tiny' not in status
        with pytest.raises(WeightsError, match='dofa_base are not on this machine; download them first'):
            verify_weights('dofa_base')

    def test_a_folder_and_the_hubs_cache_are_searched(self, monkeypatch, tmp_path):
        record = catalog.get_record('dofa_base')
        source = record.sources[1]
        cached = tmp_path / 'hf/hub' / f'models--{source.repo.replace("/", "--")}' / 'snapshots' / source.revision
        cached.mkdir(parents=True)
        (cached / source.file).touch()
        assert find_weights(record) == cached / source.file
        assert backbone_table('dofa_base').loc['dofa_base', 'weights'] == 'cached'
        (tmp_path / record.sources[0].file).touch()
        monkeypatch.setenv(WEIGHTS_DIR, str(tmp_path))
        assert find_weights(record) == tmp_path / record.sources[0].file
        assert f'on this machine: {tmp_path}' in str(describe_backbone('dofa_base'))

    def test_names_that_anybody_uses_need_the_repositorys_folder(self, monkeypatch, tmp_path):
        source = catalog.WeightsSource('timm/some_net', 'main', 'model.safetensors')
        record = replace(catalog.get_record('dofa_base'), sources=(source,))
        monkeypatch.setenv(WEIGHTS_DIR, str(tmp_path))
        (tmp_path / 'model.safetensors').touch()
        assert find_weights(record) is None
        (tmp_path / 'some_net').mkdir()
        path = (tmp_path / 'model.safetensors').rename(tmp_path / 'some_net' / 'model.safetensors')
        assert find_weights(record) == path

    def test_files_of_subfolders_may_lie_flat(self, monkeypatch, tmp_path):
        source = catalog.WeightsSource('a/b', 'main', 'v1/net.ckpt')
        monkeypatch.setenv(WEIGHTS_DIR, str(tmp_path))
        (tmp_path / 'net.ckpt').touch()
        assert find_weights(replace(catalog.get_record('dofa_base'), sources=(source,))) == tmp_path / 'net.ckpt'

    def test_what_lies_there_is_verified(self, monkeypatch, tmp_path):
        (tmp_path / 'DOFA_ViT_base_e100.pth').write_bytes(b'something else')
        monkeypatch.setenv(WEIGHTS_DIR, str(tmp_path))
        for check in (verify_weights, download_weights):
            with pytest.raises(WeightsError, match=r'is not the published DOFA_ViT_base_e100\.pth: sha256 '):
                check('dofa_base')

    def test_weights_without_a_known_hash_are_told(self, monkeypatch, tmp_path, caplog):
        (tmp_path / 'Prithvi_EO_V1_100M.pt').write_bytes(b'x')
        monkeypatch.setenv(WEIGHTS_DIR, str(tmp_path))
        assert verify_weights('prithvi') == tmp_path / 'Prithvi_EO_V1_100M.pt'
        assert 'no sha256 of Prithvi_EO_V1_100M.pt is known' in caplog.text

    def test_unknown_names_are_refused(self):
        with pytest.raises(UnknownNameError, match="did you mean .*'dofa_base'"):
            download_weights('dofa_bas')


def test_a_license_with_strings_is_told_once(caplog):
    record = replace(catalog.get_record('dofa_base'), non_commercial=True, gated=True)
    building.announce_license.cache_clear()
    with caplog.at_level(logging.WARNING, logger='geolearn'):
        building.announce_license(record)
        building.announce_license(record)
    assert caplog.text.count('no commercial use') == 1
    assert caplog.text.count('must be accepted on earthflow/DOFA') == 1
