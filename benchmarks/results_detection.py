"""Train detectors on tree crowns and buildings, from random weights, and write their section of docs/results.md.

    python benchmarks/results_detection.py path/to/neon_trees path/to/banepa_buildings/train --rows detection.jsonl

Each training adds a line to the file of rows, and what has a line there is not trained again: a run can be interrupted,
and divided with --dataset and --backbone. The section is written anew after each training. The rows that
`detection_quality.py` wrote are the comparison with torchvision.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from _objects import BUILDING_CHIP, TREE_CHIP, TREE_STRIDE, export_buildings, export_trees, read_buildings, read_trees
from _page import format_table, read_lines, write_section
from detection_quality import HEAD, LR, RESIZE_TO, SEEDS, Trained, read_trainings

from geolearn import ChipData
from geolearn.metrics import DetectionScores
from geolearn.models import FasterRCNN, MaskRCNN
from geolearn.models.evaluation.objects import evaluate_objects
from geolearn.models.object_detector import ObjectDetector

BACKBONES = ('resnet50', 'dofa_tiny')
MODELS: dict[str, type[ObjectDetector]] = {'trees': FasterRCNN, 'buildings': MaskRCNN}
EPOCHS = {'trees': 3, 'buildings': 2}
SEED = SEEDS[0]


class Case(NamedTuple):
    """One training."""

    dataset: str
    backbone: str


@dataclass(frozen=True)
class Row:
    """What came out of one training.

    Args:
        case: Which one.
        epochs: Passes over the training chips.
        train_chips: How many there are.
        valid_chips: How many are held out.
        parameters: Of the whole network.
        seconds: Of an epoch with its validation, median.
        boxes: Scores of the boxes on the held-out chips after the last epoch, by name.
        masks: Scores of the outlines, or None.
    """

    case: Case
    epochs: int
    train_chips: int
    valid_chips: int
    parameters: int
    seconds: float
    boxes: dict[str, float]
    masks: dict[str, float] | None = None


class Data:
    """The chips of both data sets, exported when they are first asked for.

    Args:
        trees: Folder of NEON's images and XML files.
        buildings: Folder of Banepa's images and outlines.
        folder: Where to export to.
    """

    def __init__(self, trees: Path, buildings: Path, folder: Path) -> None:
        self._sources = {'trees': trees, 'buildings': buildings}
        self._folder = folder
        self._chips: dict[str, dict[str, Path]] = {}

    def read(self, dataset: str) -> ChipData:
        """Return fresh batches, so that every training sees the same order and augmentation."""
        export, read = {'trees': (export_trees, read_trees), 'buildings': (export_buildings, read_buildings)}[dataset]
        if dataset not in self._chips:
            self._chips[dataset] = export(self._sources[dataset], self._folder)
        return read(self._chips[dataset])


def train(case: Case, chips: ChipData) -> Row:
    """Train and evaluate one model."""
    torch.manual_seed(SEED)
    model = MODELS[case.dataset](chips, case.backbone, pretrained=False, resize_to=RESIZE_TO, head=HEAD)
    model.fit(EPOCHS[case.dataset], lr=LR, checkpoint=False, seed=SEED)
    masks = model.scores() if model.architecture.masks else None
    counted = DetectionScores(chips.c, max_detections=HEAD.most)
    boxes = evaluate_objects(model.network, chips.valid_dl, counted, chips.classes).metrics
    return Row(
        case,
        EPOCHS[case.dataset],
        len(chips.train_ds),
        len(chips.valid_ds),
        sum(parameter.numel() for parameter in model.network.parameters()),
        statistics.median(row['seconds'] for row in model.history.epochs),
        dict(boxes),
        masks,
    )


def read_rows(path: Path) -> list[Row]:
    """Read the rows that earlier runs wrote."""
    return [Row(**(row | {'case': Case(*row['case'])})) for row in read_lines(path)]


INTRO = """## Objects

Written by `benchmarks/results_detection.py`. Every backbone started from **random weights** and trained for minutes on
one core, which is far too short for a detector: the scores are low, and no model here is of use. They compare like with
like, and say nothing of what pretrained weights would reach. All had AdamW, one-cycle to a highest rate of {rate:g},
batches of 4, flips, turns and radiometric jitter; chips were brought to {side} pixels a side. Weights are those after
the last epoch: none was chosen by its score. One training each with one seed, unless said otherwise. AP is COCO's.
Seconds per epoch include its validation; they were measured on {machine}: read them as rough ratios.
"""

TREES = """
### NEON: tree crowns of a place never seen

Aerial images at 10 cm as DeepForest ships them. Chips of {chip} px with a stride of {stride} from YELL_541000 (Wyoming)
and SOAP_061 (California), {train} in all with 316 crowns; tested on the {valid} chips of OSBS_029 (Florida, 61 crowns).
{epochs} epochs.

{table}

**What to keep in mind.** The test is one image of 40 x 40 m, of another forest than those trained on: a few crowns are
a few points of AP. Crowns that the edge of a chip cuts count where at least 0.3 of their box is inside. The GeoTIFF of
2048 x 2048 pixels that ships with these data shows a river in Manila, not a NEON site: over that image, what
`detect_objects` finds with these models is bright cars, roofs and a bridge, and hardly a tree.
"""

QUALITY = """
### NEON: Faster R-CNN on ResNet-50 against plain torchvision

Written from the rows of `benchmarks/detection_quality.py`. The same chips, order, augmentation, anchors, numbers of the
head, optimizer, schedule and epochs; torchvision's `fasterrcnn_resnet50_fpn` in a bare PyTorch loop, ours
through `fit`. AP50 on OSBS_029 after the last epoch, and on the training chips as they are.
{tables}
**What to keep in mind.** With 61 crowns and scores this low, a difference of the means below the deviation does not say
which is better, and longer training helps neither on a forest of another kind. That ours fits the training chips sooner
comes in part from its start: timm, from which its ResNet comes, begins with closed residual branches (the scale of
their last norm is 0), torchvision with open ones.
"""

BUILDINGS = """
### Banepa: outlines of buildings

Drone images at about 15 cm (OpenAerialMap) and buildings of OpenStreetMap. Windows of {chip} px of 48 map tiles, in
six columns from west to east: the westernmost column is held out, {valid} chips, and {train} were trained on.
Mask R-CNN, {epochs} epochs.

{table}

**What to keep in mind.** The held-out tiles are the neighbors of those trained on: another place of the same town,
flight and light. By eye the outlines fit the roofs, but some roofs and sheds have none, and count as wrong if found.
"""


def write_results(rows: Sequence[Row], compared: Sequence[Trained], machine: str) -> None:
    """Write the section from what has been trained."""
    section = INTRO.format(rate=LR, side=RESIZE_TO, machine=machine)
    sizes = {'trees': {'chip': TREE_CHIP, 'stride': TREE_STRIDE}, 'buildings': {'chip': BUILDING_CHIP}}
    for dataset, text in (('trees', TREES), ('buildings', BUILDINGS)):
        if found := [row for row in rows if row.case.dataset == dataset]:
            first = found[0]
            section += text.format(
                table=_table(found),
                train=first.train_chips,
                valid=first.valid_chips,
                epochs=first.epochs,
                **sizes[dataset],
            )
        if dataset == 'trees' and {row.who for row in compared} == {'ours', 'plain'}:
            section += QUALITY.format(tables=_compare_by_epochs(compared))
    write_section('objects', section)


def _table(rows: Sequence[Row]) -> str:
    masks = rows[0].masks is not None
    columns = ['model', 'backbone', 'parameters', 's / epoch', 'box AP50', 'box mAP', 'box recall']
    columns += ['mask AP50', 'mask mAP'] if masks else []
    lines = []
    for row in rows:
        cells = [MODELS[row.case.dataset].__name__, f'`{row.case.backbone}`', f'{row.parameters / 1e6:.1f} M']
        cells += [f'{row.seconds:.0f}', *(f'{row.boxes[name]:.3f}' for name in ('ap50', 'map', 'recall'))]
        cells += [] if row.masks is None else [f'{row.masks[name]:.3f}' for name in ('ap50', 'map')]
        lines.append(cells)
    return format_table(columns, lines)


def _compare_by_epochs(rows: Sequence[Trained]) -> str:
    tables = ''
    for epochs in sorted({row.epochs for row in rows}):
        tables += f'\nAfter {epochs} epochs:\n\n{_compared([row for row in rows if row.epochs == epochs])}\n'
    return tables


def _compared(rows: Sequence[Trained]) -> str:
    lines = []
    for who, name in (('ours', 'geolearn, `fit`'), ('plain', 'torchvision, bare loop')):
        found = sorted((row for row in rows if row.who == who), key=lambda row: row.seed)
        scores = [row.ap50 for row in found]
        spread = f'{statistics.stdev(scores):.3f}' if len(scores) > 1 else ''
        seconds = statistics.median(row.seconds for row in found)
        numbers = [*(f'{score:.3f}' for score in scores), f'**{statistics.mean(scores):.3f}**', spread]
        fitted = statistics.mean(row.fitted for row in found)
        lines.append([name, *numbers, f'{fitted:.3f}', f'{seconds:.0f}'])
    seeds = sorted({row.seed for row in rows})
    columns = [*(f'seed {seed}' for seed in seeds), 'mean', 'deviation', 'on training chips', 's in all']
    return format_table(['', *columns], lines, left=1)


def main() -> None:
    """Train what has no row yet, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('trees', type=Path, help='folder with NEON images and XML files')
    parser.add_argument('buildings', type=Path, help='folder with oam and osm')
    parser.add_argument('--rows', type=Path, default=Path('detection.jsonl'), help='file that keeps the figures')
    parser.add_argument('--quality', type=Path, default=Path('detection_quality.jsonl'), help='rows of the comparison')
    parser.add_argument(
        '--machine', default='one thread of a CPU that other work shared', help='in words, for the page'
    )
    parser.add_argument('--dataset', action='append', choices=tuple(MODELS), help='only this one')
    parser.add_argument('--backbone', action='append', help='only this one')
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ['GEOLEARN_CACHE'] = f'{name}/cache'
        data = Data(given.trees, given.buildings, Path(name))
        for case in (Case(dataset, backbone) for dataset in MODELS for backbone in BACKBONES):
            asked = case.dataset in (given.dataset or [case.dataset]) and case.backbone in (
                given.backbone or [case.backbone]
            )
            if not asked or case in {row.case for row in read_rows(given.rows)}:
                continue
            print(*case, flush=True)
            row = train(case, data.read(case.dataset))
            with given.rows.open('a') as lines:
                lines.write(json.dumps(asdict(row)) + '\n')
            write_results(read_rows(given.rows), read_trainings(given.quality), given.machine)
    write_results(read_rows(given.rows), read_trainings(given.quality), given.machine)


if __name__ == '__main__':
    sys.exit(main())
