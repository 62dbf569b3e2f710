"""Parcels: learn the land cover of some from a synthetic Sentinel-2 scene, and name that of all the others.

Squares of land stand for parcels. Those in the west are exported as chips with a class each (Labeled_Tiles) and
trained on; `classify_objects` then writes the class and its confidence to the parcels in the east.

    python examples/landcover_chips.py parcels_output --backbone resnet18 --epochs 10
"""

import argparse
from pathlib import Path

import geopandas
import numpy as np
import shapely
import torch

from geolearn import FeatureClassifier, export_training_data, load_model, prepare_data
from geolearn.synthetic import CLASSES, Scene, make_scene, write_scene

SIDE, CHIP_SIZE = 12, 32
"""Pixels of a parcel, and of what is seen of it and around it."""

LEAST_SHARE = 0.8
"""Of a parcel that must be of one class, so that it has a truth."""


def draw_parcels(scene: Scene) -> geopandas.GeoDataFrame:
    """Return the squares of a scene that are almost wholly of one class."""
    names = {info.value: info.name for info in scene.classes}
    rows = []
    for top in range(0, scene.label.shape[0] - SIDE + 1, SIDE):
        for left in range(0, scene.label.shape[1] - SIDE + 1, SIDE):
            values, counts = np.unique(scene.label[top : top + SIDE, left : left + SIDE], return_counts=True)
            value = int(values[counts.argmax()])
            if value and counts.max() >= LEAST_SHARE * SIDE**2:
                x, y, pixel = scene.transform.c, scene.transform.f, scene.transform.a
                west, north = x + pixel * left, y - pixel * top
                square = shapely.box(west, north - pixel * SIDE, west + pixel * SIDE, north)
                rows.append({'classname': names[value], 'column': left, 'geometry': square})
    return geopandas.GeoDataFrame(rows, crs=scene.crs)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('--backbone', default='resnet18')
    parser.add_argument('--pretrained', action='store_true', help='fetch the published weights of the backbone')
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--size', type=int, default=512, help='side of the scene in pixels')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    scene = make_scene(args.size, seed=0)
    image, labels = args.out / 'scene.tif', args.out / 'labels.tif'
    write_scene(scene, image, labels)
    parcels = draw_parcels(scene)
    west = parcels['column'] < args.size // 2
    train, rest = parcels[west], parcels[~west].reset_index(drop=True)

    chips = export_training_data(
        image, train, args.out / 'chips', 'Labeled_Tiles', tile_size=CHIP_SIZE, classes=CLASSES, sensor='Sentinel-2'
    )
    data = prepare_data(chips, chip_size=CHIP_SIZE, batch_size=16, val_split_pct=0.2, split='blocks')
    print(data)
    model = FeatureClassifier(data, args.backbone, pretrained=args.pretrained, oversample=True, mixup=0.2)
    model.fit(args.epochs, lr=1e-3)
    print(model.per_class_metrics().round(2))
    model.plot_confusion_matrix().savefig(args.out / 'confusion.png')
    model.plot_hard_examples().savefig(args.out / 'hard.png')
    model.show_results(explain=True).savefig(args.out / 'explained.png')

    model = load_model(model.save(args.out / 'parcels.dlpk'))
    named = geopandas.read_file(model.classify_objects(image, rest, args.out / 'parcels.gpkg'))
    right = (named['ClassLabel'] == named['classname']).mean()
    print(f'{len(named)} parcels named, {right:.1%} of them right; see {args.out / "parcels.gpkg"}')


if __name__ == '__main__':
    main()
