"""Train detectors of oriented and of level boxes, and write what they score into the docs.

    python benchmarks/results_oriented.py generated --rows oriented.jsonl
    python benchmarks/results_oriented.py m4sar path/to/m4sar/optical --rows oriented_m4sar.jsonl

``generated`` trains `RotatedFCOS`, `OrientedRCNN` and `FCOS` on drawn ships, cars and buildings and writes the table of
docs/oriented-boxes.md; ``m4sar`` trains four detectors on the same few real images and writes the section of
docs/results.md. Each training adds a line to the file of rows, and what has a line there is not trained again.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from _page import format_table, read_lines, write_section
from torch import Tensor, nn

from geolearn import ChipData, from_arrays, prepare_data
from geolearn.backbones.custom import ModuleBackbone
from geolearn.metrics import DetectionScores
from geolearn.models import (
    FCOS,
    FasterRCNN,
    OrientedRCNN,
    RCNNOptions,
    RotatedFCOS,
    RotatedOptions,
    SingleStageOptions,
)
from geolearn.models.object_detector import ObjectDetector
from geolearn.oriented.geometry import from_hulls, moved
from geolearn.synthetic_objects import OBJECT_CLASSES, make_object_chips

LR = 2e-3
SEEDS = (0, 1, 2)
TRAINED, HELD_OUT, REPEATS, EPOCHS = 400, 120, 5, 8
"""Generated chips; those to train on come five times in an epoch of 250 steps."""

M4SAR_EPOCHS, M4SAR_WINDOW, M4SAR_CROP, M4SAR_GRID, M4SAR_REPEATS = 40, 160, 128, 4, 4
"""Windows of this side, four by four over each image and around each object four times, are trained on in crops: 30
steps of whole images, whose ground is empty but for a few objects, and 300 of crops at random places taught nothing."""

M4SAR_HELD_OUT = 'sample_540'
FEW = RCNNOptions(
    width=32,
    rpn_pre_nms_top_n_train=400,
    rpn_pre_nms_top_n_test=400,
    rpn_post_nms_top_n_train=200,
    rpn_post_nms_top_n_test=200,
    box_batch_size_per_image=128,
    box_nms_thresh=0.3,
    box_detections_per_img=100,
)
CLASSES: dict[str, tuple[type[ObjectDetector], Any]] = {
    'RotatedFCOS': (RotatedFCOS, RotatedOptions(fine=True, width=32, depth=2, detections_per_img=100)),
    'OrientedRCNN': (OrientedRCNN, FEW),
    'FCOS': (FCOS, SingleStageOptions(width=32, detections_per_img=100)),
    'FasterRCNN': (FasterRCNN, FEW),
}


class SmallCNN(nn.Module):
    """Maps at strides 4, 8, 16 and 32, some 0.2 million parameters."""

    channels, strides = (32, 48, 64, 64), (4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self._block(before, after) for before, after in pairwise((3, 16, *self.channels)))

    @staticmethod
    def _block(before: int, after: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for channels, stride in ((before, 2), (after, 1)):
            layers += [nn.Conv2d(channels, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the maps."""
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps[1:]


@dataclass(frozen=True)
class Row:
    """What came out of one training.

    Args:
        model: Name of the class.
        seed: Of data, order and weights.
        steps: Of the optimizer.
        cpu_seconds: Of the training with its validation.
        parameters: Of the whole network.
        scores: By oriented boxes on what is held out; level boxes count as such.
        by_class: The same of each class; empty for level boxes.
        own: By level boxes, of detectors of these.
        fitted: As `scores`, on the training images.
        own_fitted: As `own`, on the training images.
    """

    model: str
    seed: int
    steps: int
    cpu_seconds: float
    parameters: int
    scores: dict[str, float]
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)
    own: dict[str, float] = field(default_factory=dict)
    fitted: dict[str, float] = field(default_factory=dict)
    own_fitted: dict[str, float] = field(default_factory=dict)


def generated(seed: int, folder: Path) -> ChipData:
    """Return drawn chips of one seed, the last of which are held out."""
    chips = make_object_chips(TRAINED, seed=1000 * seed) * REPEATS + make_object_chips(HELD_OUT, seed=1000 * seed + 500)
    held = {'valid': [f'{index:09d}' for index in range(TRAINED * REPEATS, len(chips))]}
    return from_arrays(
        [chip.image for chip in chips],
        [(chip.turned, chip.class_ids) for chip in chips],
        class_mapping={info.value: info.name for info in OBJECT_CLASSES},
        batch_size=8,
        seed=seed,
        transforms={'gain': 0.0, 'offset': 0.0},
        split=held,
        working_dir=folder,
    )


def m4sar(images: Path, folder: Path) -> ChipData:
    """Return the real images, one of which is held out."""
    return prepare_data(
        images, chip_size=512, batch_size=3, split={'valid': [M4SAR_HELD_OUT]}, seed=0, working_dir=folder
    )


def windows(whole: ChipData, folder: Path) -> ChipData:
    """Return windows of the images in their parts: all over each, and of those to train on around each object too."""
    cut: list[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]] = []
    counts = []
    for part, repeats in ((whole.train_ds, M4SAR_REPEATS), (whole.valid_ds, 0)):
        for image, objects in (part[index] for index in range(len(part))):
            last = image.shape[-1] - M4SAR_WINDOW
            grid = torch.linspace(0, last, M4SAR_GRID)
            around = (objects.turned[:, :2] - M4SAR_WINDOW / 2).clamp(0, last).repeat(repeats, 1)
            for x, y in torch.cat((torch.cartesian_prod(grid, grid), around)).int().tolist():
                pixels = image[:, y : y + M4SAR_WINDOW, x : x + M4SAR_WINDOW].numpy()
                turned = moved(objects.turned.numpy(), -x, -y)
                inside = ((turned[:, :2] > 0) & (turned[:, :2] < M4SAR_WINDOW)).all(1)
                values = np.array([whole.class_infos[index].value for index in objects.labels.tolist()])
                cut.append((pixels, (turned[inside], values[inside])))
        counts.append(len(cut))
    return from_arrays(
        [pixels for pixels, _ in cut],
        [labels for _, labels in cut],
        class_mapping={info.value: info.name for info in whole.class_infos},
        chip_size=M4SAR_CROP,
        batch_size=8,
        split={'valid': [f'{index:09d}' for index in range(*counts)]},
        seed=0,
        working_dir=folder,
    )


def train(name: str, data: ChipData, seed: int, epochs: int, whole: ChipData | None = None) -> Row:
    """Train one model, and score it on `whole` images if the data hold windows of them."""
    cls, head = CLASSES[name]
    torch.manual_seed(seed)
    backbone = ModuleBackbone(SmallCNN(), channels=SmallCNN.channels, strides=SmallCNN.strides)
    started = time.process_time()
    model = cls(data, backbone, head=head).fit(epochs, lr=LR, checkpoint=False, seed=seed)
    spent = time.process_time() - started
    scored = data if whole is None else whole
    classes = None if whole is not None or not cls.architecture.oriented else model.per_class_metrics()
    return Row(
        name,
        seed,
        epochs * len(data.train_dl),
        round(spent, 1),
        sum(parameter.numel() for parameter in model.network.parameters()),
        score(model, scored.valid_dl, 'rotated'),
        {} if classes is None else json.loads(classes.to_json(orient='index')),
        {} if cls.architecture.oriented else score(model, scored.valid_dl, 'bbox'),
        {} if whole is None else score(model, whole.train_dl, 'rotated'),
        {} if whole is None or cls.architecture.oriented else score(model, whole.train_dl, 'bbox'),
    )


@torch.inference_mode()
def score(model: ObjectDetector, chips: Any, by: Literal['rotated', 'bbox']) -> dict[str, float]:
    """Score a detector by exact overlaps with oriented boxes, where level ones count as they lie, or by level boxes."""
    counted = DetectionScores(len(model.spec.class_infos), iou_type=by, max_detections=100)
    model.network.eval()
    for images, objects in chips:
        found = model.network(images)[0]
        turned = [one if one.turned is not None else replace(one, turned=from_hulls(one.boxes)) for one in found]
        counted.add(turned, objects)
    return {key: float(value) for key, value in counted.values().items()}


GENERATED = """Written by `benchmarks/results_oriented.py generated`: {trained} drawn chips of 128 pixels to train on,
{held} held out, {steps} steps with batches of 8, some 0.3 million parameters from random weights. AP by exact
overlap, median errors of the angle in degrees (of buildings, which are near-squares, up to 45).{level}

{table}"""

LEVEL = """
`FCOS` is scored by its level boxes, on the same network and after as many steps."""


def write_generated(rows: Sequence[Row]) -> None:
    """Write the table of docs/oriented-boxes.md."""
    lines = []
    for row in sorted(rows, key=lambda row: ([*CLASSES].index(row.model), row.seed)):
        errors = [row.by_class.get(name, {}).get('angle_error') for name in ('ship', 'car', 'building')]
        cells = [f'{row.scores[name]:.3f}' for name in ('ap50', 'ap75')]
        cells += ['' if value is None else f'{value:.1f}' for value in errors]
        lines.append([f'`{row.model}`', str(row.seed), *cells, f'{row.cpu_seconds / 60:.0f}'])
    columns = ['model', 'seed', 'mAP50', 'mAP75', 'ships', 'cars', 'buildings', 'minutes of a CPU core']
    level = LEVEL if any(row.model == 'FCOS' for row in rows) else ''
    text = GENERATED.format(
        level=level, trained=TRAINED, held=HELD_OUT, steps=rows[0].steps, table=format_table(columns, lines, left=1)
    )
    write_section('generated', text, page=Path(__file__).parents[1] / 'docs' / 'oriented-boxes.md')


M4SAR = """## Oriented boxes

Written by `benchmarks/results_oriented.py m4sar`. Four Sentinel-2 images of 512 px of M4-SAR, of four places, with 20
bridges and playgrounds, mostly of some 8 by 14 px, read as DOTA text. Three images were trained on, `{held}` with 8 of
the objects was held out whole. {steps} steps of eight crops of {crop} px from windows all over the three images and
around their 12 objects, with flips and turns, seed 0, from **random weights**. AP50 on whole images, by exact overlap
with the oriented boxes, for which level boxes count as they lie; and of detectors of level boxes by those too.

{table}

**What to keep in mind.** Twelve objects are far too few to find others by{nothing}.
The figures of the training images say how well each detector learns them by heart, of one seed. `FCOS` begins at
stride 8, which is as much as most objects are wide, the other three at stride 4. In 300 steps of three crops of 256 px
at random places, most of which show no object, no detector learned even the training images.
"""


def write_m4sar(rows: Sequence[Row]) -> None:
    """Write the section of docs/results.md."""
    lines = []
    for row in rows:
        level = [f'{part["ap50"]:.3f}' if part else '' for part in (row.own_fitted, row.own)]
        turned = [f'{part["ap50"]:.3f}' for part in (row.fitted, row.scores)]
        cells = [turned[0], level[0], turned[1], level[1]]
        lines.append([f'`{row.model}`', f'{row.parameters / 1e6:.2f} M', *cells, f'{row.cpu_seconds:.0f}'])
    columns = ['model', 'parameters', 'training images', 'by level boxes', 'held out', 'by level boxes', 'CPU seconds']
    learned = not all(row.scores['ap50'] < 0.05 and row.own.get('ap50', 0) < 0.05 for row in rows)
    nothing = '' if learned else ': no detector finds those of the image held out'
    table = format_table(columns, lines, left=1)
    text = M4SAR.format(steps=rows[0].steps, held=M4SAR_HELD_OUT, crop=M4SAR_CROP, table=table, nothing=nothing)
    write_section('oriented', text)


def read_rows(path: Path) -> list[Row]:
    """Read the rows that earlier runs wrote."""
    return [Row(**row) for row in read_lines(path)]


def main() -> None:
    """Train what has no row yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('part', choices=('generated', 'm4sar'))
    parser.add_argument('images', type=Path, nargs='?', help='folder of M4-SAR with images/ and labelTxt/')
    parser.add_argument('--rows', type=Path, required=True, help='file that keeps the figures')
    parser.add_argument('--write-only', action='store_true', help='train nothing')
    given = parser.parse_args()
    if given.part == 'm4sar' and given.images is None and not given.write_only:
        parser.error('name the folder of the images')
    write: Mapping[str, Any] = {'generated': write_generated, 'm4sar': write_m4sar}
    cases = [(name, 0) for name in CLASSES]
    if given.part == 'generated':
        cases = [(name, seed) for name in ('RotatedFCOS', 'FCOS') for seed in SEEDS] + [('OrientedRCNN', 0)]
    with tempfile.TemporaryDirectory() as scratch:
        os.environ['GEOLEARN_CACHE'] = f'{scratch}/cache'
        for name, seed in [] if given.write_only else cases:
            if (name, seed) in {(row.model, row.seed) for row in read_rows(given.rows)}:
                continue
            print(name, seed, flush=True)
            generates = given.part == 'generated'
            if generates:
                row = train(name, generated(seed, Path(scratch)), seed, EPOCHS)
            else:
                whole = m4sar(given.images, Path(scratch))
                row = train(name, windows(whole, Path(scratch)), seed, M4SAR_EPOCHS, whole)
            with given.rows.open('a') as lines:
                lines.write(json.dumps(asdict(row)) + '\n')
            write[given.part](read_rows(given.rows))
    write[given.part](read_rows(given.rows))


if __name__ == '__main__':
    main()
