"""Load models from bundles."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolearn.bands import Band, is_placeholder, match_bands
from geolearn.bundle import REPORT, Bundle, read_bundle
from geolearn.data import ChipData
from geolearn.errors import BandError, BundleError, UnknownNameError
from geolearn.history import Evaluation, History
from geolearn.models._registry import MODELS
from geolearn.models.spec import ModelSpec
from geolearn.report import is_report
from geolearn.units import compare_units

if TYPE_CHECKING:
    from geolearn.models._model import Model


_EVALUATED = ('accuracy', 'per_class_metrics', 'average_precision_score')
"""What Esri calls the figures of merit that a bundle carries."""


def load_model(path: str | Path, data: ChipData | None = None) -> 'Model':
    """Load a model from a .dlpk; nothing in it is unpickled or run.

    Args:
        path: The .dlpk, the .emd beside it, or the folder that holds one.
        data: Chips to go on training or to validate with.

    Returns:
        The model, of the class that the bundle names.

    Raises:
        BundleError: If the bundle is broken, hostile or too new, or names a model or backbone that does not exist.
    """
    bundle = read_bundle(path)
    spec = ModelSpec.from_manifest(bundle.manifest)
    if data is not None:
        data = _leave_out(spec, data)
        _check_fits(spec, data)
    try:
        if spec.model not in MODELS:
            raise UnknownNameError('model', spec.model, MODELS)
        model = MODELS[spec.model].from_spec(spec, bundle.weights, data)
    except ValueError as error:  # also what a library says of a backbone that cannot be built
        raise BundleError(f'{path} cannot be loaded: {error}') from error
    model.history = _read_history(bundle)
    model.evaluation = _read_evaluation(bundle)
    return model


def _leave_out(spec: ModelSpec, data: ChipData) -> ChipData:
    """Leave out of the data what the model was told to, on top of what the data leaves out."""
    more = [info.value for info in data.class_infos if info.value in spec.ignored_values]
    return data.ignoring(more) if more else data


def _read_history(bundle: Bundle) -> History:
    rows, rate = bundle.manifest.get('history'), bundle.manifest.get('learning_rate')
    epochs = [_read_row(row) for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict)]
    return History(epochs=epochs, loaded=len(epochs), learning_rate=rate if isinstance(rate, float) else None)


def _read_row(row: Mapping[str, Any]) -> dict[str, float]:
    """Return an epoch's numbers; what JSON could not say, and what is no number, is NaN."""
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) or value is None}
    return {name: math.nan if value is None else float(value) for name, value in numbers.items()}


def _read_evaluation(bundle: Bundle) -> Evaluation | None:
    metrics = bundle.manifest.get('metrics')
    if not isinstance(metrics, dict):
        return None
    esri = {key: bundle.emd[key] for key in _EVALUATED if isinstance(bundle.emd.get(key), str | dict)}
    # a report of others could hold anything that a browser runs
    figures = {name: content for name, content in bundle.extras.items() if name != REPORT or is_report(content)}
    return Evaluation(metrics, esri, figures)


def _check_fits(spec: ModelSpec, data: ChipData) -> None:
    ours, theirs = [c.value for c in spec.class_infos], [c.value for c in data.class_infos]
    if ours != theirs or not _same_order(spec.bands, data.bands):
        raise BundleError(
            f'the model has bands {[band.name for band in spec.bands]} and class values {ours}; the data has bands '
            f'{[band.name for band in data.bands]} and class values {theirs}. Prepare the data with the same bands, '
            'class_mapping and ignore_classes'
        )
    names = [band.name for band in spec.bands]
    verdict = compare_units(data.statistics.mean, spec.statistics.mean, spec.statistics.std, names)
    if verdict.far:
        raise BundleError(
            f'the chips are in other units than those that the model was trained on: means {verdict.table}. Export '
            'them in the same units, or train a new model'
        )


def _same_order(ours: Sequence[Band], theirs: Sequence[Band]) -> bool:
    if len(ours) != len(theirs) or [band.name for band in ours] == [band.name for band in theirs]:
        return len(ours) == len(theirs)
    if any(all(is_placeholder(band.name) for band in bands) for bands in (ours, theirs)):
        return True
    try:
        return match_bands(theirs, ours) == list(range(len(ours)))
    except BandError:
        return False
