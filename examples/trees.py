"""Tree crowns in aerial images: learn from two places, score a third, and map a fourth as polygons.

The data are NEON images at 10 cm with boxes in Pascal VOC XML, as DeepForest ships them: `SOAP_061.png` and
`2019_YELL_2_541000_4977000_image_crop.png` to train, `OSBS_029.png` to test, each with its .xml, and
`5b90f92da0d7280005fab355_4310.tif` (2048 x 2048) to map.

    python examples/trees.py path/to/folder_with_images trees_output --model FasterRCNN --backbone resnet50 --epochs 40
"""

import argparse
import time
from pathlib import Path
from xml.etree import ElementTree

import geopandas
import numpy as np
import shapely
import torch
from affine import Affine

import geolearn.models.object_detector as detectors
from geolearn import ClassInfo, export_training_data, load_model, prepare_data
from geolearn.bands import resolve_bands
from geolearn.batch import Objects
from geolearn.models.object_detector import ObjectDetector
from geolearn.plotting import show_boxes
from geolearn.raster import read_image, write_raster

TRAINING = ('SOAP_061', '2019_YELL_2_541000_4977000_image_crop')
TEST, LARGE = 'OSBS_029', '5b90f92da0d7280005fab355_4310.tif'
TREE = ClassInfo(1, 'Tree', (255, 200, 0))
BANDS = ('Red', 'Green', 'Blue')
CELL_M = 0.1
CHIP_SIZE = 256


def read_boxes(annotation: Path, east_m: float) -> geopandas.GeoDataFrame:
    """Return the boxes of a VOC file in meters, for an image whose upper left corner lies at (east_m, 0)."""
    shapes = []
    for item in ElementTree.parse(annotation).iter('bndbox'):
        left, top, right, bottom = (CELL_M * float(item.findtext(tag)) for tag in ('xmin', 'ymin', 'xmax', 'ymax'))
        shapes.append(shapely.box(east_m + left, -bottom, east_m + right, -top))
    return geopandas.GeoDataFrame(
        {'value': [TREE.value] * len(shapes), 'name': [TREE.name] * len(shapes)}, geometry=shapes
    )


def export_place(data: Path, name: str, out: Path, east_m: float) -> Path:
    """Write an image as a GeoTIFF with names of bands, and export its chips; the files name no place."""
    pixels, _, _ = read_image(data / f'{name}.png', [1, 2, 3])
    place = Affine(CELL_M, 0, east_m, 0, -CELL_M, 0)
    image = write_raster(out / f'{name}.tif', pixels, transform=place, crs=None, band_names=BANDS)
    return export_training_data(
        image,
        read_boxes(data / f'{name}.xml', east_m),
        out / name,
        'PASCAL_VOC_rectangles',
        CHIP_SIZE,
        CHIP_SIZE // 2,
        'value',
        class_name_field='name',
        min_polygon_overlap_ratio=0.3,
        output_nofeature_tiles=True,
    )


def draw_layer(image: Path, layer: Path, figure: Path) -> int:
    """Draw the polygons of a layer over the image that they were found in; returns how many there are."""
    pixels, _, box = read_image(image, [1, 2, 3])
    found, inverse = geopandas.read_file(layer), ~box.transform
    bounds = found.geometry.bounds.to_numpy() if len(found) else np.zeros((0, 4))
    columns, rows = inverse.a * bounds[:, [0, 2]] + inverse.c, inverse.e * bounds[:, [3, 1]] + inverse.f
    boxes = np.stack([columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]], axis=1)
    objects = Objects(torch.from_numpy(boxes).float(), torch.zeros(len(boxes), dtype=torch.int64))
    drawn = show_boxes(torch.from_numpy(pixels)[None].float(), [objects], resolve_bands(BANDS), [TREE], columns=1)
    drawn.set_size_inches(12, 12)
    drawn.savefig(figure, dpi=110)
    return len(found)


def main() -> None:
    """Export, train, score the place that was never seen, and map the large image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, help='folder with the images')
    parser.add_argument('out', type=Path, help='new folder')
    parser.add_argument(
        '--model', default='FasterRCNN', choices=['FasterRCNN', 'RetinaNet', 'FCOS', 'SingleShotDetector']
    )
    parser.add_argument('--backbone', default='resnet50')
    parser.add_argument('--pretrained', action='store_true', help='fetch published weights of the backbone')
    parser.add_argument('--epochs', type=int, default=40)
    parser.add_argument('--lr', type=float, default=3e-4)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True)
    # a kilometer apart, so that no two places share ground
    places = enumerate((*TRAINING, TEST))
    folders = {name: export_place(arguments.data, name, out, 1000.0 * number) for number, name in places}
    options = {'chip_size': CHIP_SIZE, 'batch_size': 4, 'working_dir': out}
    training = [folders[name] for name in TRAINING]
    # chips overlap, so validation holds out whole squares of land
    blocks = {'split': 'blocks', 'block_size': 2 * CELL_M * CHIP_SIZE, 'val_split_pct': 0.15}
    data = prepare_data(training, seed=arguments.seed, **blocks, **options)
    print(data)
    torch.manual_seed(arguments.seed)
    started = time.perf_counter()
    model: ObjectDetector = getattr(detectors, arguments.model)(
        data, arguments.backbone, pretrained=arguments.pretrained
    )
    model.fit(arguments.epochs, lr=arguments.lr)
    print(f'training {time.perf_counter() - started:.0f} s')
    print(f'held-out chips of the same places: AP50 {model.average_precision_score(mean=True):.3f}')
    bundle = model.save(out / 'trees')
    unseen = load_model(bundle, prepare_data(training, valid_path=folders[TEST], **options))
    print(f'{TEST}, never seen: ' + ', '.join(f'{k} {v:.3f}' for k, v in unseen.scores().items()))
    unseen.plot_precision_recall().savefig(out / 'precision_recall.png', dpi=90)
    unseen.show_results(rows=3).savefig(out / 'results.png', dpi=90)
    started = time.perf_counter()
    # the file's bands have no names
    layer = unseen.detect_objects(
        arguments.data / LARGE, out / 'trees.gpkg', threshold=0.4, bands=BANDS, overwrite=True
    )
    count = draw_layer(arguments.data / LARGE, layer, out / 'trees.png')
    print(f'{count} trees in {LARGE}, {time.perf_counter() - started:.0f} s')


if __name__ == '__main__':
    main()
