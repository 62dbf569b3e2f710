"""Describe a bundle as a STAC item with the Machine Learning Model extension (MLM), as plain JSON."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from geolearn.bands import Band
from geolearn.bundle import find_bundle, list_members, read_emd
from geolearn.networks.spec import ModelSpec

STAC_VERSION = '1.1.0'

MLM_SCHEMA = 'https://stac-extensions.github.io/mlm/v1.4.0/schema.json'

CLASSIFICATION_SCHEMA = 'https://stac-extensions.github.io/classification/v2.0.0/schema.json'

EO_SCHEMA = 'https://stac-extensions.github.io/eo/v2.0.0/schema.json'

TASKS: Mapping[str, str] = {
    'ImageClassification': 'semantic-segmentation',
    'PixelRegression': 'regression',
    'ObjectDetection': 'object-detection',
    'InstanceDetection': 'instance-segmentation',
    'ObjectClassification': 'scene-classification',
    'PanopticSegmenter': 'panoptic-segmentation',
}
"""MLM's word for each ModelType."""

_GRAPHS = {
    'model.onnx': 'ONNX graph',
    'model.pt2': 'program of torch.export',
    'model.int8.onnx': 'ONNX graph of 8 bits',
}


def describe_bundle(path: str | Path) -> dict[str, Any]:
    """Return the STAC item of a model, without a place: a catalog adds where it was trained.

    Args:
        path: As `geolearn.load_model` takes it; the item refers to it by its name, as a neighbor.

    Raises:
        BundleError: If the bundle is broken.
    """
    path = find_bundle(path)
    emd = read_emd(path)
    manifest = emd['geolearn']
    spec = ModelSpec.from_manifest(manifest)
    task = TASKS.get(str(emd.get('ModelType')), 'classification')
    saved = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec='seconds').replace('+00:00', 'Z')
    return {
        'type': 'Feature',
        'stac_version': STAC_VERSION,
        'stac_extensions': [MLM_SCHEMA, CLASSIFICATION_SCHEMA, EO_SCHEMA],
        'id': path.stem,
        'geometry': None,
        'properties': {
            'datetime': saved,
            'bands': [_describe_band(band) for band in spec.bands],
            'mlm:name': _plain_name(path.stem),
            'mlm:architecture': f'{spec.model} on {spec.backbone}',
            'mlm:tasks': [task],
            'mlm:framework': 'pytorch',
            'mlm:pretrained': spec.pretrained,
            'mlm:accelerator_constrained': False,
            'mlm:input': [_describe_input(spec)],
            'mlm:output': [_describe_output(spec, task, _numbers_of_boxes(manifest))],
        },
        'links': [],
        'assets': _list_assets(path, manifest),
    }


def _plain_name(text: str) -> str:
    """Return a name in MLM's alphabet: a letter first, no sign last, three characters or more."""
    plain = re.sub(r'[^0-9A-Za-z_.-]+', '-', text).strip('-._')
    return plain if re.fullmatch(r'[A-Za-z].+[0-9A-Za-z]', plain) else f'model-{plain or 0}'


def _describe_band(band: Band) -> dict[str, Any]:
    return {'name': band.name} | ({} if band.wavelength_um is None else {'eo:center_wavelength': band.wavelength_um})


def _describe_input(spec: ModelSpec) -> dict[str, Any]:
    dates = spec.dates > 1
    return {
        'name': 'images',
        'description': 'Pixels in the units of the training chips, NaN where there is no data. The model scales them.',
        'bands': [{'name': band.name} for band in spec.bands],
        'input': {
            'shape': [-1, *([spec.dates] if dates else []), len(spec.bands), spec.chip_size, spec.chip_size],
            'dim_order': ['batch', *(['time'] if dates else []), 'bands', 'height', 'width'],
            'data_type': 'float32',
        },
        'value_scaling': [
            {'type': 'z-score', 'mean': mean, 'stddev': std}
            for mean, std in zip(spec.normalization.mean, spec.normalization.std)
        ],
        'resize_type': None,
        'pre_processing_function': None,
    }


def _numbers_of_boxes(manifest: Mapping[str, Any]) -> int | None:
    """Return how many numbers a box has in the output of the bundle's graph; None where it holds no detector's."""
    exports = manifest.get('exports')
    for row in exports.values() if isinstance(exports, Mapping) else ():
        if isinstance(row, Mapping) and isinstance(row.get('detection'), Mapping):
            return 5 if row['detection'].get('oriented') else 4
    return None


def _describe_output(spec: ModelSpec, task: str, numbers: int | None) -> dict[str, Any]:
    shape: tuple[list[int], list[str]] = ([-1, max(len(spec.class_infos), 1)], ['batch', 'class'])
    if task in ('semantic-segmentation', 'regression'):
        shape = ([*shape[0], spec.chip_size, spec.chip_size], [*shape[1], 'height', 'width'])
    elif numbers is not None:
        shape = ([-1, -1, numbers + len(spec.class_infos)], ['batch', 'place', 'box-and-class'])
    elif task in ('object-detection', 'instance-segmentation'):
        shape = ([-1, 4], ['object', 'box'])
    output: dict[str, Any] = {
        'name': 'outputs',
        'tasks': [task],
        'result': {'shape': shape[0], 'dim_order': shape[1], 'data_type': 'float32'},
        'post_processing_function': None,
    }
    if spec.class_infos:
        output['classification:classes'] = [
            {
                'value': info.value,
                # the extension's own alphabet
                'name': re.sub(r'[^0-9A-Za-z_-]+', '-', info.name) or str(info.value),
                'title': info.name or str(info.value),
                # the version of the extension that MLM's schema refers to wants it
                'description': info.name or str(info.value),
                'color_hint': '{:02X}{:02X}{:02X}'.format(*info.color),
            }
            for info in spec.class_infos
        ]
    return output


def _list_assets(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    held = [text for name, text in _GRAPHS.items() if name in list_members(path)]
    return {
        'model': {
            'href': f'./{path.name}',
            'type': 'application/zip' if path.suffix != '.emd' else 'application/json',
            'title': f'geolearn {manifest.get("version", "")} bundle'.replace('  ', ' '),
            'description': ', '.join(['safetensors and Esri model definition', *held]),
            'roles': ['mlm:model'],
            'mlm:artifact_type': 'geolearn.dlpk',
        }
    }
