"""Load models from bundles."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from geolearn.bands import Band, is_placeholder, match_bands
from geolearn.bundle import read_bundle
from geolearn.data import ChipData
from geolearn.errors import BandError, BundleError, UnknownNameError
from geolearn.models._registry import MODELS
from geolearn.models.spec import ModelSpec

if TYPE_CHECKING:
    from geolearn.models._model import PixelClassifier


def load_model(path: str | Path, data: ChipData | None = None) -> 'PixelClassifier':
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
        _check_fits(spec, data)
    try:
        if spec.model not in MODELS:
            raise UnknownNameError('model', spec.model, MODELS)
        model = MODELS[spec.model].from_spec(spec, bundle.weights, data)
    except ValueError as error:  # also what a library says of a backbone that cannot be built
        raise BundleError(f'{path} cannot be loaded: {error}') from error
    rows = bundle.manifest.get('history')
    model.history.epochs.extend(row for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict))
    model.history.loaded = len(model.history.epochs)
    return model


def _check_fits(spec: ModelSpec, data: ChipData) -> None:
    ours, theirs = [c.value for c in spec.class_infos], [c.value for c in data.class_infos]
    if ours != theirs or not _same_order(spec.bands, data.bands):
        raise BundleError(
            f'the model has bands {[band.name for band in spec.bands]} and class values {ours}; the data has bands '
            f'{[band.name for band in data.bands]} and class values {theirs}. Prepare the data with the same bands, '
            'class_mapping and ignore_classes'
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
