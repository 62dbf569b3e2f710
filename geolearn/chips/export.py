"""Cut a raster and its labels into a chip folder."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from geolearn import units
from geolearn.arguments import check_call
from geolearn.bands import Band, find_sensor, list_sensors
from geolearn.chips.exporting import metadata, placement, run, vector_labels
from geolearn.chips.exporting.labels import LabelInput, LabelSource, shown_name
from geolearn.chips.formats import find_writer
from geolearn.chips.label import Target, Task, check_target
from geolearn.chips.meaning.bands import bad_bands
from geolearn.chips.meaning.values import numbers_of
from geolearn.classes import ClassInfo
from geolearn.errors import ChipFolderError, RasterError, UnknownNameError
from geolearn.raster import Dequantize, find_product, open_raster, raster_bands, require_place, sample_pixels
from geolearn.raster.border import BorderCheck
from geolearn.raster.embeddings import check_dequantize, check_lengths, check_one_product
from geolearn.raster.images import check_image_format
from geolearn.raster.nodata import can_hold, check_nodata
from geolearn.raster.scaling import check_same_scaling

log = logging.getLogger('geolearn')

RasterPath = str | Path | Sequence[str | Path]


@check_call
def export_training_data(
    raster: RasterPath,
    labels: Any,
    out: str | Path,
    metadata_format: str = 'Classified_Tiles',
    tile_size: int = 256,
    stride: int | None = None,
    class_value_field: str | None = None,
    *,
    target: Target = 'classes',
    unlabelled: Sequence[float] | None = None,
    nodata: float | Sequence[float] | None = None,
    processing_mode: str = 'mosaic',
    class_name_field: str | None = None,
    classes: Sequence[ClassInfo] | None = None,
    layer: str | None = None,
    labels_crs: str | None = None,
    align_labels: bool = False,
    instance_labels: Any = None,
    mask_polygons: Any = None,
    buffer_radius: float | None = None,
    output_nofeature_tiles: bool = False,
    min_polygon_overlap_ratio: float = 0.0,
    min_labelled: float = 0.0,
    rotation_angle: float = 0.0,
    crop_mode: str = 'fixed',
    blacken_around_feature: bool = False,
    reference_system: str = 'MAP_SPACE',
    image_format: str = 'TIFF',
    compress: str = 'none',
    start_index: int = 0,
    bands: Sequence[Band] | Sequence[str] | None = None,
    sensor: str = 'Undefined',
    num_workers: int | None = None,
    dequantize: Dequantize | None = None,
    product: str | None = None,
) -> Path:
    """Cut a raster and its labels into a folder of chips, as ArcGIS's "Export Training Data For Deep Learning" does.

    Chips lie on a grid of `stride`, wholly inside the raster; chips without any valid pixel are left out. With vector
    labels, Labeled_Tiles and Imagenet have a chip for each feature instead, centered on it. Pixels without data are
    labelled 0. Where features overlap, a pixel takes the class of the later one.

    Args:
        raster: Image (a file or VRT); several that make one mosaic; or the bands of one scene as a file each, such as
            ``['B02.tif', 'B03.tif', 'B08.tif']``, or as a folder (a SAFE product, a Landsat scene). See `open_raster`.
        labels: Polygons: any vector file, a GeoDataFrame, or a mapping from class name to file, ``(file, layer)`` or
            GeoDataFrame. Or a class raster on the grid of the image, 0 and its NoData value meaning unlabelled; its
            objects are groups of pixels of one class that share edges. None for Export_Tiles.
            A list of class rasters goes with the rasters of a ``'collection'`` in their order.
        out: New or empty folder; appears when all of it is written.
        metadata_format: ArcGIS's name of a format, such as ``'Classified_Tiles'`` or ``'PASCAL_VOC_rectangles'``;
            `geolearn.chips.formats.FORMATS` lists them all with a description.
        tile_size: Side of a chip in pixels.
        stride: Pixels from chip to chip; None means `tile_size`, so that chips do not overlap.
        class_value_field: Field of vector labels that holds class values 1..65535, or texts, which become classes
            1, 2, 3, ... in order of the alphabet. None looks for classvalue, class_value, value, classname and
            class_name in this order; without any, all features are class 1.
        target: ``'classes'``, or ``'values'`` where `labels` is a raster of regression targets, such as biomass; they
            are written as float32, NaN where there is no truth (Classified_Tiles).
        unlabelled: Label values that mean "not labelled", such as ``[-1]`` or ``[255]``, beside NoData of a label
            raster, which is unlabelled without asking. Where 0 is not among them, 0 is a class; None means that 0 is
            unlabelled.
        nodata: Value that means NoData in `raster`, or one for each band, beside what the file declares, such as 0 for
            a black border. It is kept in the .emd.
        processing_mode: ``'mosaic'`` takes several rasters as one; ``'collection'`` cuts each by itself, so that their
            grids and CRS may differ. Labels are then vectors, or a list with a class raster for each; rasters without
            labels are passed over.
        class_name_field: Field that names the class values; None looks for classname and class_name.
        classes: Classes with names and colors; texts in the labels are then names of these. None takes what the
            labels hold.
        layer: Layer of the vector file, needed if it has several.
        labels_crs: CRS of vector labels that name none.
        align_labels: Whether a class raster on another grid than the image is brought to it: each pixel takes the label
            that lies at its center (nearest neighbor), whatever CRS and pixel size. Without it, it is refused.
        instance_labels: Objects of Panoptic_Segmentation where `labels` is a class raster, as vector labels.
        mask_polygons: File or GeoDataFrame; only chips that lie completely within are written.
        buffer_radius: Map units of the raster by which features grow; points and lines need it.
        output_nofeature_tiles: Whether chips without any feature or label are written too.
        min_polygon_overlap_ratio: Share of a feature's area, 0..1, that must lie in a chip for it to be an object of
            the chip and a reason to write it. Rasters of class values show the feature nevertheless.
        min_labelled: Smallest share of a chip's pixels that must be valid and labelled for it to be written.
        rotation_angle: Degrees; grids turned by all multiples of it below 360 are cut too, by nearest neighbor.
        crop_mode: ``'fixed'``, or ``'bounding_box'`` for chips of the size of their feature (Labeled_Tiles, Imagenet).
        blacken_around_feature: Whether pixels outside the feature become 0 (Labeled_Tiles, Imagenet).
        reference_system: ``'MAP_SPACE'``, or ``'PIXEL_SPACE'`` for chips without place on the ground.
        image_format: ``'TIFF'``, ``'MRF'``, or for 1 or 3 bands of 8 bits ``'PNG'`` or ``'JPEG'`` (of quality 95).
            Label rasters are always TIFF.
        compress: ``'none'``, the fastest to write and to read; ``'deflate'`` takes about a third less space, ``'lzw'``
            and ``'zstd'`` are there too. All keep pixels exactly.
        start_index: Number of the first chip.
        bands: Bands of the raster in order, or their names; None takes the names that the raster gives.
        sensor: Sensor to record, such as ``'Sentinel-2'``; it also says what the raster's ``'B5'`` is.
        num_workers: Threads; None means one for each processor, at most 8.
        dequantize: Write the stored codes of precomputed embeddings as float vectors: ``'alphaearth'`` or
            ``'tessera'``. Models trained on the chips do the same with the rasters that they map.
        product: Name and version of the embeddings, such as ``'alphaearth v1'``, where tags and file names do not say
            it; it is kept in the .emd.

    Returns:
        The folder.

    Raises:
        RasterError: If a raster cannot be read or a chip not written.
        ChipFolderError: If labels cannot be read, placed or stored in this format, no chip results or `out` is not
            empty; nothing is left behind.
        UnknownNameError: If a format, target, sensor or mode is unknown.
        MissingExtraError: If vector labels are given and the libraries of the extra ``vector`` are not installed.
    """
    if sensor != 'Undefined' and find_sensor(sensor) is None:
        raise UnknownNameError('sensor', sensor, [*list_sensors(), 'Undefined'])
    task = _choose_task(metadata_format, target, classes)
    options = placement.ExportOptions(
        task=task,
        tile_size=tile_size,
        stride=tile_size if stride is None else stride,
        per_feature=task is Task.LABEL and vector_labels.is_vector(labels, layer),
        output_nofeature_tiles=output_nofeature_tiles,
        rotation_angle=rotation_angle,
        min_polygon_overlap_ratio=min_polygon_overlap_ratio,
        min_labelled=min_labelled,
        crop_mode=crop_mode,
        blacken_around_feature=blacken_around_feature,
        reference_system=reference_system,
        image_format=image_format,
        compress=compress,
        start_index=start_index,
    )
    naming = vector_labels.Naming(
        class_value_field,
        class_name_field,
        None if classes is None else tuple(classes),
        None if unlabelled is None else numbers_of('unlabelled', unlabelled),
    )
    named_nodata = numbers_of('nodata', nodata)
    reader = LabelInput(labels, instance_labels, mask_polygons, naming, layer, labels_crs, buffer_radius, align_labels)
    threads = run.count_threads(num_workers)
    names = tuple(band if isinstance(band, str) else band.name for band in bands) if bands else None
    check_dequantize(dequantize)
    scenes, notes = _plan(
        _scenes(raster, reader, processing_mode), names, options, threads, named_nodata, dequantize=dequantize
    )
    with open_raster(scenes[0].raster, bands=names, quiet=True, dequantize=dequantize) as src:
        # names alone are looked up as those of the raster are
        given = tuple(band for band in bands or () if isinstance(band, Band))
        named = given or raster_bands(src, sensor=None if sensor == 'Undefined' else sensor)
        tag, bad = _nodata_tag(src, named_nodata), bad_bands(src)
        embedded = find_product(src, stated=product)
        if embedded is not None:
            check_lengths(sample_pixels(src, src.indexes, window_size=32, per_side=2), embedded, str(src.name))
    notes += vector_labels.sensor_notes(sensor, named, shown_name(scenes[0].raster), given=bool(bands))
    for scene in scenes:
        _check_same(scene.raster, scenes[0].raster, names, len(named), dequantize)
    units.check_same_units([scene.sample for scene in scenes if scene.sample is not None], named)
    facts = metadata.ExportDescription(
        metadata_format,
        named,
        _unite(scene.labels.classes for scene in scenes),
        tile_size=max(max(cutout.shape) for scene in scenes for job in scene.jobs for cutout in job.cutouts),
        sensor=sensor,
        map_space=reference_system == 'MAP_SPACE',
        variable_size=crop_mode == 'bounding_box',
        blackened=blacken_around_feature,
        features=scenes[0].labels.vectors is not None,
        nodata=named_nodata,
        bad_bands=bad,
        product=embedded,
    )
    writer = run.ChipWriter(
        out, facts, image_format=image_format, compress=compress, nodata=tag, start_index=start_index
    )
    _write(writer, scenes, options, threads, notes)
    return writer.folder


def _nodata_tag(src: Any, named: tuple[float, ...]) -> float | None:
    """Return the NoData value that chips declare: that of the raster, else one that the user named for all bands."""
    if len({*map(repr, src.nodatavals)}) > 1:  # a file declares one value for all bands, so chips have masks
        return None
    if src.nodata is not None or len(set(named)) != 1:
        found: float | None = src.nodata
        return found
    return named[0] if all(can_hold(dtype, named[0]) for dtype in set(src.dtypes)) else None


class _Scene(NamedTuple):
    """A raster, its labels, and what is cut from it."""

    raster: RasterPath
    bands: tuple[str, ...] | None
    labels: LabelSource
    jobs: tuple[placement.Job, ...]
    border: BorderCheck
    dequantize: Dequantize | None = None
    sample: units.Sample | None = None


def _choose_task(metadata_format: str, target: Target, classes: Sequence[ClassInfo] | None) -> Task:
    """Return Task of the labels of a format, numbers where they are asked for and possible."""
    check_target(target)
    task = find_writer(metadata_format).task
    if target != 'values':
        return task
    if task is not Task.PIXELS:
        raise ChipFolderError(f"target='values' needs a number per pixel: Classified_Tiles, not {metadata_format}")
    if classes:
        raise ChipFolderError("classes= and target='values' exclude each other: numbers have no classes; pass one")
    return Task.REGRESSION


def _write(
    writer: run.ChipWriter,
    scenes: Sequence[_Scene],
    options: placement.ExportOptions,
    threads: int,
    notes: Sequence[str],
) -> None:
    """Cut all rasters and finish the folder, with notes for people."""
    with writer:
        skipped = Counter[str]()
        for scene in scenes:
            tallies, ignored = run.Export(
                scene.raster,
                scene.labels,
                writer,
                options,
                writer.facts.nodata,
                scene.bands,
                scene.border,
                scene.dequantize,
            ).run(scene.jobs, threads, options.start_index + writer.count)
            writer.take(tallies)
            skipped.update(ignored)
        lines = [*notes, *(f'{count} x {reason}' for reason, count in sorted(skipped.items()))]
        for note in lines:
            log.warning('export to %s: %s', writer.folder, note)
        writer.take((), lines)


def _scenes(raster: RasterPath, reader: LabelInput, processing_mode: str) -> list[tuple[RasterPath, LabelInput]]:
    """Return what is cut by itself, each with its labels."""
    if processing_mode not in placement.PROCESSING_MODES:
        raise UnknownNameError('processing mode', processing_mode, placement.PROCESSING_MODES)
    if processing_mode == 'mosaic' or isinstance(raster, str | Path):
        return [(raster, reader)]
    labels = reader.labels
    if labels is None or vector_labels.is_vector(labels, None):
        return [(one, reader) for one in raster]
    if isinstance(labels, str | Path) or len(labels) != len(raster):
        found = '1 class raster' if isinstance(labels, str | Path) else f'{len(labels)} class rasters'
        raise ChipFolderError(
            f"processing_mode='collection' needs vector labels, or a class raster for each of the {len(raster)} "
            f'rasters; found {found}'
        )
    return [(one, replace(reader, labels=label)) for one, label in zip(raster, labels)]


def _unite(parts: Iterable[Sequence[ClassInfo]]) -> tuple[ClassInfo, ...]:
    """Return the classes of all rasters: those of the first, where others add none, else all by value."""
    listed = list(parts)
    found: dict[int, ClassInfo] = {}
    for classes in listed:
        for info in classes:
            if found.setdefault(info.value, info).name != info.name:
                raise ChipFolderError(
                    f'class {info.value} is called {found[info.value].name!r} and {info.name!r}; pass classes='
                )
    return tuple(listed[0]) if len(found) == len(listed[0]) else tuple(found[value] for value in sorted(found))


def _plan(
    rasters: Sequence[tuple[RasterPath, LabelInput]],
    bands: tuple[str, ...] | None,
    options: placement.ExportOptions,
    threads: int,
    nodata: tuple[float, ...],
    *,
    dequantize: Dequantize | None,
) -> tuple[list[_Scene], list[str]]:
    """Return the rasters of which chips can be cut, and what people should know."""
    scenes, passed, notes = list[_Scene](), 0, list[str]()
    for raster, reader in rasters:
        with open_raster(raster, bands=bands, dequantize=dequantize) as src:
            _check_raster(src, raster, options)
            check_nodata(nodata, src.dtypes, shown_name(raster))
            try:
                labels, areas = reader.read(src, shown_name(raster), options)
                features = labels.vectors.features if labels.vectors else None
                notes += [] if labels.raster is None else labels.raster.notes
                jobs = run.plan_jobs(src, options, features, areas, threads)
                border = BorderCheck(shown_name(raster), nodata)
                src.check_border(border)
                seen = units.sample_of(sample_pixels(src, src.indexes), shown_name(raster), src.dtypes[0])
                scenes.append(_Scene(raster, bands, labels, jobs, border, dequantize, seen))
            except placement.NothingThereError:
                passed += 1
                if passed == len(rasters):
                    raise
    if passed:
        notes.append(f'{passed} of {len(rasters)} rasters hold no chip and were passed over')
    return scenes, [*notes, *(scenes[0].labels.vectors.notes if scenes[0].labels.vectors else ())]


def _check_raster(src: Any, raster: RasterPath, options: placement.ExportOptions) -> None:
    require_place(src)
    try:
        src.require_real()
    except RasterError as error:
        raise ChipFolderError(str(error)) from error
    dtype = src.dtypes[0] if len(set(src.dtypes)) == 1 else 'several types'
    check_image_format(options.image_format, compress=options.compress, count=src.count, dtype=dtype)


def _check_same(
    raster: RasterPath, first: RasterPath, names: Sequence[str] | None, bands: int, dequantize: Dequantize | None
) -> None:
    """Refuse rasters whose chips cannot lie in one folder."""
    opened = [open_raster(path, bands=names, quiet=True, dequantize=dequantize) for path in (raster, first)]
    with opened[0] as src, opened[1] as other:
        check_one_product([src, other])
        check_same_scaling(other, src)
        if src.count != bands:
            raise ChipFolderError(f'{bands} bands are named but {shown_name(raster)} holds {src.count}')
        for what, found, wanted in (
            ('types', src.dtypes, other.dtypes),
            ('NoData', repr(src.nodata), repr(other.nodata)),  # NaN differs from itself
            ('band names', src.descriptions, other.descriptions),
        ):
            if found != wanted:
                raise ChipFolderError(
                    f'{shown_name(raster)} has {what} {found} but {shown_name(first)} has {wanted}; '
                    'export them to two folders'
                )
