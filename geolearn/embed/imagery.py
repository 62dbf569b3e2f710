"""`embed`: images, rasters and chips as vectors, in memory."""

import logging
import struct
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from geolearn import errors
from geolearn.bands import Band
from geolearn.data import ChipData
from geolearn.embed import images, opening, scaling
from geolearn.embed.embeddings import Embeddings
from geolearn.embed.encoder import Encoder, EncoderOptions, Pooling, check_pooling, check_positive, make_encoder
from geolearn.inference import coarse
from geolearn.inference.options import TilingOptions
from geolearn.inference.plan import Blend
from geolearn.models.new_spec import with_wavelengths
from geolearn.prepare import prepare_data
from geolearn.progress import ProgressBar, report_progress
from geolearn.raster import GeoBox
from geolearn.raster.geobox import same_crs
from geolearn.raster.reading import is_one
from geolearn.raster.scene import image_files, read_name

log = logging.getLogger('geolearn')

Output = Literal['pooled', 'grid']
"""A vector for each image, or one for each token."""

OUTPUTS: tuple[Output, ...] = ('pooled', 'grid')


def embed(
    source: Any,
    backbone: str = 'dofa_base',
    *,
    output: Output = 'pooled',
    pooling: Pooling = 'mean',
    layer: int = -1,
    normalize: scaling.Normalize = None,
    bands: str | Sequence[Band | str] | None = None,
    sensor: str | None = None,
    wavelengths: Sequence[float | None] | None = None,
    nodata: float | None = None,
    tile: int | None = None,
    context: int | None = None,
    blend: Blend | None = None,
    resolution_m: float | None = None,
    pretrained: bool = True,
    weights: str | Path | None = None,
    names: Sequence[str] | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    check_values: bool = True,
) -> Embeddings:
    """Turn images into embeddings: vectors of a backbone that is not trained further.

    Images are in raw units: reflectance in any of its stored forms, decibels, digital numbers. They are of any size:
    those larger than `tile` are cut, and smaller ones are never stretched. Pixels without data take no part: a token
    that has none in half of its pixels is NaN, and is left out of what is pooled.

    Args:
        source: An array or tensor (bands, height, width), or (items, bands, height, width) for several; a raster, as
            `geolearn.raster.open_raster` takes them; a list of rasters, each of which is an item; `ChipData`; or a
            folder of training chips or of rasters.
        backbone: Its name; see `geolearn.list_backbones`, and `geolearn.describe_backbone` for the bands it takes.
        output: ``'pooled'`` gives a vector for each image, ``'grid'`` one for each token.
        pooling: How the tokens of an image become one vector. ``'mean'``, the default, is what DOFA's own forward pass,
            torchgeo and rs-embed pool by, and the mean of what ``output='grid'`` gives. ``'max'`` keeps rare things;
            published probes disagree on which is better, so try both. ``'cls'`` is the class token, for backbones that
            have one; masked autoencoders, such as DOFA, do not train it to describe the image.
        layer: Whose output is taken: a block of a transformer, counted from 0, as it leaves the block, or a map of a
            convolutional network, finest first; -1 for the last, after the final norm.
        normalize: What pixels are normalized by: ``'pretraining'``, the mean and std that belong to the weights, in
            the units of the images; ``'dataset'``, those of these images, whose embeddings can then only be compared
            with each other; ``'minmax'``, ``'robust'`` or ``'imagenet'`` as in `prepare_data`; (means, stds) in the
            images' units; or ``'none'`` for images that are normalized already. None takes ``'pretraining'``, and
            ``'dataset'`` for random weights.
        bands: What the bands are: a sensor such as ``'sentinel2_l2a'`` for all of its bands, names, or `Band` objects.
            Of a raster that names its bands, those to take.
        sensor: Whose names `bands` are, or all of whose bands an array holds.
        wavelengths: Center of each band in micrometers, None for radar; instead of `bands`, or of what their names say.
        nodata: Value that marks missing pixels, besides NaN and what the file says.
        tile: Side of the tiles that are computed together, in pixels: memory and speed follow from it. Vectors of
            transformers do not depend on it. None takes what is fast, 512 for convolutional networks.
        context: Side of the images that a transformer sees, in pixels; larger ones are cut into such, which overlap.
            None takes that of its pretraining. A transformer sees all of an image at once, and where in it a token
            lies: vectors of another context are others.
        blend: How neighboring tiles meet: ``'crop'`` cuts in the middle of what they share, ``'hann'`` lets them fade
            into each other. None takes ``'crop'``.
        resolution_m: Of the images in meters per pixel, for backbones whose positions depend on it.
        pretrained: Whether to fill the backbone with its published weights.
        weights: A file or folder with weights, or a .dlpk, instead of fetching them.
        names: Of the items; None takes those of the files or chips, else numbers.
        batch_size: Images embedded together; None takes as many as are worth it.
        device: Torch device; None means CUDA where there is one.
        check_values: Whether to refuse values that look normalized already.

    Returns:
        The vectors, with what made them, names, and places where they are known.

    Raises:
        BackboneError: If the backbone has no such layer or no class token, or states no mean and std for these bands.
        BandError: If nothing says what the bands are, or one lacks a wavelength that the backbone needs.
        RasterError: If a raster cannot be read, holds no data, values look normalized already, or are embeddings.
        UnknownNameError: If there is no such backbone, sensor, output, pooling or normalization.
        ValueError: If an array is no image, or grids of several images have different shapes.
        WeightsError: If weights cannot be had or do not fit.
    """
    if output not in OUTPUTS:
        raise errors.UnknownNameError('output', str(output), OUTPUTS)
    check_positive('batch_size', batch_size, 'images')
    options = EncoderOptions(
        backbone, layer, normalize, pretrained, weights, wavelengths, resolution_m, tile, context, device, check_values
    )
    pooled = pooling if output == 'pooled' else None
    how = How(options, opening.Wanted(bands, sensor, nodata), pooled, blend, batch_size)
    return embed_source(source, how, names)


def embed_source(source: Any, how: 'How', names: Sequence[str] | None = None) -> Embeddings:
    """Embed images, rasters or chips; see `embed`."""
    if isinstance(source, str | Path) and Path(source).expanduser().is_dir():
        source, how = _open_folder(Path(source).expanduser(), how)
    if isinstance(source, ChipData):
        return _embed_chips(source, how, names)
    if isinstance(source, np.ndarray | torch.Tensor):
        return _embed_array(source, how, names)
    if is_one(source):
        return _embed_raster(source, how, names)
    if isinstance(source, list | tuple) and source:
        if all(isinstance(item, np.ndarray | torch.Tensor) for item in source):
            return _embed_arrays(source, how, names)
        return _embed_rasters(source, how, names)
    raise errors.ArgumentError(
        f'a {type(source).__name__} holds no images; pass an array (bands, height, width), a raster, a list of '
        'rasters, ChipData, or a folder of chips'
    )


class How(NamedTuple):
    """How images are embedded.

    Args:
        options: Which encoder.
        wanted: What the caller says of the bands.
        pooling: How tokens become one vector; None for grids.
        blend: How the images meet that a large one is cut into.
        batch_size: Images embedded together.
    """

    options: EncoderOptions
    wanted: opening.Wanted
    pooling: Pooling | None
    blend: Blend | None
    batch_size: int | None

    def encoder(self, bands: Sequence[Band], sample: np.ndarray, dtype: str) -> Encoder:
        """Build the encoder for some bands, of which a sample is at hand."""
        encoder = make_encoder(self.options, bands, sample, dtype=dtype)
        if self.pooling is not None:
            check_pooling(self.pooling, encoder.network)
        return encoder

    def result(
        self,
        encoder: Encoder,
        values: np.ndarray,
        names: Sequence[str] = (),
        *,
        geobox: GeoBox | None = None,
        places: Sequence[GeoBox | None] = (),
    ) -> Embeddings:
        """Make the embeddings of the values."""
        blend = self.blend or 'crop'
        source = replace(encoder.source, pooling=self.pooling or '', blend=blend)
        crs, outlines = outline_boxes(places)
        return Embeddings(values, source, tuple(names), geobox, outlines, crs)


def outline_boxes(places: Sequence[GeoBox | None]) -> tuple[str | None, tuple[bytes, ...]]:
    """Return the CRS and the outlines (WKB) of images; none where one has no place, or they are in several CRSs."""
    known = [box for box in places if box is not None and not (box.transform.is_identity and box.crs is None)]
    if not known or len(known) < len(places) or not all(same_crs(known[0].crs, box.crs) for box in known):
        return None, ()
    return known[0].crs, tuple(_outline(box) for box in known)


def _outline(box: GeoBox) -> bytes:
    rows, columns = box.shape
    corners = [(0, 0), (rows, 0), (rows, columns), (0, columns), (0, 0)]
    points = [box.crop(row, column, (0, 0)).transform for row, column in corners]
    # a polygon of one ring of five points, little-endian
    numbers = [part for point in points for part in (point.c, point.f)]
    return struct.pack('<BIII10d', 1, 3, 1, 5, *numbers)


def _numbers(count: int, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is not None and len(names) != count:
        raise ValueError(f'found {len(names)} names for {count} items; give one for each')
    return tuple(map(str, range(count))) if names is None else tuple(names)


def _embed_array(source: Any, how: How, names: Sequence[str] | None) -> Embeddings:
    pixels = images.as_images(source, how.wanted.nodata)
    single = source.ndim == 3
    labels = _numbers(len(pixels), names)
    encoder = _array_encoder([source], [pixels], how)
    values = _embed_pixels(encoder, list(pixels), how)
    if how.pooling is None and single:
        return how.result(encoder, values[0])
    return how.result(encoder, np.stack(values), labels)


def _embed_arrays(source: Sequence[Any], how: How, names: Sequence[str] | None) -> Embeddings:
    """Embed images of several sizes."""
    pixels = [images.as_images(each, how.wanted.nodata) for each in source]
    if any(each.ndim != 3 for each in source) or len({len(each[0]) for each in pixels}) > 1:
        raise ValueError('a list of arrays must hold images (bands, height, width) of the same bands')
    encoder = _array_encoder(source, pixels, how)
    return _stack(encoder, _embed_pixels(encoder, [each[0] for each in pixels], how), how, _numbers(len(pixels), names))


def _array_encoder(source: Sequence[Any], pixels: Sequence[np.ndarray], how: How) -> Encoder:
    wanted, options = how.wanted, how.options
    bands = _name_bands(pixels[0].shape, wanted, options.wavelengths)
    dtypes = {str(each.dtype).removeprefix('torch.') for each in source}
    dtype = dtypes.pop() if len(dtypes) == 1 else 'float32'
    return how.encoder(bands, scaling.sample_arrays(pixels), dtype)


def _name_bands(
    shape: tuple[int, ...], wanted: opening.Wanted, wavelengths: Sequence[float | None] | None
) -> tuple[Band, ...]:
    """Say what the bands of images (items, bands, H, W) are; what fits the last axis alone is (items, H, W, bands)."""

    def name(count: int) -> tuple[Band, ...]:
        return scaling.name_bands(count, wanted.bands, sensor=wanted.sensor, wavelengths=wavelengths)

    try:
        return name(shape[1])
    except errors.BandError as error:
        try:
            name(shape[-1])
        except errors.BandError:
            raise error from None
        raise errors.BandError(
            f'{error}. The last axis has as many: images are (bands, height, width), so pass np.moveaxis(image, -1, -3)'
        ) from None


def _embed_pixels(encoder: Encoder, pixels: Sequence[np.ndarray], how: How) -> list[np.ndarray]:
    """Embed images (bands, H, W), those of one shape together; the order is kept."""
    values: list[np.ndarray | None] = [None] * len(pixels)
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, image in enumerate(pixels):
        groups.setdefault(image.shape, []).append(number)
    for (_, height, width), numbers in groups.items():
        if max(height, width) > encoder.side:
            found: Iterable[np.ndarray] = (
                images.embed_image(encoder, pixels[n], pooling=how.pooling, blend=how.blend) for n in numbers
            )
        else:
            size = images.batch_size_of((height, width), how.batch_size, encoder.device)
            starts = range(0, len(numbers), size)
            batches = (np.stack([pixels[n] for n in numbers[start : start + size]]) for start in starts)
            found = images.embed_batches(encoder, batches, len(numbers), pooling=how.pooling)
        for number, value in zip(numbers, found):
            values[number] = value
    return [value for value in values if value is not None]


def _stack(
    encoder: Encoder,
    values: Sequence[np.ndarray],
    how: How,
    names: Sequence[str],
    places: Sequence[GeoBox | None] = (),
) -> Embeddings:
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        raise ValueError(
            f'the grids of these images have different shapes, {sorted(shapes)[:3]}; embed them one by one, or pass '
            "output='pooled'"
        )
    return how.result(encoder, np.stack(values), names, places=places)


def _embed_chips(data: ChipData, how: How, names: Sequence[str] | None) -> Embeddings:
    if data.table.dates > 1:
        raise ValueError(f'chips of {data.table.dates} dates cannot be embedded yet; embed those of each date')
    if how.wanted.bands is not None or how.wanted.sensor is not None:
        raise errors.ArgumentError('chips say themselves what their bands are; pass bands= and sensor= to prepare_data')
    opening.refuse_vectors(f'the chip folder {data.path}', data.product)
    bands = data.bands
    if how.options.wavelengths is not None:
        bands = with_wavelengths(bands, how.options.wavelengths)
    sample = data.table.sample.reshape(-1, data.table.band_count)[:, list(data.band_indexes)].T
    encoder = how.encoder(bands, sample, data.dtype)
    dataset = data.validating_on_all().valid_ds
    labels = _numbers(len(dataset), dataset.names if names is None else names)
    size = images.batch_size_of((data.chip_size, data.chip_size), how.batch_size, encoder.device)
    batches = (
        dataset.collate(range(start, min(start + size, len(dataset)))).cast().images.numpy()
        for start in range(0, len(dataset), size)
    )
    places = [data.table.geobox(position) for position in dataset.positions]
    if data.chip_size <= encoder.side:
        found = images.embed_batches(encoder, batches, len(dataset), pooling=how.pooling)
    else:
        found = (
            images.embed_image(encoder, image, pooling=how.pooling, blend=how.blend)
            for batch in batches
            for image in batch
        )
    return _stack(encoder, list(found), how, labels, places)


def _open_folder(folder: Path, how: How) -> tuple[Any, How]:
    """Return the chips of a folder, the rasters in it, or the folder where it is a scene of a file per band."""
    wanted = how.wanted
    bands: Any = wanted.sensor if wanted.bands is None else wanted.bands
    if wanted.sensor is not None and bands is wanted.bands and bands is not None and not isinstance(bands, str):
        bands = scaling.name_bands(len(bands), bands, sensor=wanted.sensor)
    try:
        chips = prepare_data(
            folder,
            bands=bands,
            batch_size=how.batch_size or 16,
        )
    except errors.ChipFolderError as error:
        found = image_files(folder)
        if not found:
            raise
        log.info('%s is no folder of training chips: %s', folder, error)
        return (folder if any(read_name(path) for path in found) else found), how
    return chips, how._replace(wanted=opening.Wanted(nodata=wanted.nodata))


def _embed_raster(source: Any, how: How, names: Sequence[str] | None) -> Embeddings:
    with ExitStack() as stack:
        opened = opening.open_to_embed(source, how.options, how.wanted, stack)
        encoder = opened.encoder
        if how.pooling is not None:
            check_pooling(how.pooling, encoder.network)
        value = _embed_open(opened, how)
        box = opened.source.box
    if how.pooling is None:
        return how.result(encoder, value, geobox=coarse.coarsen_box(box, encoder.network.stride))
    labels = _numbers(1, [opening.name_source(source, 0)] if names is None else names)
    return how.result(encoder, value[None], labels, places=[box])


def _embed_rasters(sources: Sequence[Any], how: How, names: Sequence[str] | None) -> Embeddings:
    """Embed rasters of the same bands, one item each; units and pixel sizes must be those of the first.

    Statistics of the images, where pixels are normalized by them, are those of all rasters.
    """
    labels = _numbers(
        len(sources), [opening.name_source(s, n) for n, s in enumerate(sources)] if names is None else names
    )
    values, places = [], []
    encoder: Encoder | None = None
    with ProgressBar(len(sources), 'embedding', 'raster') as bar, report_progress(lambda _: None):
        for source in sources:
            with ExitStack() as stack:
                if encoder is None:
                    opened = opening.open_to_embed(source, how.options, how.wanted, stack)
                    if how.pooling is not None:
                        check_pooling(how.pooling, opened.encoder.network)
                    if how.options.counts_images and len(sources) > 1:
                        opened = opening.count_all(opened, sources, how.options)
                    encoder = opened.encoder
                else:
                    opened = opening.open_as(opened, source, stack)
                values.append(_embed_open(opened, how))
                places.append(opened.source.box)
            bar.update(1)
    assert encoder is not None  # there is a source
    return _stack(encoder, values, how, labels, places)


def _embed_open(opened: opening.OpenRaster, how: How) -> np.ndarray:
    encoder, source = opened.encoder, opened.source
    if max(source.shape) <= encoder.side:
        return images.embed_image(encoder, opening.read_whole(source, opened.read), pooling=how.pooling)
    if how.pooling == 'cls':
        raise ValueError(images.SEVERAL.format(side=encoder.side))
    tiling = TilingOptions(blend=how.blend, batch_size=how.batch_size or encoder.images)
    store = images.stream_grid(encoder, source, images.GridStore, read=opened.read, tiling=tiling)
    return store.values if how.pooling is None else images.pool(images.EmbeddedImage(store.values, None), how.pooling)
