"""Chips from memory: arrays, a torch Dataset and windows of rasters give what a folder of the same chips gives."""

import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from geolearn.chips.export import export_training_data
from geolearn.chips.label import Task
from geolearn.errors import ArgumentError, ChipFolderError, RasterError
from geolearn.prepare import prepare_data
from geolearn.raster_windows import from_rasters
from geolearn.sources import from_arrays, from_dataset

NAMES = ['blue', 'green', 'red']
BOX = np.array([[2, 2, 9, 9.0]])


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(1, 3000, (12, 3, 32, 32)).astype(np.uint16)


def pixels_of(data):
    batches = [*data.train_dl, *data.valid_dl]
    found = [(image.numpy(), mask.numpy()) for images, masks in batches for image, mask in zip(images, masks)]
    return sorted((image.tobytes(), mask.tobytes()) for image, mask in found)


def test_arrays_are_what_a_folder_of_them_is(images, tmp_path, write_export, monkeypatch):
    monkeypatch.chdir(tmp_path)
    masks = (images[:, 0] > 1500).astype(np.uint8) + 1
    folder = write_export(tmp_path / 'chips', list(images), list(masks), image_profile={'nodata': 7})
    options = {'chip_size': 32, 'batch_size': 4, 'val_split_pct': 0.25, 'transforms': False}
    wanted = prepare_data(folder, **options)
    before = set(tmp_path.rglob('*'))
    data = from_arrays(images, masks, bands=NAMES, nodata=7, **options)
    assert set(tmp_path.rglob('*')) == before, 'nothing is written'
    assert data.task == Task.PIXELS
    assert [band.name for band in data.bands] == NAMES
    assert [info.value for info in data.class_infos] == [1, 2]
    assert pixels_of(data) == pixels_of(wanted)
    assert data.statistics.mean == pytest.approx(wanted.statistics.mean, rel=1e-3)  # the .emd counts NoData


def test_what_is_not_labelled_and_not_a_number_takes_no_part(images):
    masks = (images[:, 0] > 1500).astype(np.int16)
    masks[:, :4] = -1
    floats = images.astype(np.float32)
    floats[:, :, 28:] = np.nan
    data = from_arrays(
        floats, masks, bands=NAMES, unlabelled=[-1], class_mapping={0: 'low', 1: 'high'}, batch_size=4, transforms=False
    )
    assert [info.name for info in data.class_infos] == ['low', 'high']
    for batch, truth in data.train_dl:
        assert batch[:, :, 28:].isnan().all()
        assert (truth[:, :4] == 255).all()
        assert set(truth[:, 4:28].unique().tolist()) == {0, 1}


@pytest.mark.parametrize(
    ('make', 'task'),
    [
        (lambda images: images[:, 0].astype(np.float32), Task.REGRESSION),
        (lambda images: np.arange(len(images)) % 2 + 3, Task.LABEL),
        (lambda images: np.arange(2 * len(images)).reshape(-1, 2) % 3 > 0, Task.LABELS),
        (lambda images: [(BOX, np.array([5])) for _ in images], Task.OBJECTS),
        (
            lambda images: [(np.array([[2, 2, 9, 9.0]]), np.array([5]), image[:1] > 99) for image in images],
            Task.INSTANCES,
        ),
        (lambda images: None, Task.UNLABELLED),
    ],
    ids=['values', 'class', 'classes', 'boxes', 'outlines', 'none'],
)
def test_every_kind_of_label(images, make, task):
    data = from_arrays(images, make(images), bands=NAMES, batch_size=4, val_split_pct=0.25)
    assert data.task == task
    assert len(data.train_ds) == 9
    batch = next(iter(data.train_dl))
    assert batch[0].shape == (4, 3, 32, 32)
    if task == Task.LABEL:
        assert [info.value for info in data.class_infos] == [3, 4]


def test_classes_have_usual_colors_and_wrong_names_of_arguments_are_answered(images):
    data = from_arrays(images, np.arange(12) % 2, bands=NAMES, class_mapping={0: 'Water', 1: 'Land'}, batch_size=4)
    red, _, blue = data.class_infos[0].color
    assert blue > red + 50
    for make in (from_arrays, from_dataset, from_rasters):
        with pytest.raises(ArgumentError, match='no argument'):
            make(images, np.arange(12), classes={0: 'Water'})


def test_a_dataset_of_torch_or_torchgeo(images):
    masks = (images[:, 0] > 1500).astype(np.uint8)
    wanted = from_arrays(images, masks, bands=NAMES, batch_size=4, transforms=False)
    tensors = [torch.from_numpy(image.astype(np.int32)) for image in images]
    pairs = list(zip(tensors, map(torch.from_numpy, masks)))
    named = [{'image': image, 'mask': mask} for image, mask in pairs]
    for dataset in (pairs, named):
        data = from_dataset(dataset, bands=NAMES, batch_size=4, transforms=False)
        assert pixels_of(data) == pixels_of(wanted)


def test_windows_of_rasters(scene_files, tmp_path, monkeypatch):
    data = from_rasters(
        *scene_files, chip_size=32, batch_size=4, val_split_pct=0.25, working_dir=tmp_path, transforms=False
    )
    assert list(tmp_path.iterdir()) == []
    assert data.task == Task.PIXELS
    assert len(data.bands) == 10
    with rasterio.open(scene_files[0]) as src, rasterio.open(scene_files[1]) as truth:
        whole, labels = src.read(), truth.read(1)
        names = [band for band in src.descriptions if band]
    assert names == [] or [band.name for band in data.bands] == names
    for dataset in (data.train_ds, data.valid_ds):
        for name, (image, mask) in zip(dataset.names, dataset, strict=True):
            row, col = map(int, re.fullmatch(r'r(\d+)_c(\d+)', name).groups())
            part = np.s_[row : row + 32, col : col + 32]
            valid = ~image.isnan().numpy()
            assert (image.numpy()[valid] == whole[(slice(None), *part)][valid]).all()
            known = mask.numpy() != 255
            values = np.array([info.value for info in data.class_infos])
            assert (values[mask.numpy()[known]] == labels[part][known]).all()
    assert not set(data.train_ds.names) & set(data.valid_ds.names)


def test_a_scene_of_band_files_of_which_some_are_taken(save, tmp_path):
    rng = np.random.default_rng(3)
    place = {'transform': Affine(10, 0, 5e5, 0, -10, 5e6), 'crs': 'EPSG:32633'}
    planes = {name: rng.integers(1, 3000, (32, 32)).astype(np.uint16) for name in ('B02', 'B03', 'B04', 'B08')}
    files = [save(tmp_path / f'T33UUP_20220601T100559_{name}.tif', plane, **place) for name, plane in planes.items()]
    truth = save(tmp_path / 'labels.tif', rng.choice([0.0, 1.0, 3.0], (32, 32)).astype(np.float32), **place)
    options = {
        'chip_size': 16,
        'batch_size': 2,
        'transforms': False,
        'split': 'random',
        'extract_bands': ['B08', 'B02'],
    }
    data = from_rasters(files, truth, target='classes', **options)
    assert [info.value for info in data.class_infos] == [0, 1, 3]
    assert [band.name for band in data.bands] == ['B08', 'B02']
    assert [band.wavelength_um for band in data.bands] == pytest.approx([0.842, 0.49], abs=0.01)
    assert data.cell_size['x'] == 10
    for name, (image, _) in zip(data.train_ds.names, data.train_ds):
        row, col = map(int, re.fullmatch(r'r(\d+)_c(\d+)', name).groups())
        part = np.s_[row : row + 16, col : col + 16]
        assert (image.numpy() == np.stack([planes['B08'][part], planes['B02'][part]])).all()
    assert from_rasters(files, truth, **options).task == Task.REGRESSION


def test_polygons_label_windows_as_they_label_chips(save, tmp_path):
    geopandas, shapely = pytest.importorskip('geopandas'), pytest.importorskip('shapely')
    place = {'transform': Affine(10, 0, 5e5, 0, -10, 5e6), 'crs': 'EPSG:32633'}
    image = save(tmp_path / 'i.tif', np.random.default_rng(0).integers(1, 250, (3, 64, 64)).astype(np.uint8), **place)
    boxes = [shapely.box(5e5 + 20, 5e6 - 300, 5e5 + 500, 5e6 - 20), shapely.box(5e5 + 350, 5e6 - 400, 5e5 + 600, 5e6)]
    frame = geopandas.GeoDataFrame({'kind': ['wood', 'lake']}, geometry=boxes, crs='EPSG:32633')
    far = frame.to_crs('EPSG:4326')
    far.to_file(tmp_path / 'l.gpkg')
    options = {'chip_size': 32, 'batch_size': 2, 'transforms': False, 'val_split_pct': 0.5, 'split': 'random'}
    out = export_training_data(image, frame, tmp_path / 'chips', tile_size=32, class_value_field='kind')
    wanted = prepare_data(out, **options)
    data = from_rasters(image, tmp_path / 'l.gpkg', class_value_field='kind', **options)
    assert [(info.value, info.name) for info in data.class_infos] == [(0, 'NoData'), (1, 'lake'), (2, 'wood')]
    assert data.value_counts == wanted.value_counts
    assert sorted(masks for _, masks in pixels_of(data)) == sorted(masks for _, masks in pixels_of(wanted))
    by_class = {'wood': frame[frame['kind'] == 'wood'], 'lake': frame[frame['kind'] == 'lake']}
    assert from_rasters(image, by_class, **options).classes == ['NoData', 'wood', 'lake']
    pairs = from_rasters([image, image], [frame, frame], class_value_field='kind', ignore_classes=[0], **options)
    assert pairs.classes == ['lake', 'wood']
    with pytest.raises(ChipFolderError, match="class 1 is called 'lake' and, in labels 2, 'wood'"):
        from_rasters([image, image], [frame, frame[:1]], class_value_field='kind', **options)
    away = frame.set_geometry(frame.translate(1e5))
    with pytest.raises(ChipFolderError, match='overlap'):
        from_rasters(image, away, class_value_field='kind', **options)
    with pytest.raises(ChipFolderError, match="target='values' needs a raster"):
        from_rasters(image, frame, target='values', **options)
    with pytest.raises(ChipFolderError, match='pass labels_crs='):
        from_rasters(image, far.set_crs(None, allow_override=True), class_value_field='kind', **options)


def test_label_rasters_elsewhere_are_refused(save, tmp_path):
    place = {'transform': Affine(10, 0, 5e5, 0, -10, 5e6), 'crs': 'EPSG:32633'}
    image = save(tmp_path / 'i.tif', np.random.default_rng(0).integers(1, 250, (3, 64, 64)).astype(np.uint8), **place)
    away = {'transform': Affine(10, 0, 7e5, 0, -10, 5e6), 'crs': 'EPSG:32633'}
    truth = save(tmp_path / 'l.tif', np.resize(np.uint8([1, 2]), (64, 64)), **away)
    for labels in (truth, save(tmp_path / 'm.tif', np.resize(np.uint8([1, 2]), (64, 64)), **away, nodata=0)):
        with pytest.raises((ChipFolderError, RasterError), match='overlap'):
            from_rasters(image, labels, chip_size=32, align_labels=True)


def test_what_does_not_fit_is_refused(images, scene_files, save, tmp_path):
    masks = (images[:, 0] > 1500).astype(np.uint8)
    with pytest.raises(ChipFolderError, match='found 12 images and 11 labels; each image needs one'):
        from_arrays(images, masks[:11])
    with pytest.raises(ChipFolderError, match='images hold no chip'):
        from_arrays(images[:0], masks[:0])
    with pytest.raises(ChipFolderError, match='an image must be .bands, height, width., got shape'):
        from_arrays(images[:, 0], masks)
    with pytest.raises(ChipFolderError, match='the label is'):
        from_arrays(images, masks[:, :16], bands=NAMES)
    with pytest.raises(ChipFolderError, match='a label holds values from -1 to 0; class values lie in 0..65535'):
        from_arrays(images, masks.astype(np.int16) - 1, bands=NAMES)
    other = save(tmp_path / 'other.tif', np.ones((128, 128), np.uint8), transform=Affine(3, 0, 0, 0, -3, 0))
    with pytest.raises(ChipFolderError, match='lies on another grid than'):
        from_rasters(scene_files[0], other)


def test_the_examples_of_the_docs_run(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / 'docs' / 'from-memory.md').read_text()
    for code in re.findall(r'```python\n(.*?)```', text, re.DOTALL):
        exec(code, names := locals().setdefault('names', {}))
    assert len(names['data'].train_ds) > 0


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'chip_size': 0}, 'chip_size must be a whole number of at least 1, got 0'),
        ({'chip_size': 1.5}, 'chip_size must be a whole number'),
        ({'chip_size': '16'}, 'chip_size must be a whole number'),
        ({'nodata': '0'}, "nodata is '0'; pass a number"),
        ({'unlabelled': ['a']}, "unlabelled is .'a'.; pass a number"),
        (
            {'class_mapping': {1: 'forêt', 2: ' fore\u0302t '}},
            "1 and 2 are both called 'forêt', and classes are not merged",
        ),
        ({'labels': None}, 'labels are a NoneType; pass a raster, a vector file'),
        ({'labels': np.ones((64, 64))}, 'labels are a ndarray; .*from_arrays takes arrays'),
        ({'labels': 'image.tif'}, 'hold 3 bands; a label raster has one band'),
        ({'labels_crs': 'EPSG:4326', 'layer': 'a'}, 'layer=, labels_crs= is for vector labels, but'),
    ],
)
def test_arguments_that_make_no_sense_for_rasters_are_refused(tmp_path, save, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    save(Path('image.tif'), np.random.default_rng(0).integers(1, 99, (3, 64, 64)).astype(np.uint8))
    save(Path('labels.tif'), np.repeat([[1, 2]], 64, axis=0).repeat(32, axis=1).astype(np.uint8)[None])
    given = {'labels': 'labels.tif', 'chip_size': 16, 'batch_size': 4, 'bands': NAMES} | options
    with pytest.raises(ChipFolderError, match=words):
        from_rasters('image.tif', **given)


def test_labels_that_are_no_class_values_are_refused_as_exports_refuse_them(tmp_path, save):
    image = save(tmp_path / 'image.tif', np.random.default_rng(0).integers(1, 99, (3, 64, 64)).astype(np.uint8))
    values = np.repeat([[1, 2]], 64, axis=0).repeat(32, axis=1).astype(np.int16)
    values[:3] = -1
    labels = save(tmp_path / 'labels.tif', values[None])
    words = r'holds values from -1 to .*pass unlabelled=\[-1\], or declare it as NoData'
    with pytest.raises(ChipFolderError, match=words):
        from_rasters(image, labels, chip_size=16, bands=NAMES)
    with pytest.raises(ChipFolderError, match=words):
        export_training_data(image, labels, tmp_path / 'chips', tile_size=16)
    data = from_rasters(image, labels, chip_size=16, bands=NAMES, unlabelled=[-1])
    lossy = save(tmp_path / 'lossy.tif', np.maximum(values, 0).astype(np.uint8)[None], compress='JPEG')
    with pytest.raises(ChipFolderError, match='has lossy compression'):
        from_rasters(image, lossy, chip_size=16, bands=NAMES)
    assert dict(data.value_counts) == {1: 61 * 32, 2: 61 * 32}


def test_what_changes_nothing_or_is_assumed_is_said(tmp_path, save, caplog):
    image = save(tmp_path / 'image.tif', np.random.default_rng(0).integers(1, 99, (3, 64, 64)).astype(np.uint8))
    labels = save(tmp_path / 'labels.tif', np.repeat([[1, 2]], 64, axis=0).repeat(32, axis=1).astype(np.float32)[None])
    data = from_rasters(image, labels, chip_size=16, bands=NAMES, nodata=0)
    assert data.task == Task.REGRESSION
    words = "labels are float32 rasters, read as a number per pixel; pass target='classes' if they are class values"
    assert words in caplog.text
    assert from_rasters(image, labels, chip_size=16, bands=NAMES, target='classes').task == Task.PIXELS
    with pytest.raises(RasterError, match='a raster must be a path, .* got None'):
        from_rasters(None, labels)


@pytest.mark.parametrize(
    ('label', 'message'),
    [
        (1.5, 'class values are whole numbers, got'),
        ([1, -1, 0], '0 or 1 for each class'),
        ([2, 5, 7], '0 or 1 for each class'),
        ((BOX, [1, 2]), '1 boxes, 2 class values of a chip'),
        ((BOX, [1], np.ones((1, 64, 64))), r'mask of an object is \(64, 64\) pixels'),
    ],
)
def test_labels_that_mean_something_else_are_refused(images, label, message):
    with pytest.raises(ChipFolderError, match=message):
        from_arrays(images[:4], [label] * 4, bands=NAMES)


def test_values_that_are_unlabelled_are_those_of_rasters(images):
    with pytest.raises(ChipFolderError, match='values of label rasters, but the task of these labels is label'):
        from_arrays(images[:4], [0, 1, 2, 1], unlabelled=[0])


def test_unusable_objects_of_arrays_are_left_out_as_those_of_files(images):
    boxes = np.array([[2, 2, 9, 9], [9, 9, 2, 2], [np.nan, 1, 2, 3], [40, 40, 50, 50], [28, 28, 40, 40]])
    data = from_arrays(images[:4], [(boxes, [1] * 5)] * 4, bands=NAMES, transforms=False)
    assert data.train_ds[0][1].boxes.tolist() == [[2, 2, 9, 9], [28, 28, 32, 32]]
    assert any('left out of labels, 4 times: box of no area or inside out' in note for note in data.notes)
    masks = np.zeros((2, 32, 32), bool)
    masks[1, 3:5, 4:8] = True
    outlined = from_arrays(images[:4], [(boxes[:2], [1, 1], masks)] * 4, bands=NAMES, transforms=False)
    assert outlined.train_ds[0][1].boxes.tolist() == [[4, 3, 8, 5]]


def test_items_with_boxes_are_objects(images):
    for boxes, labels in (('boxes', 'labels'), ('bbox_xyxy', 'label')):
        items = [{'image': image, boxes: BOX.repeat(2, 0), labels: np.array([2, 1])} for image in images]
        data = from_dataset(items, bands=NAMES, transforms=False)
        assert data.task == Task.OBJECTS
        assert data.train_ds[0][1].labels.tolist() == [1, 0]
    with pytest.raises(ChipFolderError, match="holds image1, mask, and an image under 'image' is needed"):
        from_dataset([{'image1': images[0], 'mask': images[0, 0]}] * 4)


def test_infinite_pixels_of_arrays_hold_no_data_and_bands_come_first(images):
    floats = images[:4].astype(np.float32)
    floats[:, 0, 3, 3] = np.inf
    data = from_arrays(floats, [0, 1, 0, 1], bands=NAMES, transforms=False)
    assert np.isfinite(data.statistics.mean).all()
    assert all(data.train_ds[index][0][:, 3, 3].isnan().all() for index in range(len(data.train_ds)))
    with pytest.raises(ChipFolderError, match=r'looks like \(height, width, bands\)'):
        from_arrays(images[:4].transpose(0, 2, 3, 1), [0, 1, 0, 1])


def test_missing_pixels_of_bands_that_are_not_used_do_not_count(tmp_path, save):
    pixels = np.random.default_rng(0).integers(1, 900, (4, 32, 32)).astype(np.int16)
    pixels[3, :, :16] = -9999
    save(tmp_path / 'image.tif', pixels, nodata=-9999)
    save(tmp_path / 'labels.tif', np.random.default_rng(1).integers(1, 3, (1, 32, 32)).astype(np.uint8))
    options = {'chip_size': 8, 'split': 'random', 'batch_size': 2}
    for bands, valid in (([0, 1, 2], 1024), (None, 512)):
        data = from_rasters(tmp_path / 'image.tif', tmp_path / 'labels.tif', extract_bands=bands, **options)
        assert sum(data.value_counts.values()) == valid
