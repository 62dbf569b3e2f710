"""Chips for a model whose folder numbers the same classes otherwise: classes are matched by name."""

import numpy as np
import pytest
import torch

from geolearn import load_model, prepare_data
from geolearn.cli import main
from geolearn.errors import BundleError, ChipFolderError
from geolearn.models import FeatureClassifier

pytestmark = pytest.mark.usefixtures('one_thread')

READ = {'chip_size': 32, 'batch_size': 4, 'transforms': False}


@pytest.fixture(scope='module')
def folders(tmp_path_factory, save):
    """A function that makes a folder of chips for each class, which are numbered by their sorted names."""
    root = tmp_path_factory.mktemp('classes')

    def make(name, *classes):
        for number, called in enumerate(classes):
            (root / name / called).mkdir(parents=True, exist_ok=True)
            for index in range(3):
                pixels = np.random.default_rng(10 * number + index).integers(1, 255, (3, 32, 32)).astype(np.uint8)
                save(root / name / called / f'{called}{index}.tif', pixels)
        return root / name

    return make


@pytest.fixture(scope='module')
def saved(folders):
    data = prepare_data(folders('all', 'bridge', 'plane', 'ship'), **READ)
    model = FeatureClassifier(data, 'test_resnet', pretrained=False)
    return model.save(data.path.parent / 'm.dlpk', compute_metrics=False)


def test_the_same_classes_of_another_folder_are_matched_by_name(saved, folders):
    other = folders('fewer', 'plane', 'ship')
    assert prepare_data(other, **READ).class_mapping == {1: 'plane', 2: 'ship'}
    data = prepare_data(other, **READ, model_classes=load_model(saved).spec.model_classes).validating_on_all()
    assert data.class_mapping == {1: 'bridge', 2: 'plane', 3: 'ship'}
    assert data.value_counts == {2: 3, 3: 3}
    truth = {name.rpartition('/')[2]: int(data.valid_ds[i][1]) for i, name in enumerate(data.valid_ds.names)}
    assert {name[:-1]: index for name, index in truth.items()} == {'plane': 1, 'ship': 2}
    assert data.summary()['train chips'].tolist()[0] == 0
    rest = data.ignoring([1])
    assert sorted({int(rest.valid_ds[i][1]) for i in range(6)}) == [0, 1]
    load_model(saved, data)


def test_evaluate_counts_by_name(saved, folders, tmp_path, capsys):
    main(['evaluate', str(saved), str(folders('fewer', 'plane', 'ship')), '--all', '--batch-size', '4'])
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows['bridge'][2] == 'NaN', 'no bridge is labelled, so its recall is undefined'
    assert 'NaN' not in rows['ship'][2]


def test_classes_that_the_model_does_not_have_are_refused_and_can_be_left_out(saved, folders, capsys):
    folder = folders('others', 'car', 'plane', 'vessel')
    with pytest.raises(SystemExit):
        main(['evaluate', str(saved), str(folder), '--all'])
    said = capsys.readouterr().err
    assert 'labels hold 1 (car), 3 (vessel), which the model does not have: its classes are 1 (bridge), 2' in said
    assert '--ignore-classes 1 3' in said
    known = load_model(saved).spec.model_classes
    data = prepare_data(folder, **READ, model_classes=known, ignore_classes=['car'], class_mapping={3: 'ship'})
    assert data.value_counts[2] == data.value_counts[3] == 3
    assert data.ignored_values
    assert not {1, 2, 3} & {*data.ignored_values}
    with pytest.raises(ChipFolderError, match='both match'):
        prepare_data(folder, **READ, model_classes=known, ignore_classes=[1], class_mapping={3: 'plane'})


def test_a_model_refuses_data_that_names_its_values_otherwise(saved, folders):
    data = prepare_data(folders('renamed', 'bridge', 'crane', 'ship'), **READ)
    with pytest.raises(BundleError, match="2 is 'plane', not 'crane'.*model_classes"):
        load_model(saved, data)
    load_model(saved, prepare_data(folders('digits', '1', '2', '3'), **READ))


def test_label_rasters_without_a_value_that_the_model_ignores(scene_chips, save, tmp_path):
    from geolearn.models import UNet

    whole = prepare_data(scene_chips, **READ, ignore_classes=[0])
    path = UNet(whole, 'test_resnet', pretrained=False).save(tmp_path / 'm.dlpk', compute_metrics=False)
    for kind in ('images', 'labels'):
        (tmp_path / 'chips' / kind).mkdir(parents=True)
    for number in range(2):
        image = np.random.default_rng(number).integers(100, 3000, (len(whole.bands), 32, 32)).astype(np.uint16)
        save(tmp_path / 'chips' / 'images' / f'{number}.tif', image)
        save(tmp_path / 'chips' / 'labels' / f'{number}.tif', np.full((1, 32, 32), 2, np.uint8))
    spec = load_model(path).spec
    data = prepare_data(
        tmp_path / 'chips', **READ, val_split_pct=0.5, bands=spec.bands, model_classes=spec.model_classes
    )
    assert data.class_mapping == whole.class_mapping
    assert torch.unique(data.valid_ds[0][1]).tolist() == [list(whole.class_mapping).index(2)]
