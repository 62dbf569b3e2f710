"""Write spec, network, history and evaluation as a bundle, and read them back."""

import base64
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geolearn import errors, units
from geolearn._version import __version__
from geolearn.backbones import catalog
from geolearn.backbones.adapt import merged_state_dict
from geolearn.bands import Band, is_placeholder, match_bands
from geolearn.bundle import REPORT, SUFFIX, Bundle
from geolearn.classes import same_class
from geolearn.data import ChipData
from geolearn.history import Evaluation, History
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec

log = logging.getLogger('geolearn')

RASTER_FUNCTIONS = {
    'ImageClassification': 'ClassifyPixels',
    'ObjectDetection': 'DetectObjects',
    'InstanceDetection': 'DetectInstances',
    'ObjectClassification': 'ClassifyObjects',
}
"""The class of `geolearn.arcgis` that serves each ModelType. Esri has no word for others, such as regression."""

_SOURCE = '''\
"""What ArcGIS Pro runs to use this model. It needs geolearn in the Python environment of ArcGIS Pro."""

from geolearn.arcgis import {base}


class {name}({base}):
    """ArcGIS Pro looks for a class that is called as its file."""

    home = __file__
'''


def inference_file(model_type: str) -> tuple[str, bytes] | None:
    """Return name and content of the file for models of a type; None where ArcGIS has no such models."""
    base = RASTER_FUNCTIONS.get(model_type)
    if base is None:
        return None
    name = f'Geolearn{base}'
    return f'{name}.py', _SOURCE.format(base=base, name=name).encode()


def choose_target(name_or_path: str | Path, data: ChipData | None) -> Path:
    """Return the .dlpk to write: beside the data for a bare name; its folder is made.

    Raises:
        NotTrainedError: If a bare name is given and there is no data.
        FileWriteError: If the folder cannot be made.
    """
    path = beside_data(name_or_path, data)
    target = path if path.suffix == SUFFIX else path / f'{Path(os.path.abspath(path)).name}{SUFFIX}'
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.FileWriteError(f'cannot write {target}: {error.strerror}; save to another folder') from error
    return target


def beside_data(name_or_path: str | Path, data: ChipData | None) -> Path:
    """Return a path as it is, and for a bare name its folder beside the data: where `save` puts a model.

    Raises:
        NotTrainedError: If a bare name is given and there is no data.
    """
    path = Path(name_or_path).expanduser()
    # a Path drops the './' that makes a name a path
    if str(name_or_path) != path.name or path.name == os.pardir or path.suffix == SUFFIX:
        return path
    if data is None:
        raise errors.NotTrainedError(
            f'save({str(name_or_path)!r}) goes beside the data, which is not here; pass a path'
        )
    return (data.working_dir or data.path) / 'models' / path.name


def make_bundle(
    spec: ModelSpec,
    network: Network,
    history: History,
    evaluation: Evaluation | None,
    *,
    emd: Mapping[str, Any],
    name: str,
) -> Bundle:
    """Collect what a bundle holds: definition, weights, ArcGIS's file, and, after training, metrics and figures.

    Args:
        spec: Of the model.
        network: Of the model; low-rank updates are merged into its weights.
        history: Of its training.
        evaluation: Its validation results with their figures, or None.
        emd: The keys of Esri's model definition that belong to the class of model.
        name: Of the model.
    """
    emd = {**spec.to_emd(chip_name=name), **emd}
    extras: dict[str, bytes] = {}
    if (file := inference_file(emd['ModelType'])) is not None:
        emd['InferenceFunction'], extras[file[0]] = file
    manifest = {'version': __version__, **spec.to_manifest(), 'history': history.epochs, 'fits': history.fits}
    if spec.pretrained and (record := catalog.find_record(spec.backbone)) is not None:
        # what is trained from weights carries their license
        manifest['weights_license'] = record.license
        if record.terms:
            manifest['weights_terms'] = record.terms
    if history.trained_on:
        manifest['trained_on'] = history.trained_on
    if history.learning_rate is not None:
        emd['LearningRate'] = repr(history.learning_rate)  # ArcGIS keeps this and the metrics as text
        manifest['learning_rate'] = history.learning_rate
    if evaluation is not None:
        emd |= evaluation.esri
        manifest['metrics'] = dict(evaluation.metrics)
        extras |= evaluation.figures
    return Bundle(_without_nan(emd | {'geolearn': manifest}), merged_state_dict(network), extras)


def _without_nan(value: Any) -> Any:
    """Replace NaN by None: strict JSON readers, ArcGIS's among them, refuse NaN."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


_EVALUATED = ('accuracy', 'per_class_metrics', 'average_precision_score')
"""What Esri calls the figures of merit that a bundle carries."""


def leave_out(spec: ModelSpec, data: ChipData) -> ChipData:
    """Ignore the classes of the data that the model ignores, on top of those that the data ignores."""
    more = [info.value for info in data.class_infos if info.value in spec.ignored_values]
    return data.ignoring(more) if more else data


def read_history(bundle: Bundle) -> History:
    """Read the history that a bundle carries, passing over whatever cannot be one."""
    rows, rate = bundle.manifest.get('history'), bundle.manifest.get('learning_rate')
    epochs = [_read_row(row) for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict)]
    fits, trained_on = bundle.manifest.get('fits'), bundle.manifest.get('trained_on')
    return History(
        epochs=epochs,
        loaded=len(epochs),
        learning_rate=rate if isinstance(rate, float) else None,
        fits=[row for row in (fits if isinstance(fits, list) else []) if isinstance(row, dict)],
        trained_on=dict(trained_on) if isinstance(trained_on, dict) else {},
    )


DIVIDING = ('split', 'block_size', 'val_split_pct', 'test_split_pct')
"""Arguments of `prepare_data` that say which chips are trained on, beside the seed."""


def record_trained_chips(history: History, data: ChipData) -> None:
    """Note in a history which chips are trained on, a bit for each chip of the folder."""
    if not data.fingerprint:
        return
    trained = _trained_chips(history, data)
    trained[list(data.split.train)] = True
    given = {name: value for name in DIVIDING if isinstance(value := data.arguments.get(name), str | int | float)}
    history.trained_on[data.fingerprint] = {
        'bits': base64.b64encode(np.packbits(trained).tobytes()).decode(),
        'arguments': given | {'seed': data.train_dl.options.seed},
    }


def warn_of_trained_chips(history: History, data: ChipData) -> None:
    """Warn where chips to validate on were trained on, as with another split of the folder of the training."""
    seen = int(_trained_chips(history, data)[list(data.split.valid)].sum())
    if seen:
        found = history.trained_on[data.fingerprint].get('arguments')
        pairs = found.items() if isinstance(found, dict) else ()
        log.warning(
            '%d of the %d validation chips were trained on, so scores on them are too good; divide the chips as for '
            'the training, with %s, or take other chips',
            seen, len(data.split.valid), ', '.join(f'{name}={value!r}' for name, value in pairs),
        )  # fmt: skip


def _trained_chips(history: History, data: ChipData) -> np.ndarray:
    """Return which chips of the data were trained on: (chips,) bool."""
    count, row = len(data.table.names), history.trained_on.get(data.fingerprint)
    bits = row.get('bits') if isinstance(row, dict) else None
    try:
        packed = np.frombuffer(base64.b64decode(bits, validate=True), np.uint8) if isinstance(bits, str) else None
    except ValueError:
        packed = None
    if packed is None or packed.size != -(-count // 8):
        return np.zeros(count, bool)
    return np.unpackbits(packed, count=count).astype(bool)


def _read_row(row: Mapping[str, Any]) -> dict[str, float]:
    """Return an epoch's numbers; null, which stands for a non-finite one, is NaN."""
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) or value is None}
    return {name: math.nan if value is None else float(value) for name, value in numbers.items()}


def read_evaluation(bundle: Bundle) -> Evaluation | None:
    """Read the validation results that a bundle carries; None where it has none."""
    metrics = bundle.manifest.get('metrics')
    if not isinstance(metrics, dict):
        return None
    esri = {key: bundle.emd[key] for key in _EVALUATED if isinstance(bundle.emd.get(key), str | dict)}
    # a page of others could hold anything that a browser runs; with data it is written anew
    figures = {name: content for name, content in bundle.extras.items() if name != REPORT}
    return Evaluation(metrics=metrics, esri=esri, figures=figures, loaded=True)


def check_fits(spec: ModelSpec, data: ChipData) -> None:
    """Check that data has the bands, classes and units of a model.

    Raises:
        BundleError: If it has not.
    """
    ours, theirs = [c.value for c in spec.class_infos], [c.value for c in data.class_infos]
    pairs = list(zip(spec.class_infos, data.class_infos))
    differing = [(one, other) for one, other in pairs if one.value == other.value and not same_class(one, other)]
    if ours == theirs and differing:
        called = ', '.join(f'{one.value} is {one.name!r}, not {other.name!r}' for one, other in differing[:5])
        raise errors.BundleError(
            f'the model and the data name label values differently: {called}. Prepare the data with '
            f'model_classes=load_model(...).spec.model_classes, which matches classes by name, or with '
            f'class_mapping={{{differing[0][0].value}: {differing[0][0].name!r}}} if both mean the same'
        )
    if ours != theirs or not _same_order(spec.bands, data.bands):
        raise errors.BundleError(
            f'the model has bands {[band.name for band in spec.bands]} and class values {ours}; the data has bands '
            f'{[band.name for band in data.bands]} and class values {theirs}. Prepare the data with the same bands, '
            'class_mapping and ignore_classes, or with model_classes=load_model(...).spec.model_classes'
        )
    comparison = units.compare_units(units.likely_percentiles(data.statistics), spec.statistics, spec.bands)
    if comparison.far:
        raise errors.BundleError(
            f'the chips are in other units than those that the model was trained on: means {comparison.table}. Export '
            'them in the same units, or train a new model'
        )


def _same_order(ours: Sequence[Band], theirs: Sequence[Band]) -> bool:
    if len(ours) != len(theirs) or [band.name for band in ours] == [band.name for band in theirs]:
        return len(ours) == len(theirs)
    if any(all(is_placeholder(band.name) for band in bands) for bands in (ours, theirs)):
        return True
    try:
        return match_bands(theirs, ours) == list(range(len(ours)))
    except errors.BandError:
        return False
