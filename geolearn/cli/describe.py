"""What a file holds, as plain facts and as text: rasters, vector files, weights, checkpoints, foreign models."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolearn.errors import CheckpointError, ChipFolderError, RasterError, WeightsError
from geolearn.files import decode_text

if TYPE_CHECKING:
    import pandas as pd

    from geolearn.bands import Band

WEIGHTS = ('.safetensors', '.pth', '.pt', '.ckpt', '.bin')
"""Suffixes of files of tensors."""

READ = 'a .dlpk, a checkpoint or weights, a raster, a vector file, STAC items, or a folder of chips or bands'


Facts = dict[str, Any]
"""What JSON can hold, with the key ``'kind'``."""


def describe_file(path: Path, given: str) -> str:
    """Return what a file holds as text, whatever it is; see `file_facts`."""
    return as_text(file_facts(path, given))


def as_text(facts: Facts) -> str:
    """Return facts as text, of whatever kind they are."""
    return _TEXTS[facts['kind']](facts)


def file_facts(path: Path, given: str) -> Facts:
    """Return what a file holds, whatever it is.

    Args:
        path: The file.
        given: As the user wrote it, which may name a host.

    Raises:
        RasterError: If it is nothing that geolearn reads.
        WeightsError: If it has the suffix of weights and cannot be read as such.
    """
    remote = '://' in given or given.startswith('/vsi')
    if not remote and not path.exists() and path.suffix.lower() not in _RASTERS:
        raise RasterError(f'{given} does not exist; info describes {READ}')
    if not remote and path.exists() and not path.is_file() and not path.is_dir():
        raise RasterError(f'{given} is neither a file nor a folder; info describes {READ}')
    if path.suffix.lower() in WEIGHTS:
        return weights_facts(path)
    shown = given if remote else path
    if _holds_features(path):
        return vector_facts(path)
    try:
        return raster_facts(shown)
    except RasterError as error:
        try:
            if path.is_file():
                return vector_facts(path)
        except ChipFolderError:
            pass
        if remote or path.suffix.lower() in _RASTERS:
            raise
        hint = 'a JSON file of labels is read with its folder; ' if path.suffix.lower() == '.json' else ''
        raise RasterError(f'{given} is nothing that geolearn reads: {hint}info describes {READ}') from error


_RASTERS = frozenset('.tif .tiff .png .jpg .jpeg .jp2 .vrt .img .mrf .zarr'.split())


def raster_facts(path: str | Path) -> Facts:
    """Return size, type, place and bands of a raster, or of a folder that holds one."""
    from geolearn.raster import open_raster, raster_bands, raster_geobox
    from geolearn.raster.ground import unit_of

    with open_raster(path) as src:
        box = raster_geobox(src)
        return {
            'kind': 'raster',
            'path': str(path),
            'width': src.width,
            'height': src.height,
            'dtype': str(src.dtypes[0]),
            'nodata': None if src.nodata is None else float(src.nodata),
            'crs': str(src.crs) if src.crs else None,
            'pixel_size': [float(side) for side in box.resolution],
            'pixel_unit': unit_of(src.crs),
            'bands': [band_facts(band) for band in raster_bands(src)],
        }


def band_facts(band: 'Band') -> Facts:
    """Return what is known of a band."""
    return {
        'name': band.name,
        'wavelength_um': band.wavelength_um,
        'common_name': band.common_name,
        'is_radar': band.is_radar,
    }


def _raster_text(facts: Facts) -> str:
    count, nodata = len(facts['bands']), facts['nodata']
    lines = [
        f'{facts["path"]}: {facts["width"]} x {facts["height"]} pixels, {_count(count, "band")} of {facts["dtype"]}, '
        f'{"no NoData value" if nodata is None else f"NoData {nodata:g}"}',
        f'  crs      {facts["crs"] or "none"}',
        f'  pixel    {facts["pixel_size"][0]:g} x {facts["pixel_size"][1]:g} {facts["pixel_unit"]}',
    ]
    return '\n'.join([*lines, *(f'  band     {_describe_band(band)}' for band in facts['bands'])])


def _describe_band(band: Facts) -> str:
    notes = [
        f'{band["wavelength_um"]:g} µm' if band['wavelength_um'] else '',
        (band['common_name'] or '') if band['common_name'] != band['name'] else '',
        'radar' if band['is_radar'] else '',
    ]
    text = ', '.join(note for note in notes if note)
    return f'{band["name"]} ({text})' if text else str(band['name'])


def _holds_features(path: Path) -> bool:
    """Whether a JSON file holds features without assets: GeoJSON, and no STAC items."""
    if path.suffix.lower() not in ('.json', '.geojson'):
        return False
    try:
        content = json.loads(decode_text(path.read_bytes()))
    except (OSError, ValueError):
        return False
    if not isinstance(content, dict) or content.get('type') not in ('Feature', 'FeatureCollection'):
        return False
    features = content.get('features') if content['type'] == 'FeatureCollection' else [content]
    return not any(isinstance(feature, dict) and 'assets' in feature for feature in features or [])


def vector_facts(path: Path) -> Facts:
    """Return layers, geometries, fields and place of a vector file.

    Raises:
        ChipFolderError: If it is none.
    """
    from geolearn import extras

    pyogrio = extras.require('pyogrio', extra='vector', to='read vector files')
    if path.suffix.lower() in ('.parquet', '.geoparquet'):
        return {'kind': 'vector', 'path': str(path), 'layers': [_parquet_facts(path)]}
    try:
        names = [str(name) for name, _ in pyogrio.list_layers(path)]
        found = [pyogrio.read_info(path, layer=name, force_total_bounds=True) for name in names]
        tables = [pyogrio.read_dataframe(path, layer=name, read_geometry=False, max_features=_READ) for name in names]
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError, ValueError) as error:
        raise ChipFolderError(f'cannot read {path}: {error}') from error
    layers = [_layer_facts(name, info, table) for name, info, table in zip(names, found, tables)]
    return {'kind': 'vector', 'path': str(path), 'layers': layers}


_READ = 100_000
"""Features whose values are looked at."""


def _layer_facts(name: str, info: Mapping[str, Any], table: 'pd.DataFrame') -> Facts:
    bounds = info['total_bounds'] if info['features'] else None
    return {
        'name': name,
        'features': int(info['features']),
        'geometry': info['geometry_type'],
        'crs': info['crs'],
        'bounds': None if bounds is None else [float(number) for number in bounds],
        'fields': [[str(field), str(kind)] for field, kind in zip(info['fields'], info['dtypes'])],
        'values': _few_values(table),
    }


def _few_values(table: 'pd.DataFrame') -> dict[str, list[Any]]:
    """Return the values of the fields that hold few, such as classes, the most frequent first."""
    few = {}
    for name, column in table.items():
        if not (column.dtype.kind in 'biu' or column.map(type).isin((str, type(None))).all()):
            continue
        counts = column.value_counts()
        if 0 < len(counts) <= _FEW:
            few[str(name)] = counts.index.tolist()
    return few


def _parquet_facts(path: Path) -> Facts:
    from geolearn import extras

    geopandas = extras.require('geopandas', extra='vector', to='read vector files')
    try:
        frame = geopandas.read_parquet(path)
    except (OSError, ValueError, ImportError) as error:
        raise ChipFolderError(f'cannot read {path}: {error}') from error
    return {
        'name': None,
        'features': len(frame),
        'geometry': ', '.join(sorted({str(kind) for kind in frame.geom_type.dropna()})) or None,
        'crs': frame.crs.to_string() if frame.crs else None,
        'bounds': [float(number) for number in frame.total_bounds] if len(frame) else None,
        'fields': [[str(name), str(kind)] for name, kind in frame.dtypes.items() if name != frame.geometry.name],
        'values': _few_values(frame.drop(columns=frame.geometry.name)),
    }


def _vector_text(facts: Facts) -> str:
    lines = [f'{facts["path"]}: a vector file of {_count(len(facts["layers"]), "layer")}']
    for layer in facts['layers']:
        named = f'{layer["name"]}: ' if layer['name'] is not None else ''
        kind, crs = layer['geometry'] or 'no geometries', layer['crs'] or 'no CRS'
        lines.append(f'  layer    {named}{_count(layer["features"], "feature")}, {kind}, {crs}')
        if layer['bounds'] is not None:
            lines.append(f'  bounds   {", ".join(f"{number:g}" for number in layer["bounds"])}')
        lines += _fields([(name, _kind_of_field(name, kind, layer)) for name, kind in layer['fields']])
    return '\n'.join(lines)


def _kind_of_field(name: str, kind: str, layer: Facts) -> str:
    word = 'text' if kind in ('object', 'str') else kind
    values = layer['values'].get(name)
    return word if values is None else f'{word}: {", ".join(map(str, values))}'


_SHOWN = 20
_FEW = 12
"""Values of a field that are named; more are no classes."""


def _fields(pairs: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> list[str]:
    listed = list(pairs)
    lines = [f'  field    {name} ({kind})' for name, kind in listed[:_SHOWN]]
    return [*lines, f'  field    and {len(listed) - _SHOWN} more'] if len(listed) > _SHOWN else lines


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' if number == 1 else f'{number:,} {noun}s'


def weights_facts(path: Path) -> Facts:
    """Return what a file of tensors holds; a checkpoint of a training says which one.

    Raises:
        WeightsError: If it cannot be read, or holds more than tensors.
    """
    import torch

    from geolearn.backbones.loading import load_weights_file
    from geolearn.training.checkpoints import read_facts

    try:
        return _checkpoint_facts(path, read_facts(path))
    except CheckpointError:
        content = load_weights_file(path)
    tensors = dict(_tensors(content, torch.Tensor))
    if not tensors:
        raise WeightsError(f'{path} holds no tensors, but {", ".join(map(str, list(content)[:8])) or "nothing"}')
    return {
        'kind': 'weights',
        'path': str(path),
        'numbers': sum(tensor.numel() for tensor in tensors.values()),
        'dtypes': sorted({str(tensor.dtype).removeprefix('torch.') for tensor in tensors.values()}),
        'tensors': {name: list(tensor.shape) for name, tensor in tensors.items()},
    }


def _weights_text(facts: Facts) -> str:
    tensors, kinds = facts['tensors'], ', '.join(facts['dtypes'])
    lines = [f'{facts["path"]}: weights, {_count(len(tensors), "tensor")} of {facts["numbers"]:,} numbers ({kinds})']
    lines += [f'  tensor   {name} {tuple(shape)}' for name, shape in list(tensors.items())[:8]]
    return '\n'.join([*lines, f'  tensor   and {len(tensors) - 8} more'] if len(tensors) > 8 else lines)


def _tensors(content: Mapping[str, Any], kind: type, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yield tensors by name, those of mappings within too."""
    for name, value in content.items():
        if isinstance(value, kind):
            yield f'{prefix}{name}', value
        elif isinstance(value, Mapping):
            yield from _tensors(value, kind, f'{prefix}{name}/')


def _checkpoint_facts(path: Path, facts: Mapping[str, Any]) -> Facts:
    fixed, history = facts.get('fingerprint') or {}, (facts.get('history') or {}).get('epochs') or []
    row = facts.get('row') or (history[-1] if history else {})
    return {
        'kind': 'checkpoint',
        'path': str(path),
        'epoch': int(facts.get('epoch', 0)),
        'epochs': fixed.get('epochs'),
        'run': facts.get('run') or None,
        'metrics': {name: value for name, value in row.items() if isinstance(value, int | float)},
        'resumes': bool(fixed),
    }


def _checkpoint_text(facts: Facts) -> str:
    of = f' of {facts["epochs"]}' if facts['epochs'] is not None else ''
    lines = [f'{facts["path"]}: a checkpoint of a training, after epoch {facts["epoch"]}{of}']
    if facts['run']:
        lines.append(f'  run      {facts["run"]}')
    lines += [f'  {name:<14} {value:.4g}' for name, value in facts['metrics'].items()]
    if facts['resumes']:
        lines.append(
            '  it holds the state of the training: fit(..., resume=True), or train --resume, continues from it'
        )
    else:
        lines.append(
            '  it holds the weights of an epoch alone; last.safetensors beside it is what a training resumes from'
        )
    return '\n'.join(lines)


_TEXTS: dict[str, Callable[[Facts], str]] = {
    'raster': _raster_text,
    'vector': _vector_text,
    'weights': _weights_text,
    'checkpoint': _checkpoint_text,
}


def describe_foreign(path: Path, emd: Mapping[str, Any]) -> str:
    """Return what the model definition of other software says, and what of it geolearn cannot run, as text."""
    from geolearn.bundle import list_members

    def text(key: str) -> str:
        value = emd.get(key)
        return ', '.join(map(str, value)) if isinstance(value, list) else str('not stated' if value is None else value)

    rows = emd.get('Classes')
    classes = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    names = [f'{row.get("Value")} {row.get("Name")}' for row in classes]
    function, weights = text('InferenceFunction'), text('ModelFile')
    lines = [
        f'{path}: a model of other software',
        f'  framework {text("Framework")}, {text("ModelConfiguration")}',
        f'  model     {text("ModelType")} {text("ModelName") if "ModelName" in emd else ""}'.rstrip(),
        f'  tiles     {text("ImageWidth")} x {text("ImageHeight")} pixels, bands {text("ExtractBands")}',
        f'  classes   {", ".join(names) or "none stated"}',
        *(f'  file      {name} ({size:,} bytes)' for name, size in list_members(path).items()),
        f'  geolearn cannot run it: its weights ({weights}) are those of other layers, in a format that may hold code, '
        f'and its inference function ({function}) is code, which geolearn never runs. ArcGIS Pro runs it; for '
        'geolearn, train a model on the chips that it was trained on.',
    ]
    return '\n'.join(lines)
