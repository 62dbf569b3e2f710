"""Train decoders on backbones over two real data sets, from random weights, and write their section of docs/results.md.

    python benchmarks/results.py path/to/clouds_s2_l5 path/to/aberystwyth_s2 --rows rows.jsonl

Each training adds a line to the file of rows, and what has a line there is not trained again: a run can be interrupted,
and divided with --dataset, --decoder and --backbone. The section is written anew after each training.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from _clouds import export_clouds, read_clouds
from _page import format_table, read_lines, write_section

import geolearn
from geolearn import ChipData, export_training_data, get_bands, prepare_data
from geolearn.classes import index_table
from geolearn.metrics import ConfusionMatrix
from geolearn.models import PixelClassifier
from geolearn.raster import read_label

DECODERS = ('UNet', 'DeepLab', 'UPerNet', 'SegFormer')
BACKBONES = ('resnet50', 'dofa_tiny', 'prithvi_v2_tiny_TL')
BASELINE = ('UNet', 'resnet18')
LR, SEED = 5e-4, 0

ABERYSTWYTH_BANDS = ('B2', 'B3', 'B4', 'B5', 'B6', 'B7', 'B8', 'B8A', 'B11', 'B12')
ABERYSTWYTH_CLASSES = ('forest', 'grass', 'urban', 'water')
HLS_BANDS = ('B2', 'B3', 'B4', 'B8A', 'B11', 'B12')  # the six that Prithvi knows


class Case(NamedTuple):
    """One training."""

    dataset: str
    decoder: str
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
        miou: On the held-out blocks, after the last epoch.
        iou: The same by class; None where a class does not occur.
        other_miou: On the image of the other sensor.
        other_iou: The same by class.
    """

    case: Case
    epochs: int
    train_chips: int
    valid_chips: int
    parameters: int
    seconds: float
    miou: float
    iou: dict[str, float | None]
    other_miou: float | None = None
    other_iou: dict[str, float | None] | None = None


def plan_cases(given: argparse.Namespace) -> Iterator[Case]:
    """Name the trainings that were asked for."""
    for dataset in given.dataset or ('clouds', 'aberystwyth'):
        for decoder, backbone in (BASELINE, *((d, b) for d in DECODERS for b in BACKBONES)):
            if decoder in (given.decoder or [decoder]) and backbone in (given.backbone or [backbone]):
                yield Case(dataset, decoder, backbone)


def export_aberystwyth(source: Path, folder: Path) -> Path:
    """Chips of the mosaic around the hand-drawn polygons; what is not drawn is unlabeled."""
    polygons = source / 'cls_poly_smpls.gpkg'
    return export_training_data(
        sorted((source / 's2_tiles').glob('*.tif')),
        {name: (polygons, f'cls_{name}_smpls') for name in ABERYSTWYTH_CLASSES},
        folder / 'aberystwyth',
        tile_size=64,
        stride=32,
        bands=get_bands('sentinel2_l2a', ABERYSTWYTH_BANDS),
        sensor='Sentinel-2',
    )


def read_aberystwyth(chips: Path, backbone: str) -> ChipData:
    """Read the chips, in the one split that all models share; Prithvi takes six of the ten bands."""
    bands = HLS_BANDS if backbone.startswith('prithvi') else None
    return prepare_data(
        chips,
        chip_size=64,
        batch_size=8,
        split='blocks',
        block_size=1280.0,
        val_split_pct=0.25,
        ignore_classes=[0],
        extract_bands=bands,
    )


class Data:
    """The chips of both data sets, exported when they are first asked for.

    Args:
        clouds: Folder with both archives.
        aberystwyth: Folder with tiles and polygons.
        folder: Where to export to.
    """

    def __init__(self, clouds: Path, aberystwyth: Path, folder: Path) -> None:
        self._sources = {'clouds': clouds, 'aberystwyth': aberystwyth}
        self.folder = folder
        self._chips: dict[str, Path] = {}

    def read(self, case: Case) -> ChipData:
        """Return fresh batches, so that every training sees the same order and augmentation."""
        if case.dataset not in self._chips:
            self._chips[case.dataset] = self._export(case.dataset)
        chips = self._chips[case.dataset]
        return read_clouds(chips) if case.dataset == 'clouds' else read_aberystwyth(chips, case.backbone)

    def _export(self, dataset: str) -> Path:
        source = self._sources[dataset]
        if dataset == 'aberystwyth':
            return export_aberystwyth(source, self.folder)
        export_clouds(source, self.folder, 'landsat5')
        return export_clouds(source, self.folder, 'sentinel2')


def score_landsat(model: PixelClassifier, folder: Path) -> ConfusionMatrix:
    """Map the image of the other sensor and compare; its bands are found by name."""
    made = model.predict_raster(folder / 'landsat5.tif', folder / 'map.tif')
    table = index_table(model.spec.class_infos)
    matrix = ConfusionMatrix.empty(len(model.spec.class_infos))
    predicted, truth = (torch.from_numpy(table[read_label(path)]) for path in (made, folder / 'landsat5_labels.tif'))
    matrix.add(predicted, truth)
    made.unlink()
    return matrix


def train(case: Case, data: Data, epochs: int) -> Row:
    """Train and evaluate one model."""
    torch.manual_seed(SEED)
    chips = data.read(case)
    model: PixelClassifier = getattr(geolearn, case.decoder)(chips, backbone=case.backbone, pretrained=False)
    model.fit(epochs, lr=LR, checkpoint=False, seed=SEED)
    other = score_landsat(model, data.folder) if case.dataset == 'clouds' else None
    return Row(
        case,
        epochs,
        len(chips.train_ds),
        len(chips.valid_ds),
        sum(parameter.numel() for parameter in model.network.parameters()),
        statistics.median(row['seconds'] for row in model.history.epochs),
        model.mIOU(mean=True),
        _by_class(chips.classes, model.confusion()),
        None if other is None else other.miou,
        None if other is None else _by_class(chips.classes, other),
    )


def _by_class(names: Sequence[str], matrix: ConfusionMatrix) -> dict[str, float | None]:
    return {name: None if iou != iou else iou for name, iou in zip(names, matrix.iou.tolist())}


def read_rows(path: Path) -> list[Row]:
    """Read the rows that earlier runs wrote."""
    return [Row(**(row | {'case': Case(*row['case'])})) for row in read_lines(path)]


HEAD = """## Maps of classes

Written by `benchmarks/results.py`. Every backbone started from **random weights**: these figures compare decoders and
show that training works; they say nothing of what pretrained weights would reach. All models had the same chips, order,
augmentation (flips, turns, radiometric jitter), AdamW, one-cycle to a highest rate of {rate:g}, plain
cross-entropy, and {epochs} epochs, which is few. Weights are those after the last epoch: none was chosen by its score.
One training each, with one seed, so differences of a few points of mIoU mean little.

mIoU is the mean over the classes that occur in truth or map. Seconds per epoch include its validation; they were
measured on {machine}: read them as rough ratios.
"""

CLOUDS = """
### Clouds: trained on Sentinel-2, tested on Landsat 5

Reference masks of Wieland et al. 2019 as ukis-csmask ships them: one Sentinel-2 and one Landsat-5 image of 512 x 512
pixels, six bands of top-of-atmosphere reflectance. Chips of 128 px with a stride of 64 from the Sentinel-2 image, in
batches of 4; {train} to train on and {valid} in held-out blocks of 1.6 km. Chips that share ground with the other part
were dropped, so no pixel is in both. The Landsat image was never seen: its bands are found by name and scaled with the
statistics of Sentinel-2.

{table}

**What to keep in mind.** Water is 0.3 % of the pixels; where its IoU is 0.00 it was never learned, and costs the mean a
quarter. Snow occurs in neither image and is ignored. The held-out blocks lie in the same image as the training chips,
under the same sky; the other sensor is the harder and the more honest test, but it is one image too. Its land is much
darker: 0.24 in the near infrared on average, against 0.43 in the Sentinel-2 image, whose shadows have 0.16. That is the
likeliest reason where the IoU of Landsat's land is low: it is taken for shadow.
"""

ABERYSTWYTH = """
### Aberystwyth: land cover from sparse polygons

Sentinel-2 of 27 May 2021 (rsgislib's test data): a mosaic of 16 tiles, ten bands (Prithvi takes six of them), and 40
hand-drawn polygons of forest, grass, urban and water that cover under 1 % of it. All other pixels are unlabeled and
take no part in loss or score. Chips of 64 px with a stride of 32 that hold a label, in batches of 8; {train} to train
on and {valid} in held-out blocks of 1.28 km. Chips that share ground with the other part were dropped.

{table}

**What to keep in mind.** Only the inside of a few polygons counts, which people draw where a class is plain to see:
borders and mixed pixels do not. A class has a handful of polygons in the held-out blocks, so its IoU may hang on one.
"""


def write_results(rows: Sequence[Row], cases: Sequence[Case], machine: str) -> None:
    """Write the section: what was trained, and what was not."""
    rows = [row for case in cases for row in rows if row.case == case]
    epochs = ' or '.join(str(count) for count in sorted({row.epochs for row in rows}))
    section = HEAD.format(rate=LR, epochs=epochs, machine=machine)
    for dataset, text in (('clouds', CLOUDS), ('aberystwyth', ABERYSTWYTH)):
        if found := [row for row in rows if row.case.dataset == dataset]:
            section += text.format(table=_table(found), train=found[0].train_chips, valid=found[0].valid_chips)
    trained = {row.case for row in rows}
    left: dict[str, list[str]] = {}
    for case in cases:
        if case not in trained:
            left.setdefault(f'- {case.dataset}, {case.decoder}: ', []).append(f'`{case.backbone}`')
    if left:
        names = '\n'.join(start + ', '.join(backbones) for start, backbones in left.items())
        section += f'\n### Not trained yet\n\nThe script trains these too; there was no time for them.\n\n{names}\n'
    write_section('maps', section)


def _table(rows: Sequence[Row]) -> str:
    classes = [name for name in rows[0].iou if any(row.iou[name] is not None for row in rows)]
    other = rows[0].other_miou is not None
    columns = ['decoder', 'backbone', 'parameters', 's / epoch', 'mIoU held-out', *classes]
    columns += ['mIoU Landsat 5', *classes] if other else []
    lines = []
    for row in rows:
        cells = [row.case.decoder, f'`{row.case.backbone}`', f'{row.parameters / 1e6:.1f} M', f'{row.seconds:.0f}']
        cells += [f'**{row.miou:.3f}**', *(_text(row.iou[name]) for name in classes)]
        if row.other_miou is not None and row.other_iou is not None:
            cells += [f'**{row.other_miou:.3f}**', *(_text(row.other_iou[name]) for name in classes)]
        lines.append(cells)
    return format_table(columns, lines)


def _text(iou: float | None) -> str:
    return 'absent' if iou is None else f'{iou:.2f}'


def main() -> None:
    """Train what has no row yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('clouds', type=Path, help='folder with sentinel2.npz and landsat5.npz')
    parser.add_argument('aberystwyth', type=Path, help='folder with s2_tiles and cls_poly_smpls.gpkg')
    parser.add_argument('--rows', type=Path, default=Path('results.jsonl'), help='file that keeps the figures')
    parser.add_argument('--epochs', type=int, default=8)
    parser.add_argument(
        '--machine', default='one thread of a CPU that other work shared', help='in words, for the page'
    )
    parser.add_argument('--dataset', action='append', choices=('clouds', 'aberystwyth'), help='only this one')
    parser.add_argument('--decoder', action='append', choices=DECODERS, help='only this one')
    parser.add_argument('--backbone', action='append', help='only this one')
    given = parser.parse_args()
    everything = [*plan_cases(argparse.Namespace(dataset=None, decoder=None, backbone=None))]
    with tempfile.TemporaryDirectory() as name:
        os.environ['GEOLEARN_CACHE'] = f'{name}/cache'
        data = Data(given.clouds, given.aberystwyth, Path(name))
        for case in plan_cases(given):
            if case in {row.case for row in read_rows(given.rows)}:
                continue
            print(*case, flush=True)
            row = train(case, data, given.epochs)
            with given.rows.open('a') as lines:
                lines.write(json.dumps(asdict(row)) + '\n')
            write_results(read_rows(given.rows), everything, given.machine)
    write_results(read_rows(given.rows), everything, given.machine)


if __name__ == '__main__':
    sys.exit(main())
