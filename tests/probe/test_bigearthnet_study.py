"""Folders in the layout of BigEarthNet: read, embedded and probed by one command."""

import json

import numpy as np
import pytest
from affine import Affine

from geolearn.cli import main
from geolearn.errors import ChipFolderError, UnknownNameError
from geolearn.probe import ProbeOptions, bigearthnet_study, study_bigearthnet
from geolearn.probe.bigearthnet import CLASSES_19, CLASSES_43, TO_19, read_bigearthnet

pytestmark = pytest.mark.usefixtures('one_thread')

LABELS = {
    'water': ['Sea and ocean', 'Port areas'],
    'forest': ['Coniferous forest', 'Sparsely vegetated areas'],
    'fields': ['Non-irrigated arable land', 'Pastures'],
}
QUICK = ProbeOptions(trees=5, epochs=4, hidden=(16,))


@pytest.fixture(scope='module')
def folder(tmp_path_factory, save):
    """24 radar patches of 32 px in the layout of version 1, in places 12 km apart; one of a removed class alone."""
    root = tmp_path_factory.mktemp('BigEarthNet-S1-v1.0')
    rng = np.random.default_rng(0)
    for number in range(25):
        kind = [*LABELS][number % 3]
        x, y = 600_000 + 12_000 * (number // 3), 5_700_000
        name = f'S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{number:02d}_48'
        place = {'transform': Affine(10, 0, x, 0, -10, y), 'crs': 'EPSG:32633'}
        (root / name).mkdir()
        level = {'water': -22, 'forest': -9, 'fields': -14}[kind]
        for band, offset in {'VV': 0, 'VH': -6}.items():
            save(
                root / name / f'{name}_{band}.tif', rng.normal(level + offset, 2, (32, 32)).astype(np.float32), **place
            )
        labels = LABELS[kind] if number < 24 else ['Airports']
        facts = {'labels': labels, 'coordinates': {'ulx': x, 'uly': y}, 'projection': 'EPSG:32633'}
        (root / name / f'{name}_labels_metadata.json').write_text(json.dumps(facts))
    return root


@pytest.fixture(scope='module', autouse=True)
def quick_figures():
    """Dozens of figures take a minute to draw; another test draws each kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('geolearn.plotting.figure.draw_png', lambda figure, *, dpi: b'PNG')
        yield


@pytest.fixture(scope='module')
def study(folder, quick_figures, tmp_path_factory):
    out = tmp_path_factory.mktemp('study')
    arguments = {'backbone': 'dofa_tiny', 'pretrained': False, 'seeds': (0, 1), 'options': QUICK, 'out': out}
    return study_bigearthnet(folder, method=('knn', 'linear'), **arguments), out, arguments


def test_43_classes_become_19_as_published():
    assert len(CLASSES_43) == 43
    assert len(CLASSES_19) == 19
    assert {name for name in TO_19.values() if name} == {*CLASSES_19}
    assert sum(name is None for name in TO_19.values()) == 11
    for name, group in {
        'Rice fields': 'Arable land',
        'Estuaries': 'Marine waters',
        'Salines': 'Coastal wetlands',
        'Pastures': 'Pastures',
        'Transitional woodland/shrub': 'Transitional woodland, shrub',
        'Bare rock': None,
    }.items():
        assert TO_19[name] == group


def test_patches_are_read_with_both_nomenclatures(folder):
    patches = read_bigearthnet(folder)
    assert len(patches) == 25
    assert patches.image(0).shape == (2, 32, 32)
    assert patches.image(0)[0].mean() - patches.image(0)[1].mean() == pytest.approx(6, abs=0.5)
    first = patches.presence(43)[0]
    assert [name for name, present in zip(CLASSES_43, first) if present] == ['Port areas', 'Sea and ocean']
    assert [name for name, present in zip(CLASSES_19, patches.presence(19)[0]) if present] == ['Marine waters']


def test_the_study_probes_both_beside_baselines(study):
    results = study[0].results
    assert [*results] == [19, 43]
    assert [results[count].items for count in (19, 43)] == [24, 25]
    for result in results.values():
        assert result.features == ('embeddings', 'band statistics', 'random convolutions')
        assert 'blocks of land 12 km wide' in result.folds
    assert results[19].score('knn', features='band statistics').mean('f1_micro') > 0.7
    assert any('1 of 25 patches have none of these classes' in note for note in results[19].notes)
    assert not results[19].published  # those are of trained weights


def test_the_study_is_written_as_tables_and_figures_and_keeps_its_embeddings(study, folder, monkeypatch):
    result, out, arguments = study
    names = {path.name for path in out.iterdir() if path.is_file()}
    assert names >= {'study.md', 'scores_19.csv', 'classes_43.csv', 'f2_macro_19.png', 'cooccurrence_43.png'}
    assert '## 43 classes' in (out / 'study.md').read_text()
    monkeypatch.setattr(bigearthnet_study, 'embed', None)  # nothing is embedded again
    again = study_bigearthnet(folder, method='linear', classes=[19], **{**arguments, 'out': out})
    assert again.results[19].table().equals(result.results[19].table().xs('linear', level=1, drop_level=False))


def test_parts_in_lists_are_the_published_split(folder, study, tmp_path):
    names = [path.name for path in sorted(folder.iterdir())]
    lists = {'train': names[:14], 'val': names[14:16], 'test': names[16:]}
    for part, listed in lists.items():
        (folder / f'{part}.csv').write_text('\n'.join(listed))
    try:
        found = study_bigearthnet(folder, method='linear', classes=[19], **study[2]).results[19]
    finally:
        for part in lists:
            (folder / f'{part}.csv').unlink()
    assert found.score('linear').counts[0].items == 8
    assert any('2 patches of the validation part' in note for note in found.notes)


def test_published_scores_stand_beside_those_of_trained_weights(folder, tmp_path):
    from geolearn.probe.bigearthnet_study import PUBLISHED_19

    values = {(entry.method, entry.metric): entry.value for entry in PUBLISHED_19}
    assert values['mlp', 'f2_macro'] == 0.345
    assert values['linear', 'f2_micro'] == 0.353
    assert values['random_forest', 'f2_macro'] == 0.214
    assert {entry.metric for entry in PUBLISHED_19} == {'f2_macro', 'f2_micro'}


def test_one_command_runs_the_study(folder, tmp_path, capsys):
    words = ['study', 'bigearthnet', str(folder), '--out', str(tmp_path), '--backbone', 'dofa_tiny', '--from-scratch']
    main([*words, '--methods', 'linear', '--classes', '19', '--seeds', '0'])
    printed = capsys.readouterr().out
    assert '## 19 classes' in printed
    assert 'random convolutions' in printed
    assert (tmp_path / 'scores_19.csv').is_file()


def test_folders_that_are_no_bigearthnet_are_explained(folder, tmp_path):
    with pytest.raises(ChipFolderError, match=r'no patch of s2 lies in .*NAME_B01.tif'):
        read_bigearthnet(folder, 's2')
    with pytest.raises(UnknownNameError, match='sensor of BigEarthNet'):
        read_bigearthnet(folder, 's3')
    with pytest.raises(ChipFolderError, match='there is no folder'):
        read_bigearthnet(tmp_path / 'absent')


@pytest.mark.real_data
def test_a_real_patch_of_sentinel_2_is_read(shared):
    patches = read_bigearthnet(shared / 'data/bigearthnet/src', 's2')
    assert patches.labels == (('Non-irrigated arable land', 'Pastures'),)
    assert patches.image(0).shape == (12, 120, 120)
    with pytest.raises(ChipFolderError, match='does not name the labels'):
        read_bigearthnet(shared / 'data/bigearthnet/v2', 's1')
