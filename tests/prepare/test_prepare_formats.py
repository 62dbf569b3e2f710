"""Every format through prepare_data: what is found, what batches hold and how they are drawn."""

import io

import numpy as np
import pytest
import torch

from geolearn.chips.formats import FORMATS
from geolearn.chips.formats.published import PUBLISHED
from geolearn.chips.label import Task
from geolearn.classes import IGNORE_INDEX
from geolearn.errors import ChipFolderError
from geolearn.prepare import prepare_data

TASKS = {
    'Classified_Tiles': Task.PIXELS,
    'ChangeDetection': Task.CHANGE,
    'PASCAL_VOC_rectangles': Task.OBJECTS,
    'KITTI_rectangles': Task.OBJECTS,
    'RCNN_Masks': Task.INSTANCES,
    'Labeled_Tiles': Task.LABEL,
    'MultiLabeled_Tiles': Task.LABELS,
    'Imagenet': Task.LABEL,
    'Export_Tiles': Task.UNLABELLED,
    'Panoptic_Segmentation': Task.PANOPTIC,
    'COCO_rectangles': Task.OBJECTS,
    'YOLO_rectangles': Task.OBJECTS,
    'BigEarthNet': Task.LABELS,
}
ORIENTED = ('DOTA', 'YOLO_OBB', 'COCO_OBB')
BOXES = [kind for kind, task in TASKS.items() if task in (Task.OBJECTS, Task.INSTANCES)]
PLAIN = {'chip_size': 32, 'batch_size': 2, 'val_split_pct': 0.34, 'transforms': False}


@pytest.fixture
def prepare(write_folder, tmp_path):
    def make(kind, **options):
        return prepare_data(write_folder(tmp_path / 'export', kind), **(PLAIN | options))

    return make


def validation(data):
    """Position in the folder, and item, of each validation chip."""
    return list(zip(data.split.valid, (data.valid_ds[i] for i in range(len(data.valid_ds)))))


def test_every_format_is_here():
    assert set(TASKS) == set(FORMATS) - {
        'BigEarthNet-43',
        'MultiTemporal_Tiles',
        *ORIENTED,
        *PUBLISHED,
    }


@pytest.mark.parametrize('kind', TASKS)
def test_a_folder_becomes_batches_of_its_task(prepare, kind, tmp_path):
    data = prepare(kind)
    assert (data.task, data.dataset_type, data.dtype) == (TASKS[kind], kind, 'uint16')
    assert data.path == tmp_path / 'export'
    side, dates = data.chip_size, (2,) if kind == 'ChangeDetection' else ()
    batches = list(data.train_dl.batches())
    assert [len(batch.images) for batch in batches] == [2] * (len(data.train_ds) // 2)
    for batch in batches:
        assert batch.images.shape == (2, *dates, len(data.bands), side, side)
        assert batch.images.dtype == torch.float32
        held = batch.masks is not None, batch.objects is not None, batch.labels is not None
        assert (
            held
            == {
                Task.PIXELS: (True, False, False),
                Task.CHANGE: (True, False, False),
                Task.OBJECTS: (False, True, False),
                Task.INSTANCES: (False, True, False),
                Task.PANOPTIC: (True, True, False),
                Task.LABEL: (False, False, True),
                Task.LABELS: (False, False, True),
                Task.UNLABELLED: (False, False, False),
            }[TASKS[kind]]
        )
        if batch.masks is not None:
            assert (batch.masks.shape, batch.masks.dtype) == ((2, side, side), torch.int64)
            assert set(batch.masks.unique().tolist()) <= {*range(data.c), IGNORE_INDEX}
        for objects in batch.objects or ():
            assert (objects.boxes.dtype, objects.labels.dtype) == (torch.float32, torch.int64)
            assert objects.boxes.shape == (len(objects.labels), 4)
            assert ((objects.labels >= 0) & (objects.labels < data.c)).all()
            assert (objects.masks is None) == (TASKS[kind] == Task.OBJECTS)
    assert [len(tuple(items)) for items in data.train_dl] == [1 + sum(held)] * len(batches)


@pytest.mark.parametrize('kind', TASKS)
def test_a_folder_is_described_counted_and_drawn(prepare, kind):
    data = prepare(kind, transforms=None)
    text = repr(data)
    assert f'({kind})' in text
    assert all(name in text for name in data.classes)
    table = data.summary()
    assert list(table.index) == data.classes
    assert list(table['value']) == list(data.class_mapping)
    unit = 'pixels' if data.task in (Task.PIXELS, Task.CHANGE, Task.PANOPTIC) else 'labels'
    assert table[[f'train {unit}', f'valid {unit}']].sum(axis=1).tolist() == [
        data.value_counts[value] for value in data.class_mapping
    ]
    figure = data.show_batch(1, columns=2)
    figure.savefig(io.BytesIO(), dpi=40)  # drawing is when matplotlib warns
    expected = 3 if kind == 'ChangeDetection' else 2
    assert len(figure.axes) == expected


@pytest.mark.parametrize('kind', ['Classified_Tiles', 'Panoptic_Segmentation'])
def test_class_values_become_indices(prepare, fields, kind):
    data = prepare(kind)
    assert data.class_mapping == {0: 'NoData'} | fields.NAMES
    for position, (image, mask, *_) in validation(data):
        label = fields.label(position)
        assert (np.array([0, fields.HOUSE, fields.POND])[mask.numpy()] == label).all()
        assert (image.numpy() == fields.image(position)).all()


@pytest.mark.parametrize('kind', BOXES)
def test_boxes_are_in_pixels_and_labels_are_indices(prepare, fields, kind):
    data = prepare(kind)
    assert data.classes == list(fields.NAMES.values())
    order = [fields.HOUSE, fields.POND]
    for position, (_, objects) in validation(data):
        truth = fields.boxes(position)
        found = {order[label]: box for label, box in zip(objects.labels.tolist(), objects.boxes.tolist())}
        assert found.keys() == truth.keys()
        for value, box in truth.items():
            assert found[value] == pytest.approx(box, abs=1e-4)


def test_outlines_are_masks(prepare, fields):
    for position, (_, objects) in validation(prepare('RCNN_Masks')):
        truth = list(fields.masks(position).values())
        assert objects.masks.dtype == torch.bool
        assert (objects.masks.numpy() == np.stack(truth)).all()


def test_panoptic_objects_are_of_countable_classes_and_of_the_same_indices_as_the_pixels(prepare, fields):
    data = prepare('Panoptic_Segmentation')
    for position, (_, mask, objects) in validation(data):
        assert [data.class_infos[label].value for label in objects.labels.tolist()] == [fields.HOUSE]
        (outline,) = objects.masks
        assert (outline.numpy() == fields.masks(position)[fields.HOUSE]).all()
        assert mask[outline].unique().tolist() == objects.labels.tolist()


def test_a_crop_moves_boxes_and_cuts_masks_alike(prepare, fields):
    data = prepare('RCNN_Masks', chip_size=24)
    for position, (image, objects) in validation(data):
        assert (image.numpy() == fields.image(position)[:, 4:28, 4:28]).all()
        for box, mask in zip(objects.boxes.tolist(), objects.masks.numpy()):
            rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert box == [cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]


def test_one_class_a_chip_is_an_index(prepare, fields):
    data = prepare('Labeled_Tiles')
    for position, (_, label) in validation(data):
        assert (label.dtype, label.shape) == (torch.int64, ())
        assert data.class_infos[int(label)].value == (fields.HOUSE if position % 2 else fields.POND)


def test_any_number_of_classes_is_one_of_two_numbers_each(prepare, fields):
    data = prepare('MultiLabeled_Tiles')
    for position, (_, label) in validation(data):
        assert label.dtype == torch.float32
        assert label.tolist() == [float(value in fields.boxes(position)) for value in data.class_mapping]


def test_chips_of_an_ignored_class_are_left_out_and_told(write_folder, tmp_path):
    folder = write_folder(tmp_path / 'e', 'Labeled_Tiles', 9)
    with pytest.raises(ChipFolderError, match='at least two classes are needed to tell apart, found 1: pond'):
        prepare_data(folder, **PLAIN, ignore_classes=['Häuser am See'])
    text = (folder / 'labels' / '000000000.xml').read_text().replace('7', '9')
    for index in (0, 3, 6):
        (folder / 'labels' / f'{index:09d}.xml').write_text(text)
    emd = folder / 'esri_model_definition.emd'
    emd.write_text(emd.read_text().replace('"Classes": [', '"Classes": [{"Value": 9, "Name": "rock"}, '))
    data = prepare_data(folder, **PLAIN, ignore_classes=['rock'])
    assert '3 chips of ignored classes were left out' in data.notes
    assert not {0, 3, 6} & {*data.split.train, *data.split.valid}


# --- change detection


def test_a_pair_of_dates_is_one_chip(prepare, fields):
    data = prepare('ChangeDetection')
    assert data.class_mapping == {0: 'NoChange', 255: 'Change'}
    for position, (image, mask) in validation(data):
        assert image.shape == (2, 4, 32, 32)
        assert (image[1].numpy() == fields.image(position)).all()
        pond = fields.label(position) == fields.POND
        assert (mask.numpy() == pond).all()
        assert (image[0] != image[1]).any(dim=0).numpy()[pond].all()
        assert (image[0] == image[1]).numpy()[:, ~pond].all()


@pytest.mark.parametrize('listed', [[], [{'Value': 1, 'Name': 'Change'}], [{'Value': 4, 'Name': 'felled'}]])
def test_whatever_is_not_zero_is_change_where_no_more_classes_are_listed(write_folder, save, tmp_path, listed):
    folder = write_folder(tmp_path / 'e', 'ChangeDetection')
    for path in sorted((folder / 'labels').iterdir()):
        save(path, np.arange(1024, dtype=np.uint8).reshape(32, 32) % 5)
    emd = folder / 'esri_model_definition.emd'
    text = emd.read_text()
    start, end = text.index('"Classes": '), text.index(']}]') + 3
    emd.write_text(f'{text[:start]}"Classes": {str(listed).replace(chr(39), chr(34))}{text[end:]}')
    data = prepare_data(folder, **PLAIN)
    assert data.classes == ['NoChange', listed[0]['Name'] if listed else 'Change']
    _, mask = data.valid_ds[0]
    assert (mask.numpy().ravel() == (np.arange(1024) % 256 % 5 > 0)).all()


def test_a_row_of_the_figure_is_a_pair(prepare):
    assert len(prepare('ChangeDetection').show_batch(2, columns=3).axes) == 2 * 3


@pytest.mark.parametrize('size', [{'rows': 0}, {'columns': 0}])
def test_a_figure_has_a_row_and_a_column(prepare, size):
    with pytest.raises(ValueError, match='rows and columns must be at least 1'):
        prepare('Classified_Tiles').show_batch(**size)


# --- several folders


@pytest.mark.parametrize('kind', TASKS)
def test_folders_are_merged_and_named(write_folder, tmp_path, kind):
    folders = [write_folder(tmp_path / name, kind, 3) for name in ('Übung 1', 'two [x]')]
    data = prepare_data(folders, **PLAIN)
    one = prepare_data(folders[0], **PLAIN)
    assert "prepare_data(['Übung 1', 'two [x]'], " in data.source, 'a report names them all'
    assert one.source == ''
    assert len(data.table) == 2 * len(one.table)
    assert {name.split('/')[0] for name in data.table.names} == {'Übung 1', 'two [x]'}
    assert data.statistics.mean == pytest.approx(one.statistics.mean)
    assert data.statistics.std == pytest.approx(one.statistics.std)
    assert data.value_counts == {value: 2 * count for value, count in one.value_counts.items()}


def test_folders_of_different_tasks_are_refused(write_folder, tmp_path):
    folders = [write_folder(tmp_path / kind, kind) for kind in ('Classified_Tiles', 'Labeled_Tiles')]
    with pytest.raises(ChipFolderError, match='is of type Classified_Tiles but .*Labeled_Tiles.*; folders must'):
        prepare_data(folders)


def test_a_folder_without_emd_does_not_blame_one(prepare):
    assert prepare('COCO_rectangles').notes[-1] == 'statistics counted from the chips'


@pytest.mark.parametrize('kind', TASKS)
def test_a_folder_is_never_written_to(write_folder, tmp_path, kind):
    folder = write_folder(tmp_path / 'e', kind, 3)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    data = prepare_data(folder, **PLAIN)
    next(iter(data.train_dl))
    data.show_batch()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob('*')} == before
