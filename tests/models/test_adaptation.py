"""What learns in a model whose backbone is adapted, at which rate, and what is left of that in its bundle."""

import copy

import pytest
import torch

from geolearn import Adaptation, training
from geolearn.adaptation import DEFAULT_ADAPTATION
from geolearn.backbones import create_backbone
from geolearn.backbones.adapt import merged_state_dict
from geolearn.bundle import read_bundle
from geolearn.errors import BackboneError, BundleError
from geolearn.models import DeepLab, load_model
from geolearn.networks.spec import ModelSpec
from geolearn.training import fastai

pytestmark = [pytest.mark.usefixtures('one_thread', 'small_dofa')]

DEPTH = 4
"""Of the small DOFA that every test here builds."""


def make(data, backbone='dofa_tiny', *, seed=0, **adaptation):
    torch.manual_seed(seed)
    return DeepLab(data, backbone, pretrained=False, adapt=Adaptation(**adaptation))


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def changed(network, before):
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


def learning(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def logits(network, seed=0):
    x = 4000 * torch.rand(2, 10, 64, 64, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return network.eval()(x)


def record_rates(model, **fit):
    """Train, and return the rate of each parameter group at every step."""
    rates = []

    class Watch(training.Callback):
        def before_step(self):
            rates.append([float(h['lr']) for h in self.opt.hypers])

    watch = Watch()
    model.learner.add_cb(watch)
    model.fit(**fit)
    model.learner.remove_cb(watch)
    return rates


# -- what learns


@pytest.mark.parametrize(
    ('backbone', 'adaptation'),
    [
        ('dofa_tiny', {}),
        ('dofa_tiny', {'freeze': 'all'}),
        ('dofa_tiny', {'freeze': 'all but norms'}),
        ('dofa_tiny', {'freeze': 2}),
        ('dofa_tiny', {'lora_rank': 2}),
        ('dofa_tiny', {'lora_rank': 2, 'freeze': 'all but norms'}),
        ('dofa_tiny', {'layer_decay': 0.8, 'freeze': 1}),
        ('test_resnet', {'freeze': 'all'}),
        ('test_resnet', {'freeze': 'all but norms'}),
        ('test_vit', {'lora_rank': 2, 'freeze': 'all but norms'}),
        ('test_vit', {'layer_decay': 0.8, 'freeze': 1}),
    ],
    ids=str,
)
def test_in_a_fit_what_should_learn_does_and_no_other(scene_data, backbone, adaptation):
    model = make(scene_data, backbone, **adaptation)
    before, wanted = state(model.network), learning(model.network)
    parameters = set(dict(model.network.named_parameters()))
    model.fit(2, lr=1e-2)
    assert changed(model.network, before) & parameters == wanted
    frozen_parts = {
        f'{name}.{buffer}' if name else buffer
        for name, module in model.network.named_modules()
        if not any(p.requires_grad for p in module.parameters()) and list(module.parameters())
        for buffer, _ in module.named_buffers()
    }
    assert not frozen_parts & changed(model.network, before), 'running statistics are part of what is frozen'
    assert (adaptation.get('freeze') == 'all') == (not any('.trunk.' in name for name in wanted))


@pytest.mark.parametrize(
    'adaptation', [{}, {'freeze': 2}, {'lora_rank': 2}, {'layer_decay': 0.5}, {'freeze': 'all'}], ids=str
)
def test_freezing_and_unfreezing_a_model_keep_what_its_adaptation_froze(scene_data, adaptation):
    model = make(scene_data, **adaptation)
    wanted = learning(model.network)
    model.fit(1, lr=1e-2)
    model.freeze()
    before = state(model.network)
    model.fit(1, lr=1e-2, weight_decay=0.5)
    now = changed(model.network, before)
    assert not {name for name in now if '.trunk.' in name}, 'not by weight decay either'
    assert {name for name in wanted if '.decoder.' in name} <= now
    model.unfreeze()
    assert learning(model.network) == wanted
    before = state(model.network)
    model.fit(1, lr=1e-2)
    assert changed(model.network, before) & set(dict(model.network.named_parameters())) == wanted


def test_a_network_without_blocks_refuses_what_needs_them(scene_data):
    for adaptation in ({'layer_decay': 0.8}, {'freeze': 2}):
        with pytest.raises(BackboneError, match='test_resnet has no blocks in a row'):
            make(scene_data, 'test_resnet', **adaptation)
    with pytest.raises(BackboneError, match='test_resnet has no linear layers'):
        make(scene_data, 'test_resnet', lora_rank=2)


# -- how fast


@pytest.mark.parametrize('one_cycle', [True, False])
@pytest.mark.parametrize('frozen', [0, 2])
def test_every_group_really_learns_at_its_share_of_the_rate(scene_data, one_cycle, frozen):
    model = make(scene_data, layer_decay=0.5, freeze=frozen)
    rates = record_rates(model, epochs=2, lr=1e-3, one_cycle=one_cycle)
    # patch embedding, blocks, and what is new: pyramid and decoder
    first = frozen + 1 if frozen else 0
    shares = [0.5 ** (DEPTH + 1 - i) for i in range(first, DEPTH + 2)]
    assert len(rates) == 2 * len(scene_data.train_dl)
    for row in rates:
        assert row == pytest.approx([row[-1] * share for share in shares], rel=1e-9)
    assert max(row[-1] for row in rates) == pytest.approx(1e-3, rel=0.05)
    names = {id(p): name for name, p in model.network.named_parameters()}
    for group, share in zip(model.learner.opt.param_lists, shares, strict=True):
        for parameter in group:
            name = names[id(parameter)]
            block = next((i for i in range(DEPTH) if f'.trunk.blocks.{i}.' in name), None)
            expected = 0.5 ** (DEPTH - block) if block is not None else 0.5 ** (DEPTH + 1) if '.trunk.' in name else 1
            assert share == expected
    assert model.history.learning_rate == 1e-3
    assert {h['wd'] for h in model.learner.opt.hypers} == {0.01}


def test_the_rate_search_keeps_the_shares(scene_data, monkeypatch):
    model, rows = make(scene_data, layer_decay=0.5), []
    original = fastai.LRFinder.before_batch

    def before_batch(self):
        original(self)
        rows.append([float(h['lr']) for h in self.opt.hypers])

    monkeypatch.setattr(fastai.LRFinder, 'before_batch', before_batch)
    before = state(model.network)
    _, rates, losses = training.find_learning_rate(model.learner, iterations=20, scales=model._scales)
    assert len(rates) == len(losses)
    assert rows[0] == pytest.approx([1e-7 * 0.5**n for n in (5, 4, 3, 2, 1)] + [1e-7])
    assert all(row[0] == pytest.approx(row[-1] / 32) for row in rows)
    assert changed(model.network, before) == set()


def test_a_slice_of_rates_contradicts_a_decay(scene_data):
    with pytest.raises(ValueError, match=r'lr must be one number where layer_decay \(0.5\) sets the rate'):
        make(scene_data, layer_decay=0.5).fit(1, lr=slice(1e-4, 1e-3))
    with pytest.raises(ValueError, match='lr must be a positive number'):
        make(scene_data, layer_decay=0.5).fit(1, lr=-1)


def test_freezing_keeps_the_groups_and_their_rates(scene_data):
    model = make(scene_data, layer_decay=0.5)
    model.freeze()
    row = record_rates(model, epochs=1, lr=1e-3, one_cycle=False)[0]
    assert row == pytest.approx([1e-3 * 0.5**n for n in (5, 4, 3, 2, 1, 0)])


# -- keeping


@pytest.mark.parametrize(
    'adaptation', [{'lora_rank': 2}, {'lora_rank': 3, 'lora_alpha': 1.5, 'layer_decay': 0.9}, {'freeze': 2}]
)
def test_a_bundle_holds_a_plain_network_that_predicts_the_same(scene_data, tmp_path, adaptation):
    model = make(scene_data, **adaptation).fit(2, lr=1e-2)
    expected, path = logits(model.network), model.save(tmp_path / 'm.dlpk', compute_metrics=False)
    loaded = load_model(path)
    assert loaded.spec == model.spec
    assert loaded.spec.adaptation == Adaptation(**adaptation)
    assert not [name for name in read_bundle(path).weights if 'lora' in name]
    assert read_bundle(path).weights.keys() == make(scene_data).network.state_dict().keys()
    torch.testing.assert_close(logits(loaded.network), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    again = load_model(path, scene_data)
    torch.testing.assert_close(logits(again.network), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert learning(again.network) == learning(model.network), 'the same parameters stay trainable'
    again.fit(1, lr=1e-3)
    x = torch.randn(1, 10, 64, 64)
    taken = create_backbone('dofa_tiny', scene_data.bands, weights=path, strides=(4, 16)).eval()
    plain = load_model(path).network.backbone.eval()
    with torch.inference_mode():
        assert torch.equal(taken.trunk.tokens(x), plain.trunk.tokens(x)), 'it starts another model'


def test_saving_leaves_the_model_as_it_is(scene_data, tmp_path):
    model = make(scene_data, lora_rank=2).fit(1, lr=1e-2)
    before = state(model.network)
    model.save(tmp_path / 'm.dlpk', compute_metrics=False)
    assert changed(model.network, before) == set()
    assert learning(model.network) == {n for n in before if 'lora_' in n} | {
        n for n, p in model.network.named_parameters() if '.trunk.' not in n and p.requires_grad
    }


def test_a_manifest_of_before_trains_everything(scene_data):
    manifest = make(scene_data).spec.to_manifest()
    del manifest['adaptation']
    assert ModelSpec.from_manifest(manifest).adaptation == DEFAULT_ADAPTATION


@pytest.mark.parametrize(
    'broken',
    [
        {'freeze': 'some'},
        {'layer_decay': 'fast'},
        {'layer_decay': float('inf')},
        {'lora_rank': -3},
        {'lora_rank': True},
        {'rank': 3},
        [1],
        'none',
    ],
)
def test_a_broken_adaptation_in_a_manifest_is_told(scene_data, broken):
    manifest = copy.deepcopy(make(scene_data).spec.to_manifest())
    manifest['adaptation'] = broken
    with pytest.raises(BundleError, match='the manifest is broken: '):
        ModelSpec.from_manifest(manifest)


def test_a_model_says_how_much_of_it_learns(scene_data):
    assert 'are trained' not in repr(make(scene_data))
    model = make(scene_data, lora_rank=2)
    count = sum(p.numel() for p in model.network.parameters() if p.requires_grad)
    assert f'({count / 1e6:.2f} M of them are trained)' in repr(model)
    inside = model.network.backbone.trunk
    assert sum(p.numel() for p in inside.parameters() if p.requires_grad) == 2 * 16 * 48 * DEPTH
    assert merged_state_dict(inside).keys() == make(scene_data).network.backbone.trunk.state_dict().keys()
