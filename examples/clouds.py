"""Clouds, shadow, water and land: learn from a Sentinel-2 image, map a Landsat-5 image of other bands' widths.

The data are the reference masks of Wieland et al. 2019 as ukis-csmask ships them: `sentinel2.npz` and `landsat5.npz`
with `img` (512, 512, 6) float32 top-of-atmosphere reflectance and `msk` (512, 512, 1) uint8.

    python examples/clouds.py path/to/folder_with_both_npz clouds_output --backbone resnet18 --epochs 20
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch
from affine import Affine

from geolearn import ClassInfo, DeepLab, export_training_data, load_model, prepare_data
from geolearn.bands import resolve_bands
from geolearn.classes import index_table
from geolearn.metrics import ConfusionMatrix
from geolearn.plotting import show_predictions
from geolearn.raster import read_image, read_label, write_raster

# The masks use 0 for cloud shadow, which ArcGIS keeps for what no polygon covers: values move up by one.
CLASSES = (
    ClassInfo(1, 'cloud shadow', (60, 60, 90)),
    ClassInfo(2, 'water', (46, 116, 196)),
    ClassInfo(3, 'snow', (160, 230, 240)),
    ClassInfo(4, 'land', (120, 160, 70)),
    ClassInfo(5, 'cloud', (245, 245, 245)),
)
BANDS = ('Blue', 'Green', 'Red', 'NIR', 'SWIR1', 'SWIR2')
CHIP_SIZE, STRIDE = 128, 32


def write_pair(archive: Path, folder: Path, resolution_m: float) -> tuple[Path, Path]:
    """Write image and mask of one sensor as GeoTIFFs; the archive names no place, so pixels count from an origin."""
    with np.load(archive) as content:
        image, mask = content['img'].transpose(2, 0, 1), content['msk'][..., 0] + 1
    place = {'transform': Affine.scale(resolution_m, -resolution_m), 'crs': None}
    colors = {info.value: info.color for info in CLASSES}
    image_path, label_path = folder / f'{archive.stem}.tif', folder / f'{archive.stem}_labels.tif'
    write_raster(image_path, np.ascontiguousarray(image), band_names=BANDS, **place)
    write_raster(label_path, mask.astype(np.uint8), colors=colors, **place)
    return image_path, label_path


def score(predicted: Path, label: Path) -> ConfusionMatrix:
    """Compare a map with its mask."""
    table = index_table(CLASSES)
    matrix = ConfusionMatrix.empty(len(CLASSES))
    matrix.add(torch.from_numpy(table[read_label(predicted)]), torch.from_numpy(table[read_label(label)]))
    return matrix


def main() -> None:
    """Export both images, train on blocks of the first, map the second from the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, help='folder with sentinel2.npz and landsat5.npz')
    parser.add_argument('out', type=Path, help='new folder')
    parser.add_argument('--backbone', default='resnet18')
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--lr', type=float, default=1e-3)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True)
    images = {}
    for name, sensor, resolution_m in (('sentinel2', 'Sentinel-2', 10.0), ('landsat5', 'Landsat 5', 30.0)):
        images[name] = write_pair(arguments.data / f'{name}.npz', out, resolution_m)
        bands = resolve_bands(BANDS, sensor=sensor)
        export_training_data(
            *images[name], out / name, classes=CLASSES, tile_size=CHIP_SIZE, stride=STRIDE, bands=bands, sensor=sensor
        )
    # chips overlap, so validation holds out whole squares of land and drops the chips that straddle
    data = prepare_data(
        out / 'sentinel2', chip_size=CHIP_SIZE, batch_size=8, split='blocks', block_size=1600.0, val_split_pct=0.2
    )
    print(data)
    torch.manual_seed(0)
    started = time.perf_counter()
    model = DeepLab(data, backbone=arguments.backbone, pretrained=False)
    model.fit(arguments.epochs, lr=arguments.lr)
    trained = time.perf_counter()
    bundle = model.save(out / 'clouds')
    result = load_model(bundle).predict_raster(images['landsat5'][0], out / 'landsat5_map.tif', overwrite=True)
    mapped = time.perf_counter()
    matrix = score(result, images['landsat5'][1])
    print(model.per_class_metrics().to_string(float_format='{:.3f}'.format))
    print(f'Sentinel-2 held-out blocks: accuracy {model.accuracy():.3f}, mIoU {model.mIOU(mean=True):.3f}')
    print(f'Landsat-5, never seen:      accuracy {matrix.accuracy:.3f}, mIoU {matrix.miou:.3f}')
    for info, iou in zip(CLASSES, matrix.iou.tolist()):
        print(f'  {info.name:<14} IoU {iou:.3f}')
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f'training {trained - started:.0f} s, saving and mapping {mapped - trained:.1f} s, peak memory {peak_mb:.0f} MB'
    )
    pixels, _, _ = read_image(images['landsat5'][0])
    table = index_table(CLASSES)
    masks = [torch.from_numpy(table[read_label(path)])[None] for path in (images['landsat5'][1], result)]
    figure = show_predictions(torch.from_numpy(pixels)[None], *masks, resolve_bands(BANDS), CLASSES, side=6)
    figure.savefig(out / 'landsat5.png', dpi=90)


if __name__ == '__main__':
    main()
