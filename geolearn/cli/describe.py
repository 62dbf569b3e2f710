"""What a file holds, as text: rasters, vector files, weights, checkpoints, and models of other software."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolearn.errors import CheckpointError, ChipFolderError, RasterError, WeightsError
from geolearn.files import decode_text

if TYPE_CHECKING:
    from geolearn.bands import Band

WEIGHTS = ('.safetensors', '.pth', '.pt', '.ckpt', '.bin')
"""Suffixes of files of tensors."""

READ = 'a .dlpk, a checkpoint or weights, a raster, a vector file, STAC items, or a folder of chips or bands'


def describe_file(path: Path, given: str) -> str:
    """Return what a file holds as text, whatever it is.

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
        return describe_weights(path)
    shown = given if remote else path
    if _holds_features(path):
        return describe_vectors(path)
    try:
        return describe_raster(shown)
    except RasterError as error:
        try:
            if path.is_file():
                return describe_vectors(path)
        except ChipFolderError:
            pass
        if remote or path.suffix.lower() in _RASTERS:
            raise
        hint = 'a JSON file of labels is read with its folder; ' if path.suffix.lower() == '.json' else ''
        raise RasterError(f'{given} is nothing that geolearn reads: {hint}info describes {READ}') from error


_RASTERS = frozenset('.tif .tiff .png .jpg .jpeg .jp2 .vrt .img .mrf .zarr'.split())


def describe_raster(path: str | Path) -> str:
    """Return size, type, place and bands of a raster, or of a folder that holds one, as text."""
    from geolearn.raster import open_raster, raster_bands, raster_geobox

    with open_raster(path) as src:
        box = raster_geobox(src)
        lines = [
            f'{path}: {src.width} x {src.height} pixels, {src.count} band{"s"[: src.count > 1]} of {src.dtypes[0]}, '
            f'{"no NoData value" if src.nodata is None else f"NoData {src.nodata:g}"}',
            f'  crs      {src.crs or "none"}',
            f'  pixel    {box.resolution[0]:g} x {box.resolution[1]:g} map units',
        ]
        lines += [f'  band     {_describe_band(band)}' for band in raster_bands(src)]
    return '\n'.join(lines)


def _describe_band(band: 'Band') -> str:
    facts = [
        f'{band.wavelength_um:g} µm' if band.wavelength_um else '',
        band.common_name if band.common_name != band.name else '',
        'radar' if band.is_radar else '',
    ]
    text = ', '.join(fact for fact in facts if fact)
    return f'{band.name} ({text})' if text else band.name


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


def describe_vectors(path: Path) -> str:
    """Return layers, geometries, fields and place of a vector file as text.

    Raises:
        ChipFolderError: If it is none.
    """
    from geolearn import extras

    pyogrio = extras.require('pyogrio', extra='vector', to='read vector files')
    if path.suffix.lower() in ('.parquet', '.geoparquet'):
        return _describe_parquet(path)
    try:
        names = [str(name) for name, _ in pyogrio.list_layers(path)]
        facts = [pyogrio.read_info(path, layer=name, force_total_bounds=True) for name in names]
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError, ValueError) as error:
        raise ChipFolderError(f'cannot read {path}: {error}') from error
    lines = [f'{path}: a vector file of {_count(len(names), "layer")}']
    for name, found in zip(names, facts):
        kind = found['geometry_type'] or 'no geometries'
        lines.append(f'  layer    {name}: {_count(found["features"], "feature")}, {kind}, {found["crs"] or "no CRS"}')
        if found['total_bounds'] is not None and found['features']:
            lines.append(f'  bounds   {", ".join(f"{number:g}" for number in found["total_bounds"])}')
        lines += _fields(zip(found['fields'], found['dtypes']))
    return '\n'.join(lines)


def _describe_parquet(path: Path) -> str:
    from geolearn import extras

    geopandas = extras.require('geopandas', extra='vector', to='read vector files')
    try:
        frame = geopandas.read_parquet(path)
    except (OSError, ValueError, ImportError) as error:
        raise ChipFolderError(f'cannot read {path}: {error}') from error
    kinds = ', '.join(sorted({str(kind) for kind in frame.geom_type.dropna()})) or 'no geometries'
    crs = frame.crs.to_string() if frame.crs else 'no CRS'
    lines = [f'{path}: a vector file of 1 layer', f'  layer    {_count(len(frame), "feature")}, {kinds}, {crs}']
    if len(frame):
        lines.append(f'  bounds   {", ".join(f"{number:g}" for number in frame.total_bounds)}')
    columns = [(name, str(kind)) for name, kind in frame.dtypes.items() if name != frame.geometry.name]
    return '\n'.join([*lines, *_fields(columns)])


_SHOWN = 20


def _fields(pairs: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> list[str]:
    listed = list(pairs)
    lines = [f'  field    {name} ({kind})' for name, kind in listed[:_SHOWN]]
    return [*lines, f'  field    and {len(listed) - _SHOWN} more'] if len(listed) > _SHOWN else lines


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' if number == 1 else f'{number:,} {noun}s'


def describe_weights(path: Path) -> str:
    """Return what a file of tensors holds as text; a checkpoint of a training says which one.

    Raises:
        WeightsError: If it cannot be read, or holds more than tensors.
    """
    import torch

    from geolearn.backbones.loading import load_weights_file
    from geolearn.training.checkpoints import read_facts

    try:
        return _describe_checkpoint(path, read_facts(path))
    except CheckpointError:
        content = load_weights_file(path)
    tensors = dict(_tensors(content, torch.Tensor))
    if not tensors:
        raise WeightsError(f'{path} holds no tensors, but {", ".join(map(str, list(content)[:8])) or "nothing"}')
    numbers = sum(tensor.numel() for tensor in tensors.values())
    kinds = ', '.join(sorted({str(tensor.dtype).removeprefix('torch.') for tensor in tensors.values()}))
    lines = [f'{path}: weights, {_count(len(tensors), "tensor")} of {numbers:,} numbers ({kinds})']
    lines += [f'  tensor   {name} {tuple(tensor.shape)}' for name, tensor in list(tensors.items())[:8]]
    return '\n'.join([*lines, f'  tensor   and {len(tensors) - 8} more'] if len(tensors) > 8 else lines)


def _tensors(content: Mapping[str, Any], kind: type, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Yield tensors by name, those of mappings within too."""
    for name, value in content.items():
        if isinstance(value, kind):
            yield f'{prefix}{name}', value
        elif isinstance(value, Mapping):
            yield from _tensors(value, kind, f'{prefix}{name}/')


def _describe_checkpoint(path: Path, facts: Mapping[str, Any]) -> str:
    fixed, history = facts.get('fingerprint') or {}, (facts.get('history') or {}).get('epochs') or []
    of = f' of {fixed["epochs"]}' if 'epochs' in fixed else ''
    lines = [f'{path}: a checkpoint of a training, after epoch {int(facts.get("epoch", 0))}{of}']
    if facts.get('run'):
        lines.append(f'  run      {facts["run"]}')
    row = facts.get('row') or (history[-1] if history else {})
    lines += [f'  {name:<14} {value:.4g}' for name, value in row.items() if isinstance(value, int | float)]
    if fixed:
        lines.append(
            '  it holds the state of the training: fit(..., resume=True), or train --resume, continues from it'
        )
    else:
        lines.append(
            '  it holds the weights of an epoch alone; last.safetensors beside it is what a training resumes from'
        )
    return '\n'.join(lines)


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
