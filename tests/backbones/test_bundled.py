"""A trained model's bundle as the start of another backbone."""

import json
import zipfile
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.custom import read_bundled_trunk
from geolearn.bands import Band, get_bands
from geolearn.errors import WeightsError

S2 = get_bands('sentinel2_l2a', ['B04', 'B03', 'B02'])
EMD = '{"ModelFile": "m.safetensors", "geolearn": %s}'
SMALL = {'dim': 48, 'depth': 4, 'heads': 3}


@pytest.fixture
def small(use_record):
    """A function that lets a name stand for a small variant."""
    return lambda name: use_record(replace(catalog.read_catalog()[name], **SMALL))


@pytest.fixture
def write(tmp_path):
    """A function that writes what `model.save` would for a backbone, with members changed or added."""

    def write(net, bands=S2, *, compression=zipfile.ZIP_STORED, name=None, **members):
        state = {f'backbone.{key}': value.contiguous() for key, value in net.state_dict().items()}
        manifest = {'format': 1, 'backbone': name or net.name, 'bands': [asdict(band) for band in bands]}
        content = {
            'm.emd': json.dumps({'ModelFile': 'm.safetensors', 'geolearn': manifest}),
            'm.safetensors': save({**state, 'decoder.weight': torch.ones(3)}),
        }
        with zipfile.ZipFile(tmp_path / 'm.dlpk', 'w', compression) as archive:
            for member, data in (content | members).items():
                if data is not None:
                    archive.writestr(member, data)
        return tmp_path / 'm.dlpk'

    return write


@pytest.mark.parametrize('name', ['dofa_base', 'prithvi_v2_300M_TL', 'prithvi_v2_600M'])
@pytest.mark.parametrize('form', ['pyramid', 'layers', 'tokens'])
def test_a_backbone_comes_back_in_any_form(small, write, name, form):
    small(name)
    net = create_backbone(name, S2, pretrained=False, form='pyramid')
    other = create_backbone(name, S2, weights=write(net), form=form)
    ours, theirs = net.trunk.state_dict(), other.trunk.state_dict()
    same = [k for k in ours if ours[k].shape == theirs[k].shape]
    assert all(torch.equal(ours[k], theirs[k]) for k in same)
    assert set(ours) - set(same) == set(other.load_report.resized)
    assert (other.load_report.resized == ()) == (name != 'prithvi_v2_600M' or form != 'tokens')
    assert 'm.dlpk' in other.load_report.source


def test_convolutional_networks_come_back_too(write):
    net = create_backbone('timm:resnet18', S2, pretrained=False)
    other = create_backbone('resnet18', S2, weights=write(net))
    assert all(torch.equal(a, b) for a, b in zip(net.trunk.state_dict().values(), other.trunk.state_dict().values()))


@pytest.mark.parametrize('name', ['prithvi_v2_300M', 'resnet18'])
def test_kernels_follow_the_bands(small, write, name):
    if name != 'resnet18':
        small(name)
    net = create_backbone(name, S2, pretrained=False)
    path = write(net)
    other = create_backbone(name, S2[::-1], weights=path)
    key = {'resnet18': 'conv1.weight', 'prithvi_v2_300M': 'patch_embed.proj.weight'}[name]
    assert torch.equal(other.trunk.state_dict()[key], net.trunk.state_dict()[key].flip(1))
    assert 'B02 <- B02' in str(other.load_report)
    assert other.load_report.resized == (key,)
    two = create_backbone(name, S2[:2], weights=path).trunk.state_dict()[key]
    torch.testing.assert_close(two, net.trunk.state_dict()[key][:, :2] * 1.5)


def test_made_kernels_take_any_bands(small, write):
    small('dofa_base')
    net = create_backbone('dofa_base', S2, pretrained=False)
    other = create_backbone('dofa_base', (*S2, Band('nir', 0.842)), weights=write(net))
    assert other.load_report.resized == ()
    assert other.trunk.patch_embed.wavelengths_um[3] == 0.842


def test_a_bundle_far_smaller_than_its_backbone_is_refused_before_that_is_built(write, monkeypatch):
    path = write(create_backbone('resnet10t', S2, pretrained=False), name='vit_gigantic_patch14_224')
    built = []
    monkeypatch.setattr(torch.nn.Linear, 'reset_parameters', lambda self: self.weight.is_meta or built.append(self))
    with pytest.raises(WeightsError, match=r'they hold [\d,]+ numbers in \d+ tensors, it has 1,8'):
        create_backbone('vit_gigantic_patch14_224', S2, weights=path)
    assert not built


def test_aliases_in_a_bundle_are_understood(small, write):
    small('prithvi_v1_100M')
    net = create_backbone('prithvi', S2, pretrained=False)
    assert create_backbone('prithvi_v1_100M', S2, weights=write(net, name='prithvi')).load_report.matched


def test_another_backbone_is_refused(small, write):
    small('dofa_base')
    path = write(create_backbone('dofa_base', S2, pretrained=False))
    with pytest.raises(WeightsError, match='holds the backbone dofa_base, not resnet18; ask for dofa_base'):
        create_backbone('resnet18', S2, weights=path)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'m.emd': None}, r'must hold exactly one \.emd at its root, found 0'),
        ({'b.emd': b''}, r'must hold exactly one \.emd at its root, found 2'),
        ({'m.safetensors': None}, r"ModelFile is 'm\.safetensors'; the name of a \.safetensors member is needed"),
        ({'m.safetensors': None, '../m.safetensors': b''}, 'which points out of the bundle'),
        ({'m.safetensors': b'\xff' * 40}, r'the weights in .*m\.dlpk are broken'),
        ({'m.emd': '{}'}, 'has no "geolearn" block'),
        ({'m.emd': '[' * 100_000}, 'is not valid JSON'),
        ({'m.emd': EMD % '{"format": 1, "backbone": 3, "bands": []}'}, 'the backbone is named 3'),
        ({'m.emd': EMD % '{"format": 1, "bands": []}'}, "holds no backbone of geolearn .KeyError: 'backbone'"),
        ({'m.emd': EMD % '{"format": 1, "backbone": "a", "bands": [{"name": "x", "no": 1}]}'}, 'TypeError'),
        ({'compression': zipfile.ZIP_BZIP2}, 'is encrypted or oddly packed'),
    ],
)
def test_broken_and_hostile_bundles_are_refused(small, write, changes, message):
    small('dofa_base')
    path = write(create_backbone('dofa_base', S2, pretrained=False), **changes)
    with pytest.raises(WeightsError, match=message):
        create_backbone('dofa_base', S2, weights=path)


@pytest.mark.parametrize('kept', [0, 100, 0.5, 0.99])
def test_truncated_bundles_are_refused(small, write, kept):
    small('dofa_base')
    path = write(create_backbone('dofa_base', S2, pretrained=False))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(WeightsError, match=r'm\.dlpk is no readable \.dlpk'):
        read_bundled_trunk(path)


def test_an_absent_bundle_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r'absent\.dlpk does not exist; pass the \.dlpk that model.save\(\) wrote'):
        create_backbone('dofa_base', S2, weights=tmp_path / 'absent.dlpk')


def test_a_saved_model_gives_its_backbone_to_the_next(scene_data, tmp_path):
    from geolearn import DeepLab

    model = DeepLab(scene_data, backbone='dofa_tiny', pretrained=False)
    path = model.save(tmp_path / 'first.dlpk')
    net = create_backbone('dofa_tiny', S2, weights=path)
    trunk = model.network.backbone.trunk.state_dict()
    assert all(torch.equal(value, trunk[key]) for key, value in net.trunk.state_dict().items())
