"""The report of every kind of model: what all share, and that its numbers are those of the model."""

import math
from itertools import pairwise

import pytest
import torch
from harmless_page import is_report
from report_kinds import KINDS

from geolearn.bundle import FIGURES, REPORT, read_bundle
from geolearn.cli import main
from geolearn.models import load_all
from geolearn.models.reports.report import format_score, sample_sections
from geolearn.report.page import Code, Facts, Picture, Share, Table, render_report
from geolearn.synthetic import CLASSES

DETECTORS = ('FasterRCNN', 'FCOS', 'MaskRCNN')
SHARED = ['Data', 'Training', 'Scores']
END = ['Backbone and weights', 'Settings', 'Reproduce', 'Versions and hardware']
OWN = {
    'DeepLab': ['Confusion', 'Worst chips', 'Hardest chips', 'Calibration'],
    'PixelRegressor': ['Truth and prediction', 'Worst chips'],
    'ChangeDetector': ['Confusion', 'Worst chips', 'Hardest chips', 'Calibration'],
    'FeatureClassifier': ['Confusion', 'Worst chips', 'Calibration'],
    'several labels': ['Confusion', 'Worst chips', 'Calibration'],
    **{name: ['Precision and recall', 'Worst chips'] for name in DETECTORS},
}
FILES = {
    **dict.fromkeys(['DeepLab', 'ChangeDetector', 'FeatureClassifier', 'several labels'], 'confusion_matrix'),
    **dict.fromkeys(DETECTORS, 'precision_recall'),
}
ARGUMENTS = {
    'DeepLab': 'focal_loss=True',
    'PixelRegressor': "decoder='fpn'",
    'ChangeDetector': "fusion='concat'",
    'FeatureClassifier': "pooling='mean'",
    'several labels': 'mixup=True',
    'FasterRCNN': 'scales=[1.0]',
    'FCOS': 'head=SingleStageOptions(',
    'MaskRCNN': 'head=RCNNOptions(',
}


@pytest.fixture(scope='module', params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(make_model, kind):
    return make_model(kind)[0]


@pytest.fixture
def report(report_of, kind):
    return report_of(kind)


def section(report, title):
    return next(found for found in report.sections if found.title == title)


def facts(section):
    return {label: text for part in section.parts if isinstance(part, Facts) for label, text in part.rows}


def table(section, caption):
    return next(p for p in section.parts if isinstance(p, Table) and p.caption.startswith(caption))


def column(found, name):
    at = found.columns.index(name)
    return [row[at].value if isinstance(row[at], Share) else row[at] for row in found.rows]


def same(found, expected):
    return found == pytest.approx(list(expected), nan_ok=True)


# -- what all share


def test_every_class_of_models_has_a_report():
    assert load_all()
    assert not [name for name, cls in load_all().items() if cls.__abstractmethods__]


def test_the_page_holds_what_it_promises_and_asks_for_nothing_else(report, kind):
    assert [found.title for found in report.sections] == [*SHARED, *OWN[kind], *END]
    page = render_report(report)
    assert is_report(page)
    assert page.count(b'<img ') == sum(isinstance(part, Picture) for s in report.sections for part in s.parts)
    assert page.count(b'<img src="data:image/png;base64,iVBOR') == page.count(b'<img ')


def test_what_is_not_defined_is_a_dash(report):
    texts = [text for _, text in report.summary] + [text for s in report.sections for text in facts(s).values()]
    assert not [text for text in texts if 'nan' in text.split(', ')]
    assert (format_score(math.nan), format_score(0.25), format_score(0.25, '.1%')) == ('\N{EN DASH}', '0.2500', '25.0%')


def test_classes_are_named(model, report, kind):
    page = render_report(report).decode()
    names = [info.name for info in model.spec.class_infos]
    assert set(names) <= {*(info.name for info in CLASSES), 'NoChange'}
    assert (kind == 'PixelRegressor') == (not names)
    for name in names:
        assert name in page


def test_the_lines_that_reproduce_run_and_say_what_was_said(model, report, kind):
    lines = next(part.text for part in section(report, 'Reproduce').parts if isinstance(part, Code))
    compile(lines, 'report', 'exec')
    assert ARGUMENTS[kind] in lines
    assert ("target='values'" in lines) == (kind == 'PixelRegressor')
    names: dict = {}
    exec(lines.partition('\n\n')[0], names)
    call = lines[lines.index(f'{model.spec.model}(') : lines.index('\nmodel.fit')]
    exec(f'again = {call}', names | {'data': model.data}, found := {})
    again = found['again']
    assert again.spec.options == model.spec.options
    assert again.spec.backbone == model.spec.backbone


@pytest.mark.usefixtures('no_drawing')
def test_the_bundle_holds_page_and_figures_and_the_command_line_writes_the_page(make_model, kind, tmp_path, capsys):
    model, chips = make_model(kind)
    bundle, page = model.save(tmp_path / 'm.dlpk'), tmp_path / 'report.html'
    extras = read_bundle(bundle).extras
    names = {'loss_graph', 'show_results', *([FILES[kind]] if kind in FILES else [])}
    assert extras.keys() == {REPORT, *(f'{FIGURES}{name}.png' for name in names)}
    assert is_report(extras[REPORT])
    main(['report', str(bundle), str(chips), str(page), '--batch-size', '4', '--valid', '0.25'])
    assert capsys.readouterr().out == f'wrote {page}\n'
    summaries = [text[text.index('<dl class="tiles">') : text.index('</header>')] for text in
                 (extras[REPORT].decode(), page.read_text(encoding='utf-8'))]  # fmt: skip
    assert summaries[0] == summaries[1]
    assert f'<dd>{model.spec.model}</dd>' in summaries[0]


# -- scores are those of the model


def test_scores_of_detectors_are_those_of_coco(make_model, report_of):
    for name in DETECTORS:
        model, scores = make_model(name)[0], section(report_of(name), 'Scores')
        values, per_class = model.scores(), model.evaluate().detections.per_class()
        assert facts(scores)['AP50, at overlap 0.5'] == f'{values["ap50"]:.4f}'
        found = table(scores, 'By class')
        assert same(column(found, 'AP'), per_class['map'])
        assert same(column(found, 'AP50'), per_class['ap50'])
        assert same(column(table(scores, 'By size'), 'AP'), [values[f'ap_{s}'] for s in ('small', 'medium', 'large')])
        objects = sum(len(truth.labels) for _, batch in model.data.valid_dl for truth in batch)
        assert sum(column(found, 'objects')) == objects


def test_scores_of_numbers_are_those_of_the_model(make_model, report_of):
    model, report = make_model('PixelRegressor')[0], report_of('PixelRegressor')
    values, scores = model.scores(), section(report, 'Scores')
    assert facts(scores)['mean absolute error (MAE)'] == f'{values["mae"]:.4g}'
    assert dict(report.summary)['RMSE'] == f'{values["rmse"]:.4g}'
    ranges = table(scores, 'By range')
    pixels = column(ranges, 'pixels')
    assert sum(pixels) == sum(int(truth.isfinite().sum()) for _, truth in model.data.valid_dl)
    mean = sum(count * error for count, error in zip(pixels, column(ranges, 'MAE'))) / sum(pixels)
    assert mean == pytest.approx(values['mae'], rel=1e-4)
    numbers = table(section(report, 'Data'), 'Regression target')
    assert numbers.rows[0][1] == model.data.target_statistics.count


def test_errors_of_chips_order_the_samples(make_model):
    model, _ = make_model('PixelRegressor')
    errors = model.evaluate().per_chip
    image, truth = model.data.valid_ds[1]
    with torch.inference_mode():
        found = model.network.eval()(image[None])[0, 0]
    assert errors[1] == pytest.approx(float((found - truth).square().nanmean().sqrt()), rel=1e-4)
    worst = max(range(len(errors)), key=errors.__getitem__)
    name = model.data.table.names[model.data.valid_ds.positions[worst]]
    shown = model.show_results(rows=1, worst_first=True).axes[0].get_title(loc='left')
    assert name in shown
    assert model.plot_scatter().axes[0].get_title().startswith(f'RMSE {model.scores()["rmse"]:.3g}')


@pytest.mark.parametrize('kind_of_labels', ['FeatureClassifier', 'several labels'])
def test_scores_of_chips_are_those_of_the_model(make_model, report_of, kind_of_labels):
    model, scores = make_model(kind_of_labels)[0], section(report_of(kind_of_labels), 'Scores')
    expected = model.per_class_metrics()
    for name, of_model in (('precision', 'precision'), ('F1', 'f1'), ('F2', 'f2'), ('chips', 'support')):
        assert same(column(table(scores, 'By class'), name), expected[of_model])
    assert facts(scores)['accuracy'] == f'{model.accuracy():.4f}'
    assert ('hamming loss (share of wrong decisions)' in facts(scores)) == (kind_of_labels == 'several labels')


def test_changes_are_reported_as_such(make_model, report_of):
    model, report = make_model('ChangeDetector')[0], report_of('ChangeDetector')
    assert dict(report.summary)['task'] == 'change detection'
    assert facts(section(report, 'Settings'))['fusion of the dates'] == 'concat'
    assert facts(section(report, 'Data'))['dates'].startswith('2')
    assert same(column(table(section(report, 'Scores'), 'By class'), 'IoU'), model.mIOU().values())
    for losses, last in ((False, 'errors'), (True, 'loss')):
        axes = model.draw_chips([0], losses=losses).axes
        assert [ax.get_title() for ax in axes[:5]] == ['before', 'after', 'truth', 'prediction', last]


# -- samples


def test_samples_are_the_middle_and_the_lower_end():
    drawn = []

    def draw(indexes):
        from matplotlib.figure import Figure

        drawn.append(list(indexes))
        return Figure((1, 1))

    scores = [0.9, 0.1, math.nan, 0.5, 0.4, 0.2, 0.3]
    titles = [s.title for s in sample_sections(scores, draw, by='IoU', count=2)]
    assert titles == ['Typical chips', 'Worst chips']
    assert drawn == [[6, 4], [1, 5]]
    sections = sample_sections(scores, draw, by='loss', highest_is_worst=True, count=7)
    assert [s.title for s in sections] == ['Worst chips']
    assert drawn[-1] == [0, 3, 4, 6, 5, 1, 2]
    assert [part.name for part in sections[0].parts if isinstance(part, Picture)] == ['show_results']


def test_ranges_of_the_truth_hold_all_pixels_whatever_they_are():
    from geolearn.models.evaluation.pixels import RegressionEvaluation
    from geolearn.models.reports.tasks import tabulate_ranges

    for truth in ([], [3.0], [1.0] * 5, [0.0, 1.0, 1.0, 1.0, 9.0], list(range(50))):
        true = torch.tensor(truth, dtype=torch.float32)
        found = tabulate_ranges(RegressionEvaluation(metrics={}, truth=true, predicted=true + 2))
        assert sum(column(found, 'pixels')) == len(truth)
        assert all(bias == 2 for bias in column(found, 'bias'))
        ends = [tuple(map(float, name.split(' to '))) for name in column(found, 'true value')]
        assert all(first[1] == second[0] for first, second in pairwise(ends))
