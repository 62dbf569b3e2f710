"""Write the tables of docs/backbones.md from the catalog.

Usage: python docs/write_backbones.py            the tables, with the speeds that were measured before
       python docs/write_backbones.py --measure  measure the speeds first, on this machine's CPU

Scores are published ones, each with its source; nothing is computed here.
"""

import argparse
import json
import time
from datetime import date
from pathlib import Path

import torch

from geolearn.backbones import catalog, create_backbone
from geolearn.backbones.catalog import WeightsRecord
from geolearn.bands import Band

FOLDER = Path(__file__).parent
PAGE, SPEEDS = FOLDER / 'backbones.md', FOLDER / 'backbone_speeds.json'
BEGIN, END = '<!-- tables: docs/write_backbones.py -->\n', '<!-- end of tables -->\n'

SIDE, MONTHS = 224, 12
"""Pixels of the images that are timed, and dates of networks over time series."""

LARGE = 120_000_000
"""Parameters above which speeds are not measured."""

SCORES = {
    'dofa_base': 80.63,
    'croma_base': 82.42,
    'terramind_base': 82.42,
    'terramind_large': 82.93,
}
"""PANGAEA, frozen encoder and UperNet, mIoU on HLS burn scars, as RAMEN's README gives them."""

DATES = {
    'anysat': 'several together',
    'prithvi': 'several together',
    'olmoearth': 'several together',
    'presto': 'months of a pixel',
    'tessera': 'days of a pixel',
}

CHOICES = (
    ('any bands with wavelengths: aerial, drone, other satellites', '`dofa_base`, `dofa_v2_base`', 'free (CC-BY-4.0)'),
    (
        'Sentinel-2, with Sentinel-1 or Landsat, one or several dates',
        '`olmoearth_v1_2_base`, `olmoearth_v1_nano`, `anysat_base`',
        'terms; free (MIT)',
    ),
    ('Sentinel-1 and Sentinel-2 of one date', '`croma_base`, `terramind_base`, `thor_base`', 'free'),
    ('HLS or Landsat-like six bands, several dates', '`prithvi_v2_300M_TL`', 'free (Apache-2.0)'),
    ('a year of months, few labels, no context', "`PixelHead(data, backbone='presto')`", 'free (MIT)'),
    ('Sentinel-3, Sentinel-5P or elevation; place and date known', '`copernicus_fm_base`', 'free (CC-BY-4.0)'),
    ('RGB', 'timm: `resnet50`, `convnext_tiny`, DINOv3, SAM 2', 'see the model'),
    ('a small machine, training from scratch', '`plain_unet`, `vit_nano`', 'none needed'),
)


def own_bands(record: WeightsRecord) -> tuple[Band, ...]:
    """Return the bands that a record was made for; red, green and blue where any will do."""
    if not record.inputs:
        return (Band('red', 0.665, 'red'), Band('green', 0.56, 'green'), Band('blue', 0.49, 'blue'))
    bands = record.inputs[0].get_bands()
    if record.name.startswith('tessera_v1'):
        orbit = '' if record.name == 'tessera_v1' else '_ascending'
        bands += tuple(Band(f'{name}{orbit}', None, name.lower(), True) for name in ('VV', 'VH'))
    return bands


@torch.inference_mode()
def measure(record: WeightsRecord) -> float:
    """Return the millions of pixels of one date (of a year for time series) that a backbone's maps take per second."""
    series, bands = record.patch == 1 and record.heads > 0, own_bands(record)
    if series:
        days = [date(2021, month, 10) for month in range(1, MONTHS + 1)]
        location = (48.0, 16.0) if record.needs_places else None
        net = create_backbone(record.name, bands, pretrained=False, strides=None, dates=days, location=location)
        x = torch.rand(1, MONTHS, len(bands), 32, 32)
    else:
        net = create_backbone(record.name, bands, pretrained=False, strides=None)
        x = torch.rand(1, len(bands), SIDE, SIDE)
    net.eval()
    net(x)
    started = time.perf_counter()
    net(x)
    return x.shape[-1] * x.shape[-2] / (time.perf_counter() - started) / 1e6


def table() -> str:
    """Lay out every record of the catalog that has sources or is geolearn's own."""
    speeds = json.loads(SPEEDS.read_text(encoding='utf-8')) if SPEEDS.is_file() else {}
    lines = [
        '| name | parameters | license of the weights | bands | patch | dates | frozen (1) | CPU (2) | known by |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for record in catalog.read_catalog().values():
        if record.family == 'timm':
            continue
        sensors = '; '.join(f'{i.sensor} {len(i.bands)}' for i in record.inputs) or 'any'
        license_text = record.license + (', no commercial use' if record.non_commercial else '')
        license_text += ', with terms' if record.terms else ''
        hashed = record.sources[0].sha256[:8] if record.sources else ''
        lines.append(
            '| '
            + ' | '.join(
                (
                    f'`{record.name}`',
                    f'{record.parameters / 1e6:.1f} M' if record.parameters else '',
                    license_text,
                    'any with a wavelength' if record.any_bands else sensors,
                    f'{record.patch} px' if record.heads else '',
                    DATES.get(record.family, 'one after the other'),
                    f'{SCORES[record.name]:.2f}' if record.name in SCORES else '',
                    f'{speeds[record.name]:.3g}' if record.name in speeds else '',
                    f'sha256 {hashed}' if hashed else 'its name' if record.sources else 'none published',
                )
            )
            + ' |'
        )
    return '\n'.join(lines)


def choices() -> str:
    """Lay out the short table."""
    rows = [f'| {images} | {names} | {terms} |' for images, names, terms in CHOICES]
    return '\n'.join(['| images | take | weights |', '|---|---|---|', *rows])


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--measure', action='store_true')
    if parser.parse_args().measure:
        torch.set_num_threads(2)
        speeds: dict[str, float] = {}
        for record in catalog.read_catalog().values():
            if record.family != 'timm' and 0 < record.parameters < LARGE:
                speeds[record.name] = round(measure(record), 4)
                SPEEDS.write_text(json.dumps(speeds, indent=1) + '\n', encoding='utf-8')
    text = PAGE.read_text(encoding='utf-8')
    if BEGIN in text:
        text = text[: text.index(BEGIN)] + text[text.index(END) + len(END) :]
    title, _, rest = text.partition('\n')
    rest = rest.lstrip('\n')
    notes = (
        '(1) mIoU on HLS burn scars, encoder frozen, UperNet on top, all labels (PANGAEA, as given by the README of\n'
        'RAMEN). Only what was found published is shown.\n\n'
        f'(2) Millions of pixels per second through the maps at random values, two CPU cores, images of {SIDE} px;\n'
        f'of networks over time series, pixels with {MONTHS} dates. Empty where it was not measured.\n'
    )
    body = f'## Choose a backbone\n\n{choices()}\n\n## All of them\n\n{table()}\n\n{notes}\n'
    PAGE.write_text(f'{title}\n\n{BEGIN}{body}{END}\n{rest}', encoding='utf-8')


if __name__ == '__main__':
    main()
