"""Describe backbones by name: what they take and what their weights are, without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from geolearn import notebook
from geolearn.backbones import catalog
from geolearn.backbones.weights import find_weights
from geolearn.bands import Band, get_bands, list_sensors
from geolearn.errors import BackboneError, BandError, UnknownNameError

if TYPE_CHECKING:
    from geolearn.backbones.pretrained import PretrainingFacts

ANY_BANDS = 'any with a wavelength, or radar'
ANY_CHANNELS = 'any'


@dataclass(frozen=True, slots=True, repr=False)
class BackboneInfo:
    """What is known of a backbone before it is built; shown in a console or a notebook it explains itself.

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
        """What the license forbids or asks for; empty for free weights."""
        flags = {'no commercial use': self.record.non_commercial, 'gated': self.record.gated}
        return ', '.join(text for text, holds in flags.items() if holds)

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """What is known, as pairs of a label and a text, for tables."""
        r = self.record
        attention = f', {r.heads} heads, patches of {r.patch} px' if r.heads else ''
        rows = [
            ('also called', ', '.join(self.aliases)),
            ('network', f'{r.family}: width {r.dim}, {r.depth} blocks{attention}'),
            ('parameters', f'{self.parameters / 1e6:.1f} M' if self.parameters else ''),
            ('bands', ANY_BANDS if r.any_bands else ', '.join(self.bands) or ANY_CHANNELS),
            ('license', r.license + (f' ({self.restrictions})' if self.restrictions else '')),
            ('terms', r.terms),
            ('weights', _weights_line(r, self.weights)),
            ('embeds', _embedding_line(r)),
            ('paper', r.paper),
            ('note', r.note),
            *(('trained on', _input_line(inputs)) for inputs in r.inputs),
        ]
        return tuple((label, text) for label, text in rows if text)

    def __repr__(self) -> str:
        """Lay it out in lines, for people."""
        return '\n'.join([self.name, *(f'  {label + ":":<12} {text}' for label, text in self.rows)])

    def _repr_html_(self) -> str:
        """Lay it out as a table, for notebooks."""
        return notebook.table_as_html(self.name, self.rows)


def _embedding_line(record: catalog.WeightsRecord) -> str:
    """Say what `geolearn.embed` takes and gives."""
    if not record.heads:
        return 'images (bands, height, width) of any size in raw units, to the maps of a network of several resolutions'
    bands = 'one wavelength per band or known names' if record.any_bands else 'bands by name'
    side = record.patch * record.grid
    return (
        f'images (bands, height, width) of any size in raw units, {bands}; {record.dim} numbers for each '
        f'{record.patch} px, seen {side} x {side} px at a time'
    )


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


def describe_backbone(name: str) -> BackboneInfo:
    """Describe one of geolearn's own backbones, by name or alias, or the weights that `pretrain` wrote.

    No weights are loaded and, for the backbones of the catalog, torch is not imported.

    Raises:
        UnknownNameError: If no registry holds `name`.
        BackboneError: If it is a model of timm or torchvision that geolearn keeps no record of.
        WeightsError: If it is a file that does not say which backbone it holds.
    """
    known, aliases = catalog.read_catalog(), catalog.read_aliases()
    if name not in {*known, *aliases}:
        return _describe_other(name, {*known, *aliases})
    record = catalog.get_record(aliases.get(name, name))
    return BackboneInfo(record.name, record.aliases, record, find_weights(record))


def _describe_other(name: str, own: set[str]) -> BackboneInfo:
    """Describe a file of weights, or say that a name is one of a library, or none."""
    from geolearn.backbones import custom, pretrained

    if custom.is_file_name(name) and not custom.is_bundle(name):
        return _describe_file(pretrained.read_facts(name), Path(name))
    _refuse(name, own)


def _describe_file(facts: 'PretrainingFacts', path: Path) -> BackboneInfo:
    """Describe weights of one's own as if they were in the catalog."""
    aliases, known = catalog.read_aliases(), catalog.read_catalog()
    name = aliases.get(facts.backbone, facts.backbone)
    sensor = next((s for s in list_sensors() if _has_bands(s, facts.bands)), '')
    inputs = catalog.InputStatistics(
        sensor,
        facts.units or 'units that were not recognized',
        tuple(b.name for b in facts.bands),
        facts.mean,
        facts.std,
    )
    base = known.get(name) or catalog.WeightsRecord(name, 'timm', 0, 0, 0, 0, 0, '', '')
    record = replace(
        base,
        name=str(path),
        aliases=(),
        sources=(),
        inputs=(inputs,),
        license="of one's own imagery",
        note=f'{facts}; {facts.data.get("images", "?")} images of {facts.chip_size} px, {facts.epochs} epochs',
    )
    return BackboneInfo(str(path), (), record, path)


def _has_bands(sensor: str, bands: Sequence[Band]) -> bool:
    try:
        found = get_bands(sensor, [band.name for band in bands])
    except (BandError, UnknownNameError):
        return False
    return [(b.wavelength_um, b.is_radar) for b in found] == [(b.wavelength_um, b.is_radar) for b in bands]


def _refuse(name: str, own: set[str]) -> NoReturn:
    """Say that a name is that of a library's model or of the user's own, or of none."""
    from geolearn.backbones.backbone import BUILDERS
    from geolearn.backbones.timm import is_timm_model, list_timm_models
    from geolearn.backbones.torchvision import list_torchvision_models

    library, _, bare = name.rpartition(':')
    found = None
    if name in BUILDERS:
        raise BackboneError(f'{name} is a network of your own, of which geolearn keeps no record')
    if library in ('', 'timm') and is_timm_model(bare):
        found = 'timm'
    elif library in ('', 'torchvision') and bare in list_torchvision_models():
        found = 'torchvision'
    if found is not None:
        raise BackboneError(f'{name} comes from {found}, and geolearn keeps no record of it; see its own pages')
    catalog.refuse_absent(bare)
    raise UnknownNameError('backbone', bare, own | {*list_timm_models(), *list_torchvision_models()})
