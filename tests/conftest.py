"""Fixtures that every test may use."""

import base64
import dataclasses
import gc
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

# Each worker of pytest-xdist has one core: read when numpy and torch are first imported, here and in child processes.
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, settings
from rasterio.errors import NotGeoreferencedWarning

CRS = 'EPSG:32633'

BLANK_PNG = base64.b64decode(
    'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII='
)
"""One transparent pixel."""

BROWSERS = ('chromium-headless-shell', 'chromium', 'chromium-browser', 'google-chrome')

# how long an example takes says more about the machine's other work than about the code
_ANY_MACHINE = {'deadline': None, 'suppress_health_check': [HealthCheck.too_slow]}
# the same commit gives the same answer; HYPOTHESIS_PROFILE=search looks for examples that nobody has seen yet
settings.register_profile('geolearn', derandomize=True, max_examples=60, **_ANY_MACHINE)
settings.register_profile('search', max_examples=200, **_ANY_MACHINE)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'geolearn'))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what was imported out of every later garbage collection: millions of objects that stay anyway."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def quick_disk():
    """Nothing here cuts the power, and what a killed process wrote survives it: waiting for the disk tests nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'fsync', lambda handle: None)
        yield


@pytest.fixture(scope='module', autouse=True)
def blank_figures(request) -> Iterator[None]:
    """Bundles saved in most tests hold blank figures: drawing six takes 3 s; others test how they look."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name in {'arcgis', 'models'} or request.path.stem in {'test_cli', 'test_arcgis_script'}:
            patch.setattr('geolearn.plotting.figure.draw_png', lambda figure, *, dpi: BLANK_PNG)
        yield


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory) -> Path:
    """Packs of chips go to a folder of the test run, never to the user's cache."""
    folder = tmp_path_factory.mktemp('cache')
    os.environ['GEOLEARN_CACHE'] = str(folder)
    return folder


@pytest.fixture(scope='session')
def shared() -> Path:
    """The folder of reference numbers and real data beside the checkout, or the one that GEOLEARN_SHARED names."""
    path = Path(os.environ.get('GEOLEARN_SHARED') or Path(__file__).parents[2] / 'shared')
    if not path.is_dir():
        pytest.skip(f'needs the shared folder of oracles and data, absent at {path.name}; set GEOLEARN_SHARED')
    return path


@pytest.fixture(scope='session')
def save() -> Callable[..., Path]:
    """Write an array with plain rasterio, so that nothing of geolearn's writer is presumed."""
    return _save


@pytest.fixture(scope='session')
def write_export() -> Callable[..., Path]:
    """Write a Classified_Tiles folder by hand, as ArcGIS Pro of 2018 (``layout='old'``) or of today would."""
    return _write_export


@pytest.fixture(scope='module')
def one_thread():
    """Networks this small are faster on one thread, above all beside other work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def browser():
    """A headless Chromium of the system, driven by playwright."""
    playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright: pip install playwright')
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f'needs a browser on PATH, one of {", ".join(BROWSERS)}; on Debian: apt-get install chromium')
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path)
        yield opened
        opened.close()


@pytest.fixture
def use_record(monkeypatch):
    """A function that makes the catalog of backbones answer with a given record for every name."""
    from geolearn.backbones import catalog

    def use(record):
        monkeypatch.setattr(catalog, 'get_record', lambda name: record)
        return record

    return use


@pytest.fixture
def small_dofa(monkeypatch):
    """Let every DOFA be 48 wide and 4 deep with 3 heads, for building and for loading; returns dofa_base's record."""
    from geolearn.backbones import catalog

    get_record = catalog.get_record

    def get_small(name):
        record = get_record(name)
        return dataclasses.replace(record, dim=48, depth=4, heads=3) if record.family == 'dofa' else record

    monkeypatch.setattr(catalog, 'get_record', get_small)
    return get_small('dofa_base')


@pytest.fixture(scope='session')
def scene_files(tmp_path_factory) -> tuple[Path, Path]:
    """A synthetic Sentinel-2 scene of 128 pixels a side, and its labels: ten bands, six classes, a NoData border."""
    from geolearn.synthetic import make_scene, write_scene

    folder = tmp_path_factory.mktemp('scene')
    write_scene(make_scene(128, seed=1), folder / 'scene.tif', folder / 'labels.tif')
    return folder / 'scene.tif', folder / 'labels.tif'


@pytest.fixture(scope='session')
def scene_chips(scene_files, tmp_path_factory) -> Path:
    """The scene as 16 chips of 32 pixels."""
    from geolearn.chips.export import export_training_data
    from geolearn.synthetic import CLASSES

    out = tmp_path_factory.mktemp('export') / 'chips'
    return export_training_data(*scene_files, out, classes=CLASSES, tile_size=32, sensor='Sentinel-2')


@pytest.fixture
def scene_data(scene_chips, tmp_path):
    """Twelve chips to train and four to validate on, in batches of four; fresh, because loaders count their epochs."""
    from geolearn.prepare import prepare_data

    options = {'chip_size': 32, 'batch_size': 4, 'val_split_pct': 0.25, 'ignore_classes': [0]}
    return prepare_data(scene_chips, working_dir=tmp_path, **options)


@pytest.fixture(scope='session')
def square_chips(tmp_path_factory, save) -> Callable[..., Path]:
    """Export chips of 64 pixels with bright squares on noise, in a metadata format, one class or two."""
    from geolearn.chips.export import export_training_data

    folder = tmp_path_factory.mktemp('squares')

    def make(metadata_format='PASCAL_VOC_rectangles', *, classes=1, side=512):
        out = folder / f'{metadata_format}-{classes}-{side}'
        if out.exists():
            return out
        rng = np.random.default_rng(7)
        image = rng.normal(60, 12, (3, side, side))
        frame = _squares(rng, side, classes)
        for shape, value in zip(frame.geometry, frame['value']):
            left, bottom, right, top = shape.bounds
            rows, cols = slice(side - int(top), side - int(bottom)), slice(int(left), int(right))
            image[:, rows, cols] = 200 if value == 1 else np.array([60, 60, 220])[:, None, None]
        image = np.clip(image, 0, 255).astype(np.uint8)
        raster = save(
            folder / f'{out.name}.tif', image, names=['Red', 'Green', 'Blue'], transform=Affine(1, 0, 0, 0, -1, side)
        )
        return export_training_data(
            raster, frame, out, metadata_format, tile_size=64, class_value_field='value', class_name_field='name',
            output_nofeature_tiles=True,
        )  # fmt: skip

    return make


def _squares(rng, side, classes):
    """One to three squares on most chips, none on some, never across the edges of chips."""
    import geopandas
    import shapely

    shapes, values = [], []
    for row in range(side // 64):
        for col in range(side // 64):
            if (row + col) % 7 == 6:
                continue
            quarters = rng.permutation([(0, 0), (0, 32), (32, 0), (32, 32)])[: rng.integers(1, 4)]
            for quarter in quarters:
                size = int(rng.integers(12, 24))
                x, y = (start + rng.integers(2, 30 - size + 1) for start in quarter)
                left, bottom = 64 * col + x, 64 * row + y
                shapes.append(shapely.box(left, bottom, left + size, bottom + size))
                values.append(int(rng.integers(1, classes + 1)))
    names = {1: 'white', 2: 'blue'}
    return geopandas.GeoDataFrame(
        {'value': values, 'name': [names[value] for value in values]}, geometry=shapes, crs=CRS
    )


def _save(path, pixels, *, names=(), **profile) -> Path:
    """(bands, height, width) or (height, width) to a file whose suffix chooses the format; 10 m pixels at (0, 0)."""
    block = pixels if pixels.ndim == 3 else pixels[None]
    driver = {'.png': 'PNG', '.jpg': 'JPEG'}.get(path.suffix, 'GTiff')
    profile = {'transform': Affine(10, 0, 0, 0, -10, 0), 'crs': CRS} | profile
    colormap = profile.pop('colormap', None)
    if driver == 'GTiff' and len(block) == 4 and block.dtype == np.uint8:
        profile = {'alpha': 'no'} | profile  # GDAL takes the fourth of four bytes for opacity unless told otherwise
    count, height, width = block.shape
    size = {'count': count, 'height': height, 'width': width, 'dtype': str(block.dtype)}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.open(path, 'w', driver=driver, **size, **profile) as dst:
            dst.write(block)
            for index, name in enumerate(names, 1):
                dst.set_band_description(index, name)
            if colormap:
                dst.write_colormap(1, colormap)
    return path


def _write_export(
    folder,
    images,
    labels,
    *,
    layout='new',
    classes=((1, 'one', [255, 0, 0]), (2, 'two', [0, 0, 255])),
    band_names=None,
    sensor='Undefined',
    suffix='.tif',
    label_suffix='.tif',
    start=0,
    image_profile=None,
    label_profile=None,
    emd=None,
    stats=None,
):
    """Write chips side by side on one row of land; keys in `emd` and `stats` replace those written, None drops them."""
    (folder / 'images').mkdir(parents=True)
    (folder / 'labels').mkdir()
    digits = 12 if layout == 'new' else 9
    names = [f'{start + index:0{digits}d}' for index in range(len(images))]
    for index, (name, image, label) in enumerate(zip(names, images, labels)):
        place = {'transform': Affine(10, 0, 10 * label.shape[1] * index, 0, -10, 0)}
        _save(folder / 'images' / f'{name}{suffix}', image, **place, **(image_profile or {}))
        _save(folder / 'labels' / f'{name}{label_suffix}', label, **place, **(label_profile or {}))
    rows = [f'images\\{name}{suffix}  labels\\{name}{label_suffix} \n' for name in names]
    (folder / 'map.txt').write_text(''.join(rows))
    write = _new_metadata if layout == 'new' else _old_metadata
    found_emd, found_stats = write(images, classes, band_names or [''] * len(images[0]), sensor)
    for name, content, changes in (
        ('esri_model_definition.emd', found_emd, emd or {}),
        ('esri_accumulated_stats.json', found_stats, stats or {}),
    ):
        kept = {key: value for key, value in (content | changes).items() if value is not None}
        (folder / name).write_text(json.dumps(kept, indent=1))
    return folder


def _new_metadata(images, classes, band_names, sensor):
    pixels = np.concatenate([image.reshape(len(image), -1) for image in images], axis=1).astype(np.float64)
    properties = {'RasterCount': 1, 'SensorName': sensor, 'BandNames': list(band_names)}
    cell = {'x': 10, 'y': 10, 'spatialReference': {'wkid': 32633, 'latestWkid': 32633}}
    side = images[0].shape[1]
    rows = [
        {'BandName': name, 'Min': p.min(), 'Max': p.max(), 'Mean': p.mean(), 'StdDev': p.std()}
        for name, p in zip(band_names, pixels)
    ]
    state = [
        {'Min': p.min(), 'Max': p.max(), 'Mean': 0, 'StdDev': 0, 'M1': p.mean(), 'M2': p.var() * p.size, 'Num': p.size}
        for p in pixels
    ]
    emd = {
        'Framework': 'e.g. Keras, TensorFlow, etc.',
        'ImageHeight': side,
        'ImageWidth': side,
        'ExtractBands': 'e.g. [0, 1, 2]',
        'MetaDataMode': 'Classified_Tiles',
        'ImageSpaceUsed': 'MAP_SPACE',
        'MinCellSize': cell,
        'MaxCellSize': cell,
        'Classes': [{'Value': value, 'Name': name, 'Color': color} for value, name, color in classes],
        'InputRastersProps': properties,
        'AllTilesStats': rows,
    }
    stats = {
        'Version': 1,
        'NumBands': len(images[0]),
        'NumTiles': len(images),
        'MetaDataMode': 'Classified_Tiles',
        'Classes': [{'ClassValue': value, 'ClassName': name, 'Color': color} for value, name, color in classes],
        'InputRastersProps': properties,
        'BandStatsState': state,
    }
    return emd, stats


def _old_metadata(images, classes, band_names, sensor):
    emd = {
        'Framework': 'e.g. Keras, TensorFlow, etc.',
        'ModelType': 'e.g. ImageClassification',
        'ImageHeight': 'e.g. 256',
        'ImageWidth': 'e.g. 256',
        'ExtractBands': 'e.g. [0, 1, 2]',
        'DataRange': 'e.g. [0, 255]',
        'MetaDataMode': 'e.g. Classified_Tiles',
        'ImageSpaceUsed': 'e.g. MAP_SPACE',
        'InputRastersProps': 'e.g. {}',
        'AllTilesStats': 'e.g. []',
        'Classes': 'e.g. []',
    }
    stats = {
        'Version': 1,
        'NumTiles': len(images),
        'MetaDataMode': 'Classified_Tiles',
        'Classes': [{'ClassValue': value, 'ClassName': name} for value, name, _ in classes],
    }
    return emd, stats
