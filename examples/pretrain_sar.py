"""Does pretraining on unlabelled radar scenes help? A table of frozen and fine-tuned accuracy, pretrained and not.

The scenes are generated: six kinds of land that differ in texture alone, under speckle of known statistics (gamma, four
looks). A small transformer is pretrained on random windows of them, without labels. Then, on chips that it never saw:

* frozen: logistic regression on what it says of 600 labelled chips, against the same of its random initialization;
* fine-tuned: trained on 12 labelled chips, one in a hundred of 1,200, against the same from scratch.

    python examples/pretrain_sar.py --method mae --seeds 3

With the defaults it takes about three minutes of one core for each seed.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from geolearn import FeatureClassifier, create_backbone, from_arrays
from geolearn.pretrain import DinoOptions, MaeOptions, Pretraining, WindowOptions, pretrain
from geolearn.raster import write_raster
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


def pretrain_on_scenes(folder: Path, method: str, *, seed: int, epochs: int, scenes: int, size: int) -> Pretraining:
    """Write scenes, and pretrain on random windows of them."""
    paths = []
    for number in range(scenes):
        scene = make_radar_scene(size, seed=100 * seed + number)
        paths.append(folder / f'scene{number}.tif')
        write_raster(paths[-1], scene.image, transform=scene.transform, crs=scene.crs, band_names=scene.band_names)
    return pretrain(
        paths, method=method, backbone=BACKBONE, options=METHODS[method], epochs=epochs, batch_size=64,
        chip_size=SIDE, lr=RATES[method], reading=WindowOptions(scale='db'), working_dir=folder, seed=seed,
    )  # fmt: skip


def labelled_chips(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return chips in decibels, and their class values."""
    images, values = make_radar_chips(count, SIDE, seed=seed)
    return 10 * np.log10(images), values


def describe(result: Pretraining, weights: bool, images: np.ndarray) -> np.ndarray:
    """Return the class token and the mean of the patch tokens of each chip."""
    torch.manual_seed(0)
    name = str(result.weights) if weights else BACKBONE
    backbone = create_backbone(name, BANDS, pretrained=weights, form='tokens').eval()
    mean, std = (torch.tensor(row).view(1, -1, 1, 1) for row in (result.facts.mean, result.facts.std))
    with torch.inference_mode():
        tokens = torch.cat([backbone((part - mean) / std) for part in torch.from_numpy(images).split(128)])
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1).numpy()


def probe(result: Pretraining, weights: bool, *, per_class: int, seed: int) -> float:
    """Return the accuracy of logistic regression on what the frozen backbone says of chips."""
    (train, truth), (test, hidden) = labelled_chips(per_class, 1000 + seed), labelled_chips(per_class, 2000 + seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000))
    model.fit(describe(result, weights, train), truth)
    return float(model.score(describe(result, weights, test), hidden))


def fine_tune(result: Pretraining, weights: bool, *, labels: int, per_class: int, epochs: int, seed: int) -> float:
    """Return the accuracy of a classifier that was trained on a few labels, all of it."""
    (train, truth), (test, hidden) = labelled_chips(labels, 3000 + seed), labelled_chips(per_class, 2000 + seed)
    names = [f'{index:09d}' for index in range(len(train), len(train) + len(test))]
    data = from_arrays(
        np.concatenate([train, test]), np.concatenate([truth, hidden]), bands=BANDS, batch_size=len(train),
        split={'valid': names}, transforms=False, working_dir=result.weights.parent, seed=seed,
    )  # fmt: skip
    torch.manual_seed(seed)
    backbone = {'backbone': str(result.weights)} if weights else {'backbone': BACKBONE, 'pretrained': False}
    model = FeatureClassifier(data, **backbone)
    model.fit(epochs, 1e-3, seed=seed, checkpoint=False)
    return float(model.scores()['accuracy'])


def study(folder: Path, method: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Return a row of the table."""
    started = time.process_time()
    result = pretrain_on_scenes(
        folder, method, seed=seed, epochs=options.epochs, scenes=options.scenes, size=options.size
    )
    seconds = time.process_time() - started
    few = {'labels': 2, 'per_class': options.per_class, 'epochs': options.tuning_epochs, 'seed': seed}
    return {
        'frozen, random': probe(result, False, per_class=options.per_class, seed=seed),
        'frozen, pretrained': probe(result, True, per_class=options.per_class, seed=seed),
        '1 % labels, scratch': fine_tune(result, False, **few),
        '1 % labels, pretrained': fine_tune(result, True, **few),
        'steps': result.facts.steps,
        'CPU seconds': round(seconds),
    }


def main(words: list[str] | None = None) -> list[dict[str, float]]:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--method', choices=sorted(METHODS), default='mae')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--epochs', type=int, default=40)
    parser.add_argument('--scenes', type=int, default=2)
    parser.add_argument('--size', type=int, default=768, help='side of a scene in pixels')
    parser.add_argument('--per-class', type=int, default=100, help='labelled chips of each class for the probe')
    parser.add_argument('--tuning-epochs', type=int, default=40)
    options = parser.parse_args(words)
    rows = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(study(Path(folder), options.method, seed, options))
        print(rows[-1], flush=True)
    print(f'\n| {options.method}, seed | ' + ' | '.join(rows[0]) + ' |\n|' + '---|' * (len(rows[0]) + 1))
    for seed, row in enumerate(rows):
        print(f'| {seed} | ' + ' | '.join(f'{value:.3g}' for value in row.values()) + ' |')
    means = [float(np.mean([row[name] for row in rows])) for name in rows[0]]
    print('| mean | ' + ' | '.join(f'{value:.3g}' for value in means) + ' |')
    return rows


if __name__ == '__main__':
    main()
