"""Write the tables of speeds in docs/maps.md from what the benchmarks measured on one machine.

python benchmarks/predict.py --rates benchmarks/rates.jsonl
python benchmarks/scale.py --rates benchmarks/rates.jsonl
python benchmarks/detection.py --rates benchmarks/rates.jsonl
python benchmarks/write_rates.py
"""

import statistics
from pathlib import Path
from typing import Any

from _page import format_table, read_lines, write_section

RATES = Path(__file__).with_name('rates.jsonl')
PAGE = Path(__file__).parents[1] / 'docs' / 'maps.md'

CASES = {
    'map': 'U-Net on ResNet-18, tiles of 512 px',
    'model': 'its network alone on the same tiles in memory',
    'free': 'no network',
    'read_write_wide': 'reading and writing alone',
    'tiny': 'two small convolutions, plain GeoTIFF',
    'tiny_cog': 'the same, cloud-optimized',
    'tiny_probabilities': 'the same, with probabilities and confidence',
    'transformer_crop': 'linear probe on DOFA, tiles that are cut',
    'transformer_hann': 'the same, tiles that fade into each other',
    'engine_torch': "U-Net on ResNet-18, `engine='torch'`",
    'engine_onnx': "the same, `'onnx'`",
    'engine_openvino': "the same, `'openvino'`",
    'engine_auto': "the same, `'auto'`",
    'whole': 'U-Net on ResNet-18, on one core',
    'four_parts': 'the same in four parts, one after the other, and merged',
    'workers_1': 'the same on one Dask worker of one core',
    'workers_2': 'the same on two Dask workers of one core each',
    'many': 'the same by `predict_many`, scenes of 512 px',
    'many_model': 'its network alone on those scenes in memory',
    'detect': 'Faster R-CNN on ResNet-18, `detect_objects`',
    'detect_model': 'its network alone on the same tiles in memory',
}
"""What is mapped; cases that are not listed are left out."""


def main() -> None:
    """Write the section."""
    rows = [row for row in read_lines(RATES) if row['case'] in CASES]
    # in the order in which they were measured
    machines = dict.fromkeys((row['machine'], row['threads']) for row in rows)
    parts = [_section(rows, *machine) for machine in machines]
    write_section('rates', '\n\n'.join(parts), page=PAGE)


def _section(rows: list[dict[str, Any]], machine: str, threads: int) -> str:
    here = [row for row in rows if (row['machine'], row['threads']) == (machine, threads)]
    here.sort(key=lambda row: list(CASES).index(row['case']))
    table = format_table(
        ['map', 'raster', 'Mpx/s'],
        [[CASES[row['case']], f'{row["megapixels"]:.2f} Mpx', _text(_rate(row))] for row in here],
    )
    word = 'thread' if threads == 1 else 'threads'
    return f'{machine}, {threads} {word} in each process:\n\n{table}'


def _text(rate: float) -> str:
    return f'{rate:.{2 if rate < 1 else 1 if rate < 10 else 0}f}'


def _rate(row: dict[str, Any]) -> float:
    return float(row['megapixels'] / statistics.median(row['seconds']))


if __name__ == '__main__':
    main()
