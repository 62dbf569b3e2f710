"""prepare_data: read chip folders, check that they make sense, and make batches of them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from rasterio.errors import CRSError

from geolearn import data, device, errors
from geolearn.arguments import check_names, format_call, record_arguments
from geolearn.augment import BatchTransform
from geolearn.chips.batches import collate, loader
from geolearn.chips.formats.writing import in_meters
from geolearn.chips.label import Target, Task
from geolearn.chips.meaning import augmentation, inputs, values
from geolearn.chips.meaning import classes as taxonomy
from geolearn.chips.meaning.bands import BandChoice
from geolearn.chips.meaning.matching import match_classes
from geolearn.chips.packing.collection import Collection, GivenChips, open_collection
from geolearn.chips.packing.table import ChipTable
from geolearn.chips.splits.divide import PUBLISHED, Division, SplitChoice, divide, published_division
from geolearn.chips.splits.split import Split
from geolearn.classes import ClassInfo, ModelClasses
from geolearn.normalize import Normalization, Normalize, check_normalize, choose_normalization
from geolearn.raster import Dequantize
from geolearn.raster.geobox import in_pixel_space
from geolearn.raster.ground import pixel_side_m
from geolearn.raster.nodata import check_nodata
from geolearn.units import METERS

log = logging.getLogger('geolearn')

DEFAULT_BATCH_SIZE = 64

SIZES_COMPARED = 64
"""Of grids of chips that differ, so many are compared."""

SAME_SIZE = 1.5
"""Pixel sizes of labels and images that differ by more than this factor contradict each other."""


@check_names
def prepare_data(
    path: str | Path | GivenChips | Sequence[str | Path],
    class_mapping: Mapping[int, str] | None = None,
    chip_size: int = 224,
    val_split_pct: float = 0.1,
    batch_size: int | None = DEFAULT_BATCH_SIZE,
    transforms: augmentation.Transforms = None,
    seed: int = 42,
    dataset_type: str | None = None,
    *,
    target: Target | None = None,
    downsample: int = 1,
    working_dir: str | Path | None = None,
    ignore_classes: Sequence[int | str] = (),
    model_classes: ModelClasses | None = None,
    unlabelled: Sequence[float] | None = None,
    nodata: float | Sequence[float] | None = None,
    split: SplitChoice = 'published',
    block_size: float | None = None,
    test_split_pct: float = 0.0,
    valid_path: str | Path | Sequence[str | Path] = (),
    test_path: str | Path | Sequence[str | Path] = (),
    label_fraction: float | None = None,
    bands: BandChoice = None,
    extract_bands: Sequence[str | int] | None = None,
    normalize: Normalize = 'dataset',
    oversample: bool = False,
    rare_class_crops: bool = False,
    num_workers: int = 0,
    pack: bool = True,
    dequantize: Dequantize | None = None,
    product: str | None = None,
    box_angles: str | None = None,
    keep_visible: float = 0.7,
    ignore_visible: float = collate.LEAST_VISIBLE,
) -> data.ChipData:
    """Read folders that "Export Training Data For Deep Learning" wrote, or that hold chips in another common format.

    The first use copies the chips into one file in the cache (GEOLEARN_CACHE, else the platform's), from which training
    reads; later uses open it at once. The folders themselves are never written to.

    Args:
        path: A chip folder, or the one above it; or several, which are merged.
        class_mapping: Names of classes by label value; a class that no label holds is kept, with a note.
        chip_size: Side of the training images in pixels, at most that of the chips; larger chips are cropped.
        val_split_pct: Share of the chips to validate on, 0..1.
        batch_size: Chips per batch; None means 64.
        transforms: None for flips, turns and radiometric jitter, False for none; options of
            `geolearn.augment.Augmentation` such as ``{'noise': 0.1, 'clouds': 0.2}``; or a function of a `Batch` and a
            generator that returns the batch changed.
        seed: Fixes split, order, crops and augmentation.
        dataset_type: Format of the folders, such as ``'Classified_Tiles'``; None takes what they say or show.
        target: What the pixels of label rasters are: ``'classes'``, or ``'values'`` for regression targets, such as
            biomass, in stored units; NaN and NoData mean no truth. None takes floating-point rasters as numbers unless
            the .emd lists classes, and integers as classes. ``'images'``: images to predict from images, of any number
            of bands, in ``images2/`` or ``labels/``; their pixels may be finer by a whole number.
        downsample: With ``target='images'`` and nothing but images: their pixels are made so many times larger, and the
            images themselves are predicted from that (super-resolution).
        working_dir: Models go to ``<working_dir>/models/<name>``; None means the chip folder.
        ignore_classes: Label values or class names to leave out of training, metrics and predictions; 0 for sparse
            labels.
        model_classes: Of a model that the chips are for, ``model.spec.model_classes``. Classes are matched by name,
            and by label value where one side has no name for it: other folders may number the same classes otherwise.
        unlabelled: Values of label rasters that mean "not labelled", such as ``[-1]`` or ``[255]``, beside what the
            rasters declare as NoData, which is unlabelled without asking.
        nodata: Value that means NoData in the images, or one for each band, beside what the files declare, such as 0
            for a black border; None takes what the export states.
        split: ``'published'``, the parts that a published data set states, random ones where it states none;
            ``'random'``; ``'stratified'`` (rare classes in every part); ``'blocks'`` (whole squares of land are held
            out; overlapping chips never straddle); ``'latitude'`` (stripes of land); lists of chip names by part, such
            as ``{'valid': [...]}``; or a text or CSV file of such lists.
        block_size: Side of a block in map units, for ``split='blocks'``; None means four chips.
        test_split_pct: Share of the chips to test on, 0..1.
        valid_path: Folders to validate on, instead of a share of `path`.
        test_path: Folders to test on.
        label_fraction: Share of the training chips to train on, over 0 and up to 1; smaller shares lie within larger.
        bands: What the chips' bands are, where the export does not say or is wrong: a sensor such as
            ``'sentinel2_l2a'``, or a name or Band for each.
        extract_bands: Bands to use, by name or 0-based index; None uses all.
        normalize: ``'dataset'``, ``'minmax'``, ``'robust'``, ``'imagenet'``, ``'pretraining'`` or (means, stds); see
            `geolearn.normalize.choose_normalization`.
        oversample: Show chips of rare classes several times in an epoch.
        rare_class_crops: Draw half of the random crops around a pixel of a rare class (under 5 % of the pixels); for
            labels with a class per pixel and a `chip_size` below that of the chips.
        num_workers: Processes that collate batches; 0 collates in threads of this one.
        pack: False reads chips from their files each time and writes nothing to the cache.
        dequantize: Read the stored codes of precomputed embeddings as float vectors: ``'alphaearth'`` or
            ``'tessera'``. Models that are trained on them do the same with the rasters that they map.
        product: Name and version of the embeddings, such as ``'alphaearth v1'``, where the export does not say it.
        box_angles: Which program wrote the angles of oriented boxes of five numbers (COCO_OBB), such as
            ``'detectron2'`` or ``'mmrotate'``, or what they are: ``'deg_ccw'``, ``'rad_cw'`` and so on.
        keep_visible: An oriented object at a chip's edge stays, whole, if at least this share of it is in the chip.
        ignore_visible: With a smaller share, down to this one, it is ignored in training and metrics; below, it is
            left out.

    Returns:
        Training, validation and test batches and their metadata; print it to see what was found.

    Raises:
        ChipFolderError: If a folder holds no chips, its content does not fit together or an argument makes no sense.
        TypeError: If `normalize` or `transforms` is not valid, or names an unknown option.
        UnknownNameError: If there is no such dataset_type, target, split or normalization.
        BandError: If bands do not fit.
    """
    arguments = record_arguments(prepare_data, locals())
    arguments.pop('working_dir', None)  # says where models go, not what they are
    arguments.pop('model_classes', None)  # the model itself holds them
    check_numbers(chip_size=chip_size, batch_size=batch_size, seed=seed, num_workers=num_workers)
    _check_words(dataset_type, normalize)
    augmentation.check_transforms(transforms)
    taxonomy.check_mapping(class_mapping or {})
    as_published = isinstance(split, str) and split == PUBLISHED
    division = Division(
        'random' if as_published else split, val_split_pct, test_split_pct, block_size, label_fraction, seed
    )
    parts = [_paths(path), _paths(valid_path), _paths(test_path)]
    division.check_folders(valid=bool(parts[1]), test=bool(parts[2]))
    chips = open_collection(
        [p for part in parts for p in part],
        dataset_type,
        pack=pack,
        target=target,
        downsample=downsample,
        nodata=values.numbers_of('nodata', nodata),
        unlabelled=values.numbers_of('unlabelled', unlabelled),
        dequantize=dequantize,
        box_angles=box_angles,
    )
    _check_nodata(chips)
    about_classes = {'class_mapping': class_mapping, 'ignore_classes': ignore_classes, 'oversample': oversample}
    values.refuse_class_options(chips.task, about_classes | {"split='stratified'": split == 'stratified'})
    choice = inputs.choose_input(chips, bands, extract_bands, normalize)
    classes, choice = _choose_classes(chips, choice, class_mapping or {}, ignore_classes, model_classes)
    published = chips.published_parts if as_published and not any(parts[1:]) else {}
    if published:
        division = published_division(published, division)
    found, split_notes = _divide(chips, choice.table, classes, division, parts)
    visible = collate.VisibleShares(keep_visible, ignore_visible)
    options = loader.LoaderOptions(
        batch_size=batch_size or DEFAULT_BATCH_SIZE,
        shuffle=True,
        transform=_make_transform(transforms, chips, choice, classes, visible),
        seed=seed,
        num_workers=num_workers,
        device=device.choose_device(),
        repeats=collate.repeat_factors(classes.presence[list(found.train)]) if oversample else None,
    )
    config = _make_config(chips, choice, classes, options, chip_size=chip_size, rare=rare_class_crops)
    config = replace(config, visible=visible)
    train_dl, valid_dl, test_dl = _make_loaders(chips, found, config, options)
    sized = f'batch_size=None means batches of {DEFAULT_BATCH_SIZE}, or fewer where chips are fewer'
    notes = [sized] if batch_size is None else []
    return data.ChipData(
        path=chips.folders[0].opened.folder,
        working_dir=Path(working_dir) if working_dir else None,
        task=chips.task,
        dataset_type=chips.folders[0].opened.dataset_type,
        bands=choice.bands,
        band_indexes=choice.indexes,
        class_infos=classes.infos,
        ignored_values=classes.ignored,
        chip_size=config.chip_size,
        statistics=choice.statistics,
        normalization=_normalization(choice, chips.table.dtype),
        value_counts=choice.value_counts,
        dtype=chips.table.dtype,
        train_dl=train_dl,
        valid_dl=valid_dl,
        test_dl=test_dl,
        split=found,
        table=choice.table,
        cell_size=_cell_size(chips, downsample),
        image_space=chips.metadata.image_space,
        variable_size=chips.metadata.variable_size,
        blackened=chips.metadata.blackened,
        acquired=chips.acquired,
        product=chips.product(product),
        target_bands=chips.folders[0].opened.listing.target_bands if chips.table.has_image_targets else (),
        published_parts=tuple(published),
        fingerprint=chips.fingerprint(),
        reading_notes=(*notes, *_tell_folders(chips), *choice.notes, *split_notes),
        arguments=arguments,
        source=_call_with_folders(parts[0], arguments, config.chip_size, options),
    )


def _cell_size(chips: Collection, downsample: int) -> Mapping[str, Any] | None:
    """Return the pixel size of the images as ArcGIS's MinCellSize; that of the export is in the pixels of its files."""
    stated = chips.metadata.cell_size
    if not stated:
        own, said = chips.table.cell_size(), _cell_size_in_meters(chips)
        if own and said and in_meters(chips.table.geobox(0)) and not 1 / SAME_SIZE <= own['x'] / said['x'] <= SAME_SIZE:
            raise errors.ChipFolderError(
                f'the labels say that pixels measure {said["x"]:g} m (gsd:), and the images that they measure '
                f'{own["x"]:g} m; correct the labels, or write gsd:null in them'
            )
        return own or said
    return {**stated, **{axis: stated[axis] * downsample for axis in ('x', 'y') if axis in stated}}


def _cell_size_in_meters(chips: Collection) -> Mapping[str, Any] | None:
    """Return the median pixel size that the labels of the folders state; None where none does."""
    sizes = [size for part in chips.folders if (size := part.opened.listing.pixel_meters) is not None]
    return {'x': median(sizes), 'y': median(sizes), 'unit': METERS} if sizes else None


def _check_nodata(chips: Collection) -> None:
    """Refuse NoData values that the user named and that the chips of no folder can hold.

    Raises:
        RasterError: If there are such values.
    """
    refused: list[errors.RasterError] = []
    named = [part for part in chips.folders if part.first.nodata]
    for part in named:
        try:
            check_nodata(part.first.nodata, [part.store.table.dtype] * len(part.first.nodata), str(part.opened.folder))
        except errors.RasterError as error:
            refused.append(error)
    if named and len(refused) == len(named):
        if all(part.first.nodata == part.opened.metadata.nodata for part in named):  # an .emd says so, not the user
            log.warning('%s', refused[0])
        else:
            raise refused[0]


class _Classes(NamedTuple):
    """Classes to train, values to leave out, and which chips (chips, classes) hold which of them.

    Where the classes are those of a model, `values` holds its label value for each of the files (65536,).
    """

    infos: tuple[ClassInfo, ...]
    ignored: tuple[int, ...]
    presence: np.ndarray
    values: np.ndarray | None = None


def _choose_classes(
    chips: Collection,
    choice: inputs.ChosenInput,
    renamed: Mapping[int, str],
    ignore: Sequence[int | str],
    model: ModelClasses | None,
) -> tuple[_Classes, inputs.ChosenInput]:
    """Return the classes, and the facts about the chips by their label values."""
    counts = choice.value_counts
    listed = chips.listed_classes(renamed)
    listed = taxonomy.list_found(chips.task, counts, chips.label_style()) if listed is None else listed
    ignored = taxonomy.ignored_values(ignore, listed, renamed, counts)
    values = None
    if model is not None and model.infos:
        matched = match_classes(chips.task, listed, renamed, model, ignored, counts)
        choice = replace(choice, table=matched.renumber(choice.table))
        choice = replace(choice, value_counts=choice.table.value_counts())
        counts, listed, renamed, values, ignored = choice.value_counts, model.infos, {}, matched.values, matched.ignored
    try:
        infos = taxonomy.choose_classes(chips.task, listed, renamed, ignored, counts, _finder(chips, choice.table))
    except errors.ChipFolderError as error:
        if zero := chips.zero_note():
            raise errors.ChipFolderError(f'{error}. {zero}') from error
        raise
    if warning := taxonomy.unlabelled_warning(infos, counts):
        log.warning(warning)
    if warning := taxonomy.apart_warning(chips.task, infos, counts):
        log.warning(warning)
    if empty := taxonomy.empty_classes(chips.task, infos, counts):
        log.warning('%s; such classes cannot be learned, and have no metrics', empty)
    return _Classes(infos, ignored, choice.table.amounts([info.value for info in infos]) > 0, values), choice


def _divide(
    chips: Collection, table: ChipTable, classes: _Classes, division: Division, parts: Sequence[Sequence[object]]
) -> tuple[Split, list[str]]:
    """Divide the chips, of which folders may say the part, and make sure that regression targets are in each."""
    part_of = np.repeat([0, 1, 2], [len(part) for part in parts])[chips.part_of] if any(parts[1:]) else None
    split, notes = divide(
        table,
        classes.presence,
        division,
        part_of,
        whole=chips.task == Task.LABEL,
        folders=chips.part_of,
        labels_apart=any(isinstance(part, GivenChips) and part.labels_apart for part in parts[0]),
    )
    if chips.task == Task.REGRESSION:
        return split, notes + values.check_values(table, split)
    warnings = taxonomy.part_notes(table, classes.infos, split, stratified=division.split == 'stratified')
    for warning in warnings:
        log.warning(warning)
    return split, notes + warnings


def _make_transform(
    given: augmentation.Transforms,
    chips: Collection,
    choice: inputs.ChosenInput,
    classes: _Classes,
    visible: collate.VisibleShares,
) -> BatchTransform | None:
    table = chips.table
    return augmentation.choose_transform(
        given,
        chips.task,
        choice.bands,
        choice.statistics,
        class_count=len(classes.infos),
        dates=chips.table.dates,
        dihedral=chips.metadata.dihedral,
        target_shape=(table.target_bands, table.target_times) if table.has_image_targets else None,
        visible=(visible.keep, visible.ignore),
    )


def _make_config(
    chips: Collection,
    choice: inputs.ChosenInput,
    classes: _Classes,
    options: loader.LoaderOptions,
    *,
    chip_size: int,
    rare: bool,
) -> collate.CollateConfig:
    counts = choice.value_counts
    if rare:
        collate.check_rare_crops(chips.task, chip_size, int(chips.table.shapes.max()))
    trained = {value: count for value, count in counts.items() if value not in classes.ignored}
    table = taxonomy.make_table(chips.task, classes.infos, classes.ignored, counts)
    rarest = collate.rare_values(trained) if rare else ()
    if classes.values is not None:
        table = table[classes.values]
        rarest = tuple(np.flatnonzero(np.isin(classes.values, rarest)).tolist())
    return collate.CollateConfig(
        task=chips.task,
        channels=choice.channels,
        dates=chips.table.dates,
        class_count=len(classes.infos),
        table=table,
        ignored_index=taxonomy.ignored_index(chips.task),
        stored=options.device.type == 'cuda',
        chip_size=min(chip_size, int(chips.table.shapes.max())),
        rare_values=rarest,
        seed=options.seed,
    )


def _normalization(choice: inputs.ChosenInput, dtype: str) -> Normalization | None:
    """Choose what the first layer does; None where the backbone's own statistics decide."""
    if choice.normalize == 'pretraining':
        return None
    return choose_normalization(
        choice.normalize, choice.statistics, dtype=dtype, bands=choice.bands, percentiles=choice.percentiles
    )


def _tell_folders(chips: Collection) -> list[str]:
    notes = [*chips.notes(), *_size_notes(chips.table)]
    folder = str(chips.folders[0].opened.folder)
    for note in notes:
        log.warning('%s', note if note.startswith(folder) else f'{folder}: {note}')
    return notes


def _size_notes(table: ChipTable) -> list[str]:
    """Say where pixels of chips differ in size on the ground, as of several sensors or latitudes in degrees."""
    grids = np.column_stack([table.crs_indexes, table.transforms[:, [0, 1, 3, 4]].round(9)])
    _, firsts = np.unique(grids, axis=0, return_index=True)
    places = [table.geobox(position) for position in firsts[:: max(1, len(firsts) // SIZES_COMPARED)].tolist()]
    sides = list[float]()
    for box in places:
        with suppress(CRSError):  # what PROJ does not know has no size in meters
            sides += [side] if not in_pixel_space(box) and (side := pixel_side_m(box)) else []
    if not sides or max(sides) <= SAME_SIZE * min(sides):
        return []
    return [
        f'pixels of the chips measure {min(sides):.3g} to {max(sides):.3g} m on the ground, so that the same things '
        'differ in size; bring them to one pixel size first (gdalwarp -tr) if they are of several sensors'
    ]


def _finder(chips: Collection, table: ChipTable) -> Callable[[int], str]:
    def find_chip(value: int) -> str:
        return chips.file_of(int(np.argmax(table.amounts([value])[:, 0] > 0)))

    return find_chip


def _make_loaders(
    chips: Collection, split: Split, config: collate.CollateConfig, options: loader.LoaderOptions
) -> tuple[loader.ChipLoader, loader.ChipLoader, loader.ChipLoader | None]:
    """Make the loaders; only that of training is shuffled, cropped at random and augmented."""

    def make(positions: tuple[int, ...], *, training: bool) -> loader.ChipLoader:
        items = loader.ChipDataset(chips.store, positions, replace(config, random_crop=training))
        size = min(options.batch_size, len(positions))
        if training:
            return loader.ChipLoader(items, replace(options, batch_size=size))
        return loader.ChipLoader(items, replace(options, batch_size=size, shuffle=False, transform=None, repeats=None))

    test = make(split.test, training=False) if split.test else None
    return make(split.train, training=True), make(split.valid, training=False), test


def _paths(given: str | Path | GivenChips | Sequence[str | Path]) -> list[str | Path | GivenChips]:
    if isinstance(given, GivenChips):
        return [given]
    paths = [given] if isinstance(given, str | Path) else list(given) if isinstance(given, Sequence) else [given]
    for path in paths:
        if not isinstance(path, str | Path) or not str(path).strip():
            raise errors.ChipFolderError(f'a chip folder is needed, or a list of them; got {path!r}')
    return list[str | Path | GivenChips](paths)


def _call_with_folders(
    paths: Sequence[str | Path | GivenChips], given: Mapping[str, Any], chip_size: int, options: loader.LoaderOptions
) -> str:
    """Return the call as text where it names several folders; one is the data's path."""
    if len(paths) < 2:
        return ''
    usual = {'chip_size': chip_size, 'batch_size': options.batch_size, 'seed': options.seed}
    return format_call('prepare_data', [repr([Path(str(path)).name for path in paths])], usual | dict(given))


def _check_words(dataset_type: object, normalize: Normalize) -> None:
    if dataset_type is not None and not isinstance(dataset_type, str):
        raise errors.ChipFolderError(f"dataset_type must be a name such as 'Classified_Tiles', got {dataset_type!r}")
    if isinstance(normalize, str):
        check_normalize(normalize, 0)


def check_numbers(*, chip_size: int, batch_size: int | None, seed: int, num_workers: int = 0) -> None:
    """Raise ChipFolderError unless these are whole numbers, and large enough."""
    lowest = {
        'chip_size': (chip_size, 1),
        'batch_size': (batch_size, 1),
        'seed': (seed, 0),
        'num_workers': (num_workers, 0),
    }
    for name, (value, low) in lowest.items():
        if name == 'batch_size' and value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < low:
            raise errors.ChipFolderError(f'{name} must be a whole number of at least {low}, got {value!r}')
