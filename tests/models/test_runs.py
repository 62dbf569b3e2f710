"""Each training has its own checkpoints: it ends with its own best weights, and is resumed with what it was."""

import shutil

import pytest
import torch
from safetensors import safe_open

from geolearn.errors import CheckpointError
from geolearn.models import FCN
from geolearn.training import Callback

pytestmark = pytest.mark.usefixtures('one_thread')


def make_model(data, seed=0):
    torch.manual_seed(seed)
    return FCN(data, 'test_resnet', pretrained=False)


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.network.state_dict().items()}


def runs(tmp_path):
    return sorted((tmp_path / 'models' / 'training').glob('*/*/checkpoints'))


class StopAt(Callback):
    """Ctrl-C in some epoch."""

    def __init__(self, epoch):
        self.stop = epoch

    def before_batch(self):
        if self.learn.training and self.learn.epoch == self.stop:
            raise KeyboardInterrupt


class Spoil(Callback):
    """From the second epoch on the weights are worse, so that the first one's are the best."""

    order = 20

    def before_epoch(self):
        if self.learn.epoch:
            for parameter in self.learn.model.parameters():
                parameter.data.mul_(3)


class Remember(Callback):
    order = 99

    def after_epoch(self):
        self.states = [*getattr(self, 'states', []), {k: v.clone() for k, v in self.learn.model.state_dict().items()}]


class TrainAnother(Callback):
    """Another training of the same class and backbone runs to its end while this one is in its second epoch."""

    order = 98

    def __init__(self, other):
        self.other = other

    def after_epoch(self):
        if self.learn.epoch == 1:
            self.other.fit(3, 1e-4, callbacks=[Spoil()])


def test_interleaved_trainings_end_with_their_own_best_weights(scene_data, tmp_path):
    model, other, remember = make_model(scene_data), make_model(scene_data, 7), Remember()
    model.fit(3, 1e-2, callbacks=[Spoil(), remember, TrainAnother(other)])
    ended = state(model)
    losses = [row['valid_loss'] for row in model.history.epochs]
    best = remember.states[losses.index(min(losses))]
    assert losses.index(min(losses)) == 0
    assert all(torch.equal(ended[name], best[name]) for name in best)
    names = [path.parent.name for path in runs(tmp_path)]
    assert len(set(names)) == 2
    ids = set()
    for folder in runs(tmp_path):
        facts = [safe_open(path, 'pt').metadata()['geolearn'] for path in folder.iterdir()]
        own = {text.split('"run": "')[1].split('"')[0] for text in facts}
        assert len(own) == 1, 'every file of a run holds its id'
        ids |= own
    assert len(ids) == 2


def test_resume_finds_the_training_with_the_same_arguments(scene_data, tmp_path, capsys):
    for rate in (1e-2, 1e-3):
        with pytest.raises(KeyboardInterrupt):
            make_model(scene_data).fit(2, rate, callbacks=[StopAt(1)])
        scene_data.train_dl.epoch = 0
        said = capsys.readouterr().out
        assert 'interrupted after epoch 1; the same call with resume=True continues from there' in said
    whole = make_model(scene_data)
    whole.fit(2, 1e-2)
    scene_data.train_dl.epoch = 0
    again = make_model(scene_data, 9)
    again.fit(2, 1e-2, resume=True)
    assert all(torch.equal(tensor, state(whole)[name]) for name, tensor in state(again).items())
    assert 'resumed after epoch 1 of 2' in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r'no checkpoint in .* is of this training(.|\n)*learning_rate \(then'):
        make_model(scene_data).fit(2, 1e-4, resume=True)
    with pytest.raises(CheckpointError, match=r'what differs: epochs \(then 2, now 3\)'):
        make_model(scene_data).fit(3, 1e-2, resume=True)


def test_a_run_that_is_being_trained_is_not_resumed(scene_data, tmp_path):
    """Two processes that resume one run at once would mix their checkpoints."""
    said = []

    class ResumeToo(Callback):
        order = 98

        def after_epoch(self):
            with pytest.raises(CheckpointError, match='is being trained at this moment; wait until it ends') as caught:
                make_model(scene_data).fit(2, 1e-2, resume=True)
            said.append(caught.value)
            if self.learn.epoch == 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_model(scene_data).fit(2, 1e-2, callbacks=[ResumeToo()])
    make_model(scene_data).fit(2, 1e-2, resume=True, callbacks=[ResumeToo()])
    assert len(said) == 2
    assert not list(tmp_path.rglob('lock'))


def test_where_several_agree_the_user_chooses(scene_data, tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_model(scene_data).fit(2, 1e-2, callbacks=[StopAt(1)])
    names = [path.parent.name for path in runs(tmp_path)]
    with pytest.raises(CheckpointError, match='2 trainings of the same data, model and arguments') as caught:
        make_model(scene_data).fit(2, 1e-2, resume=True)
    assert all(name in str(caught.value) for name in names)
    model = make_model(scene_data)
    model.fit(2, 1e-2, resume=names[0])
    assert len(model.history.epochs) == 2
    with pytest.raises(CheckpointError, match="there is no run 'nothing' in"):
        model.fit(2, 1e-2, resume='nothing')


def test_the_seed_tells_trainings_apart(scene_data):
    for seed in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            make_model(scene_data).fit(2, 1e-2, seed=seed, callbacks=[StopAt(1)])
    model = make_model(scene_data)
    model.fit(2, 1e-2, seed=2, resume=True)
    assert len(model.history.epochs) == 2


def test_another_model_or_other_chips_are_another_training(scene_data, scene_chips, tmp_path):
    from geolearn.prepare import prepare_data

    with pytest.raises(KeyboardInterrupt):
        make_model(scene_data).fit(2, 1e-2, callbacks=[StopAt(1)])
    other = prepare_data(
        scene_chips, chip_size=32, batch_size=4, val_split_pct=0.25, ignore_classes=[0], working_dir=tmp_path, seed=5
    )
    with pytest.raises(CheckpointError, match='what differs: chips'):
        make_model(other).fit(2, 1e-2, resume=True)
    balanced = FCN(scene_data, 'test_resnet', pretrained=False, class_balancing=True)
    with pytest.raises(CheckpointError, match='what differs: model'):
        balanced.fit(2, 1e-2, resume=True)


def test_the_layout_of_older_versions_is_resumed(scene_data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make_model(scene_data).fit(2, 1e-2, callbacks=[StopAt(1)])
    (folder,) = runs(tmp_path)
    old = folder.parents[1] / 'checkpoints'
    shutil.move(folder, old)
    shutil.rmtree(folder.parent)
    model = make_model(scene_data)
    model.fit(2, 1e-2, resume=True)
    assert len(model.history.epochs) == 2
    (old / 'last.safetensors').write_bytes(b'broken')
    with pytest.raises(CheckpointError, match='last.safetensors is not a checkpoint of geolearn, or broken'):
        make_model(scene_data).fit(2, 1e-2, resume=True)


def test_the_last_finished_runs_stay_and_those_with_every_epoch(scene_data, tmp_path):
    make_model(scene_data).fit(1, 1e-2, checkpoint='all')
    kept = runs(tmp_path)
    for _ in range(4):
        make_model(scene_data).fit(1, 1e-2)
    assert len(runs(tmp_path)) == 4
    assert kept[0] in runs(tmp_path)
