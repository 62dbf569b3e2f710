"""Advice in messages works when it is followed: for each piece, a call that says it and the call that follows it.

A case is two functions of a folder: `says` raises or logs the advice, `follows` does what it says, literally. Where the
message holds words to paste, such as ``unlabelled=[-9]``, `follows` may take what was said and pastes them.
"""

import inspect
import logging
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from geolearn import PSPNet, from_arrays, from_rasters, prepare_data
from geolearn.chips.export import export_training_data
from geolearn.classes import ClassInfo
from geolearn.cli import build_parser, main
from geolearn.cli.arguments import read_chips
from geolearn.errors import GeoLearnError
from geolearn.raster import read_image

pytestmark = pytest.mark.usefixtures('one_thread')

geopandas = pytest.importorskip('geopandas')
shapely = pytest.importorskip('shapely')

CRS = 'EPSG:32633'
SIDE = 64


class Case(NamedTuple):
    advice: str
    says: Callable
    follows: Callable


CASES: list[Case] = []


def case(advice):
    """Collect the two functions that the decorated one returns, with a pattern of the advice."""

    def collect(function):
        CASES.append(pytest.param(advice, function, id=function.__name__))
        return function

    return collect


def place(col=0, row=0, pixel=10.0):
    return Affine(pixel, 0, 500_000 + pixel * col, 0, -pixel, 5_400_000 - pixel * row)


class Files:
    """Writes small rasters, layers and chips into a folder; `data` and `model` are prepared once for all cases."""

    def __init__(self, folder, save, shared_model):
        self.folder, self.save, self.model = folder, save, shared_model
        self.rng = np.random.default_rng(0)

    def path(self, name):
        return self.folder / name

    def image(self, name='image.tif', *, bands=3, side=SIDE, low=50, high=250, dtype='uint8', names=None, **profile):
        pixels = self.rng.integers(low, high, (bands, side, side)).astype(dtype)
        names = ('Red', 'Green', 'Blue', 'NIR')[:bands] if names is None else names
        return self.save(self.path(name), pixels, names=names, **({'transform': place()} | profile))

    def labels(self, name='labels.tif', *, values=(1, 2), side=SIDE, dtype='uint8', **profile):
        pixels = np.resize(np.array(values, dtype), (side, side))
        return self.save(self.path(name), pixels, **({'transform': place()} | profile))

    def frame(self, *, crs=CRS, points=False, **fields):
        count = len(next(iter(fields.values()))) if fields else 2
        boxes = [
            shapely.box(500_000 + 160 * i + 10, 5_399_400, 500_000 + 160 * i + 150, 5_399_990) for i in range(count)
        ]
        shapes = [box.centroid for box in boxes] if points else boxes
        return geopandas.GeoDataFrame(fields, geometry=shapes, crs=crs)

    def chips(
        self, name='chips', *, count=4, side=16, bands=3, values=(1, 2), dtype='uint8', label_dtype='uint8', **kept
    ):
        for part in ('images', 'labels'):
            self.path(f'{name}/{part}').mkdir(parents=True)
        for at in range(count):
            image = kept.get('images', lambda at: self.rng.integers(50, 250, (bands, side, side)))(at).astype(dtype)
            where = kept.get('transform', lambda at: place(at * side))(at)
            profile = {'transform': where, 'crs': kept.get('crs', CRS)}
            self.save(self.path(f'{name}/images/{at}.tif'), image, names=kept.get('names', ()), **profile)
            label = np.resize(np.array(values), (side, side)).astype(label_dtype)
            self.save(self.path(f'{name}/labels/{at}.tif'), label, transform=where)
        return self.path(name)


PLAIN = {'batch_size': 2, 'chip_size': 16, 'val_split_pct': 0.5}


def pasted(said, pattern):
    """Return the arguments that a message says to pass, as Python reads them."""
    return eval(f'dict({re.search(pattern, said)[0]})')  # noqa: S307 - words of the message


# --- prepare_data


@case(r'pass ignore_classes=\[0\]')
def class_nodata(f):
    chips = f.chips(values=(0, 0, 0, 1, 2))
    says = lambda: prepare_data(chips, **PLAIN)  # noqa: E731
    return says, lambda said: prepare_data(chips, **pasted(said, r'ignore_classes=\[0\]'), **PLAIN)


@case(r'pass unlabelled=\[-9\]')
def negative_labels(f):
    chips = f.chips(values=(-9, 1, 2), label_dtype='int16')
    return lambda: prepare_data(chips, **PLAIN), lambda said: prepare_data(
        chips, **pasted(said, r'unlabelled=\[-9\]'), **PLAIN
    )


@case(r"pass target='values'")
def fractions(f):
    chips = f.chips(values=(0.5, 1.5), label_dtype='float32')
    return (
        lambda: prepare_data(chips, target='classes', **PLAIN),
        lambda said: prepare_data(chips, **pasted(said, "target='values'"), **PLAIN),
    )


@case(r'pass one number, or one for each band')
def nodata_count(f):
    chips = f.chips()
    return (
        lambda: prepare_data(chips, nodata=[0, 1], **PLAIN),
        lambda: [prepare_data(chips, nodata=0, **PLAIN), prepare_data(chips, nodata=[0, 1, 2], **PLAIN)],
    )


@case(r'if they are, pass nodata=0')
def border_of_chips(f):
    def image(at):
        pixels = f.rng.integers(50, 250, (3, 16, 16))
        pixels[:, :, : 8 * (at > 1)] = 0
        return pixels

    chips = f.chips(images=image)
    return lambda: prepare_data(chips, **PLAIN), lambda said: prepare_data(chips, **pasted(said, 'nodata=0'), **PLAIN)


@case(r"pass a list, such as \['2'\]")
def lists(f):
    chips = f.chips(values=(1, 2, 3))
    return (
        lambda: prepare_data(chips, ignore_classes='2', **PLAIN),
        lambda: prepare_data(chips, ignore_classes=['2'], **PLAIN),
    )


@case(r"class_mapping is \{value: name\}, such as \{1: 'water', 2: 'forest'\}")
def mapping(f):
    chips = f.chips()
    return (
        lambda: prepare_data(chips, class_mapping={1: ''}, **PLAIN),
        lambda: prepare_data(chips, class_mapping={1: 'water', 2: 'forest'}, **PLAIN),
    )


@case(r'with a name for each')
def two_of_one_name(f):
    chips = f.chips()
    return (
        lambda: prepare_data(chips, class_mapping={1: 'a', 2: 'a'}, **PLAIN),
        lambda: prepare_data(chips, class_mapping={1: 'a', 2: 'b'}, **PLAIN),
    )


@case(r'pass bands= if they are the same')
def folders_of_other_names(f):
    one, two = f.chips('one', names=('Red', 'Green', 'Blue')), f.chips('two', names=('B4', 'B3', 'B2'))
    return (
        lambda: prepare_data([one, two], **PLAIN),
        lambda: prepare_data([one, two], bands=['Red', 'Green', 'Blue'], **PLAIN),
    )


@case(r'two to train on and one to validate: export more chips \(a smaller tile_size')
def one_chip(f):
    image, labels = f.image(), f.labels()
    one, more = (export_training_data(image, labels, f.path(str(size)), tile_size=size) for size in (64, 16))
    return (
        lambda: prepare_data(one, **PLAIN),
        lambda: PSPNet(prepare_data(more, **PLAIN), 'test_resnet', pretrained=False).fit(1, lr=1e-3, checkpoint=False),
    )


@case(r'1 chip is left to train on.*another folder to validate on as valid_path=')
def two_chips(f):
    chips, other = f.chips(count=2), f.chips('other', count=2, transform=lambda at: place(at * 16, 100))

    def fit(**options):
        data = prepare_data(chips, **PLAIN | options)
        PSPNet(data, 'test_resnet', pretrained=False).fit(1, lr=1e-3, checkpoint=False)

    return fit, lambda: fit(valid_path=other)


@case(r'pass a smaller block_size')
def blocks(f):
    chips = f.chips(count=8)
    return (
        lambda: prepare_data(chips, split='blocks', block_size=1e5, **PLAIN),
        lambda: prepare_data(chips, split='blocks', block_size=320, **PLAIN),
    )


@case(r"pass split='random'")
def no_latitudes(f):
    chips = f.chips(count=8, crs=None)
    return (
        lambda: prepare_data(chips, split='latitude', **PLAIN),
        lambda said: prepare_data(chips, **pasted(said, "split='random'"), **PLAIN),
    )


@case(r"pass split='blocks' to hold out whole blocks")
def overlapping_chips(f):
    chips = f.chips(count=16, transform=lambda at: place(at * 8))
    return (
        lambda: prepare_data(chips, **PLAIN),
        lambda said: prepare_data(chips, **pasted(said, "split='blocks'"), **PLAIN),
    )


@case(r'name the format: dataset_type=')
def unknown_folder(f):
    chips = f.chips()
    (chips / 'labels/0.txt').write_text('nothing')
    return (
        lambda: prepare_data(chips, **PLAIN),
        lambda: prepare_data(chips, dataset_type='Classified_Tiles', **PLAIN),
    )


@case(r'prepare_data\(.*valid_path=')
def parts_of_a_data_set(f):
    f.chips('set/train'), f.chips('set/val', transform=lambda at: place(at * 16, 100))
    return (
        lambda: prepare_data(f.path('set'), **PLAIN),
        lambda said: eval(  # noqa: S307
            re.search(r'prepare_data\(.*\)', said)[0][:-1] + ', **PLAIN)',
            {'prepare_data': prepare_data, 'PLAIN': PLAIN},
        ),
    )


@case(r"pass dataset_type='Export_Tiles' to read the images alone")
def captions(f):
    chips = f.chips()
    (chips / 'esri_model_definition.emd').write_text('{"SingleLabelFieldFound": "Caption"}')
    return (
        lambda: prepare_data(chips, **PLAIN),
        lambda said: prepare_data(chips, **pasted(said, "dataset_type='Export_Tiles'"), **PLAIN),
    )


@case(r'add a folder for each date, or "geolearn": \{"dates": 3\} to the .emd')
def dates(f):
    chips = f.chips(bands=6)
    emd = chips / 'esri_model_definition.emd'

    def follow():
        emd.write_text('{"geolearn": {"dates": 3}}')
        return prepare_data(chips, dataset_type='MultiTemporal_Tiles', **PLAIN)

    return lambda: prepare_data(chips, dataset_type='MultiTemporal_Tiles', **PLAIN), follow


@case(r'save labels again from their source as PNG')
def lossy(f):
    chips = f.chips()
    for path in sorted((chips / 'labels').iterdir()):
        pixels = read_image(path)[0]
        path.unlink()
        f.save(path.with_suffix('.jpg'), pixels, transform=None, crs=None)

    def follow():
        for path in sorted((chips / 'labels').glob('*.jpg')):
            path.unlink()
            f.save(path.with_suffix('.png'), np.resize(np.uint8([1, 2]), (16, 16)), transform=None, crs=None)
        return prepare_data(chips, **PLAIN)

    return lambda: prepare_data(chips, **PLAIN), follow


@case(r"pass normalize='dataset'")
def robust_without_percentiles(f):
    chips = f.chips(bands=2, names=('NIR', 'SWIR1'))
    return (
        lambda: prepare_data(chips, normalize='imagenet', **PLAIN),
        lambda said: prepare_data(chips, **pasted(said, "normalize='dataset'"), **PLAIN),
    )


@case(r'pass normalize=\(\(.*\), \(.*\)\) with that value for s')
def white(f):
    chips = f.chips(dtype='uint16', names=('Red', 'Green', 'Blue'))

    def follow(said):
        given = re.search(r'normalize=(\(\(.*?\), \(.*?\)\))', said)[1]
        return prepare_data(chips, normalize=eval(given, {'s': 250}), **PLAIN)  # noqa: S307

    return lambda: prepare_data(chips, normalize='imagenet', **PLAIN), follow


@case(r'pass a smaller chip_size, or oversample=True')
def crops(f):
    chips = f.chips(values=(1,) * 40 + (2,))
    return (
        lambda: prepare_data(chips, rare_class_crops=True, **PLAIN),
        lambda: [
            prepare_data(chips, rare_class_crops=True, **PLAIN | {'chip_size': 8}),
            prepare_data(chips, oversample=True, **PLAIN),
        ],
    )


# --- export_training_data


@case(r'pass bands= with a name for each file if they are the bands of one scene')
def band_files(f):
    paths = [f.image(f'{name}.tif', bands=1, names=()) for name in ('2020', '2021', '2022')]
    labels = f.labels()
    return (
        lambda: export_training_data(paths, labels, f.path('out'), tile_size=16),
        lambda: prepare_data(
            export_training_data(paths, labels, f.path('out'), tile_size=16, bands=['Red', 'Green', 'Blue']), **PLAIN
        ),
    )


@case(r'[Pp]ass bands= with one name for each band if they are the same bands')
def mosaic_of_other_names(f):
    one, two = f.image('1.tif'), f.image('2.tif', names=('R', 'G', 'B'), transform=place(SIDE))
    frame = f.frame(value=[1, 2])
    return (
        lambda: export_training_data([one, two], frame, f.path('out'), tile_size=16),
        lambda: export_training_data([one, two], frame, f.path('out'), tile_size=16, bands=['Red', 'Green', 'Blue']),
    )


@case(r'[Dd]eclare one NoData value in both')
def mosaic_of_other_nodata(f):
    one, two = f.image('1.tif', nodata=0), f.image('2.tif', transform=place(SIDE))
    frame = f.frame(value=[1, 2])

    def follow():
        with rasterio.open(two, 'r+') as dst:
            dst.nodata = 0
        return export_training_data([one, two], frame, f.path('out'), tile_size=16)

    return lambda: export_training_data([one, two], frame, f.path('out'), tile_size=16), follow


@case(r'if they are, pass nodata=0')
def border(f):
    pixels = f.rng.integers(50, 250, (3, 128, 128)).astype(np.uint8)
    pixels[:, :, :40] = 0
    image = f.save(f.path('i.tif'), pixels, transform=place())
    labels = f.labels(side=128)
    return (
        lambda: export_training_data(image, labels, f.path('out'), tile_size=32),
        lambda said: export_training_data(image, labels, f.path('again'), tile_size=32, **pasted(said, 'nodata=0')),
    )


@case(r'pass unlabelled=\[\] if 0 is a class')
def feature_of_value_0(f):
    image, frame = f.image(), f.frame(value=[0, 1, 2])

    def follow(said):
        out = export_training_data(image, frame, f.path('again'), tile_size=16, **pasted(said, r'unlabelled=\[\]'))
        assert set(prepare_data(out, **PLAIN).class_mapping) == {0, 1, 2}

    return lambda: export_training_data(image, frame, f.path('out'), tile_size=16), follow


@case(r'Pass unlabelled=\[-1\] if it means not labelled, or name another field with class_value_field=')
def feature_of_value_minus_1(f):
    image, frame = f.image(), f.frame(value=[-1, 1, 2], kind=['a', 'b', 'c'])
    return (
        lambda: export_training_data(image, frame, f.path('out'), tile_size=16),
        lambda: [
            export_training_data(image, frame, f.path('1'), tile_size=16, unlabelled=[-1]),
            export_training_data(image, frame, f.path('2'), tile_size=16, class_value_field='kind'),
        ],
    )


@case(r'single blanks between words; rename it in the labels, or list it under another name with classes=')
def two_inner_blanks(f):
    image, frame = f.image(), f.frame(classname=['solar  panel', 'roof'])
    classes = [ClassInfo(1, 'solar panel', (1, 2, 3)), ClassInfo(2, 'roof', (3, 2, 1))]
    kind = 'YOLO_rectangles'
    return (
        lambda: export_training_data(image, frame, f.path('out'), kind, 16),
        lambda: [
            export_training_data(image, frame, f.path('1'), kind, 16, classes=classes),
            export_training_data(image, frame.replace('solar  panel', 'solar panel'), f.path('2'), kind, 16),
        ],
    )


@case(r'no folder name on every system.* list it under another name with classes= where labels hold class values')
def names_of_folders(f):
    image, frame = f.image(), f.frame(value=[1, 2], classname=['a/b', 'c'])
    classes = [ClassInfo(1, 'a or b', (1, 2, 3)), ClassInfo(2, 'c', (3, 2, 1))]
    return (
        lambda: export_training_data(image, frame, f.path('out'), 'RCNN_Masks', 16),
        lambda: export_training_data(image, frame, f.path('out'), 'RCNN_Masks', 16, classes=classes),
    )


@case(r'which classes= does not list.*; list them too')
def unlisted_classes(f):
    image, frame = f.image(), f.frame(classname=['a', 'b'])
    classes = [ClassInfo(1, 'a', (1, 2, 3)), ClassInfo(2, 'b', (3, 2, 1))]
    return (
        lambda: export_training_data(image, frame, f.path('out'), tile_size=16, classes=classes[:1]),
        lambda: export_training_data(image, frame, f.path('out'), tile_size=16, classes=classes),
    )


@case(r'list them too, or leave them out with unlabelled=')
def unlisted_values(f):
    image, frame = f.image(), f.frame(value=[1, 2])
    classes = [ClassInfo(1, 'a', (1, 2, 3)), ClassInfo(2, 'b', (3, 2, 1))]
    return (
        lambda: export_training_data(image, frame, f.path('out'), tile_size=16, classes=classes[:1]),
        lambda: [
            export_training_data(image, frame, f.path('1'), tile_size=16, classes=classes),
            export_training_data(image, frame, f.path('2'), tile_size=16, classes=classes[:1], unlabelled=[0, 2]),
        ],
    )


@case(r'pass buffer_radius= in units of the raster')
def points(f):
    image, frame = f.image(), f.frame(value=[1, 2], points=True)
    return (
        lambda: export_training_data(image, frame, f.path('out'), tile_size=16),
        lambda: export_training_data(image, frame, f.path('out'), tile_size=16, buffer_radius=30),
    )


@case(r'pass labels_crs=, such as labels_crs="EPSG:4326"')
def labels_without_crs(f):
    image, frame = f.image(), f.frame(value=[1, 2])
    lost = frame.to_crs('EPSG:4326').set_crs(None, allow_override=True)
    return (
        lambda: export_training_data(image, lost, f.path('out'), tile_size=16),
        lambda said: export_training_data(
            image, lost, f.path('out'), tile_size=16, **pasted(said, 'labels_crs="EPSG:4326"')
        ),
    )


@case(r'drop labels_crs=')
def two_crs(f):
    image, frame = f.image(), f.frame(value=[1, 2])
    return (
        lambda: export_training_data(image, frame, f.path('out'), tile_size=16, labels_crs='EPSG:4326'),
        lambda: export_training_data(image, frame, f.path('out'), tile_size=16),
    )


@case(r'pass labels without CRS in the coordinates of the raster')
def raster_without_crs(f):
    image, frame = f.image(crs=None), f.frame(value=[1, 2])
    return (
        lambda: export_training_data(image, frame, f.path('out'), tile_size=16),
        lambda: export_training_data(image, frame.set_crs(None, allow_override=True), f.path('out'), tile_size=16),
    )


@case(r'Name one with layer=, or where each is a class pass labels=\{class name: \(file, layer\), ...\}')
def layers(f):
    image, path = f.image(), f.path('l.gpkg')
    for name in ('one', 'two'):
        f.frame(value=[1, 2]).to_file(path, layer=name)
    return (
        lambda: export_training_data(image, path, f.path('out'), tile_size=16),
        lambda: [
            export_training_data(image, path, f.path('1'), tile_size=16, layer='one'),
            export_training_data(image, {'a': (path, 'one'), 'b': (path, 'two')}, f.path('2'), tile_size=16),
        ],
    )


@case(r'choose a smaller tile_size')
def too_large_a_tile(f):
    image, frame = f.image(), f.frame(value=[1, 2])
    return (
        lambda: export_training_data(image, frame, f.path('out'), tile_size=256),
        lambda: export_training_data(image, frame, f.path('out'), tile_size=16),
    )


@case(r"use image_format='TIFF'")
def png(f):
    image, labels = f.image(bands=4), f.labels()
    return (
        lambda: export_training_data(image, labels, f.path('out'), tile_size=16, image_format='PNG'),
        lambda said: export_training_data(
            image, labels, f.path('out'), tile_size=16, **pasted(said, "image_format='TIFF'")
        ),
    )


@case(r'export into a new folder')
def full_folder(f):
    image, labels = f.image(), f.labels()
    return (
        lambda: export_training_data(image, labels, f.folder, tile_size=16),
        lambda: export_training_data(image, labels, f.path('new'), tile_size=16),
    )


@case(r'export them to two folders')
def two_kinds(f):
    rasters = [f.image('1.tif'), f.image('2.tif', dtype='uint16', transform=place(16))]
    frame = f.frame(value=[1, 2, 1])
    options = {'tile_size': 16, 'processing_mode': 'collection'}
    return (
        lambda: export_training_data(rasters, frame, f.path('out'), **options),
        lambda: [export_training_data([raster], frame, f.path(raster.stem), **options) for raster in rasters],
    )


@case(r'pass labels=None, or choose a format with labels')
def tiles_with_labels(f):
    image, labels = f.image(), f.labels()
    return (
        lambda: export_training_data(image, labels, f.path('out'), 'Export_Tiles', 16),
        lambda: export_training_data(image, None, f.path('out'), 'Export_Tiles', 16),
    )


@case(r'write the amplitude first: gdal_translate (DERIVED_SUBDATASET:AMPLITUDE:\S+)')
def complex_pixels(f):
    pixels = (f.rng.random((1, SIDE, SIDE)) + 1j).astype(np.complex64)
    path = f.save(f.path('slc.tif'), pixels, transform=place())

    def follow(said):
        with rasterio.open(re.search(r'DERIVED_SUBDATASET:AMPLITUDE:\S+', said)[0]) as src:
            amplitude = f.save(f.path('amplitude.tif'), src.read().astype(np.float32), transform=place())
        return export_training_data(amplitude, f.labels(), f.path('out'), tile_size=16)

    return lambda: export_training_data(path, f.labels(), f.path('out'), tile_size=16), follow


@case(r'pass bands= with a name for each file if they are the bands of one scene')
def folder_of_files(f):
    (f.path('scene')).mkdir()
    for name in ('1', '2'):
        f.image(f'scene/{name}.tif', bands=1, names=())
    labels = f.labels()
    return (
        lambda: export_training_data(f.path('scene'), labels, f.path('out'), tile_size=16),
        lambda: export_training_data(f.path('scene'), labels, f.path('out'), tile_size=16, bands=['Red', 'Green']),
    )


@case(r'pass a smaller chip_size')
def window_without_label(f):
    image = f.image()
    labels = f.save(f.path('l.tif'), np.full((SIDE, SIDE), 255, np.uint8), transform=place(), nodata=255)
    with rasterio.open(labels, 'r+') as dst:
        dst.write(np.uint8([[1, 2]] * 4), 1, window=rasterio.windows.Window(62, 60, 2, 4))
    options = {'batch_size': 2, 'val_split_pct': 0.5}
    return (
        lambda: from_rasters(image, f.labels('n.tif', values=(255,), nodata=255), chip_size=50, **options),
        lambda: from_rasters(image, f.labels('m.tif'), chip_size=16, **options),
    )


# --- models, backbones and rasters to map


@case(r'Pass wavelengths= with a number of micrometers')
def wavelengths(f):
    data = prepare_data(f.chips(), **PLAIN)

    def follow(said):
        PSPNet(data, 'dofa_base', pretrained=False, **pasted(said, r'wavelengths=\[[\d., ]+\]'))
        prepared = prepare_data(f.path('chips'), bands=['red', 'green', 'blue'], **PLAIN)
        PSPNet(prepared, 'dofa_base', pretrained=False)

    return lambda: PSPNet(data, 'dofa_base', pretrained=False), follow


@case(r'pass resolution=|[Pp]ass resolution=')
def pixel_size(f):
    fine = f.image('fine.tif', transform=place(pixel=1.0))
    return (
        lambda: f.model.predict_raster(fine, f.path('map.tif')),
        lambda said: [
            f.model.predict_raster(fine, f.path('map1.tif'), **pasted(said, "resolution='training'")),
            f.model.predict_raster(fine, f.path('map2.tif'), **pasted(said, r'resolution=[\d.]+')),
        ],
    )


@case(r'pass overwrite=True to replace it, or another name')
def existing_map(f):
    image = f.image()
    f.model.predict_raster(image, f.path('map.tif'))
    return (
        lambda: f.model.predict_raster(image, f.path('map.tif')),
        lambda said: f.model.predict_raster(image, f.path('map.tif'), **pasted(said, 'overwrite=True')),
    )


@case(r'[Pp]ass bands= with')
def nameless_bands(f):
    image = f.image(bands=5, names=(), dtype='uint16')
    return (
        lambda: f.model.predict_raster(image, f.path('map.tif')),
        lambda: f.model.predict_raster(image, f.path('map.tif'), bands=['NIR', 'SWIR1', 'Red', 'Green', 'Blue']),
    )


@case(r'or pass bands= with their names in file order')
def strange_names(f):
    image = f.image(names=('one', 'two', 'three'))
    return (
        lambda: f.model.predict_raster(image, f.path('map.tif')),
        lambda: f.model.predict_raster(image, f.path('map.tif'), bands=['Red', 'Green', 'Blue']),
    )


@case(r'Pass scale= \(and offset=\)')
def other_units(f):
    image = f.image('i.tif', low=5000, high=25000, dtype='uint16')
    return (
        lambda: f.model.predict_raster(image, f.path('map.tif')),
        lambda: f.model.predict_raster(image, f.path('map.tif'), scale=0.01),
    )


@case(r'pass the file, or write the array to one first')
def array_to_map(f):
    image = f.image()
    return (
        lambda: f.model.predict_raster(read_image(image)[0], f.path('map.tif')),
        lambda: f.model.predict_raster(image, f.path('map.tif')),
    )


@case(r"make the data by prepare_data\('folder of chips'\)")
def folder_as_data(f):
    chips = f.chips()
    return lambda: PSPNet(str(chips)), lambda: PSPNet(prepare_data(chips, **PLAIN), 'test_resnet', pretrained=False)


@case(r'there are no losses to plot; call fit\(\) first')
def losses(f):
    model = PSPNet(prepare_data(f.chips(), **PLAIN), 'test_resnet', pretrained=False)

    def follow():
        model.fit(1, lr=1e-3, checkpoint=False)
        return model.plot_losses()

    return model.plot_losses, follow


@case(r'call fit with checkpoint=True first')
def nothing_to_resume(f):
    model = PSPNet(prepare_data(f.chips(), working_dir=f.folder, **PLAIN), 'test_resnet', pretrained=False)

    def follow(said):
        model.fit(1, lr=1e-3, **pasted(said, 'checkpoint=True'))
        model.fit(1, lr=1e-3, resume=True)

    return lambda: model.fit(1, lr=1e-3, resume=True), follow


@case(r"mixed_precision='fp16' needs a CUDA device.*pass mixed_precision='bf16', or mixed_precision=None for float32")
def half_precision(f):
    if torch.cuda.is_available():
        pytest.skip('fp16 works here')
    model = PSPNet(prepare_data(f.chips(), **PLAIN), 'test_resnet', pretrained=False)
    return (
        lambda: model.fit(1, lr=1e-3, mixed_precision='fp16', checkpoint=False),
        lambda said: [
            model.fit(1, lr=1e-3, checkpoint=False, **pasted(said, advice))
            for advice in ("mixed_precision='bf16'", 'mixed_precision=None')
        ],
    )


@case(r'\(chips, bands, height, width\)')
def arrays(f):
    images, labels = f.rng.random((4, 3, 16, 16), np.float32), np.resize([1, 2], (4, 16, 16))
    return lambda: from_arrays(images[:0], labels[:0]), lambda: from_arrays(images, labels, batch_size=2)


# --- the command line


def run(*words):
    try:
        main([str(word) for word in words])
    except SystemExit as stopped:
        if stopped.code:
            raise GeoLearnError('stopped') from stopped


@case(r'pass --unlabelled if 0 is a class')
def command_of_value_0(f):
    image, path = f.image(), f.path('l.gpkg')
    f.frame(value=[0, 1, 2]).to_file(path)
    line = ['export-chips', image, f.path('out'), '--tile-size', 16, '--labels', path]
    return (
        lambda: run(*line),
        lambda: run('export-chips', image, f.path('again'), '--tile-size', 16, '--labels', path, '--unlabelled'),
    )


@case(r'pass --unlabelled -9')
def command_of_negative_labels(f):
    image, labels = f.image(), f.labels(values=(-9, 1, 2), dtype='int16')
    return (
        lambda: run('export-chips', image, f.path('out'), '--tile-size', 16, '--labels', labels),
        lambda: run('export-chips', image, f.path('out'), '--tile-size', 16, '--labels', labels, '--unlabelled', -9),
    )


@case(r'--class-mapping 1=NAME 2=NAME with a name for each')
def command_of_names(f):
    small = ['--backbone', 'test_resnet', '--from-scratch', '--chip-size', 16, '--batch-size', 2, '--epochs', 1]
    line = ['train', f.chips(), f.path('m.dlpk'), *small, '--lr', 1e-3, '--valid', 0.5, '--model', 'PSPNet']

    def read(arguments):  # training and saving would take seconds
        read_chips(arguments, arguments.chips, chip_size=16, class_mapping=dict(arguments.class_mapping))

    return (
        lambda: run(*line, '--class-mapping', '1=a', '2=a'),
        lambda: read(build_parser().parse_args([str(word) for word in (*line, '--class-mapping', '1=a', '2=b')])),
    )


@pytest.fixture(scope='module')
def shared_model(tmp_path_factory, save):
    folder = tmp_path_factory.mktemp('model')
    files = Files(folder, save, None)
    chips = export_training_data(files.image(), files.labels(), folder / 'chips', tile_size=16)
    data = prepare_data(chips, working_dir=folder, **PLAIN)
    model = PSPNet(data, 'test_resnet', pretrained=False)
    model.fit(1, lr=1e-3, checkpoint=False)
    return model


@pytest.mark.parametrize(('advice', 'make'), CASES)
def test_advice_works_when_it_is_followed(advice, make, tmp_path, save, shared_model, small_dofa, caplog, capsys):
    says, follows = make(Files(tmp_path, save, shared_model))
    caplog.set_level(logging.INFO, 'geolearn')
    caplog.clear()
    raised = ''
    try:
        says()
    except (GeoLearnError, ValueError, TypeError) as error:
        raised = str(error)
    said = f'{raised}\n{caplog.text}\n{capsys.readouterr().err}'
    assert re.search(advice, said), said
    caplog.clear()
    if inspect.signature(follows).parameters and 'said' in inspect.signature(follows).parameters:
        follows(said)
    else:
        follows()
    if not raised:  # what was only a note is not said again
        assert not re.search(advice, caplog.text), caplog.text
