"""A small bundle that names a large network costs no memory before it is refused."""

import dataclasses

import pytest
from torch import nn

from geolearn.bundle import read_bundle, write_bundle
from geolearn.errors import BundleError
from geolearn.models import DeepLab, load_model

pytestmark = pytest.mark.usefixtures('one_thread', 'small_dofa')


@pytest.fixture
def bundle(scene_data, tmp_path):
    return DeepLab(scene_data, backbone='dofa_tiny', pretrained=False).save(tmp_path / 'm.dlpk')


@pytest.mark.parametrize('name', ['vit_gigantic_patch14_224', 'prithvi_v2_600M', 'resnet152'])
def test_names_and_shapes_are_compared_before_anything_is_built(bundle, tmp_path, monkeypatch, name):
    content = read_bundle(bundle)
    emd = {**content.emd, 'geolearn': {**content.manifest, 'backbone': name}}
    write_bundle(tmp_path / 'large.dlpk', dataclasses.replace(content, emd=emd))
    real = []
    for kind in (nn.Linear, nn.Conv2d):
        monkeypatch.setattr(kind, 'reset_parameters', lambda self: self.weight.is_meta or real.append(self))
    with pytest.raises(BundleError, match=r'weights of the bundle do not fit the network; \d+ missing: '):
        load_model(tmp_path / 'large.dlpk')
    assert real == []


def test_a_bundle_that_fits_still_loads(bundle):
    assert load_model(bundle).spec.backbone == 'dofa_tiny'
