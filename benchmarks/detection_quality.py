"""Is our Faster R-CNN as good as torchvision's in a bare PyTorch loop? Three seeds of each on NEON's tree crowns.

Both have a ResNet-50 that starts from nothing, a feature pyramid, the same anchors, the same numbers of the head, the
same mean and deviation of the bands, and the same side to which chips are brought. The bare loop has torch's AdamW and
one-cycle schedule with the numbers that `fit` uses, and batches from the same loader: same chips, same order, same
augmentation. Both are evaluated on a place that neither saw, after the last epoch, which nobody chose.

    python benchmarks/detection_quality.py path/to/neon_trees --rows quality.jsonl

Each training adds a line to the file of rows, and what has a line there is not trained again. Prints, as its last line,
one JSON object of {name: {value, bar, ok}}.

    ours     mean AP50 of our Faster R-CNN over the seeds; the bar is the mean of torchvision's
    plain    mean AP50 of torchvision's
    spread   standard deviation over the seeds, the larger of the two
    fitted   mean AP50 of ours on the training chips, over that of torchvision's
    seconds  of our trainings over those of the bare loop, median
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from _measure import Check, report
from _objects import export_trees, read_trees
from _page import read_lines
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from geolearn import ChipData
from geolearn.batch import Detections, Objects
from geolearn.chips.batches.loader import ChipLoader
from geolearn.metrics import DetectionScores
from geolearn.models import FasterRCNN
from geolearn.models.evaluation.objects import evaluate_objects
from geolearn.networks.detection.architecture import RCNNOptions

LR, EPOCHS, SEEDS, RESIZE_TO = 5e-4, 10, (0, 1, 2), 96
HEAD = RCNNOptions(box_batch_size_per_image=32)
"""torchvision's numbers, but for fewer samples: chips of this size hold a handful of crowns."""


@dataclass(frozen=True)
class Trained:
    """What came out of one training.

    Args:
        who: ``'ours'`` or ``'plain'``.
        seed: Of weights, order and augmentation.
        epochs: Passes over the training chips.
        seconds: For all of them.
        ap50: On the place never seen.
        map: The mean over overlaps of 0.5 to 0.95.
        recall: The highest, averaged alike.
        fitted: AP50 on the training chips.
    """

    who: str
    seed: int
    epochs: int
    seconds: float
    ap50: float
    map: float
    recall: float
    fitted: float


Evaluate = Callable[[ChipLoader], DetectionScores]
"""Compares what a trained network finds in chips with the truth."""


def reseed(data: ChipData, seed: int) -> ChipData:
    """The same chips, with order and augmentation by another seed."""
    loader = data.train_dl
    return replace(data, train_dl=ChipLoader(loader.dataset, replace(loader.options, seed=seed)))


def as_they_are(loader: ChipLoader) -> ChipLoader:
    """The chips in their own order, without augmentation."""
    return ChipLoader(loader.dataset, replace(loader.options, shuffle=False, transform=None))


def train_ours(data: ChipData, seed: int, epochs: int) -> Evaluate:
    """Train ours for so many epochs."""
    model = FasterRCNN(data, 'resnet50', pretrained=False, resize_to=RESIZE_TO, head=HEAD)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model.fit(epochs, lr=LR, checkpoint=False, seed=seed)
    return lambda chips: evaluate_objects(model.network, chips, model.make_scores(), data.classes).detections


def build_plain(data: ChipData) -> torch.nn.Module:
    """torchvision's Faster R-CNN as it comes, given what ours takes from the data."""
    anchors = FasterRCNN(data, 'resnet18', pretrained=False, resize_to=RESIZE_TO, head=HEAD).spec.options
    sizes, ratios = anchors['anchor_sizes'], tuple(anchors['aspect_ratios'])
    network: torch.nn.Module = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=1 + data.c,
        min_size=RESIZE_TO,
        max_size=RESIZE_TO,
        image_mean=list(data.normalization.mean),
        image_std=list(data.normalization.std),
        rpn_anchor_generator=AnchorGenerator(tuple(map(tuple, sizes)), (ratios,) * len(sizes)),
        box_batch_size_per_image=HEAD.box_batch_size_per_image,
        box_detections_per_img=HEAD.box_detections_per_img,
    )
    return network


def as_targets(objects: Sequence[Objects]) -> list[dict[str, Tensor]]:
    """Targets as torchvision wants them: class 0 is background."""
    return [{'boxes': item.boxes, 'labels': item.labels + 1} for item in objects]


def train_plain(data: ChipData, seed: int, epochs: int) -> Evaluate:
    """Train torchvision's in a bare loop."""
    network = build_plain(data).to(data.train_dl.device)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, epochs=epochs, steps_per_epoch=len(data.train_dl), pct_start=0.1, final_div_factor=4000
    )
    for _ in range(epochs):
        network.train()
        for images, objects in data.train_dl:
            optimizer.zero_grad()
            sum(network(list(images), as_targets(objects)).values()).backward()
            optimizer.step()
            schedule.step()
    return lambda chips: evaluate(network, chips, data.c)


@torch.inference_mode()
def evaluate(network: torch.nn.Module, chips: ChipLoader, classes: int) -> DetectionScores:
    """Compare what torchvision's network finds with the truth."""
    network.eval()
    scores = DetectionScores(classes, max_detections=HEAD.most)
    for images, objects in chips:
        found = network(list(images))
        scores.add([Detections(item['boxes'], item['labels'] - 1, item['scores']) for item in found], objects)
    return scores


def read_trainings(path: Path) -> list[Trained]:
    """Read what earlier runs wrote."""
    return [Trained(**row) for row in read_lines(path)]


def train_all(data: ChipData, epochs: int, rows: Path) -> list[Trained]:
    """Train both with every seed, in turn, where there is no row yet."""
    for seed in SEEDS:
        for who, train in (('ours', train_ours), ('plain', train_plain)):
            if (who, seed, epochs) in {(row.who, row.seed, row.epochs) for row in read_trainings(rows)}:
                continue
            torch.manual_seed(seed)
            started = time.perf_counter()
            look = train(reseed(data, seed), seed, epochs)
            seconds = time.perf_counter() - started
            values, fitted = look(data.valid_dl).values(), look(as_they_are(data.train_dl)).values()
            row = Trained(who, seed, epochs, seconds, values['ap50'], values['map'], values['recall'], fitted['ap50'])
            with rows.open('a') as lines:
                lines.write(json.dumps(asdict(row)) + '\n')
            print(row, flush=True)
    return [row for row in read_trainings(rows) if row.epochs == epochs]


def compare(rows: Sequence[Trained]) -> dict[str, Check]:
    """Hold the mean of ours against that of the other."""
    scores = {who: [row.ap50 for row in rows if row.who == who] for who in ('ours', 'plain')}
    seconds = {(row.who, row.seed): row.seconds for row in rows}
    ours, plain = (statistics.mean(values) for values in scores.values())
    fitted = {who: statistics.mean(row.fitted for row in rows if row.who == who) for who in scores}
    return {
        'ours': Check(ours, plain, at_least=True),
        'plain': Check(plain),
        'spread': Check(max(statistics.stdev(values) for values in scores.values())),
        'fitted': Check(fitted['ours'] / fitted['plain']),
        'seconds': Check(statistics.median(seconds['ours', seed] / seconds['plain', seed] for seed in SEEDS)),
    }


def main() -> None:
    """Train and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, help='folder with images and XML files')
    parser.add_argument('--epochs', type=int, default=EPOCHS)
    parser.add_argument(
        '--rows', type=Path, default=Path('detection_quality.jsonl'), help='file that keeps the figures'
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ['GEOLEARN_CACHE'] = f'{name}/cache'
        data = read_trees(export_trees(given.data, Path(name)))
        print(data, flush=True)
        report(compare(train_all(data, given.epochs, given.rows)))


if __name__ == '__main__':
    sys.exit(main())
