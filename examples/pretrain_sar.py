"""Does pretraining on unlabelled radar scenes help? A table of frozen and fine-tuned accuracy, pretrained and not.

The scenes are generated: six kinds of land that differ in texture alone, under speckle of known statistics (gamma, four
looks). A small transformer is pretrained on windows of them, without labels. Then, on chips that it never saw:

* frozen: logistic regression on the mean of its tokens for 300 labelled chips, against the same of random weights, and
  against statistics of the pixels (mean, spread and five quantiles of each band);
* fine-tuned: trained on 30 labelled chips, one in a hundred of 3,000: the head first, then all layers (Kumar et al.
  2022, arXiv:2202.10054); against all layers from scratch, in as many steps and at the same rate. One draw of 30 chips
  says little: several are trained on, each by both starts.

Frozen features are scored on 300 other chips, trained networks on 1,200. Seeds change scenes, chips, windows, weights
and order.

    python examples/pretrain_sar.py --seeds 0 1 2

With the defaults a seed takes about four minutes of one core.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from geolearn import FeatureClassifier, create_backbone, from_arrays
from geolearn.pretrain import DinoOptions, MaeOptions, Pretraining, pretrain
from geolearn.synthetic import make_radar_chips, make_radar_scene

BACKBONE, BANDS, SIDE = 'vit_nano', ['VV', 'VH'], 32

METHODS = {
    # small heads for a small network; patches keep their mean and spread, which speckle leaves most of
    'dino': DinoOptions(
        prototypes=256, hidden=256, bottleneck=64, local_crops=2, local_scale=(0.15, 0.4), momentum=0.99
    ),
    'mae': MaeOptions(decoder_dim=64, decoder_depth=1, decoder_heads=4, normalize_patches=False, crop_scale=(0.5, 1.0)),
}
RATES = {'dino': 1e-3, 'mae': 1.5e-3}

RATE, HEAD_FIRST = 3e-3, 1 / 3
"""Highest rate of training on a few labels: of 3e-4, 1e-3 and 3e-3 the best for both starts on seed 10, which is not
one of the table. And the share of the epochs in which only the head of a pretrained network learns, chosen there too.
"""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def cut_windows(scenes: int, size: int, seed: int) -> np.ndarray:
    """Return windows (n, 2, side, side) of generated scenes, in decibels, one beside the other."""
    found = []
    for number in range(scenes):
        image = 10 * np.log10(make_radar_scene(size, seed=100 * seed + number).image)
        count = size // SIDE
        cut = image[:, : count * SIDE, : count * SIDE].reshape(len(BANDS), count, SIDE, count, SIDE)
        found.append(cut.transpose(1, 3, 0, 2, 4).reshape(-1, len(BANDS), SIDE, SIDE))
    return np.concatenate(found)


def pretrain_on_scenes(folder: Path, method: str, *, seed: int, epochs: int, scenes: int, size: int) -> Pretraining:
    """Pretrain on windows of generated scenes."""
    windows = cut_windows(scenes, size, seed)
    share = min(0.25, 64 / len(windows))
    data = from_arrays(
        windows, bands=BANDS, batch_size=64, val_split_pct=share, transforms=False, working_dir=folder, seed=seed
    )
    return pretrain(
        data, method=method, backbone=BACKBONE, options=METHODS[method], epochs=epochs, batch_size=64,
        lr=RATES[method], seed=seed, checkpoint=False, overwrite=True,
    )  # fmt: skip


def labelled_chips(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return chips in decibels, and their class values; so many of each class."""
    images, values = make_radar_chips(count, SIDE, seed=seed)
    return 10 * np.log10(images), values


def pixel_statistics(images: np.ndarray) -> np.ndarray:
    """Return mean, spread and quantiles of each band of each chip: what needs no network."""
    flat = images.reshape(*images.shape[:2], -1)
    columns = [flat.mean(2), flat.std(2), *np.quantile(flat, QUANTILES, axis=2)]
    return np.concatenate(columns, axis=1)


def describe(result: Pretraining, weights: bool, images: np.ndarray) -> np.ndarray:
    """Return the mean of the patch tokens of each chip, by the pretrained weights or by random ones."""
    torch.manual_seed(0)
    name = str(result.weights) if weights else BACKBONE
    backbone = create_backbone(name, BANDS, pretrained=weights, form='tokens').eval()
    mean, std = (torch.tensor(row).view(1, -1, 1, 1) for row in (result.facts.mean, result.facts.std))
    with torch.inference_mode():
        tokens = [backbone((part - mean) / std)[:, backbone.prefix :].mean(1) for part in _batches(images)]
    return torch.cat(tokens).numpy()


def _batches(images: np.ndarray) -> tuple[torch.Tensor, ...]:
    return torch.from_numpy(images).split(128)


def probe(result: Pretraining, *, per_class: int, seed: int) -> dict[str, float]:
    """Return accuracies of logistic regression on frozen features."""
    (train, truth), (test, hidden) = labelled_chips(per_class, 1000 + seed), labelled_chips(per_class, 2000 + seed)
    found = {}
    for name, features in {
        'pixel statistics': pixel_statistics,
        'frozen, random': lambda images: describe(result, False, images),
        'frozen, pretrained': lambda images: describe(result, True, images),
    }.items():
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000))
        found[name] = float(model.fit(features(train), truth).score(features(test), hidden))
    return found


def fine_tune(
    result: Pretraining, weights: bool, *, labels: int, per_class: int, epochs: int, seed: int, draw: int
) -> float:
    """Return the accuracy of a classifier that was trained on a few labels.

    Chips are shown as they are and flipped, since no kind of land looks another way flipped (turned, rows would).
    """
    train, truth = labelled_chips(labels, 3000 + seed + 100_000 * draw)
    test, hidden = labelled_chips(per_class, 2000 + seed)
    shown = np.concatenate([train, train[..., ::-1], train[..., ::-1, :], train[..., ::-1, ::-1]])
    images, values = np.concatenate([shown, test[:2]]), np.concatenate([np.tile(truth, 4), hidden[:2]])
    names = [f'{index:09d}' for index in range(len(shown), len(images))]  # validation costs time and chooses nothing
    data = from_arrays(
        np.ascontiguousarray(images), values, bands=BANDS, batch_size=len(train), split={'valid': names},
        transforms=False, working_dir=result.weights.parent, seed=seed,
    )  # fmt: skip
    torch.manual_seed(seed + draw)
    backbone = {'backbone': str(result.weights)} if weights else {'backbone': BACKBONE, 'pretrained': False}
    model = FeatureClassifier(data, **backbone)
    head_first = round(HEAD_FIRST * epochs) if weights else 0
    if head_first:
        model.freeze()
        model.fit(head_first, RATE, seed=seed, checkpoint=False)
        model.unfreeze()
    # one rate for all layers: a single number means a tenth of it for a backbone that is pretrained
    model.fit(epochs - head_first, slice(RATE, RATE), seed=seed, checkpoint=False)
    classes = np.array([info.value for info in model.data.class_infos])
    network = model.network.eval()
    with torch.inference_mode():
        found = torch.cat([network(part).argmax(1) for part in _batches(test)]).numpy()
    return float((classes[found] == hidden).mean())


def study(folder: Path, method: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Return a row of the table."""
    started = time.process_time()
    result = pretrain_on_scenes(
        folder, method, seed=seed, epochs=options.epochs, scenes=options.scenes, size=options.size
    )
    seconds = time.process_time() - started
    row = probe(result, per_class=options.per_class, seed=seed)
    print(json.dumps({'seed': seed, 'CPU seconds': round(seconds)} | row), flush=True)
    few = {'labels': options.labels, 'per_class': options.tested, 'epochs': options.tuning_epochs, 'seed': seed}
    pairs = []
    for draw in range(options.draws):
        pairs.append([fine_tune(result, weights, draw=draw, **few) for weights in (False, True)])
        print(json.dumps({'seed': seed, 'draw': draw, 'scratch, pretrained': pairs[-1]}), flush=True)
    scratch, pretrained = np.mean(pairs, axis=0).tolist()
    return row | {
        '1 % labels, scratch': scratch,
        '1 % labels, pretrained': pretrained,
        'steps': result.facts.steps,
        'CPU seconds': round(seconds),
    }


def main(words: list[str] | None = None) -> list[dict[str, float]]:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--method', choices=sorted(METHODS), default='mae')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, default=36)
    parser.add_argument('--scenes', type=int, default=4)
    parser.add_argument('--size', type=int, default=768, help='side of a scene in pixels')
    parser.add_argument('--per-class', type=int, default=50, help='chips of each class to probe with, and on')
    parser.add_argument('--labels', type=int, default=5, help='labelled chips of each class to fine-tune on')
    parser.add_argument('--draws', type=int, default=3, help='how often labelled chips are drawn')
    parser.add_argument('--tested', type=int, default=200, help='chips of each class that fine-tuned networks classify')
    parser.add_argument('--tuning-epochs', type=int, default=60)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    rows = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(study(Path(folder), options.method, seed, options))
        print(json.dumps({'seed': seed} | rows[-1]), flush=True)
    print(f'\n| {options.method}, seed | ' + ' | '.join(rows[0]) + ' |\n|' + '---|' * (len(rows[0]) + 1))
    for seed, row in zip(options.seeds, rows):
        print(f'| {seed} | ' + ' | '.join(f'{value:.3g}' for value in row.values()) + ' |')
    means = [float(np.mean([row[name] for row in rows])) for name in rows[0]]
    print('| mean | ' + ' | '.join(f'{value:.3g}' for value in means) + ' |')
    return rows


if __name__ == '__main__':
    main()
