"""What the report of a pixel classifier says."""

import math
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import torch
from harmless_page import is_report

from geolearn import DeepLab, load_model, prepare_data
from geolearn.adaptation import Adaptation
from geolearn.arguments import encode
from geolearn.chips.splits.split import Split
from geolearn.errors import NotTrainedError
from geolearn.history import History
from geolearn.losses import PixelLossOptions
from geolearn.models.evaluation.pixels import evaluate_pixels, predict_chips
from geolearn.models.reports.report import (
    backbone_section,
    data_section,
    duration,
    environment_section,
    find_warnings,
    fingerprint,
    reproduce_section,
    training_section,
)
from geolearn.report.page import Code, Facts, Notes, Picture, Share, Table, render_report

pytestmark = pytest.mark.usefixtures('one_thread')


def facts(section):
    return {label: text for part in section.parts if isinstance(part, Facts) for label, text in part.rows}


def tables(section):
    return [part for part in section.parts if isinstance(part, Table)]


def code(section):
    return next(part.text for part in section.parts if isinstance(part, Code))


def section(report, title):
    return next(found for found in report.sections if found.title == title)


# -- the whole


def test_the_report_has_everything_that_was_promised(pixel_report):
    assert [found.title for found in pixel_report.sections] == [
        'Data',
        'Training',
        'Scores',
        'Confusion',
        'Worst chips',
        'Hardest chips',
        'Calibration',
        'Backbone and weights',
        'Settings',
        'Reproduce',
        'Versions and hardware',
    ]
    assert [label for label, _ in pixel_report.summary[:5]] == ['task', 'model', 'backbone', 'mean IoU', 'accuracy']
    assert all(len(text) < 40 for _, text in pixel_report.summary)


def test_the_page_is_sound_though_the_class_names_are_hostile(pixel_report):
    page = render_report(pixel_report)
    assert is_report(page)
    assert b'<script' not in page
    assert b'&lt;script&gt;alert(1)&lt;/script&gt;' in page


def test_the_same_model_makes_the_same_page(pixel_model, pixel_report):
    again = pixel_model.report_contents(made=date(2026, 1, 2))
    assert render_report(again) == render_report(pixel_report)


def test_scores_are_those_of_the_model(pixel_model, pixel_report):
    (table,) = tables(section(pixel_report, 'Scores'))
    found = dict(zip(pixel_model.data.classes, (row[table.columns.index('IoU')] for row in table.rows)))
    expected = pixel_model.mIOU()
    assert found.keys() == expected.keys()
    for name, share in found.items():
        assert isinstance(share, Share)
        assert share.value == pytest.approx(expected[name], nan_ok=True)
    assert f'{pixel_model.mIOU(mean=True):.4f}' == facts(section(pixel_report, 'Scores'))['mean IoU']


def test_a_model_without_chips_cannot_be_reported(pixel_model, tmp_path):
    loaded = load_model(pixel_model.save(tmp_path / 'm.dlpk'))
    with pytest.raises(NotTrainedError, match='a report needs the chips; pass data='):
        loaded.report_contents(made=date(2026, 1, 2))


def test_a_loaded_model_can_be_reported_with_its_chips(pixel_model, tmp_path):
    loaded = load_model(pixel_model.save(tmp_path / 'm.dlpk'), pixel_model.data)
    report = loaded.report_contents(made=date(2026, 1, 2))
    training = section(report, 'Training')
    assert facts(training)['epochs'] == '1'
    assert not [part for part in training.parts if isinstance(part, Picture)]  # batches' losses are not kept


@pytest.mark.slow
def test_a_transformer_on_more_chips_shows_typical_ones_too(scene_chips, tmp_path):
    options = {'chip_size': 32, 'batch_size': 4, 'val_split_pct': 0.5, 'ignore_classes': [0], 'working_dir': tmp_path}
    data = prepare_data(scene_chips, **options)
    model = DeepLab(data, backbone='dofa_tiny', pretrained=False).fit(2, lr=1e-3)
    report = model.report_contents(made=date(2026, 1, 2))
    titles = [found.title for found in report.sections]
    assert titles[4:7] == ['Typical chips', 'Worst chips', 'Hardest chips']
    assert is_report(render_report(report))


# -- evaluation


def test_the_evaluation_counts_what_the_model_counts(pixel_model):
    data = pixel_model.data
    evaluated = evaluate_pixels(pixel_model.network, data.valid_dl, data.classes)
    assert torch.equal(evaluated.confusion.counts, pixel_model.confusion().counts)
    assert len(evaluated.losses) == len(evaluated.per_chip) == len(data.valid_ds)
    assert all(loss > 0 for loss in evaluated.losses)


def test_predicted_chips_are_those_that_were_evaluated(pixel_model):
    data = pixel_model.data
    evaluated = evaluate_pixels(pixel_model.network, data.valid_dl, data.classes)
    found = predict_chips(pixel_model.network, data.valid_dl, [2, 0])
    counted = (found.masks != 255).sum((1, 2))
    losses = (found.losses.sum((1, 2)) / counted).tolist()
    assert losses == pytest.approx([evaluated.losses[2], evaluated.losses[0]], rel=1e-4)


# -- the sections


def test_data_are_told_by_class_and_part(scene_data):
    found = data_section(scene_data)
    assert facts(found)['chips'] == '12 training, 4 validation'
    (table,) = tables(found)
    assert table.columns[2:] == ('training pixels', 'training chips', 'validation pixels', 'validation chips')
    train = scene_data.table.value_counts(scene_data.split.train)
    assert [row[2] for row in table.rows] == [train[info.value] for info in scene_data.class_infos]
    assert isinstance(found.parts[-1], Notes)
    assert found.parts[-1].texts == scene_data.notes


def test_no_path_of_the_machine_is_given_away(scene_data, pixel_report):
    page = render_report(pixel_report).decode()
    assert str(scene_data.path.parent) not in page


def test_training_is_told_by_epoch():
    rows = [{'epoch': i + 1, 'valid_loss': 1.0 / (i + 1), 'miou': math.nan, 'seconds': 40.0} for i in range(3)]
    found = training_section(History([1.0, 0.5, 0.4], rows, 1e-3))
    assert facts(found) == {
        'epochs': '3',
        'highest learning rate': '0.001',
        'time': '2 min 0 s',
        'best epoch': '3, validation loss 0.3333',
    }
    (table,) = tables(found)
    assert table.columns == ('epoch', 'validation loss', 'mean IoU', 'seconds')
    assert table.rows[0] == (1, 1.0, None, 40.0)
    assert training_section(History()).parts == ('The model has not been trained.',)


def test_rows_of_a_bundle_need_not_hold_numbers():
    history = History(epochs=[{'epoch': 1, 'valid_loss': None, 'miou': 'many', 'seconds': 2.0}], loaded=1)
    found = training_section(history)
    assert facts(found) == {'epochs': '1', 'time': '2.0 s'}
    assert tables(found)[0].rows == ((1, None, None, 2.0),)


def test_the_backbone_is_told_with_license_source_and_revision(pixel_model):
    spec = replace(pixel_model.spec, backbone='dofa_base', pretrained=True, adaptation=Adaptation(freeze='all'))
    found = facts(backbone_section(spec, None))
    assert found['license of the weights'] == 'CC-BY-4.0'
    assert 'huggingface.co/earthflow/DOFA' in found['published as']
    assert len(found['revision']) == 40
    assert "freeze='all'" in found['adapted by']
    other = facts(backbone_section(pixel_model.spec, None))
    assert other['license'].startswith('not known to geolearn: resnet18 comes from timm')
    assert other['started from'] == 'random weights'
    mine = facts(backbone_section(replace(pixel_model.spec, backbone='mine', custom={'backbone': 'Mine'}), None))
    assert mine['license'] == 'not known to geolearn: it is a network of your own'


def test_the_lines_that_reproduce_run_and_say_what_was_said(pixel_model, pixel_report):
    lines = code(section(pixel_report, 'Reproduce'))
    compile(lines, 'report', 'exec')
    assert "model = DeepLab(data, backbone='resnet18', pretrained=False, dice_loss_fraction=0.5" in lines
    assert 'model.fit(epochs=1, lr=0.001)' in lines
    arguments = {'loss': PixelLossOptions(label_smoothing=0.1), 'adapt': Adaptation(lora_rank=4)}
    spec = replace(pixel_model.spec, arguments=encode(arguments))
    lines = code(reproduce_section(spec, pixel_model.data, pixel_model.history))
    names: dict = {}
    exec(lines.partition('\n\n')[0], names)
    call = lines[lines.index('DeepLab(') : lines.index('\nmodel.fit')]
    names |= {'data': None, 'DeepLab': lambda data, **given: given}
    exec(f'given = {call}', names)
    given = names['given']
    assert given['loss'] == PixelLossOptions(label_smoothing=0.1)
    assert given['adapt'] == Adaptation(lora_rank=4)


def test_a_split_has_a_fingerprint_that_its_order_does_not_change(scene_data):
    first = fingerprint(scene_data, 'valid')
    turned = replace(scene_data, split=Split(scene_data.split.train, scene_data.split.valid[::-1]))
    other = replace(scene_data, split=Split(scene_data.split.train, scene_data.split.valid[:-1]))
    assert len(first) == 16
    assert fingerprint(turned, 'valid') == first
    assert fingerprint(other, 'valid') != first


def test_versions_are_told():
    found = facts(environment_section())
    assert found['torch'] == torch.__version__.partition('+')[0] or found['torch'] == torch.__version__
    assert found['numpy'] == np.__version__


@pytest.mark.parametrize(
    ('seconds', 'text'), [(0.04, '0.0 s'), (59.94, '59.9 s'), (125, '2 min 5 s'), (7620, '2 h 7 min')]
)
def test_durations_are_told_in_words(seconds, text):
    assert duration(seconds) == text


# -- warnings


def test_few_chips_and_classes_that_are_not_evaluated_are_warned_of(pixel_model, scene_data):
    told = find_warnings(scene_data, pixel_model.spec)
    assert told == ('The number of validation chips is 4; scores of fewer than 10 are uncertain.',)
    held = scene_data.table.amounts([scene_data.class_infos[0].value])[:, 0]
    without = tuple(np.flatnonzero(held == 0).tolist())
    data = replace(scene_data, split=Split(tuple(np.flatnonzero(held).tolist()), without))
    assert "No validation chip holds the class 'water', so it was not evaluated." in find_warnings(
        data, pixel_model.spec
    )


def test_chips_that_share_ground_are_warned_of(pixel_model, scene_data):
    everything = tuple(range(len(scene_data.table)))
    data = replace(scene_data, split=Split(everything, everything[:4]))
    told = find_warnings(data, pixel_model.spec)
    assert told[0].startswith('4 of 4 validation chips share ground with training chips, so scores will be too good')


def test_weights_that_must_not_be_sold_are_warned_of(pixel_model, scene_data):
    from geolearn.backbones.catalog import read_catalog

    name = next(record.name for record in read_catalog().values() if record.non_commercial)
    told = find_warnings(scene_data, replace(pixel_model.spec, backbone=name, pretrained=True))
    assert told[-1] == f'The license of the weights of {name} forbids commercial use.'
