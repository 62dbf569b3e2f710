"""Does pretraining help? Frozen Galileo nano against the same network at random, on Sentinel-2 chips by class.

Chips of the TerraMesh places take the class that covers most of them, chips of Aberystwyth that of the hand-drawn
polygon they lie on. Half of the blocks (or polygons) train a linear probe and a kNN on the mean token, the other half
tests them; splits and random networks change together. Values are balanced accuracies.
"""

import os
from pathlib import Path

import numpy as np
import torch
from _measure import Check, parse_quick, report
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from geolearn.backbones import catalog
from geolearn.backbones.backbone import BackboneOptions
from geolearn.backbones.building import load_checkpoint, read_checkpoint
from geolearn.backbones.galileo import Galileo, assign_groups, convert_galileo
from geolearn.backbones.trunk import ViTConfig
from geolearn.bands import get_bands
from geolearn.raster import read_image

SHARED = Path(os.environ.get('GEOLEARN_SHARED') or Path(__file__).parents[2] / 'shared')
RECORD = catalog.get_record('galileo_nano')
STATISTICS = RECORD.inputs[0]
BANDS = STATISTICS.get_bands()
PATCH = 4  # chips are small, so tokens are finer than the 8 pixels of the published kernels
PLACE, BLOCK, PLACE_CHIP, POLYGON_CHIP = 224, 56, 28, 16


def normalize(pixels):
    shape = (-1, 1, 1)
    shifted = pixels.astype(np.float32) - np.float32(STATISTICS.mean).reshape(shape)
    return shifted / np.float32(STATISTICS.std).reshape(shape)


def terramesh_chips(step):
    """Chips (N, 10, 28, 28) that one class covers to 70 %, their classes, and the block that each lies in."""
    chips, classes, blocks = [], [], []
    order = [band.common_name for band in get_bands('sentinel2_l2a')]
    indexes = [order.index(band.common_name) + 1 for band in BANDS]
    for label_path in sorted((SHARED / 'data/terramesh/LULC').glob('*.tif')):
        label = read_image(label_path)[0][0]
        image = normalize(read_image(label_path.parents[1] / 'S2L2A' / label_path.name, indexes)[0])
        starts = [s for s in range(0, PLACE - PLACE_CHIP + 1, step) if s % BLOCK <= BLOCK - PLACE_CHIP]
        for row, col in [(r, c) for r in starts for c in starts]:
            window = np.s_[row : row + PLACE_CHIP, col : col + PLACE_CHIP]
            values, counts = np.unique(label[window], return_counts=True)
            if counts.max() >= 0.7 * PLACE_CHIP**2:
                chips.append(image[:, *window])
                classes.append(int(values[counts.argmax()]))
                blocks.append(f'{label_path.stem} {row // BLOCK} {col // BLOCK}')
    return np.stack(chips), np.array(classes), np.array(blocks)


def aberystwyth_chips():
    """Chips (N, 10, 16, 16) around points 80 m apart in polygons, their classes, and the polygon of each."""
    import geopandas

    folder = SHARED / 'data/aberystwyth_s2'
    tiles = [read_image(path) for path in sorted(folder.glob('s2_tiles/*.tif'))]
    chips, classes, polygons = [], [], []
    for name in ('forest', 'grass', 'urban', 'water'):
        shapes = geopandas.read_file(folder / 'cls_poly_smpls.gpkg', layer=f'cls_{name}_smpls').geometry
        for number, shape in enumerate(shapes):
            west, south, east, north = shape.bounds
            xs, ys = np.meshgrid(np.arange(west, east, 80), np.arange(south, north, 80))
            inside = [p for p in geopandas.points_from_xy(xs.ravel(), ys.ravel()) if shape.contains(p)]
            for point in inside[:12] or [shape.representative_point()]:
                chip = _cut(tiles, point.x, point.y)
                if chip is not None:
                    chips.append(normalize(chip * np.float32(10)))  # reflectance x 1000
                    classes.append(name)
                    polygons.append(f'{name} {number}')
    return np.stack(chips), np.array(classes), np.array(polygons)


def _cut(tiles, x, y):
    for pixels, _, box in tiles:
        left, _, _, top = box.bounds
        row = int((top - y) // abs(box.transform.e)) - POLYGON_CHIP // 2
        col = int((x - left) // box.transform.a) - POLYGON_CHIP // 2
        if min(row, col) >= 0 and row + POLYGON_CHIP <= pixels.shape[1] and col + POLYGON_CHIP <= pixels.shape[2]:
            return pixels[:, row : row + POLYGON_CHIP, col : col + POLYGON_CHIP]
    return None


def make_trunk(seed=None):
    """Galileo nano with its published weights, or at random with a seed."""
    torch.manual_seed(seed or 0)
    trunk = Galileo(ViTConfig(RECORD.dim, RECORD.depth, RECORD.heads, eps=1e-5), assign_groups(BANDS), patch=PATCH)
    if seed is None:
        options = BackboneOptions(weights=SHARED / 'weights/galileo_nano/encoder.pt')
        load_checkpoint(trunk, convert_galileo(read_checkpoint(RECORD, BANDS, options), BANDS, patch=PATCH), options)
    return trunk.eval()


@torch.no_grad()
def features(trunk, chips):
    return torch.cat([trunk.tokens(part).mean(dim=1) for part in torch.from_numpy(chips).split(64)]).numpy()


def probe(values, classes, groups, seed):
    """Balanced accuracies (linear, kNN) after training on a random half of each class's groups."""
    rng, train = np.random.default_rng(seed), np.zeros(len(classes), bool)
    owner = {group: classes[groups == group][0] for group in dict.fromkeys(groups)}
    for name in sorted(set(owner.values())):
        own = [group for group in owner if owner[group] == name]
        train |= np.isin(groups, rng.permutation(own)[: (len(own) + 1) // 2])
    known = np.isin(classes, np.intersect1d(classes[train], classes[~train]))
    models = LogisticRegression(C=0.1, max_iter=500), KNeighborsClassifier(5)
    scores = []
    for model in (make_pipeline(StandardScaler(), m) for m in models):
        model.fit(values[train & known], classes[train & known])
        scores.append(balanced_accuracy_score(classes[~train & known], model.predict(values[~train & known])))
    return scores


def compare(name, chips, classes, groups, splits):
    """Print both networks' accuracies; return pretrained over random, linear probe."""
    trained = features(make_trunk(), chips)
    scores = {'pretrained': [], 'random': []}
    for seed in range(1, splits + 1):
        scores['pretrained'].append(probe(trained, classes, groups, seed))
        scores['random'].append(probe(features(make_trunk(seed), chips), classes, groups, seed))
    counts = dict(zip(*(part.tolist() for part in np.unique(classes, return_counts=True))))
    print(f'{name}: {len(classes)} chips {counts}, {len(set(groups))} groups, {splits} splits')
    for kind, values in scores.items():
        mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
        print(f'  {kind:10} linear {mean[0]:.3f} +- {spread[0]:.3f}, kNN {mean[1]:.3f} +- {spread[1]:.3f}')
    won = [a > b for (a, _), (b, _) in zip(scores['pretrained'], scores['random'])]
    print(f'  pretrained is the better linear probe in {sum(won)} of {splits} splits')
    return np.mean(scores['pretrained'], axis=0)[0] / np.mean(scores['random'], axis=0)[0]


def main():
    quick = parse_quick(__doc__)
    if not (SHARED / 'weights/galileo_nano').is_dir():
        print('needs the shared folder of weights and data; set GEOLEARN_SHARED')
        report({'galileo_gain': Check(None, 1.0, at_least=True)})
        return
    splits = 3 if quick else 10
    gains = {
        'terramesh': compare('terramesh', *terramesh_chips(28 if quick else 14), splits),
        'aberystwyth': compare('aberystwyth', *aberystwyth_chips(), splits),
    }
    checks = {f'galileo_gain_{name}': Check(gain) for name, gain in gains.items()}
    report({'galileo_gain': Check(min(gains.values()), 1.0, at_least=True), **checks})


if __name__ == '__main__':
    main()
