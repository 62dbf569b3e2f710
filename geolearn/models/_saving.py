"""Turn a model into a bundle, and decide where it goes."""

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geolearn
from geolearn.backbones.adapt import merged_state_dict
from geolearn.bundle import SUFFIX, Bundle
from geolearn.data import ChipData
from geolearn.errors import NotTrainedError, RasterError
from geolearn.models._inference_file import inference_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from geolearn.models._stored import StoredModel


def choose_target(name_or_path: str | Path, data: ChipData | None) -> Path:
    """Return the .dlpk to write: beside the data for a bare name; its folder is made.

    Raises:
        NotTrainedError: If a bare name is given and there is no data.
        RasterError: If the folder cannot be made.
    """
    path = _beside_data(name_or_path, data)
    target = path if path.suffix == SUFFIX else path / f'{Path(os.path.abspath(path)).name}{SUFFIX}'
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RasterError(f'cannot write {target}: {error.strerror}; save to another folder') from error
    return target


def find_saved(name_or_path: str | Path, data: ChipData | None) -> Path:
    """Return where `save` put a model, by what it was given."""
    return _beside_data(name_or_path, data)


def _beside_data(name_or_path: str | Path, data: ChipData | None) -> Path:
    """Return a path as it is, and for a bare name its folder beside the data."""
    path = Path(name_or_path).expanduser()
    # a Path drops the './' that makes a name a path
    if str(name_or_path) != path.name or path.name == os.pardir or path.suffix == SUFFIX:
        return path
    if data is None:
        raise NotTrainedError(f'save({str(name_or_path)!r}) goes beside the data, which is not here; pass a path')
    return (data.working_dir or data.path) / 'models' / path.name


def make_bundle(model: 'StoredModel', *, name: str, judged: bool) -> Bundle:
    """Collect what a bundle holds: definition, weights, ArcGIS's file, and, after training, metrics and figures."""
    emd = model.spec.to_emd(chip_name=name) | model.emd_fields(model.spec)
    extras: dict[str, bytes] = {}
    if (file := inference_file(emd['ModelType'])) is not None:
        emd['InferenceFunction'], extras[file[0]] = file
    emd['geolearn'] = {'version': geolearn.__version__, **model.spec.to_manifest(), 'history': model.history.epochs}
    if model.history.learning_rate is not None:
        emd['LearningRate'] = repr(model.history.learning_rate)  # ArcGIS keeps this and the metrics as text
        emd['geolearn']['learning_rate'] = model.history.learning_rate
    found = model.evaluation
    if found is None and judged and model.data is not None and model.history.epochs:
        found = model.evaluate()
    if found is not None:
        emd |= found.esri
        emd['geolearn']['metrics'] = dict(found.metrics)
        extras |= found.figures
    return Bundle(_without_nan(emd), merged_state_dict(model.network), extras)


def png(figure: 'Figure', *, dpi: float = 100) -> bytes:
    """Return a figure as the bytes of a PNG of `dpi` pixels an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=dpi)
    return buffer.getvalue()


def _without_nan(value: Any) -> Any:
    """Replace NaN by None: strict JSON readers, ArcGIS's among them, refuse NaN."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)
