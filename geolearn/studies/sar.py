"""The study of self-supervised transformers on radar: starts x inputs x shares of the labels, as a table of mIoU.

Chips are divided by latitude, 60 % to train on, 20 % to validate and 20 % to test. Each cell of the table is one
training through `prepare_data` and `fit`; finished cells are kept, so that an interrupted study continues.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from geolearn import files
from geolearn.adaptation import Adaptation
from geolearn.backbones.custom import backbone_in, is_file_name
from geolearn.chips.splits.divide import SplitChoice
from geolearn.data import ChipData
from geolearn.errors import ArgumentError, ChipFolderError, UnknownNameError
from geolearn.models import FCN, AttentionUNet, Model, UNet
from geolearn.models.evaluation.pixels import evaluate_pixels
from geolearn.prepare import prepare_data
from geolearn.progress import ProgressBar, report_progress
from geolearn.studies.grid import TESTS, check_seeds, check_shares, keep_parts
from geolearn.studies.grid_result import format_score, percent

Start = Literal['scratch', 'frozen', 'fine-tuned']
Input = Literal['attention maps', 'tokens', 'UNet', 'UNet + attention']

STARTS: tuple[Start, ...] = get_args(Start)
INPUTS: tuple[Input, ...] = get_args(Input)

SHARES = (0.001, 0.01, 0.1)

PUBLISHED: dict[Input, dict[float, float]] = {
    'UNet': {0.001: 0.376, 0.01: 0.412, 0.1: 0.475},
    'UNet + attention': {0.001: 0.380, 0.01: 0.432, 0.1: 0.480},
}
"""mIoU by share of the labels; of U-Net with attention maps the best variant at each share."""

SOURCE = 'DINO on SAR, FDL-Europe 2023, Table 2'

LEAST_CHIPS = 2
"""That a training needs; a share of fewer is two chips, and the table says so."""

WORLD_COVER = {
    10: 'Tree cover',
    20: 'Shrubland',
    30: 'Grassland',
    40: 'Cropland',
    50: 'Built-up',
    60: 'Bare / sparse vegetation',
    70: 'Snow and ice',
    80: 'Permanent water bodies',
    90: 'Herbaceous wetland',
    95: 'Mangroves',
    100: 'Moss and lichen',
}
"""Classes of ESA WorldCover."""


@dataclass(frozen=True, slots=True)
class SarCell:
    """One training of the study, or several seeds of it.

    Args:
        start: ``'scratch'``: all weights random; ``'frozen'``: the pretrained transformer stays as it is;
            ``'fine-tuned'``: it is trained too.
        input: What the decoder sees: attention maps, tokens, the image (``'UNet'``), or image and attention maps.
        share: Of the training labels.
        chips: Training chips that this share is.
        miou: On the test chips, for each seed.
    """

    start: Start
    input: Input
    share: float
    chips: int
    miou: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class SarStudy:
    """What `study_sar` returns.

    Args:
        cells: All trainings.
        classes: Names of the classes.
        chips: Chips of the parts: training, validation, test.
        backbone: The transformer.
        epochs: Of each training.
    """

    cells: tuple[SarCell, ...]
    classes: tuple[str, ...]
    chips: tuple[int, int, int]
    backbone: str
    epochs: int

    def table(self) -> pd.DataFrame:
        """Return a row for each input and start: mIoU by share of the labels, its spread and what was published.

        A row ``best`` of U-Net with attention maps holds the best variant at each share, as the published one does.
        """
        rows: dict[tuple[str, str], dict[str, float]] = {}
        for cell in self.cells:
            row = rows.setdefault((cell.input, cell.start), {})
            column = percent(cell.share)
            row[column] = float(np.mean(cell.miou))
            row[f'{column}, std'] = float(np.std(cell.miou, ddof=1)) if len(cell.miou) > 1 else math.nan
            row[f'{column}, published'] = (
                PUBLISHED['UNet'].get(cell.share, math.nan) if cell.input == 'UNet' else math.nan
            )
        joined = [name for name in rows if name[0] == 'UNet + attention']
        if joined:
            best = rows['UNet + attention', 'best'] = {}
            for share in dict.fromkeys(cell.share for cell in self.cells):
                column = percent(share)
                best[column] = max(rows[name].get(column, math.nan) for name in joined)
                best[f'{column}, std'] = math.nan
                best[f'{column}, published'] = PUBLISHED['UNet + attention'].get(share, math.nan)
        index = pd.MultiIndex.from_tuples(rows, names=['input', 'start'])
        return pd.DataFrame(list(rows.values()), index=index)

    def to_markdown(self) -> str:
        """Return the table as Markdown, with what it was computed from."""
        shares = list(dict.fromkeys(cell.share for cell in self.cells))
        heads = ['input', 'start']
        for share in shares:
            heads += [f'mIoU, {percent(share)}', f'{percent(share)}, published']
        lines = ['| ' + ' | '.join(heads) + ' |', '|' + ' --- |' * len(heads)]
        for (name, start), row in zip(self.table().index, self.table().to_dict('records')):
            cells = [name, start]
            for share in shares:
                column = percent(share)
                cells.append(format_score(row.get(column, math.nan), row.get(f'{column}, std', math.nan)))
                cells.append(format_score(row.get(f'{column}, published', math.nan)))
            lines.append('| ' + ' | '.join(cells) + ' |')
        counts = {percent(cell.share): cell.chips for cell in self.cells}
        labels = ', '.join(f'{share} are {count} chips' for share, count in counts.items())
        notes = [
            f'mIoU on {self.chips[2]} test chips, {len(self.classes)} classes: {", ".join(self.classes)}.',
            f'{self.chips[0]} training, {self.chips[1]} validation and {self.chips[2]} test chips; '
            f'of the training labels {labels}.',
            f'Transformer: {self.backbone}; {self.epochs} epochs; {len(self.cells[0].miou)} seeds.',
            f'Published, not computed here: {SOURCE}; for U-Net with attention maps the best variant at each share.',
        ]
        return '\n'.join([*lines, '', *notes])


def study_sar(
    chips: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    backbone: str = 'vit_small',
    pretrained: bool = True,
    weights: str | Path | None = None,
    starts: Sequence[Start] = STARTS,
    inputs: Sequence[Input] = INPUTS,
    shares: Sequence[float] = SHARES,
    seeds: Sequence[int] = (0,),
    epochs: int = 20,
    lr: float = 1e-3,
    batch_size: int = 16,
    chip_size: int = 224,
    bands: Sequence[str] | str | None = None,
    split: SplitChoice = 'latitude',
    ignore_classes: Sequence[int | str] = (),
) -> SarStudy:
    """Train every combination of start, input and share of the labels, and return the mIoU on the test chips.

    A U-Net on images alone has no transformer, so there it is trained from scratch only. Labels without names whose
    values are all those of ESA WorldCover get its class names.

    Args:
        chips: A folder of training chips with a class per pixel, or several; of any sensor.
        out: Folder for finished cells, ``study.md`` and ``study.csv``. A study with the same arguments trains only
            what is not there yet.
        backbone: The transformer: a file that `geolearn.pretrain` wrote, or the name of one that has published weights.
        pretrained: Whether `backbone` has weights; without, frozen and fine-tuned start from random ones, which is of
            use for trials alone.
        weights: The user's own file of weights for a named backbone.
        starts: Which starts.
        inputs: Which inputs.
        shares: Of the training labels, over 0 and up to 1; of fewer than two chips, two are taken, and the table says
            how many they were.
        seeds: Of weights, order and choice of labels.
        epochs: Of each training; an epoch of a small share is a few steps, so give more of them for shares under 1 %.
        lr: Highest learning rate.
        batch_size: Chips per batch.
        chip_size: Side of the training images in pixels.
        bands: What the chips' bands are, where the export does not say.
        split: How the 60, 20 and 20 % are chosen; see `geolearn.prepare_data`.
        ignore_classes: Label values or names to leave out.

    Raises:
        ArgumentError: If nothing is to be trained, or a share or a seed is not valid.
        ChipFolderError: If the folder cannot be divided, or labels are not one class per pixel.
        UnknownNameError: If there is no such start or input.
    """
    for kind, given, known in (('start', starts, STARTS), ('input', inputs, INPUTS)):
        for name in given:
            if name not in known:
                raise UnknownNameError(kind, str(name), known)
    check_shares(shares)
    check_seeds(seeds)
    wanted = [
        (share, input_, start)
        for share in shares
        for input_ in inputs
        for start in starts
        if input_ != 'UNet' or start == 'scratch'
    ]
    if not wanted or not seeds:
        raise ArgumentError('there is nothing to train: name starts, inputs, shares and seeds')
    root = Path(out)
    reading: dict[str, Any] = {
        'val_split_pct': 0.2,
        'test_split_pct': 0.2,
        'split': split,
        'batch_size': batch_size,
        'chip_size': chip_size,
        'bands': bands,
        'ignore_classes': tuple(ignore_classes),
    }
    plain = prepare_data(chips, **reading)
    names = _world_cover(plain)
    reading |= {'class_mapping': names} if names else {}
    trunk = _Trunk(backbone, pretrained, None if weights is None else str(weights))
    made = {'trunk': trunk.describe(), 'epochs': epochs, 'lr': lr, 'reading': repr(sorted(reading.items()))}
    made |= {'chips': plain.fingerprint, 'names': list(plain.table.names), 'tests': TESTS}
    key = hashlib.sha256(json.dumps(made, default=str).encode()).hexdigest()[:12]
    cells, whole = [], prepare_data(chips, **reading)
    kept = keep_parts(whole, reading)
    least = LEAST_CHIPS / len(whole.split.train)
    with ProgressBar(len(wanted) * len(seeds), 'study', 'training') as bar:
        for share, input_, start in wanted:
            found = []
            for seed in seeds:
                place = root / f'cells_{key}' / f'{_slug(input_)}_{_slug(start)}_{share:g}_{seed}.json'
                record = _read_cell(place)
                if record is None:
                    normalize = 'pretraining' if trunk.states_statistics and _uses_weights(input_, start) else 'dataset'
                    data = prepare_data(
                        chips,
                        **kept,
                        seed=seed,
                        label_fraction=min(1.0, max(share, least)),
                        normalize=normalize,
                        working_dir=root / 'work',
                    )
                    with report_progress(lambda _: None):
                        record = _train(data, trunk, input_, start, epochs=epochs, lr=lr, seed=seed)
                    with files.atomic_write(place, make_folder=True) as part:
                        part.write_text(json.dumps(record), encoding='utf-8')
                found.append(record)
                bar.update(detail=f'{input_}, {start}, {percent(share)}: mIoU {record["miou"]:.3f}')
            cells.append(SarCell(start, input_, share, found[0]['chips'], tuple(record['miou'] for record in found)))
    parts = len(whole.split.train), len(whole.split.valid), len(whole.split.test)
    study = SarStudy(tuple(cells), tuple(whole.classes), parts, trunk.name, epochs)
    with files.atomic_write(root / 'study.md') as part:
        part.write_text(study.to_markdown() + '\n', encoding='utf-8')
    with files.atomic_write(root / 'study.csv') as part:
        study.table().to_csv(part)
    return study


@dataclass(frozen=True)
class _Trunk:
    """The transformer with and without its weights."""

    given: str
    pretrained: bool
    weights: str | None

    @property
    def name(self) -> str:
        """Name of the network."""
        return backbone_in(self.given) if is_file_name(self.given) else self.given

    @property
    def states_statistics(self) -> bool:
        """Whether images are to be normalized as those of its pretraining were."""
        return self.pretrained and self.weights is None

    def describe(self) -> list[Any]:
        """Return what tells it from another one."""
        states = files.file_states(path for path in (self.given, self.weights) if path is not None)
        return [self.given, self.pretrained, self.weights, [state[1:] for state in states]]

    def options(self, start: Start) -> dict[str, Any]:
        """Return the arguments of a model that name it."""
        if start == 'scratch':
            return {'backbone': self.name, 'pretrained': False}
        if self.weights is None:
            return {'backbone': self.given, 'pretrained': self.pretrained}
        return {'backbone': self.given, 'weights': self.weights}


def _uses_weights(input_: Input, start: Start) -> bool:
    return input_ != 'UNet' and start != 'scratch'


def _world_cover(data: ChipData) -> dict[int, str]:
    """Return the names of WorldCover's classes, where all label values are among its codes and have no names."""
    infos = [info for info in data.class_infos if info.value]
    values = {info.value for info in infos}
    if any(info.name != str(info.value) for info in infos):
        return {}
    if not values or not values <= {*WORLD_COVER} or len(values) < 2:
        return {}
    return {value: WORLD_COVER[value] for value in sorted(values)}


def _train(
    data: ChipData, trunk: _Trunk, input_: Input, start: Start, *, epochs: int, lr: float, seed: int
) -> dict[str, Any]:
    """Train one cell; return its mIoU on the test chips, and how many chips were trained on."""
    if data.test_dl is None:
        raise ChipFolderError('no chip is left to test on; pass more chips')
    model: Model
    if input_ == 'UNet':
        model = UNet(data, 'plain_unet', pretrained=False)
    elif input_ == 'tokens':
        frozen = Adaptation(freeze='all') if start == 'frozen' else Adaptation()
        model = FCN(data, adapt=frozen, **trunk.options(start))
    else:
        kind: Literal['only', 'extra'] = 'only' if input_ == 'attention maps' else 'extra'
        model = AttentionUNet(data, attention=kind, freeze=start == 'frozen', **trunk.options(start))
    model.fit(epochs, lr, seed=seed, checkpoint=True)
    evaluation = evaluate_pixels(model.network, data.test_dl, data.classes)
    return {'miou': float(evaluation.metrics['miou']), 'chips': len(data.split.train)}


def _read_cell(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    return {'miou': float(record['miou']), 'chips': int(record['chips'])}


def _slug(text: str) -> str:
    return text.replace(' + ', '_').replace(' ', '_')
