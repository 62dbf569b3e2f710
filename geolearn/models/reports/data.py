"""The section on the data that the reports of all tasks share, and what to warn of."""

import numpy as np

from geolearn import plotting
from geolearn.backbones import describe_backbone
from geolearn.bands import Band
from geolearn.chips.label import Task
from geolearn.chips.meaning import classes as taxonomy
from geolearn.chips.splits.divide import count_leaks, leak_note
from geolearn.data import ChipData
from geolearn.errors import BackboneError
from geolearn.models.reports.sections import PARTS, picture
from geolearn.networks.spec import ModelSpec
from geolearn.report import Cell, Facts, Notes, Part, Section, Swatch, Table

FEW_CHIPS = 10
"""Scores of fewer validation chips than this are uncertain."""


def data_section(data: ChipData) -> Section:
    """Describe the chips, which are in which part, and where they lie.

    Args:
        data: From `prepare_data`.
    """
    counts = {words: len(getattr(data.split, part)) for part, words in PARTS.items()}
    facts = (
        ('folder', f'{data.path.name} ({data.dataset_type})'),
        ('chips', ', '.join(f'{count:,} {words}' for words, count in counts.items() if count)),
        ('chip size', f'{data.chip_size} pixels, {data.dtype}'),
        ('bands', ', '.join(_band_text(band) for band in data.bands)),
        ('dates', _dates_text(data)),
        ('normalized by', data.normalization.source if data.normalization else "the backbone's own statistics"),
        ('ignored', ', '.join(f'label value {value}' for value in data.ignored_values)),
    )
    parts: list[Part] = [Facts(tuple(row for row in facts if row[1]))]
    if data.class_infos:
        parts.append(_class_table(data))
    if data.task == Task.REGRESSION:
        parts.append(_value_table(data))
    figure = plotting.show_split_map([data.table.geobox(position) for position in range(len(data.table))], data.split)
    if figure is None:
        parts.append('The chips have no place on the ground, so there is no map of the parts.')
    else:
        parts.append(picture(figure, 'Map of the chips by part', 'Where the chips of each part lie.'))
    return Section('Data', (*parts, Notes(data.notes)) if data.notes else tuple(parts))


def find_warnings(data: ChipData, spec: ModelSpec) -> tuple[str, ...]:
    """List what makes scores too good or uncertain: leaks between parts, few chips, classes that are not validated."""
    warnings = []
    boxes = [data.table.geobox(position) for position in range(len(data.table))]
    cure = "divide them again with split='blocks'"
    if note := leak_note(count_leaks(boxes, data.split), data.split, cure):
        warnings.append(note)
    count = len(data.split.valid)
    if count < FEW_CHIPS:
        warnings.append(f'The number of validation chips is {count}; scores of fewer than {FEW_CHIPS} are uncertain.')
    if data.class_infos:
        amounts = data.table.amounts([info.value for info in data.class_infos])
        for part, what in (('train', 'was not trained'), ('valid', 'was not evaluated')):
            present = amounts[list(getattr(data.split, part))].sum(axis=0)
            warnings += [
                f'No {PARTS[part]} chip holds the class {info.name!r}, so it {what}.'
                for info, amount in zip(data.class_infos, present.tolist())
                if not amount
            ]
    if spec.pretrained and _forbids_sale(spec.backbone):
        warnings.append(f'The license of the weights of {spec.backbone} forbids commercial use.')
    return tuple(warnings)


def _class_table(data: ChipData) -> Table:
    unit = 'pixels' if data.task in taxonomy.RASTER_TASKS else 'labels'
    shown = {part: words for part, words in PARTS.items() if getattr(data.split, part)}
    amounts = data.table.amounts([info.value for info in data.class_infos])
    columns: list[np.ndarray] = [amounts[list(getattr(data.split, part))] for part in shown]
    rows = []
    for index, info in enumerate(data.class_infos):
        cells: list[Cell] = [Swatch(info.name, info.color), info.value]
        for held in columns:
            cells += [int(held[:, index].sum()), int((held[:, index] > 0).sum())]
        rows.append(tuple(cells))
    header = ['class', 'value', *(f'{words} {what}' for words in shown.values() for what in (unit, 'chips'))]
    return Table(tuple(header), tuple(rows), f'Classes: how many {unit}, and how many chips that hold them')


def _value_table(data: ChipData) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for part, words in PARTS.items():
        found = data.table.target_statistics(getattr(data.split, part))
        if found is not None:
            rows.append((words, found.count, found.minimum, found.maximum, found.mean, found.std))
    header = ('chips', 'pixels', 'lowest', 'highest', 'mean', 'standard deviation')
    return Table(header, tuple(rows), 'Regression target')


def _dates_text(data: ChipData) -> str:
    if data.table.dates == 1:
        return ''
    return ', '.join([str(data.table.dates), *(day.isoformat() for day in data.acquired)])


def _band_text(band: Band) -> str:
    if band.is_radar:
        return f'{band.name} (radar)'
    return f'{band.name} ({band.wavelength_um:g} µm)' if band.wavelength_um else band.name


def _forbids_sale(backbone: str) -> bool:
    try:
        return describe_backbone(backbone).record.non_commercial
    except BackboneError:
        return False
