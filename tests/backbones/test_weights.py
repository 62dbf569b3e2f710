"""Reading, unwrapping and strictly loading weights, and where they are looked for."""

import dataclasses
import hashlib
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from geolearn.backbones import create_backbone
from geolearn.backbones.loading import load_strict, load_weights_file, unwrap
from geolearn.backbones.weights import WEIGHTS_DIR, fetch
from geolearn.bands import Band
from geolearn.errors import WeightsError

RGB = (Band('red', 0.665), Band('green', 0.56), Band('blue', 0.49))


class TestReading:
    @pytest.mark.parametrize('suffix', ['pth', 'pt', 'safetensors'])
    def test_tensors_come_back(self, tmp_path, suffix):
        path = tmp_path / f'w.{suffix}'
        save_file({'a': torch.ones(3)}, path) if suffix == 'safetensors' else torch.save({'a': torch.ones(3)}, path)
        assert load_weights_file(path)['a'].tolist() == [1, 1, 1]

    @pytest.mark.parametrize('suffix', ['pth', 'old', 'safetensors'])
    @pytest.mark.parametrize('kept', [0, 3, 60, 0.5, 0.98])
    def test_truncated_files_are_named(self, tmp_path, suffix, kept):
        path, state = tmp_path / f'w.{suffix}', {'a': torch.randn(500), 'b': torch.ones(500)}
        if suffix == 'safetensors':
            save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=suffix == 'pth')
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
        with pytest.raises(WeightsError, match=f'w.{suffix} cannot be read as weights'):
            load_weights_file(path)

    def test_pickled_code_is_refused_and_never_run(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (tmp_path / 'ran').touch, ()

        for name, save in (('a.pth', torch.save), ('b.pth', lambda o, p: p.write_bytes(pickle.dumps(o, 2)))):
            save({'a': Evil()}, tmp_path / name)
            with pytest.raises(WeightsError, match='holds more than tensors'):
                load_weights_file(tmp_path / name)
        assert not (tmp_path / 'ran').exists()

    def test_anything_but_a_dict_is_refused(self, tmp_path):
        torch.save([torch.ones(1)], tmp_path / 'w.pth')
        with pytest.raises(WeightsError, match='must hold a dict of tensors by name, found list'):
            load_weights_file(tmp_path / 'w.pth')


class TestUnwrapping:
    def test_wrappers_prefixes_and_unused_parts_come_off(self):
        inner = {'module.encoder.a': torch.ones(1), 'module.decoder.b': torch.ones(1), 'c': torch.ones(1)}
        state, dropped = unwrap(
            {'epoch': 3, 'model': {'state_dict': inner}},
            wrappers=('state_dict', 'model'),
            prefixes=('module.', 'encoder.'),
            drop=('decoder.*',),
        )
        assert list(state) == ['a', 'c']
        assert dropped == ('decoder.b',)

    def test_two_tensors_of_one_name_are_refused(self):
        with pytest.raises(WeightsError, match="two tensors of the file come out as 'norm'"):
            unwrap({'model.norm': torch.ones(1), 'norm': torch.ones(1)}, prefixes=('model.',))

    def test_what_is_no_tensor_is_refused_by_name(self):
        with pytest.raises(WeightsError, match='these are none: epoch'):
            unwrap({'epoch': 3, 'a': torch.ones(1)})


class TestStrictLoading:
    def test_the_report_names_everything(self):
        net = nn.Linear(2, 3)
        report = load_strict(net, {'weight': torch.ones(3, 2)}, may_be_missing=('b*',), dropped=('x',), source='f.pth')
        assert (report.matched, report.missing, report.unexpected) == (('weight',), ('bias',), ('x',))
        assert str(report) == '1 tensors loaded from f.pth; 1 missing: bias; 1 unexpected: x'
        assert (net.weight == 1).all()

    def test_misfits_are_listed_and_nothing_is_loaded(self):
        net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        before = {k: v.clone() for k, v in net.state_dict().items()}
        state = {
            '0.weight': torch.ones(3, 2),
            '0.bias': torch.ones(4),
            '1.weight': torch.ones(1, 3),
            'z': torch.ones(1),
        }
        with pytest.raises(WeightsError) as error:
            load_strict(net, state)
        expected = '1 missing: 1.bias; 1 unexpected: z; 1 of another shape: 0.bias: found (4,), needed (3,)'
        assert str(error.value).endswith(expected)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())

    def test_other_shapes_are_errors_even_where_missing_is_allowed(self):
        with pytest.raises(WeightsError, match=r'weight: found \(2, 2\), needed \(3, 2\)'):
            load_strict(nn.Linear(2, 3), {'weight': torch.ones(2, 2)}, may_be_missing=('*',))


class TestFinding:
    @pytest.fixture
    def record(self, small_dofa, use_record, official_state, tmp_path):
        torch.save(official_state, tmp_path / 'DOFA_ViT_base_e100.pth')
        digest = hashlib.sha256((tmp_path / 'DOFA_ViT_base_e100.pth').read_bytes()).hexdigest()
        source = dataclasses.replace(small_dofa.sources[0], sha256=digest)
        return use_record(dataclasses.replace(small_dofa, sources=(source, *small_dofa.sources[1:])))

    def test_a_folder_is_searched_for_published_names(self, record, tmp_path):
        report = create_backbone('dofa_base', RGB, weights=tmp_path).load_report
        assert report.source.endswith('DOFA_ViT_base_e100.pth')
        assert report.unexpected == ('mask_token', 'projector.weight', 'projector.bias')

    def test_the_environment_names_a_folder(self, record, tmp_path, monkeypatch):
        monkeypatch.setenv(WEIGHTS_DIR, str(tmp_path))
        assert fetch(record) == tmp_path / 'DOFA_ViT_base_e100.pth'

    def test_a_published_name_with_other_bytes_is_refused(self, record, tmp_path):
        path = tmp_path / 'DOFA_ViT_base_e100.pth'
        path.write_bytes(path.read_bytes() + b'x')
        with pytest.raises(WeightsError, match=r'is not the published DOFA_ViT_base_e100.pth: sha256 .*, needed '):
            fetch(record, tmp_path)

    def test_a_sha256_may_be_known_by_its_first_digits(self, record, tmp_path):
        path = tmp_path / 'DOFA_ViT_base_e100.pth'
        other = path.rename(tmp_path / record.sources[1].file)
        with pytest.raises(WeightsError, match='needed a0275954'):
            fetch(record, tmp_path)
        digest = hashlib.sha256(other.read_bytes()).hexdigest()
        source = dataclasses.replace(record.sources[1], sha256=digest[:8])
        assert fetch(dataclasses.replace(record, sources=(record.sources[0], source)), tmp_path) == other

    def test_a_folder_without_them_says_what_was_looked_for(self, record, tmp_path):
        (tmp_path / 'empty').mkdir()
        with pytest.raises(WeightsError, match=r"looked for \['DOFA_ViT_base_e100.pth', 'dofa_base_patch16"):
            fetch(record, tmp_path / 'empty')
        with pytest.raises(WeightsError, match='must be a file or a folder'):
            fetch(record, tmp_path / 'absent')

    @pytest.mark.parametrize('how', ['name', 'hash'])
    def test_the_first_upload_of_dofa_is_refused_with_the_reason(self, record, tmp_path, how):
        path = tmp_path / 'DOFA_ViT_base_e100.pth'
        if how == 'name':
            path = path.rename(tmp_path / 'dofa_base_patch16_224-7cc0f413.pth')
        else:
            old = dataclasses.replace(record.refuse[0], sha256=record.sources[0].sha256)
            record = dataclasses.replace(record, refuse=(old,))
        with pytest.raises(WeightsError, match=r'is refused: .* kernels are laid out differently'):
            fetch(record, path)

    def test_a_checkpoint_of_another_size_does_not_load(self, tmp_path, official_state):
        torch.save(official_state, tmp_path / 'w.pth')
        with pytest.raises(WeightsError, match=r'cls_token: found \(1, 1, 48\), needed \(1, 1, 192\)'):
            create_backbone('dofa_tiny', RGB, weights=tmp_path / 'w.pth')
