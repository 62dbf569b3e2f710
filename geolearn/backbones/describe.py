"""Say what a backbone is, what it was trained on and under which licence, without loading anything."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from geolearn.backbones import catalog
from geolearn.backbones.weights import find_weights

ANY_BANDS = 'any with a wavelength, or radar'
ANY_CHANNELS = 'any'


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """What is known of a backbone before it is built; print it.

    Args:
        name: For `create_backbone`.
        aliases: Other names for it, such as ArcGIS's.
        record: Its entry in the catalog.
        weights: Published weights that lie on this machine, or None.
    """

    name: str
    aliases: tuple[str, ...]
    record: catalog.WeightsRecord
    weights: Path | None

    @property
    def parameters(self) -> int | None:
        """Number of parameters of the trunk, where it is known."""
        return self.record.parameters or None

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands that the weights were made for; empty where any bands will do."""
        return () if self.record.any_bands or not self.record.inputs else self.record.inputs[0].bands

    @property
    def restrictions(self) -> str:
        """What the licence forbids or asks for; empty for free weights."""
        flags = {'no commercial use': self.record.non_commercial, 'gated': self.record.gated}
        return ', '.join(text for text, holds in flags.items() if holds)

    def __str__(self) -> str:
        """Lay it out in lines, for people."""
        r = self.record
        attention = f', {r.heads} heads, patches of {r.patch} px' if r.heads else ''
        lines = {
            'also called': ', '.join(self.aliases),
            'network': f'{r.family}: width {r.dim}, {r.depth} blocks{attention}',
            'parameters': f'{self.parameters / 1e6:.1f} M' if self.parameters else '',
            'bands': ANY_BANDS if r.any_bands else ', '.join(self.bands) or ANY_CHANNELS,
            'licence': r.licence + (f' ({self.restrictions})' if self.restrictions else ''),
            'weights': _weights_line(r, self.weights),
            'paper': r.paper,
            'note': r.note,
        }
        rows = [f'  {key + ":":<12} {text}' for key, text in lines.items() if text]
        return '\n'.join([self.name, *rows, *(f'  {"trained on:":<12} {_input_line(i)}' for i in r.inputs)])


def describe_record(name: str) -> BackboneInfo:
    """Describe a backbone of the catalog by its name or an alias.

    Raises:
        UnknownNameError: If the catalog does not hold it.
    """
    aliases = catalog.read_aliases()
    record = catalog.get_record(aliases.get(name, name))
    return BackboneInfo(record.name, record.aliases, record, find_weights(record))


def tabulate(names: list[str]) -> pd.DataFrame:
    """Make a table of backbones: name, aliases, millions of parameters, bands, licence, whether weights are here."""
    rows = []
    for info in map(describe_record, names):
        rows.append(
            {
                'name': info.name,
                'aliases': ', '.join(info.aliases),
                'parameters_m': round(info.parameters / 1e6, 1) if info.parameters else None,
                'bands': ' '.join(info.bands) or ANY_CHANNELS,
                'licence': info.record.licence + (f' ({info.restrictions})' if info.restrictions else ''),
                'weights': 'cached' if info.weights else 'published' if info.record.sources else 'none',
            }
        )
    columns = ['name', 'aliases', 'parameters_m', 'bands', 'licence', 'weights']
    return pd.DataFrame(rows, columns=columns).set_index('name')


def _weights_line(record: catalog.WeightsRecord, path: Path | None) -> str:
    if path is not None:
        return f'on this machine: {path}'
    if not record.sources:
        return 'none are published'
    source = record.sources[0]
    return f'{source.file} of huggingface.co/{source.repo}, not on this machine'


def _input_line(inputs: catalog.InputStatistics) -> str:
    text = f'{inputs.sensor} {" ".join(inputs.bands)}, in {inputs.scale}'
    text += f', {inputs.gsd_m:g} m' if inputs.gsd_m else ''
    for label, values in (('mean', inputs.mean), ('std', inputs.std)):
        text += f'; {label} ' + ' '.join(f'{value:.4g}' for value in values) if values else ''
    return text
