"""pretrain: learn a backbone from unlabelled imagery, in the training loop that `fit` uses."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from geolearn import data as chip_data
from geolearn import prepare
from geolearn.arguments import check_names
from geolearn.backbones import TokenBackbone, create_backbone, custom, offers_tokens
from geolearn.backbones.pretrained import PretrainingFacts, write_pretrained
from geolearn.bands import Band
from geolearn.chips.batches.loader import ChipLoader
from geolearn.chips.label import Task
from geolearn.chips.meaning.bands import BandChoice
from geolearn.errors import ArgumentError, BackboneError, ChipFolderError, FileWriteError
from geolearn.history import History
from geolearn.models.new_spec import pretraining_normalization, units_of, with_wavelengths
from geolearn.networks.network import Normalize as NormalizeLayer
from geolearn.normalize import Normalize
from geolearn.pretrain import collapse, windows
from geolearn.pretrain.dino import Dino
from geolearn.pretrain.mae import MaskedAutoencoder
from geolearn.pretrain.network import LastOutput, PretrainingNetwork
from geolearn.pretrain.options import (
    CHIP_SIZES,
    REFERENCE_BATCH,
    DinoOptions,
    Method,
    Options,
    Preset,
    check_whole,
    choose_options,
)
from geolearn.pretrain.result import Pretraining
from geolearn.training.options import FitOptions, check_rate

if TYPE_CHECKING:
    from geolearn.precision import Precision
    from geolearn.training import ChipLearner

Images = str | Path | chip_data.ChipData | Sequence[Any]

KNOWN_CLASSES = (Task.LABEL, Task.PIXELS)
"""Labels that give an image one class, for the accuracy of nearest neighbors."""


@check_names
def pretrain(
    images: Images,
    *,
    method: Method = 'dino',
    backbone: str | Path = 'vit_small',
    pretrained: bool = False,
    weights: str | Path | None = None,
    preset: Preset | None = None,
    options: Options | Mapping[str, Any] | None = None,
    epochs: int = 100,
    batch_size: int = 64,
    chip_size: int | None = None,
    lr: float | None = None,
    bands: BandChoice = None,
    extract_bands: Sequence[str | int] | None = None,
    wavelengths: Sequence[float | None] | None = None,
    normalize: Normalize = 'dataset',
    reading: windows.WindowOptions | None = None,
    val_split_pct: float = 0.1,
    seed: int = 42,
    name: str = '',
    working_dir: str | Path | None = None,
    checkpoint: bool = True,
    resume: bool | str = False,
    overwrite: bool = False,
    mixed_precision: 'Precision | bool | None' = None,
    accumulate: int = 1,
    deterministic: bool = False,
    callbacks: Sequence[Any] = (),
) -> Pretraining:
    """Pretrain a backbone on imagery without labels, by DINO or as a masked autoencoder.

    The weights are written as one file that every model takes as ``backbone=``, with bands and statistics in it.

    Args:
        images: A raster, or a list of rasters, from which random windows are drawn that avoid NoData (a list within it
            is one scene of several files); a chip folder; or chips from `prepare_data` and its kin, whose augmentation
            is left out. Labels are not learned from; where images have one class each they show how well nearest
            neighbors agree.
        method: ``'dino'`` or ``'mae'``.
        backbone: A plain transformer, by name; or a file that `pretrain` wrote, to continue from.
        pretrained: Whether to start from the published weights of the backbone.
        weights: A file to start from; implies `pretrained`.
        preset: ``'sar'`` (flips and crops only, 448 px) or ``'optical'`` (also small changes of gain and offset,
            224 px); None takes ``'sar'`` where all bands are radar.
        options: `DinoOptions` or `MaeOptions`, instead of those of the preset; or changes of the preset's by name, such
            as ``{'mask': 0.6}``.
        epochs: Passes over the images.
        batch_size: Images per step, in each process.
        chip_size: Side of the images in pixels; None takes that of the preset, or what the images have if that is less.
        lr: Highest learning rate; None takes that of the method, in proportion to the batch.
        bands: Names of the bands, or a sensor such as ``'sentinel1'``, as in `prepare_data`.
        extract_bands: Bands to use, by name or 0-based index.
        wavelengths: Replace those of the bands, in micrometers; None for radar.
        normalize: As in `prepare_data`; ``'pretraining'`` takes the statistics of the weights to start from.
        reading: Which windows of rasters are taken, and their scale, such as ``WindowOptions(scale='db')``.
        val_split_pct: Share of the images that is measured after each epoch.
        seed: Fixes windows, split, order, first weights, crops and masks.
        name: Of the file of weights; empty for the names of backbone and method.
        working_dir: The file goes to ``<working_dir>/models``; None means the chip folder, or that of the raster.
        checkpoint: Write the state after each epoch, so that a killed run can be resumed.
        resume: Continue from the last checkpoint of the same pretraining; or the name of its run.
        overwrite: Replace a file of weights that exists; with `resume` it is replaced in any case.
        mixed_precision: ``'bf16'``, ``'fp16'`` (CUDA only), or True for the better of them on a GPU.
        accumulate: So many batches make one step.
        deterministic: Use only algorithms that give the same numbers each time; slower on a GPU.
        callbacks: fastai's, for whatever is not here.

    Raises:
        ArgumentError: If arguments do not go together.
        BackboneError: If the backbone is no plain transformer, or cannot be pretrained by this method.
        BandError: If bands are unknown, or lack a wavelength that the backbone needs.
        ChipFolderError: If the images do not fit together, or hold too little data.
        WeightsError: If weights to start from cannot be had or do not fit.
        TrainingError: If a loss is non-finite, or memory does not hold one image.
        CheckpointError: If there is nothing to resume, or it is of another pretraining.
        FileWriteError: If the file of weights exists, or cannot be written.
    """
    from geolearn.training import new_run, train

    choose_options(method, preset or 'sar', options)  # before any image is read
    check_whole('epochs', epochs, 1)
    check_rate(lr)
    data = _prepare(
        images,
        reading,
        chip_size=chip_size,
        preset=preset,
        bands=bands,
        extract_bands=extract_bands,
        normalize=normalize,
        val_split_pct=val_split_pct,
        batch_size=batch_size,
        seed=seed,
        working_dir=working_dir,
    )
    known = data.bands if wavelengths is None else with_wavelengths(data.bands, wavelengths)
    chosen = choose_options(method, preset or _find_preset(data.bands), options)
    start, network = _build(data, known, chosen, backbone, pretrained=pretrained, weights=weights, seed=seed)
    place = (data.working_dir or data.path) / 'models'
    title = name or f'{re.sub(r"[^A-Za-z0-9_.-]+", "_", start.backbone)}-{method}'
    target = place / f'{title}.safetensors'
    if target.exists() and not (resume or overwrite):
        raise FileWriteError(
            f'{target} exists, from another pretraining; pass another name=, or overwrite=True to replace it'
        )
    learner, history = _make_learner(network, data, chosen), History()
    learner.identity = _identity(data, known, start, chosen, network.normalize, reading)
    rate = lr or chosen.base_rate * batch_size * accumulate * _process_count() / REFERENCE_BATCH
    fit = FitOptions(
        epochs,
        learning_rate=rate,
        weight_decay=chosen.weight_decay,
        clip=chosen.clip,
        checkpoint=checkpoint,
        monitor=None,  # of pretraining no column says which weights are best
        mixed_precision=mixed_precision,
        accumulate=accumulate,
        seed=seed,
        deterministic=deterministic,
    )
    parent = place / 'pretraining' / title
    folder, fit = _choose_run(parent, learner, fit, resume) if resume else (new_run(parent), fit)
    fit = replace(fit, callbacks=(_steps(network), _alarm(network, data, history, epochs), *callbacks))
    history.learning_rate = rate
    train(learner, history, fit, folder=folder, resume=bool(resume))
    return _finish(target, network, data, known, start, history, fit, method, chosen)


def _process_count() -> int:
    from geolearn.training.distributed import process_count

    return process_count()


def _refuse_repeated(paths: Sequence[Any]) -> None:
    """Refuse images that are named several times, alone or as the files of a scene.

    Raises:
        ArgumentError: With the first of them.
    """
    seen = set[tuple[str, ...]]()
    for path in paths:
        parts = path if isinstance(path, list | tuple) else [path]
        key = tuple(map(_identify, parts))
        if key in seen:
            shown = ', '.join(str(part.get('id')) if isinstance(part, Mapping) else str(part) for part in parts)
            raise ArgumentError(f'images name {shown} twice, which would count twice; leave one of them out')
        seen.add(key)


def _identify(image: Any) -> str:
    """Return what is the same for one file under several names, or for one STAC item; objects are what they say."""
    if isinstance(image, str | Path) and '://' not in str(image):
        return str(Path(image).expanduser().resolve())
    return image if isinstance(image, str) else repr(image)


def _prepare(
    images: Images,
    reading: windows.WindowOptions | None,
    *,
    chip_size: int | None,
    preset: str | None,
    bands: BandChoice,
    extract_bands: Sequence[str | int] | None,
    normalize: Normalize,
    val_split_pct: float,
    batch_size: int,
    seed: int,
    working_dir: str | Path | None,
) -> chip_data.ChipData:
    """Return the images as chips, without augmentation."""
    if isinstance(images, chip_data.ChipData):
        given = {'bands': bands, 'extract_bands': extract_bands, 'chip_size': chip_size, 'reading': reading}
        if wrong := [name for name, value in given.items() if value is not None]:
            raise ArgumentError(f'images are prepared already, so {", ".join(wrong)} cannot be changed; leave it out')
        data = images if working_dir is None else replace(images, working_dir=Path(working_dir))
        return _plain(data, batch_size)
    paths = [images] if isinstance(images, str | Path) else list(images)
    if any(isinstance(path, np.ndarray | torch.Tensor) for path in (images, *paths)):
        raise ArgumentError('images are arrays; pass from_arrays(images, bands=...) of (images, bands, height, width)')
    if not paths:
        raise ArgumentError('images is an empty list; pass rasters, a chip folder, or chips from prepare_data')
    _refuse_repeated(paths)
    folders = [isinstance(path, str | Path) and Path(path).is_dir() for path in paths]
    if any(folders) and not all(folders):
        raise ArgumentError('images must be rasters or chip folders, not both')
    size = chip_size or max(CHIP_SIZES.values())
    if chip_size is None and not all(folders):
        found = windows.find_bands(paths[0], bands, extract_bands)
        size = CHIP_SIZES[preset or _find_preset(found)]
    common: dict[str, Any] = {
        'chip_size': size, 'bands': bands, 'extract_bands': extract_bands, 'normalize': normalize,
        'val_split_pct': val_split_pct, 'batch_size': batch_size, 'seed': seed, 'working_dir': working_dir,
    }  # fmt: skip
    if not all(folders):
        return _plain(windows.window_data(paths, reading or windows.WindowOptions(), **common), batch_size)
    if reading is not None and reading.changes_values:
        raise ArgumentError('scale and offset are for rasters; chips are taken in the units that they are stored in')
    common['nodata'] = None if reading is None else reading.nodata
    data = prepare.prepare_data(paths if len(paths) > 1 else paths[0], transforms=False, **common)
    if chip_size is None:  # what the bands of a folder are is not known before
        data = _cut(data, CHIP_SIZES[preset or _find_preset(data.bands)])
    return _plain(
        windows.avoiding_nodata(data, windows.LEAST_VALID if reading is None else reading.min_valid), batch_size
    )


def _find_preset(bands: Sequence[Band]) -> Preset:
    return 'sar' if all(band.is_radar for band in bands) else 'optical'


def _cut(data: chip_data.ChipData, size: int) -> chip_data.ChipData:
    """Return the same chips, cut to a size where they are larger."""
    size = min(size, data.chip_size)

    def cut(loader: ChipLoader) -> ChipLoader:
        return loader.with_config(replace(loader.dataset.config, chip_size=size))

    return replace(data, chip_size=size, train_dl=cut(data.train_dl), valid_dl=cut(data.valid_dl))


def _plain(data: chip_data.ChipData, batch_size: int) -> chip_data.ChipData:
    """Return the same chips without augmentation, in batches of this size."""
    if data.table.dates > 1:
        raise ChipFolderError(
            f'the images are of {data.table.dates} dates; pretrain takes one: prepare them with one date in each chip'
        )

    def plain(loader: ChipLoader, size: int) -> ChipLoader:
        return ChipLoader(loader.dataset, replace(loader.options, transform=None, repeats=None, batch_size=size))

    if len(data.train_ds) < 2 or len(data.valid_ds) < 1:
        raise ChipFolderError(
            f'{len(data.train_ds)} images to train and {len(data.valid_ds)} to validate are too few; pass more images, '
            'a smaller chip_size, or another val_split_pct'
        )
    train_dl = plain(data.train_dl, min(batch_size, len(data.train_ds)))
    return replace(data, train_dl=train_dl, valid_dl=plain(data.valid_dl, min(batch_size, len(data.valid_ds))))


class _Start:
    """The backbone that is pretrained.

    Args:
        backbone: Its name.
        weights: What it started from, in words; empty for random weights.
    """

    def __init__(self, backbone: str, weights: str) -> None:
        self.backbone, self.weights = backbone, weights


def _build(
    data: chip_data.ChipData,
    bands: tuple[Band, ...],
    options: Options,
    backbone: str | Path,
    *,
    pretrained: bool,
    weights: str | Path | None,
    seed: int,
) -> tuple[_Start, PretrainingNetwork]:
    """Build the network; its first weights follow from the seed."""
    name = str(backbone)
    if custom.is_file_name(name):
        if weights is not None:
            raise ArgumentError(f'backbone is the file {name}, whose weights are taken; leave weights out')
        name, weights = custom.backbone_in(name), name
    if not offers_tokens(name):
        raise BackboneError(f'{name} is no plain transformer; take one such as vit_small, dofa_base or prithvi_v2_300M')
    normalization = data.normalization or pretraining_normalization(data, bands, name, weights=weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = create_backbone(name, bands, pretrained=pretrained, weights=weights, form='tokens')
        built = cast(TokenBackbone, built)
        layer = NormalizeLayer(normalization.mean, normalization.std)
        network: PretrainingNetwork
        if isinstance(options, DinoOptions):
            network = Dino(layer, built, options, data.chip_size)
        else:
            network = MaskedAutoencoder(layer, built, options, data.chip_size, bands=len(bands))
    return _Start(name, '' if built.load_report is None else built.load_report.source), network


def _make_learner(network: PretrainingNetwork, data: chip_data.ChipData, options: Options) -> 'ChipLearner':
    from geolearn.training import make_learner

    scores = collapse.CollapseScores(
        has_output=isinstance(options, DinoOptions), has_labels=data.task in KNOWN_CLASSES and data.c > 1
    )

    def splitter(module: nn.Module) -> list[list[nn.Parameter]]:
        return [[parameter for parameter in module.parameters() if parameter.requires_grad]]

    return make_learner(
        network,
        data.train_dl,
        data.valid_dl,
        LastOutput(),
        scores=scores,
        splitter=splitter,
        forward_takes_targets=True,
    )


def _identity(
    data: chip_data.ChipData,
    bands: Sequence[Band],
    start: _Start,
    options: Options,
    normalize: NormalizeLayer,
    reading: windows.WindowOptions | None,
) -> dict[str, str]:
    """Return what a pretraining must agree in to be resumed: images, their files, values and units, and the method."""
    texts = {
        'images': repr((data.train_ds.names, data.valid_ds.names, data.train_dl.options.seed, data.chip_size)),
        'method': json.dumps([asdict(options), [asdict(b) for b in bands], start.backbone, start.weights], default=str),
        'files': json.dumps(data.arguments.get('files')),
        'statistics': repr(asdict(data.statistics)),
        'normalization': json.dumps([normalize.mean.flatten().tolist(), normalize.std.flatten().tolist()]),
    }
    digests = {key: hashlib.sha256(text.encode()).hexdigest()[:16] for key, text in texts.items()}
    return digests | {'reading': json.dumps(asdict(reading or windows.WindowOptions()), default=str)}


def _choose_run(parent: Path, learner: 'ChipLearner', fit: FitOptions, resume: bool | str) -> tuple[Path, FitOptions]:
    from geolearn.training import find_run

    run = find_run(parent, learner, fit, name=resume if isinstance(resume, str) else '')
    return run.folder, fit


def _steps(network: PretrainingNetwork) -> Any:
    """Make the callback that tells the network where the training is."""
    from geolearn.pretrain.callbacks import StepCallback

    return StepCallback(network)


def _alarm(network: PretrainingNetwork, data: chip_data.ChipData, history: History, epochs: int) -> Any:
    """Make the callback that warns of a collapse while there is time to stop."""
    from geolearn.pretrain.callbacks import CollapseAlarm

    return CollapseAlarm(history, lambda rows: _find_collapse(rows, epochs, network, data))


def _find_collapse(
    rows: Sequence[Any], epochs: int, network: PretrainingNetwork, data: chip_data.ChipData
) -> list[str]:
    prototypes = network.options.prototypes if isinstance(network, Dino) else None
    return collapse.find_collapse(rows, epochs, images=len(data.valid_ds), prototypes=prototypes)


def _finish(
    path: Path,
    network: PretrainingNetwork,
    data: chip_data.ChipData,
    bands: tuple[Band, ...],
    start: _Start,
    history: History,
    fit: FitOptions,
    method: Method,
    options: Options,
) -> Pretraining:
    """Write the weights, in the first of several processes, and return the result."""
    from geolearn.training.distributed import process_count, process_index, wait_for_all

    last = {key: float(value) for key, value in history.epochs[-1].items() if key not in ('epoch', 'seconds')}
    batches = len(history.epochs) * len(data.train_dl)
    layer = network.normalize
    facts = PretrainingFacts(
        backbone=start.backbone,
        bands=bands,
        mean=tuple(layer.mean.flatten().tolist()),
        std=tuple(layer.std.flatten().tolist()),
        units=units_of(data),
        method=method,
        class_token=network.class_token_is_trained,
        chip_size=data.chip_size,
        epochs=len(history.epochs),
        steps=-(-batches // (fit.accumulate * process_count())),
        batch_size=data.batch_size * fit.accumulate * process_count(),
        options=asdict(options),
        data={'images': len(data.train_ds), 'source': data.path.name, 'dtype': data.dtype},
        start=start.weights,
        measures=last,
    )
    if process_index() == 0:
        write_pretrained(path, network.result.state_dict(), facts)
    wait_for_all()
    found = tuple(_find_collapse(history.epochs, fit.epochs, network, data))
    return Pretraining(path, facts, history, found)
