"""Turn a model into a bundle, and decide where it goes."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geolearn
from geolearn.bundle import SUFFIX, Bundle
from geolearn.data import ChipData
from geolearn.errors import NotTrainedError, RasterError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from geolearn.models._model import PixelClassifier


def choose_target(name_or_path: str | Path, data: ChipData | None) -> Path:
    """Return the .dlpk to write: beside the data for a bare name; its folder is made.

    Raises:
        NotTrainedError: If a bare name is given and there is no data.
        RasterError: If the folder cannot be made.
    """
    path = Path(name_or_path).expanduser()
    if len(path.parts) == 1:
        if data is None:
            raise NotTrainedError(f'save({str(name_or_path)!r}) goes beside the data, which is not here; pass a path')
        path = (data.working_dir or data.path) / 'models' / path.name.removesuffix(SUFFIX)
    target = path if path.suffix == SUFFIX else path / f'{path.name}{SUFFIX}'
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RasterError(f'cannot write {target}: {error.strerror}; save to another folder') from error
    return target


def make_bundle(model: 'PixelClassifier', *, name: str) -> Bundle:
    """Collect what a bundle holds: definition, weights, and, after training, metrics and figures."""
    emd = model.spec.to_emd(chip_name=name)
    emd['geolearn'] = {'version': geolearn.__version__, **model.spec.to_manifest(), 'history': model.history.epochs}
    extras: dict[str, bytes] = {}
    if model.data is not None and model.history.epochs:
        table = model.per_class_metrics().drop(columns='iou').rename(index=str)
        # ArcGIS keeps these as text
        emd['accuracy'] = f'{model.accuracy():.4e}'
        emd['per_class_metrics'] = table.T.to_json()
        emd['LearningRate'] = repr(model.history.learning_rate)
        emd['geolearn']['metrics'] = {'accuracy': model.accuracy(), 'miou': model.mIOU(mean=True)}
        if model.history.batch_losses:
            extras['ModelCharacteristics/loss_graph.png'] = _png(model.plot_losses())
        extras['ModelCharacteristics/show_results.png'] = _png(model.show_results())
    return Bundle(_without_nan(emd), model.network.state_dict(), extras)


def _png(figure: 'Figure') -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=100)
    return buffer.getvalue()


def _without_nan(value: Any) -> Any:
    """Replace NaN by None: strict JSON readers, ArcGIS's among them, refuse NaN."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)
