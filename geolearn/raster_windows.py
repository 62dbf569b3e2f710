"""prepare_data from windows of rasters with labels in rasters or vectors, without a folder of chips."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from geolearn import data, errors, prepare, units
from geolearn.arguments import check_names
from geolearn.bands import Band, get_bands, is_placeholder, match_bands
from geolearn.chips.exporting import vector_labels
from geolearn.chips.exporting.labels import feature_label, shown_name
from geolearn.chips.exporting.placement import Cutout
from geolearn.chips.formats import in_memory
from geolearn.chips.formats.styles import read_vector_style
from geolearn.chips.label import ChipSource, Label, Listing, Target, Task, check_target
from geolearn.chips.meaning.augmentation import Transforms
from geolearn.chips.meaning.bands import BandChoice, bad_bands, warn_of_order
from geolearn.chips.meaning.values import numbers_of, refuse_lossy
from geolearn.chips.splits.divide import SplitChoice
from geolearn.chips.splits.polygons import divide_polygons
from geolearn.classes import ClassInfo
from geolearn.normalize import Normalize
from geolearn.raster import (
    AlignedRaster,
    Dequantize,
    EmbeddingProduct,
    GeoBox,
    KeptRasters,
    find_product,
    open_raster,
    raster_bands,
    raster_geobox,
    read_window,
    read_window_masks,
    require_place,
    same_grid,
    sample_pixels,
)
from geolearn.raster.embeddings import check_dequantize, check_lengths, check_same_product
from geolearn.raster.nodata import check_nodata
from geolearn.raster.raster import Raster
from geolearn.raster.reading import RasterPath
from geolearn.raster.scaling import (
    ADVICE,
    Scaling,
    check_same_scaling,
    scaling_difference,
    scaling_of,
    scaling_text,
)
from geolearn.sources import data_arguments, prepare_listing

log = logging.getLogger('geolearn')


@check_names
def from_rasters(
    raster: RasterPath | Sequence[RasterPath],
    labels: Any,
    *,
    target: Target | None = None,
    class_value_field: str | None = None,
    class_name_field: str | None = None,
    layer: str | None = None,
    labels_crs: str | None = None,
    buffer_radius: float | None = None,
    bands: BandChoice = None,
    extract_bands: Sequence[str | int] | None = None,
    class_mapping: Mapping[int, str] | None = None,
    chip_size: int = 224,
    val_split_pct: float = 0.2,
    batch_size: int | None = prepare.DEFAULT_BATCH_SIZE,
    transforms: Transforms = None,
    seed: int = 42,
    working_dir: str | Path | None = None,
    ignore_classes: Sequence[int | str] = (),
    unlabelled: Sequence[float] = (),
    nodata: float | Sequence[float] | None = None,
    split: SplitChoice = 'blocks',
    block_size: float | None = None,
    normalize: Normalize = 'dataset',
    align_labels: bool = False,
    dequantize: Dequantize | None = None,
    product: str | None = None,
) -> data.ChipData:
    """Prepare windows of a raster with vector or raster labels, or of several such pairs; no chip is written to disk.

    The windows lie side by side. They are divided by blocks, so that neighbors of a validation chip are not trained
    on.

    Args:
        raster: The image; several files are the bands of one scene or a mosaic, as `export_training_data` takes them.
            Where `labels` is a list, a list with the image of each.
        labels: Raster of the same grid: whole numbers for a class per pixel, floats for regression; its NoData is
            unlabelled. Or polygons, as `export_training_data` takes them: any vector file, a GeoDataFrame, or a mapping
            from class name to these; pixels outside are 0. Windows without any label are left out. Or a list with the
            labels of each image.
        target: ``'classes'`` or ``'values'``, where the type of the labels does not say it.
        class_value_field: Field of vector labels that holds class values or texts, as in `export_training_data`.
        class_name_field: Field that names the class values.
        layer: Layer of the vector file, needed if it has several.
        labels_crs: CRS of vector labels that name none.
        buffer_radius: Map units of the raster by which features grow; points and lines need it.
        bands: Names of the bands, or a sensor; None takes what the raster says.
        extract_bands: Bands to use, by name or 0-based index; None uses all.
        class_mapping: Names of classes by label value.
        chip_size: Side of the windows in pixels.
        val_split_pct: Share of the windows to validate on.
        batch_size: Chips per batch.
        transforms: As in `prepare_data`.
        seed: Fixes split, order and augmentation.
        working_dir: Models go to ``<working_dir>/models``; None means the folder of the (first) raster.
        ignore_classes: Label values or names to leave out.
        unlabelled: Label values that mean "not labelled", beside NoData of the labels.
        nodata: Value that means NoData in the image, beside what the file declares.
        split: As in `prepare_data`; or ``'polygons'``, for polygons with nothing known around them: a share of those of
            each class is validated on, no polygon is in both parts, and pixels outside of all are unlabelled.
        block_size: Side of a block in map units; None means four windows, or fewer where the raster is small.
        normalize: As in `prepare_data`.
        align_labels: Whether labels on another grid are brought to that of the image, nearest neighbor.
        dequantize: Read the stored codes of precomputed embeddings as float vectors, as in `prepare_data`.
        product: Name and version of the embeddings, such as ``'alphaearth v1'``, where tags and file names do not say
            it.

    Raises:
        ChipFolderError: If the grids differ, image and labels do not overlap, or no window holds a label.
        RasterError: If a raster cannot be read.
        MissingExtraError: If vector labels are given and the libraries of the extra ``vector`` are not installed.
    """
    arguments = data_arguments(from_rasters, locals())
    by_polygon = isinstance(split, str) and split == 'polygons'
    check_target(target)
    prepare.check_numbers(chip_size=chip_size, batch_size=batch_size, seed=seed)
    pairs = _pair(raster, labels)
    unlabelled, missing = numbers_of('unlabelled', unlabelled), numbers_of('nodata', nodata)
    naming = vector_labels.Naming(class_value_field, class_name_field, None, unlabelled or None)
    classes: dict[int, ClassInfo] = {}
    notes: list[str] = []
    named = None
    if bands is not None and not isinstance(bands, str):
        named = tuple(band if isinstance(band, str) else band.name for band in bands)
    kept = KeptRasters()
    check_dequantize(dequantize)
    chips, kinds, boxes, images = list[ChipSource](), set[bool](), list[GeoBox](), list[Raster]()
    embedded = list[EmbeddingProduct | None]()
    samples, stated = list[units.Sample | None](), list[Scaling]()
    for number, (image, truth) in enumerate(pairs):
        vector = vector_labels.is_vector(truth, layer)
        with ExitStack() as stack:
            src = stack.enter_context(open_raster(image, bands=named, dequantize=dequantize))
            require_place(src)
            check_nodata(missing, src.dtypes, shown_name(image))
            embedded.append(find_product(src, stated=product))
            if embedded[-1] is not None:
                check_lengths(sample_pixels(src, src.indexes, window_size=32, per_side=2), embedded[-1], str(src.name))
            windows = _windows(src.shape, chip_size)
            if vector:
                placed = _place_vectors(
                    truth, src.geobox, naming, layer=layer, target=target, crs=labels_crs, buffer_radius=buffer_radius
                )
                notes += placed.notes
                _unite(classes, placed.classes, str(number + 1))
                kinds.add(False)
                zero = vector_labels.zero_is_class(naming.unlabelled)
                parts = {'': placed.features}
                if by_polygon:
                    parts = _divide_features(placed.features, val_split_pct, seed, zero=zero)
                touched = [
                    (part, features, windows[at])
                    for part, features in parts.items()
                    for at in features.touching([_cutout(w) for w in windows])
                ]
                windows, ends = [w for _, _, w in touched], [part for part, _, _ in touched]
                readers = [
                    partial(_window_polygons, features, w, zero=zero, only=by_polygon) for _, features, w in touched
                ]
            else:
                vector_labels.refuse_vector_options(
                    truth,
                    class_value_field=class_value_field,
                    class_name_field=class_name_field,
                    layer=layer,
                    labels_crs=labels_crs,
                    buffer_radius=buffer_radius,
                )
                lab = stack.enter_context(open_raster(truth))
                if lab.count != 1:
                    raise errors.ChipFolderError(
                        f'labels {truth} hold {lab.count} bands; a label raster has one band of class values or numbers'
                    )
                given = _on_grid(lab, src.geobox, shown_name(image), str(truth), src.crs, align=align_labels)
                numbers = target == 'values' if target else np.dtype(lab.dtypes[0]).kind == 'f'
                stated += [scaling_of(lab)] if numbers else []
                kinds.add(numbers)
                if not numbers:
                    refuse_lossy(lab, f'labels {truth}')
                if target is None and np.dtype(lab.dtypes[0]).kind == 'f':
                    note = (
                        f"labels are {lab.dtypes[0]} rasters, read as a number per pixel; pass target='classes' if they"
                    )
                    notes += [] if any(other.startswith(note) for other in notes) else [f'{note} are class values']
                if by_polygon:
                    raise errors.ChipFolderError(
                        f"split='polygons' needs vector labels, but {truth} is a raster; pass split='blocks'"
                    )
                windows = [w for w in windows if _has_label(given, w, unlabelled, f'labels {truth}', numbers=numbers)]
                ends = [''] * len(windows)
                readers = [
                    partial(
                        _window_label,
                        kept,
                        truth,
                        w,
                        src.geobox if align_labels else None,
                        unlabelled,
                        numbers=kinds == {True},
                    )
                    for w in windows
                ]
            boxes.append(src.geobox)
            images.append(src)
            found = raster_bands(src)
            bad = bad_bands(src)
            if number == 0:
                first_bands, first_bad = found, bad
            indexes = order_bands(
                (pairs[0][0], image), (first_bands, found), named=bands is not None, dequantize=dequantize
            )
            if len(pairs) > 1:
                samples.append(units.sample_of(sample_pixels(src, indexes), shown_name(image), src.dtypes[0]))
        check_same_scaling(images[0], src, indexes)
        check_same_product(embedded[0], embedded[-1], shown_name(pairs[0][0]), shown_name(image))
        if len(kinds) > 1:
            raise errors.ChipFolderError(
                f"labels of {shown_name(image)} are of another kind than others; pass target='classes' or 'values'"
            )
        chips += [
            ChipSource(
                name=f'{f"{number}_" if len(pairs) > 1 else ""}r{int(w.row_off):06d}_c{int(w.col_off):06d}'
                + (f'_{part}' if part else ''),
                dates=((Path(images[-1].files[0]),),),
                labels=(truth,) if isinstance(truth, Path) and not vector else (),
                read_label=reader,
                nodata=missing,
                read_image=partial(window_image, kept, image, named, w, dequantize=dequantize, indexes=indexes),
            )
            for w, reader, part in zip(windows, readers, ends, strict=True)
        ]
    if split == 'blocks' and block_size is None:
        shape, resolution = boxes[0].shape, max(boxes[0].resolution)
        block_size = min(4, max(1, min(shape) // chip_size // 4)) * chip_size * resolution
    if not chips:
        raise errors.ChipFolderError(
            f'no window of {chip_size} pixels of {_shown_labels(pairs[0][1])} holds a label; pass a smaller chip_size'
        )
    if isinstance(bands, str):
        warn_of_order(get_bands(bands), first_bands, images[0].name)
    units.check_same_units([sample for sample in samples if sample is not None], first_bands)
    notes += _scaling_notes(images[0], stated, [truth for _, truth in pairs])
    for note in notes:
        log.warning(note)
    if by_polygon:
        split = {part: [chip.name for chip in chips if chip.name.endswith(f'_{part}')] for part in ('train', 'valid')}
    task = Task.REGRESSION if kinds == {True} else Task.PIXELS
    listing = Listing(task, tuple(chips), tuple(classes.values()) or None, notes=tuple(notes))
    place = Path(images[0].files[0])
    return prepare_listing(
        place, 'from_rasters', [_names(raster), _names(labels)], arguments, listing,
        bad_bands=first_bad, apart=by_polygon, embedded=embedded[0], bands=bands or first_bands,
        extract_bands=extract_bands, normalize=normalize,
        class_mapping=class_mapping, val_split_pct=val_split_pct, seed=seed, chip_size=chip_size,
        batch_size=batch_size, transforms=transforms, working_dir=working_dir or place.parent,
        ignore_classes=ignore_classes, split=split, block_size=block_size,
    )  # fmt: skip


def _names(paths: Any) -> str:
    """Return the text of a file name, or of a list of them."""
    if isinstance(paths, str | Path):
        return repr(Path(paths).name)
    if not isinstance(paths, list | tuple):
        return 'labels'
    return f'[{", ".join(map(_names, paths))}]'


def _pair(raster: Any, labels: Any) -> list[tuple[RasterPath, Any]]:
    """Return each image with its labels."""
    if isinstance(labels, str | Path):
        return [(raster, Path(labels))]
    if vector_labels.is_vector(labels, None):
        return [(raster, labels)]
    if not isinstance(labels, list | tuple):
        raise errors.ChipFolderError(
            f'labels are a {type(labels).__name__}; pass a raster, a vector file, a GeoDataFrame, or a list with the '
            'labels of each image; from_arrays takes arrays'
        )
    images = [raster] if isinstance(raster, str | Path) else list(raster)
    if len(images) != len(labels) or not images:
        raise errors.ChipFolderError(
            f'found {len(images)} rasters and {len(labels)} label rasters; each raster needs one, in the same order'
        )
    return [(image, Path(label) if isinstance(label, str) else label) for image, label in zip(images, labels)]


def _place_vectors(
    labels: Any,
    box: GeoBox,
    naming: vector_labels.Naming,
    *,
    layer: str | None,
    target: Target | None,
    crs: str | None,
    buffer_radius: float | None,
) -> vector_labels.VectorLabels:
    """Return the polygons of an image in its pixels."""
    if target == 'values':
        raise errors.ChipFolderError("target='values' needs a raster of numbers as labels, not vectors")
    styled = replace(naming, style=read_vector_style(labels, naming.value_field))
    layers = tuple(vector_labels.read_layers(labels, layer))
    return vector_labels.place_vectors(layers, box, styled, crs=crs, buffer_radius=buffer_radius)


def _unite(known: dict[int, ClassInfo], found: Sequence[ClassInfo], number: str) -> None:
    """Add the classes of the labels of another image."""
    for info in found:
        other = known.setdefault(info.value, info)
        if other.name != info.name:
            raise errors.ChipFolderError(
                f'class {info.value} is called {other.name!r} and, in labels {number}, {info.name!r}: texts are '
                'numbered in each layer apart; pass class_value_field= with a field of numbers, or one layer for all'
            )


def _scaling_notes(image: Raster, stated: Sequence[Scaling], labels: Sequence[Any]) -> list[str]:
    """Say which scales and offsets are not applied, and refuse labels of numbers that state different ones."""
    for truth, scaling in zip(labels, stated):
        if apart := scaling_difference(stated[0], scaling):
            raise errors.ChipFolderError(
                f'labels {labels[0]} and {truth} hold numbers of different units: they state {apart}; {ADVICE}'
            )
    notes = []
    if text := scaling_text(scaling_of(image)):
        notes.append(f'{image.name} states {text}, which are not applied; rasters to map must hold the same values')
    if text := scaling_text(stated[0] if stated else ()):
        notes.append(f'the labels state {text}, which are not applied; predictions will be in the stored units too')
    return notes


def _cutout(window: Window) -> Cutout:
    shape = (int(window.height), int(window.width))
    return Cutout((int(window.row_off), int(window.col_off), *shape), shape)


def _divide_features(
    features: vector_labels.Features, fraction: float, seed: int, *, zero: bool
) -> dict[str, vector_labels.Features]:
    """Return the polygons of each part."""
    if zero:
        raise errors.ChipFolderError(
            "split='polygons' leaves pixels outside of all polygons unlabelled, but unlabelled= makes 0, which they "
            "are, a class; leave unlabelled= out, or pass split='blocks'"
        )
    chosen = divide_polygons(features, fraction, seed=seed)
    return {
        part: vector_labels.Features(features.geometry[kept], features.class_ids[kept])
        for part, kept in (('train', ~chosen), ('valid', chosen))
    }


def _window_polygons(
    features: vector_labels.Features, window: Window, shape: tuple[int, int], *, zero: bool, only: bool = False
) -> Label:
    label = feature_label(Task.PIXELS, features.cut(_cutout(window)), shape, None, 0, zero=zero)
    if only and label.raster is not None:
        outside = label.raster == 0
        return replace(label, unlabelled=outside if label.unlabelled is None else outside | label.unlabelled)
    return label


def _shown_labels(labels: Any) -> str:
    return str(labels) if isinstance(labels, str | Path) else 'the labels'


def _on_grid(lab: Raster, box: GeoBox, image: str, labels: str, crs: object, *, align: bool) -> Raster:
    if same_grid(box, lab.geobox):
        return lab
    if align:
        return AlignedRaster(lab, box)
    raise errors.ChipFolderError(
        f'{labels} lies on another grid than {image} ({lab.shape} and {box.shape} pixels, '
        f'{lab.transform[:6]} in {lab.crs} and {box.transform[:6]} in {crs}); pass align_labels=True to take for '
        'each pixel the label at its center, or warp the labels to the image first'
    )


def _windows(shape: tuple[int, int], size: int) -> list[Window]:
    """Return windows side by side; those at the far edges may be smaller, but not below half."""
    starts = [
        [start for start in range(0, length, size) if length - start >= min(size // 2, length)] for length in shape
    ]
    return [
        Window(col, row, min(size, shape[1] - col), min(size, shape[0] - row)) for row in starts[0] for col in starts[1]
    ]


def _has_label(truth: Raster, window: Window, unlabelled: Sequence[float], shown: str, *, numbers: bool) -> bool:
    pixels, valid = read_window(truth, window, [1])
    # values that are no class values stop here: a window that cannot be read later would only be left out
    label = in_memory.raster_label(pixels[0], unlabelled, valid, shown, numbers=numbers)
    assert label.raster is not None
    if numbers:
        return not np.isnan(label.raster).all()
    return label.unlabelled is None or not label.unlabelled.all()


def order_bands(
    paths: tuple[RasterPath, RasterPath],
    bands: tuple[Sequence[Band], Sequence[Band]],
    *,
    named: bool,
    dequantize: Dequantize | None = None,
) -> tuple[int, ...]:
    """Return the 1-based numbers of a raster's bands in the order in which the first raster holds them.

    Bands are matched by what they are; where a raster does not say it of all its bands, file order is taken.

    Args:
        paths: The first raster, and the other one.
        bands: What they hold.
        named: Whether the user named the bands. These names hold for files that do not name theirs; files that name the
            same bands in another order are taken by name.
        dequantize: As in `open_raster`.

    Raises:
        ChipFolderError: If they hold other bands.
    """
    own, found = bands
    if len(own) != len(found):
        raise errors.ChipFolderError(
            f'{shown_name(paths[1])} holds {len(found)} bands but {shown_name(paths[0])} {len(own)}'
        )
    order = numbers = tuple(range(1, len(found) + 1))
    if paths[0] is paths[1]:
        return numbers
    if named:
        stated = [_stated_names(path, dequantize) for path in paths]
        if {*map(len, stated)} == {len(found)} and sorted(stated[0]) == sorted(stated[1]) and _tell_apart(stated[0]):
            order = tuple(stated[1].index(name) + 1 for name in stated[0])
    else:
        names = [[band.name for band in each] for each in bands]
        if names[0] != names[1] and all(map(_tell_apart, names)):
            try:
                order = tuple(index + 1 for index in match_bands(found, own))
            except errors.BandError as error:
                raise errors.ChipFolderError(
                    f'{shown_name(paths[1])} holds the bands {", ".join(names[1])}, but {shown_name(paths[0])} '
                    f'{", ".join(names[0])}; pass rasters of the same bands, or, if these are the same, bands= with a '
                    'name for each band in file order'
                ) from error
    if order != numbers:
        log.info('%s holds its bands in another order; they are taken by name', shown_name(paths[1]))
    return order


def _stated_names(path: RasterPath, dequantize: Dequantize | None) -> list[str]:
    with open_raster(path, quiet=True, dequantize=dequantize) as src:
        return list(src.stated)


def _tell_apart(names: Sequence[str]) -> bool:
    return len({*names}) == len(names) and not any(map(is_placeholder, names))


def window_image(
    kept: KeptRasters,
    path: RasterPath,
    names: tuple[str, ...] | None,
    window: Window,
    *,
    dequantize: Dequantize | None = None,
    indexes: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray | None, GeoBox]:
    """Read a window of a raster: pixels (bands, height, width), masks as `read_window_masks` has them, and place.

    Args:
        kept: Keeps the raster open.
        path: The raster.
        names: Of its bands in file order; None takes its own.
        window: To read.
        dequantize: As in `open_raster`.
        indexes: 1-based numbers of the bands to read, in this order; None for all.
    """
    with kept.open(path, bands=names, dequantize=dequantize) as src:
        pixels, masks = read_window_masks(src, window, indexes or range(1, src.count + 1))
        whole = raster_geobox(src)
    place = whole.crop(int(window.row_off), int(window.col_off), pixels.shape[1:])
    return pixels, masks, place


def _window_label(
    kept: KeptRasters,
    path: Path,
    window: Window,
    grid: GeoBox | None,
    unlabelled: tuple[float, ...],
    shape: tuple[int, int],
    *,
    numbers: bool,
) -> Label:
    with kept.open(path) as src:
        other = grid is not None and not same_grid(src.geobox, grid)
        pixels, valid = read_window(AlignedRaster(src, grid) if grid is not None and other else src, window, [1])
    return in_memory.raster_label(pixels[0], unlabelled, valid, f'labels {path}', numbers=numbers)
