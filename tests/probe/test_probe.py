"""Probes: scores and classifiers against scikit-learn's, folds, baselines, and what the result says."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import linear_model, metrics, neighbors, preprocessing

import geolearn
from geolearn.embed.embeddings import Embeddings, EmbeddingSource
from geolearn.errors import MissingExtraError, UnknownNameError
from geolearn.metrics import MultiLabelScores
from geolearn.probe import (
    METHODS,
    ProbeOptions,
    PublishedScore,
    band_statistics,
    probe,
    project,
    random_convolutions,
    run,
)
from geolearn.probe.classifiers import Scaling, Task, predict
from geolearn.probe.folds import plan_folds
from geolearn.probe.labels import read_labels
from geolearn.probe.result import UNDEFINED
from geolearn.probe.scores import Counts

pytestmark = pytest.mark.usefixtures('one_thread')

QUICK = ProbeOptions(epochs=3, trees=3, hidden=(16, 8))
NAMES = ['forest', 'water', 'urban']


def make_items(count=90, *, dimensions=6, seed=0):
    """Vectors of three classes that overlap a little, their classes, and images whose first band tells the class."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % 3
    vectors = rng.normal(size=(count, dimensions))
    vectors[:, :3] += 3 * np.eye(3)[classes]
    images = rng.normal(size=(count, 2, 6, 6)) + classes.reshape(-1, 1, 1, 1) * [[[3]], [[0]]]
    return vectors.astype(np.float32), classes, images.astype(np.float32)


def several(classes, *, seed=1):
    """Each item's class, and others at random."""
    return np.eye(3, dtype=bool)[classes] | (np.random.default_rng(seed).random((len(classes), 3)) < 0.2)


@pytest.fixture(scope='module')
def single():
    vectors, classes, images = make_items(60)
    return probe(
        vectors, classes, method=METHODS, folds=2, seeds=(0, 1), images=images, class_names=NAMES, options=QUICK
    )


@pytest.fixture(scope='module')
def multi():
    vectors, classes, images = make_items(60)
    labels = np.c_[several(classes), np.zeros(60, bool)]
    names = [*NAMES, 'glacier']
    return probe(
        vectors, labels, method=METHODS, folds=2, seeds=(0, 1), images=images, class_names=names, options=QUICK
    )


@pytest.mark.parametrize('kind', ['single', 'multi'])
def test_scores_are_scikit_learns(kind):
    rng = np.random.default_rng(3)
    if kind == 'single':
        truth, decided = (np.eye(4, dtype=bool)[rng.integers(0, 4, 50)] for _ in range(2))
    else:
        truth, decided = rng.random((2, 50, 4)) < 0.4
    counts = Counts.of(truth, decided, multi_label=kind == 'multi')
    found, classes = counts.values(), counts.per_class()
    for beta in (1, 2):
        for average in ('micro', 'macro'):
            expected = metrics.fbeta_score(truth, decided, beta=beta, average=average, zero_division=0)
            assert found[f'f{beta}_{average}'] == pytest.approx(expected)
    for name, score in {'precision': metrics.precision_score, 'recall': metrics.recall_score}.items():
        for average in ('micro', 'macro'):
            assert found[f'{name}_{average}'] == pytest.approx(score(truth, decided, average=average, zero_division=0))
        np.testing.assert_allclose(classes[name], score(truth, decided, average=None, zero_division=0))
    assert found['hamming_loss'] == pytest.approx(metrics.hamming_loss(truth, decided))
    assert found['accuracy'] == pytest.approx(metrics.accuracy_score(truth, decided))
    np.testing.assert_array_equal(counts.confusion, metrics.multilabel_confusion_matrix(truth, decided))
    if kind == 'single':
        expected = metrics.confusion_matrix(truth.argmax(1), decided.argmax(1), labels=range(4))
        np.testing.assert_array_equal(counts.matrix, expected)


@pytest.mark.parametrize('kind', ['single', 'multi'])
def test_linear_and_logistic_probes_and_knn_are_scikit_learns(kind):
    vectors, classes, _ = make_items(120, dimensions=9)
    vectors = vectors * np.float32(50) + np.float32(1000)
    labels = read_labels(classes if kind == 'single' else several(classes), 120)
    train, test = np.arange(80), np.arange(80, 120)
    scaler = preprocessing.StandardScaler().fit(vectors[train])
    inside, outside = scaler.transform(vectors[train]), scaler.transform(vectors[test])
    targets = labels.indices[train] if kind == 'single' else labels.presence[train].astype(int)
    peers = {
        'linear': linear_model.RidgeClassifier(alpha=0.5 * 9),
        'knn': neighbors.KNeighborsClassifier(5, metric='cosine'),
    }
    if kind == 'single':
        peers['logistic'] = linear_model.LogisticRegression(C=0.3)
    for method, peer in peers.items():
        peer.fit(inside, targets)
        expected = (
            peer.decision_function(outside) > 0 if (kind, method) == ('multi', 'linear') else peer.predict(outside)
        )
        task = Task(vectors, labels, train, test, 0, ProbeOptions(ridge=0.5, c=0.3))
        decided = predict(method, task)
        if kind == 'single':
            assert (decided.argmax(1) == expected).mean() >= 0.97, method
        else:
            assert (decided == expected.astype(bool)).mean() >= 0.99, method
    if kind == 'multi':
        decided = predict('logistic', Task(vectors, labels, train, test, 0, ProbeOptions(c=0.3)))
        for index in range(3):
            peer = linear_model.LogisticRegression(C=0.3).fit(inside, targets[:, index])
            assert (decided[:, index] == peer.predict(outside)).mean() >= 0.97


@pytest.mark.parametrize('method', METHODS)
def test_every_method_learns_and_repeats_itself(method):
    vectors, classes, _ = make_items()
    for labels in (classes, several(classes)):
        known = read_labels(labels, len(vectors))
        options = ProbeOptions(trees=10, epochs=20, lr=1e-2, hidden=(16,))
        task = Task(vectors, known, np.arange(60), np.arange(60, 90), 5, options)
        decided = predict(method, task)
        assert (decided == known.presence[60:]).mean() > (0.65 if known.multi_label else 0.8)
        np.testing.assert_array_equal(decided, predict(method, task))


@pytest.mark.parametrize('method', METHODS)
def test_what_is_tested_changes_nothing_of_the_training(method):
    """Scaling too is fitted to the training items alone."""
    vectors, classes, _ = make_items()
    labels, train, test = read_labels(classes, 90), np.arange(60), np.arange(60, 90)
    expected = predict(method, Task(vectors, labels, train, test, 0, QUICK))
    changed = vectors.copy()
    changed[60:75] = 1e6
    found = predict(method, Task(changed, labels, train, test, 0, QUICK))
    np.testing.assert_array_equal(found[15:], expected[15:])


def test_a_dimension_that_does_not_vary_is_no_division_by_zero():
    vectors = np.full((5, 2), 0.1, np.float32)
    vectors[:, 1] = np.arange(5)
    scaled = Scaling.fit(vectors, np.arange(5)).apply(vectors)
    assert (scaled[:, 0] == 0).all()
    assert scaled[:, 1].std() == pytest.approx(1)


@settings(max_examples=25)
@given(
    places=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=12, max_size=60),
    folds=st.integers(2, 4),
    seed=st.integers(0, 3),
)
def test_no_place_and_no_group_is_in_two_folds(places, folds, seed):
    positions = np.array(places, float) * 10 + 500_000
    labels = read_labels(np.arange(len(places)) % 2, len(places))
    blocks = np.floor((positions - positions.min(0)) / 30)
    for groups in (None, [f'{row:g} {column:g}' for row, column in blocks]):
        place = {'groups': groups} if groups else {'positions': positions, 'block_size': 30}
        if len(np.unique(blocks, axis=0)) < folds:
            with pytest.raises(ValueError, match='too few for folds|at one place'):
                plan_folds(labels, folds=folds, **place)
            continue
        number = plan_folds(labels, folds=folds, **place).divide(seed).number
        assert set(number.tolist()) == set(range(folds))
        for block in np.unique(blocks, axis=0):
            assert len(set(number[(blocks == block).all(axis=1)].tolist())) == 1


@pytest.mark.parametrize('seed', range(3))
def test_folds_see_the_classes_in_equal_shares(seed):
    rng = np.random.default_rng(seed)
    labels = read_labels(rng.integers(0, 4, 50) ** 2, 50)
    number = plan_folds(labels, folds=4).divide(seed).number
    held = np.stack([labels.presence[number == fold].sum(0) for fold in range(4)])
    assert np.ptp(held, axis=0).max() <= 1
    assert np.ptp(np.bincount(number)) <= 1
    rows = rng.random((50, 4)) < [0.1, 0.2, 0.3, 0.6]
    number = plan_folds(read_labels(rows, 50), folds=4).divide(seed).number
    for present in rows.T:
        held = np.bincount(number[present], minlength=4)
        assert held.min() >= 1 or present.sum() < 4


def test_blocks_without_a_size_are_four_places_wide():
    positions = np.stack(np.meshgrid(np.arange(8) * 120.0, np.arange(8) * 120.0), -1).reshape(-1, 2)
    plan = plan_folds(read_labels(np.arange(64) % 2, 64), folds=2, positions=np.tile(positions, 1))
    assert '480 map units' in plan.divide(0).text
    assert len(np.unique(plan.groups)) == 4


def test_folds_that_are_given_are_used_and_training_items_are_never_tested():
    vectors, classes, _ = make_items(60)
    given_folds = np.where(np.arange(60) < 40, -1, 0)
    result = probe(vectors, classes, method='linear', folds=given_folds)
    assert result.score('linear').counts[0].items == 20
    assert 'other items trained on alone' in result.folds


def test_many_items_are_tested_once_for_each_seed(monkeypatch):
    monkeypatch.setattr(run, 'LARGE', 50)
    vectors, classes, _ = make_items(60)
    result = probe(vectors, classes, method='linear')
    assert [counts.items for counts in result.score('linear').counts] == [12, 12, 12]
    assert '1 of 5 parts tested for each seed' in result.folds


def test_baselines_stand_beside_every_score(single, multi):
    for result in (single, multi):
        assert result.features == ('embeddings', 'band statistics', 'random convolutions')
        assert len(result.table()) == 3 * len(METHODS)
        assert not [note for note in result.notes if 'baselines' in note]
    assert single.score('linear', features='band statistics').mean('f1_macro') > 0.6
    assert single.score('logistic', features='random convolutions').mean('f1_macro') > 0.8


def test_without_images_the_result_says_that_baselines_are_absent(caplog):
    vectors, classes, _ = make_items()
    result = probe(vectors, classes, method='linear')
    assert not result.has_baselines
    assert 'baselines are absent' in caplog.text
    for text in (result.to_markdown(), repr(result), result._repr_html_()):
        assert 'baselines are absent' in text
        assert 'pass images=' in text


def test_images_are_read_again_where_items_are_named_after_them(tmp_path, save):
    vectors, classes, images = make_items(12)
    paths = [save(tmp_path / f'{index}.tif', image) for index, image in enumerate(images)]
    embeddings = Embeddings(vectors, EmbeddingSource('none'), tuple(map(str, paths)))
    read = probe(embeddings, classes, method='linear', folds=2, seeds=[0])
    passed = probe(vectors, classes, method='linear', folds=2, seeds=[0], images=images)
    assert read.table().equals(passed.table())
    assert read.has_baselines


def test_a_class_without_a_test_item_has_no_score(multi):
    assert multi.class_table('mlp').loc['glacier', ['f1', 'f2', 'precision', 'recall']].isna().all()
    row = next(line for line in multi.class_markdown('mlp').splitlines() if 'glacier' in line)
    assert row == f'| glacier | 0 |{3 * f" {UNDEFINED} |"}'
    assert 'no item has the class glacier' in multi.to_markdown()
    assert np.isfinite(multi.score('mlp').mean('f1_macro'))


def test_tables_hold_means_spreads_and_what_others_published(multi):
    entry = PublishedScore('mlp', 'f2_macro', 0.345, 'a paper')
    result = multi.with_published([entry])
    table = result.table()
    values = multi.score('mlp').values['f2_macro']
    row = table.loc[('embeddings', 'mlp')]
    assert row['f2_macro'] == pytest.approx(values.mean())
    assert row['f2_macro_std'] == pytest.approx(values.std(ddof=1))
    assert row['f2_macro_published'] == 0.345
    assert np.isnan(table.loc[('band statistics', 'mlp'), 'f2_macro_published'])
    text = result.to_markdown()
    assert 'F2 macro, published' in text
    assert 'Published, not computed here: a paper.' in text
    assert 'published' not in multi.to_markdown()


def test_one_seed_has_no_spread():
    vectors, classes, _ = make_items()
    result = probe(vectors, classes, method='linear', seeds=[7])
    assert '±' not in result.to_markdown().partition('\n\n')[0]
    assert np.isnan(result.score('linear').std('f1_macro'))


def test_classes_that_occur_together_are_counted(multi):
    labels = several(make_items(60)[1])
    expected = labels.T.astype(int) @ labels
    np.testing.assert_array_equal(multi.cooccurrence_table().to_numpy()[:3, :3], expected)


def test_confusions_count_every_item_once_for_each_seed(single, multi):
    assert single.confusion('mlp').shape == (3, 3)
    assert single.confusion('mlp').sum() == 2 * 60
    assert multi.confusion('mlp').shape == (4, 2, 2)
    assert (multi.confusion('mlp').sum((1, 2)) == 2 * 60).all()


def test_figures_draw_scores_classes_confusions_and_cooccurrence(single, multi):
    published = multi.with_published([PublishedScore('mlp', 'f2_macro', 0.345, 'a paper')])
    axes = published.show_scores('f2_macro').axes[0]
    assert len(axes.patches) == 15
    assert [text.get_text() for text in published.show_scores('f2_macro').legends[0].get_texts()][-1] == 'published'
    assert 'no test item' in {text.get_text() for text in multi.show_classes('mlp').axes[0].texts}
    assert single.show_confusion().axes
    assert multi.show_confusion().axes
    assert multi.show_cooccurrence().axes
    with pytest.raises(ValueError, match='no classes occur together'):
        single.show_cooccurrence()
    with pytest.raises(UnknownNameError, match="did you mean 'f1_macro'"):
        single.show_scores('f1_makro')


def test_items_without_data_are_left_out_and_counted():
    vectors, classes, images = make_items(60)
    vectors[[3, 17]] = np.nan
    result = probe(vectors, classes, method='linear', folds=2, groups=np.arange(60) // 2, images=images)
    assert result.items == 58
    assert any('2 of 60 items were left out' in note for note in result.notes)


def test_items_of_one_class_with_data_are_refused():
    vectors, classes, _ = make_items()
    vectors[classes != 0] = np.nan
    with pytest.raises(ValueError, match="all items have the class '0'; a probe needs two classes at least"):
        probe(vectors, classes)
    with pytest.raises(ValueError, match="all items have the class 'a'; a probe needs two classes at least"):
        probe(make_items()[0], np.zeros(90, int), class_names=['a', 'b'])


@pytest.mark.parametrize('missing', [None, float('nan'), pd.NA, pd.NaT, ' '])
def test_labels_and_groups_that_are_missing_are_no_class_and_no_group(missing):
    vectors = make_items(60)[0]
    texts = ['land', 'sea', missing] * 20
    for labels in (pd.Series(texts, dtype=object), np.array(texts, object), texts):
        with pytest.raises(ValueError, match='leave out items whose class is not known'):
            probe(vectors, labels)
        with pytest.raises(ValueError, match='20 of 60 items have no group'):
            probe(vectors, np.arange(60) % 2, groups=labels)


def test_labels_of_tables_are_whole_numbers_by_value_and_columns_by_name():
    vectors, classes, _ = make_items(60)
    mixed = pd.Series(
        [float(value) if number % 2 else int(value) for number, value in enumerate(classes)], dtype=object
    )
    assert probe(vectors, mixed, method='knn').class_names == ('0', '1', '2')
    table = pd.DataFrame({'land': classes == 0, 'sea': classes != 0})
    assert probe(vectors, table, method='knn').class_names == ('land', 'sea')


def test_tokens_of_a_grid_take_labels_of_its_shape():
    vectors, classes, _ = make_items(60)
    grid = Embeddings(vectors.T.reshape(6, 6, 10), EmbeddingSource('none'))
    found = probe(grid, classes.reshape(6, 10), method='linear')
    assert found.table().equals(probe(vectors, classes, method='linear').table())


def test_a_class_in_one_fold_alone_is_named():
    vectors, classes, _ = make_items(60)
    groups = classes.copy()
    result = probe(vectors, classes, method='linear', folds=3, groups=groups, class_names=NAMES)
    assert any('has no training item in some fold' in note for note in result.notes)


@pytest.mark.parametrize(
    ('labels', 'arguments', 'message'),
    [
        (np.arange(30), {}, 'need as many labels'),
        (np.zeros(60, int), {}, 'two classes at least'),
        (np.full((60, 2), 3), {}, '0 or 1'),
        (np.full(60, 0.5), {}, 'whole numbers or texts'),
        ((np.arange(60) % 3)[:, None], {}, r'pass labels as \(items,\)'),
        (['land', 1] * 30, {}, 'all whole numbers or all texts, got texts and 1'),
        (np.arange(60) % 3, {'class_names': ['a', 'b', 'a']}, 'must differ'),
        (np.arange(60) % 3, {'seeds': 3}, 'got 3'),
        (np.arange(60) % 3, {'seeds': (0, 1.5)}, 'different whole numbers'),
        (np.arange(60) % 3, {'class_names': ['a']}, '3 classes, but 1 class_names'),
        (np.arange(60) % 3, {'folds': 1}, '2 or more'),
        (np.arange(60) % 3, {'groups': np.zeros(60), 'positions': np.zeros((60, 2))}, 'pass one'),
        (np.arange(60) % 3, {'block_size': 3}, 'no effect without positions'),
        (np.arange(60) % 3, {'positions': np.zeros((60, 2))}, 'at one place'),
        (np.arange(60) % 3, {'folds': np.zeros(60, int)}, 'none to train on'),
        (np.arange(60) % 3, {'images': np.zeros((3, 1, 4, 4))}, 'as many images'),
        (np.arange(60) % 3, {'seeds': ()}, 'one at least'),
        (np.arange(60) % 3, {'method': ()}, 'names no classifier'),
        (np.arange(60) % 3, {'method': 'forest'}, "unknown method 'forest'"),
    ],
)
def test_what_does_not_fit_is_refused(labels, arguments, message):
    vectors = make_items(60)[0]
    with pytest.raises(ValueError, match=message):
        probe(vectors, labels, **arguments)


def test_options_that_make_no_sense_are_refused():
    for wrong in ({'neighbors': 0}, {'ridge': 0.0}, {'hidden': (0,)}, {'epochs': 0}, {'lr': -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ProbeOptions(**wrong)
    assert ProbeOptions().hidden == (384, 192, 100)


def test_without_scikit_learn_the_install_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    monkeypatch.setitem(sys.modules, 'sklearn.neighbors', None)
    vectors, classes, _ = make_items()
    with pytest.raises(MissingExtraError, match=r"k nearest neighbors; install it with: pip install 'scikit-learn>="):
        probe(vectors, classes, method='knn')


def test_band_statistics_are_those_of_known_pixels(tmp_path, save):
    image = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    holed = image.copy()
    holed[:, 0, 0] = np.nan
    found = band_statistics([image, holed])
    assert found.shape == (2, 18)
    assert found[0, :2] == pytest.approx([image[0].mean(), image[0].std()])
    assert found[1, 9:11] == pytest.approx([image[1].ravel()[1:].mean(), image[1].ravel()[1:].std()])
    assert found[0, 5] == np.median(image[0])
    path = save(tmp_path / 'holed.tif', np.nan_to_num(holed, nan=-9), nodata=-9)
    np.testing.assert_allclose(band_statistics([path])[0], found[1])


def test_random_convolutions_depend_on_the_seed_alone_and_on_texture():
    rng = np.random.default_rng(0)
    smooth = np.repeat(rng.normal(size=(20, 1, 3, 12)), 4, axis=2)
    images = [*smooth, *smooth.swapaxes(2, 3)]
    found = random_convolutions(images, features=16, seed=4)
    assert found.shape == (40, 16)
    np.testing.assert_array_equal(found, random_convolutions(images, features=16, seed=4))
    assert not np.array_equal(found, random_convolutions(images, features=16, seed=5))
    result = probe(found, np.arange(40) // 20, method='linear')
    assert result.score('linear').mean('accuracy') > 0.9  # means and deviations of both directions are the same
    with pytest.raises(ValueError, match='even number'):
        random_convolutions(images, features=3)
    with pytest.raises(ValueError, match='has 2 bands'):
        random_convolutions([images[0], np.zeros((2, 12, 12))])


@pytest.mark.parametrize('shape', [(2, 2, 5), (2, 1, 1)])
def test_random_convolutions_take_images_smaller_than_a_kernel_that_none_was_cut_from(shape):
    rng = np.random.default_rng(0)
    images = [rng.random((2, 5, 5), np.float32) for _ in range(300)]
    last = np.random.default_rng(0).permutation(300)[-1]  # of 300, the kernels are cut from the first 256 of these
    images[last] = rng.random(shape, np.float32)
    found = random_convolutions(images, features=8)
    assert found.shape == (300, 8)
    assert np.isfinite(found).all()


def test_projections_lay_items_out_and_show_one_class_against_the_rest():
    vectors, classes, _ = make_items(60)
    vectors[5] = np.nan
    for method in ('pca', 'tsne'):
        layout = project(vectors, method)
        assert layout.points.shape == (59, 2)
        assert 5 not in layout.items
        assert len(layout.show(classes, class_names=NAMES).axes[0].collections) == 3
    names = [text.get_text() for text in layout.show(several(classes), highlight='class 1').legends[0].get_texts()]
    assert [name.split(' (')[0] for name in names] == ['all others', 'class 1']
    with pytest.raises(ValueError, match="highlight='class 0'"):
        layout.show(several(classes))
    with pytest.raises(UnknownNameError, match='unknown class'):
        layout.show(classes, class_names=NAMES, highlight='wood')
    assert len(project(vectors, limit=20).items) == 20


def test_the_function_is_not_hidden_by_its_package():
    assert 'geolearn.probe' in sys.modules
    assert geolearn.probe is probe


def test_scores_of_probes_and_of_trainings_differ_where_their_docstrings_say():
    rng = np.random.default_rng(0)
    truth, decided = rng.random((2, 60, 4)) < 0.4

    def both():
        scores = MultiLabelScores(4)
        scores.add(torch.from_numpy(np.where(decided, 2.0, -2.0)), torch.from_numpy(truth.astype(float)))
        return Counts.of(truth, decided, multi_label=True).values(), scores.values()

    names = ('f1_micro', 'f1_macro', 'f2_micro', 'f2_macro', 'hamming_loss')
    of_probe, of_training = both()
    assert [of_probe[name] for name in names] == pytest.approx([of_training[name] for name in names])
    truth[:, 3] = False  # predicted without ever being there
    of_probe, of_training = both()
    assert of_training['f1_macro'] == pytest.approx(3 / 4 * of_probe['f1_macro'])
    assert of_training['f1_micro'] == pytest.approx(of_probe['f1_micro'])
