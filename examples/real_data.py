"""Real data sets of every format, in the ways of the README: read, trained on for an epoch, saved, loaded and mapped.

The networks are small and start at random: this shows that data go through, not how well a model does. A line for each
data set says what was read, the metric, and what the map holds. Folders that are not there are left out.

    python examples/real_data.py path/to/data real_data_output [name ...]
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import torch

from geolearn import (
    FCN,
    FCOS,
    ChipData,
    FasterRCNN,
    FeatureClassifier,
    GeoLearnError,
    MaskRCNN,
    UNet,
    export_training_data,
    from_rasters,
    get_bands,
    load_model,
    prepare_data,
)
from geolearn.raster import write_raster

TEN_BANDS = ('B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B11', 'B12')
L2A_BANDS = tuple(band.name for band in get_bands('sentinel2_l2a'))
SMALL = {'chip_size': 64, 'batch_size': 8}


def tifs(folder: Path) -> list[Path]:
    """Return the rasters of a folder."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == '.tif')


def shown(data: ChipData) -> str:
    """Say in a few words what was read."""
    return f'{len(data.train_ds)}+{len(data.valid_ds)} chips of {len(data.bands)} bands, {data.c} classes'


def trained(model: Any, out: Path) -> Any:
    """Train for an epoch, save, and load."""
    model.fit(1, lr=1e-3, checkpoint=False)
    return load_model(model.save(out / 'model.dlpk'))


def map_pixels(data: ChipData, model: Any, scene: Any, out: Path, **options: Any) -> str:
    """Map a scene and say which share each class has."""
    found = trained(model, out).predict_raster(scene, out / 'map.tif', **options)
    with rasterio.open(found) as src:
        values, names = src.read(1), src.tags(1)
        valid = values != src.nodata if src.nodata is not None else np.ones(values.shape, bool)
        shares = {names[f'class_{v}']: f'{(values[valid] == v).mean():.0%}' for v in np.unique(values[valid])}
        place = f'{src.width}x{src.height} px in {src.crs or "no CRS"}'
    return f'{shown(data)}; mIoU {model.mIOU(mean=True):.3f}; map {place}, {valid.mean():.0%} valid: {shares}'


def map_objects(data: ChipData, model: Any, scene: Any, out: Path, **options: Any) -> str:
    """Detect objects in a scene and say how many there are."""
    layer = geopandas.read_file(trained(model, out).detect_objects(scene, out / 'map.gpkg', threshold=0.1, **options))
    score = model.average_precision_score(mean=True)
    return f'{shown(data)}; AP {score:.3f}; {len(layer)} objects in {layer.crs and layer.crs.to_string()[:40]}'


def aberystwyth_polygons(folder: Path, out: Path) -> str:
    """Sixteen tiles without band names, and a layer of polygons for each class."""
    layers = {name: (folder / 'cls_poly_smpls.gpkg', f'cls_{name}_smpls') for name in ('forest', 'grass', 'water')}
    tiles = tifs(folder / 's2_tiles')
    chips = export_training_data(
        tiles, layers, out / 'chips', tile_size=64, bands=TEN_BANDS, sensor='Sentinel-2'
    )  # fmt: skip
    data = prepare_data(chips, ignore_classes=[0], split='stratified', **SMALL)
    return map_pixels(data, UNet(data, 'dofa_tiny', pretrained=False), tiles, out, bands=TEN_BANDS, sensor='Sentinel-2')


def aberystwyth_raster(folder: Path, out: Path) -> str:
    """A class raster on a grid that is shifted against the image's."""
    image, labels = folder / 'sen2_20210527_aber_subset.tif', folder / 'sen2_20210527_aber_cls.tif'
    chips = export_training_data(
        image, labels, out / 'chips', tile_size=64, bands=TEN_BANDS, sensor='Sentinel-2', align_labels=True
    )
    data = prepare_data(chips, **SMALL)
    return map_pixels(data, FCN(data, 'dofa_tiny', pretrained=False), image, out, bands=TEN_BANDS, sensor='Sentinel-2')


def landsat(folder: Path, out: Path) -> str:
    """A scene with an empty border that no tag declares, and four polygons."""
    (scene,) = tifs(folder)
    place = {'bands': ('B2', 'B3', 'B4'), 'sensor': 'Landsat 8', 'nodata': 0}
    polygons = scene.with_name(f'{scene.stem}_polygons.gpkg')
    chips = export_training_data(scene, polygons, out / 'chips', tile_size=64, class_value_field='name', **place)
    data = prepare_data(chips, ignore_classes=[0], **SMALL)
    return map_pixels(data, FCN(data, 'resnet18', pretrained=False), scene, out, **place)


def landsat_points(folder: Path, out: Path) -> str:
    """The same scene: a chip around each point, and the polygons named by the model."""
    (scene,) = tifs(folder)
    points, polygons = (scene.with_name(f'{scene.stem}_{kind}.gpkg') for kind in ('points', 'polygons'))
    chips = export_training_data(
        scene, points, out / 'chips', 'Labeled_Tiles', tile_size=32, class_value_field='name', buffer_radius=100
    )
    data = prepare_data(chips, chip_size=32, batch_size=4, val_split_pct=0.34)
    model = FeatureClassifier(data, 'resnet18', pretrained=False)
    layer = geopandas.read_file(trained(model, out).classify_objects(scene, polygons, out / 'map.gpkg'))
    return f'{shown(data)}; accuracy {model.accuracy():.3f}; {len(layer)} polygons: {list(layer["ClassLabel"])}'


def terramesh_optical(folder: Path, out: Path) -> str:
    """Images of three places in three CRSs, each with its land cover."""
    images, labels = tifs(folder / 'S2L2A'), tifs(folder / 'LULC')
    data = from_rasters(images, labels, bands='sentinel2_l2a', split='stratified', **SMALL)
    return map_pixels(data, UNet(data, 'dofa_tiny', pretrained=False), images[0], out, bands=L2A_BANDS)


def terramesh_radar(folder: Path, out: Path) -> str:
    """The same places by radar, as exported chips."""
    images, labels, names = tifs(folder / 'S1RTC'), tifs(folder / 'LULC'), ('VV', 'VH')
    chips = export_training_data(
        images, labels, out / 'chips', tile_size=56, processing_mode='collection', bands=names, sensor='Sentinel-1'
    )
    data = prepare_data(chips, chip_size=56, batch_size=8, split='stratified')
    return map_pixels(data, FCN(data, 'resnet18', pretrained=False), images[0], out, bands=names)


def clouds(folder: Path, out: Path) -> str:
    """Arrays of two sensors, written as rasters; value 0 is a class."""
    names = {0: 'cloud shadow', 1: 'water', 3: 'land', 4: 'cloud'}  # no pixel is 2, snow
    bands, files = ('Blue', 'Green', 'Red', 'NIR', 'SWIR1', 'SWIR2'), []
    for sensor, cell_m in (('sentinel2', 10), ('landsat5', 30)):
        with np.load(folder / f'{sensor}.npz') as content:
            place = {'transform': rasterio.Affine.scale(cell_m, -cell_m), 'crs': None}
            image = np.ascontiguousarray(content['img'].transpose(2, 0, 1))
            files.append(write_raster(out / f'{sensor}.tif', image, band_names=bands, **place))
            files.append(write_raster(out / f'{sensor}_labels.tif', content['msk'][..., 0], **place))
    data = from_rasters(files[0], files[1], class_mapping=names, working_dir=out, **SMALL)
    return map_pixels(data, UNet(data, 'resnet18', pretrained=False), files[2], out, resolution=30)


def banepa_outlines(folder: Path, out: Path) -> str:
    """Photos and building footprints."""
    (footprints,) = (folder / 'train' / 'osm').glob('*.geojson')
    chips = export_training_data(
        tifs(folder / 'train' / 'oam'), footprints, out / 'chips', 'RCNN_Masks', tile_size=256, stride=768
    )
    data = prepare_data(chips, chip_size=128, batch_size=4)
    model = MaskRCNN(data, 'resnet18', pretrained=False)
    return map_objects(data, model, tifs(folder / 'predict' / 'oam')[0], out)


def banepa_boxes(folder: Path, out: Path) -> str:
    """The same photos with boxes in a COCO file."""
    data = prepare_data(folder / 'train', chip_size=128, batch_size=8, working_dir=out)
    return map_objects(data, FCOS(data, 'resnet18', pretrained=False), tifs(folder / 'predict' / 'oam')[0], out)


def neon(folder: Path, out: Path) -> str:
    """Photos of trees with VOC files side by side, among others without."""
    names = ('Red', 'Green', 'Blue')
    data = prepare_data(folder, chip_size=256, batch_size=2, val_split_pct=0.34, bands=names, working_dir=out)
    scene = folder / '2018_SJER_3_252000_4107000_image_477.tif'
    return map_objects(data, FasterRCNN(data, 'resnet18', pretrained=False), scene, out, bands=names)


def eurosat(folder: Path, out: Path) -> str:
    """A folder for each class; the model names a patch of BigEarthNet, which is a file for each band."""
    data = prepare_data(
        folder, bands='sentinel2_l1c', extract_bands=L2A_BANDS, val_split_pct=0.34, working_dir=out, **SMALL
    )
    model = FeatureClassifier(data, 'resnet18', pretrained=False)
    loaded = trained(model, out)
    patches = sorted(path.parent for path in folder.parent.glob('bigearthnet/**/*_B02.tif'))
    named = [loaded.predict(patch, sensor='Sentinel-2').names[0] for patch in patches]
    return f'{shown(data)}; accuracy {model.accuracy():.3f}; {len(patches)} patches of BigEarthNet: {named}'


def told(folder: Path, out: Path) -> str:
    """Folders that cannot be trained on say why."""
    answers = []
    for path in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        try:
            data = prepare_data(path, chip_size=64, working_dir=out)
            answers.append(f'{path.name}: {shown(data)}, {data.task}')
        except GeoLearnError as error:
            answers.append(f'{path.name}: {str(error).splitlines()[0][:110]}')
    return '; '.join(answers)


DATA_SETS: Sequence[tuple[str, Callable[[Path, Path], str]]] = (
    ('aberystwyth_s2', aberystwyth_polygons),
    ('aberystwyth_s2', aberystwyth_raster),
    ('landsat8_224078', landsat),
    ('landsat8_224078', landsat_points),
    ('terramesh', terramesh_optical),
    ('terramesh', terramesh_radar),
    ('clouds_s2_l5', clouds),
    ('banepa_buildings', banepa_outlines),
    ('banepa_buildings', banepa_boxes),
    ('neon_trees', neon),
    ('eurosat_ms', eurosat),
    ('bigearthnet', told),
    ('m4sar', told),
    ('esri_exports', told),
)


def main() -> None:
    """Run all data sets that are there, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, help='folder with a folder for each data set')
    parser.add_argument('out', type=Path, help='new folder')
    parser.add_argument('names', nargs='*', help='data sets to run, such as terramesh or terramesh_radar')
    arguments = parser.parse_args()
    for name, run in DATA_SETS:
        chosen = not arguments.names or {name, run.__name__} & set(arguments.names)
        if chosen and (arguments.data / name).is_dir():
            out = arguments.out / (name if run is told else run.__name__)
            out.mkdir(parents=True)
            torch.manual_seed(0)
            started = time.perf_counter()
            line = run(arguments.data / name, out)
            print(f'{out.name}: {line} ({time.perf_counter() - started:.0f} s)', flush=True)


if __name__ == '__main__':
    main()
