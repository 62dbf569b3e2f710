"""Augmentation, rare classes and weights, as prepare_data offers them."""

import numpy as np
import pytest
import torch

from geolearn.errors import ChipFolderError
from geolearn.prepare import prepare_data

PLAIN = {'chip_size': 32, 'batch_size': 4, 'val_split_pct': 0.25, 'seed': 3}
MASKED = ['Classified_Tiles', 'ChangeDetection']
BOXED = ['PASCAL_VOC_rectangles', 'RCNN_Masks', 'Panoptic_Segmentation']
LABELLED = ['Labeled_Tiles', 'MultiLabeled_Tiles', 'Export_Tiles']


@pytest.fixture
def prepare(write_folder, tmp_path):
    def make(kind, **options):
        folder = tmp_path / kind
        return prepare_data(folder if folder.exists() else write_folder(folder, kind, 12), **(PLAIN | options))

    return make


def images(data):
    return torch.cat([batch.images for batch in data.train_dl.batches()])


@pytest.mark.parametrize('kind', [*MASKED, *BOXED, *LABELLED])
@pytest.mark.parametrize(
    'options', [{'noise': 0.1, 'clouds': 0.9}, {'band_dropout': 0.9}, {'scale_crop': (0.5, 1.5)}, {'gain': 0.5}]
)
def test_options_of_augmentation_change_every_task(prepare, kind, options):
    off = {'dihedral': False, 'gain': 0, 'offset': 0}
    plain, changed = (images(prepare(kind, transforms=off | more)) for more in ({}, options))
    assert plain.shape == changed.shape
    assert not torch.equal(plain.nan_to_num(), changed.nan_to_num())


def test_no_options_are_the_usual_changes(prepare):
    assert torch.equal(images(prepare('Classified_Tiles', transforms={})), images(prepare('Classified_Tiles')))
    assert torch.equal(images(prepare('Classified_Tiles', transforms=True)), images(prepare('Classified_Tiles')))


@pytest.mark.parametrize(
    ('kind', 'option', 'words'),
    [(kind, 'mixup_alpha', 'mixup is not defined for masks.*use cutmix') for kind in MASKED]
    + [
        (kind, option, f'{option[:5]}.* is not defined for objects')
        for kind in BOXED
        for option in ('mixup_alpha', 'cutmix_alpha')
    ],
)
def test_mixing_that_a_task_does_not_know_is_refused_at_once(prepare, kind, option, words):
    with pytest.raises(ChipFolderError, match=rf"transforms=\{{'{option}': 1\.0\}} does not fit: {words}"):
        prepare(kind, transforms={option: 1.0})


@pytest.mark.parametrize(
    ('kind', 'option'),
    [(kind, option) for kind in LABELLED for option in ('mixup_alpha', 'cutmix_alpha')]
    + [(kind, 'cutmix_alpha') for kind in MASKED],
)
def test_mixing_that_a_task_knows_is_done(prepare, kind, option):
    data = prepare(kind, transforms={option: 1.0})
    for batch in data.train_dl.batches():
        if batch.labels is not None:
            assert batch.labels.shape == (len(batch.images), data.c)
            assert batch.labels.dtype == torch.float32


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (
            {'nois': 0.1},
            "transforms has no option 'nois'; there are dihedral, gain, offset, turn, scale_crop, noise, band",
        ),
        ({1: 2}, 'transforms has no option 1; there are'),
        ({'band_std': [1, 2]}, "no option 'band_std'"),
        ('flip', "transforms must be None, False, options .* got 'flip'"),
        (5, 'or a function of a batch and a generator, got 5'),
    ],
)
def test_what_is_no_transform_is_refused_before_chips_are_read(tmp_path, given, words):
    with pytest.raises(TypeError, match=words):
        prepare_data(tmp_path / 'nothing', transforms=given)


@pytest.mark.parametrize('given', [{'noise': -1}, {'noise': 'much'}, {'scale_crop': 3}, {'clouds': 2}, {'gain': 7}])
def test_options_without_sense_are_refused(prepare, given):
    (name,) = given
    with pytest.raises(ChipFolderError, match=rf"transforms=\{{'{name}': .*\}} does not fit: "):
        prepare('Classified_Tiles', transforms=given)


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        ({'num_workers': -1}, 'num_workers must be a whole number of at least 0, got -1'),
        ({'num_workers': 'two'}, "num_workers must be a whole number of at least 0, got 'two'"),
        ({'dataset_type': 5}, "dataset_type must be a name such as 'Classified_Tiles', got 5"),
        ({'ignore_classes': None}, 'ignore_classes is None; pass a list'),
        ({'ignore_classes': [True]}, 'ignore_classes holds True, which neither'),
        ({'class_mapping': {3: ' '}}, "class_mapping is {value: name}.*got 3: ' '"),
        ({'class_mapping': {3: 'wet', 7: 'wet'}}, "values 3 and 7 are both called 'wet', and classes are not merged"),
        ({'valid_path': 5}, 'a chip folder is needed, or a list of them; got 5'),
        ({'test_path': ['']}, "a chip folder is needed, or a list of them; got ''"),
        ({'extract_bands': [1.0]}, r'extract_bands holds 1\.0; a band is chosen by its name or 0-based index'),
        ({'extract_bands': 1}, r'extract_bands is 1; pass a list, such as \[1\]'),
        ({'bands': [1, 2, 3, 4]}, 'bands must be a sensor .* or a name or Band for each band'),
        ({'bands': 4}, 'bands must be a sensor'),
    ],
)
def test_arguments_without_sense_are_refused_by_name(prepare, option, words):
    with pytest.raises(ValueError, match=words):
        prepare('Classified_Tiles', **option)


@pytest.mark.parametrize('path', ['', ' ', None, 5, [None], []])
def test_no_path_is_not_the_current_folder(write_folder, tmp_path, monkeypatch, path):
    monkeypatch.chdir(write_folder(tmp_path / 'e', 'Classified_Tiles'))
    with pytest.raises(ChipFolderError, match='a chip folder is needed|path is an empty list'):
        prepare_data(path)


def test_indexes_of_bands_may_come_from_numpy(prepare):
    data = prepare('Classified_Tiles', extract_bands=np.arange(2))
    assert data.band_indexes == (0, 1)
    assert all(type(index) is int for index in data.band_indexes)


# --- rare classes


def test_weights_follow_rarity_and_average_one(prepare):
    data = prepare('Classified_Tiles')
    counts = data.summary()['train pixels'].to_numpy()
    assert data.class_weights == pytest.approx((1 / counts) / (1 / counts).mean())


@pytest.mark.parametrize('kind', [*MASKED, *BOXED, *LABELLED])
def test_there_is_a_weight_for_each_class(prepare, kind):
    data = prepare(kind)
    assert data.class_weights.shape == (data.c,)


@pytest.mark.parametrize(
    'kind', ['Classified_Tiles', 'PASCAL_VOC_rectangles', 'MultiLabeled_Tiles', 'Panoptic_Segmentation']
)
def test_oversampling_shows_chips_of_rare_classes_more_often(prepare, kind, fields, write_folder, save, tmp_path):
    folder = write_folder(tmp_path / kind, kind, 30)
    for index in range(30):
        if index != 1:  # the only pond
            _drain(folder, index, fields, save)
    shown = []
    for oversample in (False, True):
        data = prepare(kind, oversample=oversample, split={'valid': ['000000000']}, transforms=False)
        orders = [index for _ in range(40) for order in _next_orders(data) for index in order]
        count = len(data.split.train)  # a chip that is shown again has a number higher by so many
        names = [data.table.names[data.split.train[index % count]] for index in orders]
        shown.append(sum(name == '000000001' for name in names) / len(names))
    assert shown[0] < 0.04
    assert shown[1] > 1.4 * shown[0]


def _next_orders(data):
    data.train_dl.epoch += 1
    return data.train_dl._orders(data.train_dl.epoch)


def _drain(folder, index, fields, save):
    """Take the pond off a chip's label."""
    raster = folder / 'labels' / f'{index:09d}.tif'
    text = folder / 'labels' / f'{index:09d}.xml'
    if raster.exists():
        label = fields.label(index)
        save(raster, np.where(label == fields.POND, 0, label).astype(np.uint8))
    if text.exists():
        found = text.read_text()
        start = found.find(f'<object><name>{fields.POND}')
        text.write_text(found if start < 0 else found[:start] + '</annotation>')


def test_rare_class_crops_show_rare_classes_more_often(write_folder, save, tmp_path):
    folder = write_folder(tmp_path / 'e', 'Classified_Tiles', 12)
    label = np.full((32, 32), 3, np.uint8)
    label[30, 30] = 7
    for path in sorted((folder / 'labels').iterdir()):
        save(path, label)
    shares = []
    for rare in (False, True):
        data = prepare_data(folder, **(PLAIN | {'chip_size': 8}), rare_class_crops=rare, transforms=False)
        rows = [mask for _ in range(8) for batch in data.train_dl.batches() for mask in batch.masks]
        shares.append(float(np.mean([bool((mask == data.classes.index('pond')).any()) for mask in rows])))
    assert shares[1] > 0.4 > 0.2 > shares[0]


@pytest.mark.parametrize('kind', ['PASCAL_VOC_rectangles', 'Labeled_Tiles', 'Export_Tiles'])
def test_rare_class_crops_need_a_class_per_pixel(prepare, kind):
    with pytest.raises(ChipFolderError, match='rare_class_crops needs a class for each pixel, but the label type is'):
        prepare(kind, rare_class_crops=True, chip_size=8)


def test_rare_class_crops_need_crops(prepare):
    with pytest.raises(ChipFolderError, match='are not cropped to chip_size=512; pass a smaller chip_size, or oversam'):
        prepare('Classified_Tiles', rare_class_crops=True, chip_size=512)
