"""Embed images that memory holds: batches of small ones, and large ones in tiles, as the maps of rasters are made."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from geolearn.embed.encoder import Encoder, Pooling
from geolearn.inference import coarse, computing, map_parts, map_progress, tiles
from geolearn.inference.encoding import make_layers
from geolearn.inference.options import NoData, ReadOptions, TilingOptions
from geolearn.inference.plan import Blend, Part
from geolearn.inference.source import Source
from geolearn.progress import ProgressBar
from geolearn.raster import GeoBox
from geolearn.raster.area import PixelArea
from geolearn.raster.raster import Raster

PIXELS_AT_ONCE, CPU_PIXELS_AT_ONCE = 16 * 224**2, 4 * 224**2
"""Of a batch: more images take memory and are no faster; on a CPU they are slower, since they leave its caches."""

MOST_AT_ONCE = 256


SEVERAL = (
    'an image larger than the {side} px that the backbone sees has no one class token; pass a context= as large as '
    "it, or pooling='mean'"
)


class EmbeddedImage(NamedTuple):
    """What an image became.

    Args:
        grid: (dimensions, rows, columns) float32, NaN where there is no data.
        class_token: (dimensions,), or None where there is none, or the image is of several tiles.
    """

    grid: np.ndarray
    class_token: np.ndarray | None


def pool(image: EmbeddedImage, pooling: Pooling) -> np.ndarray:
    """Make one vector (dimensions,) of the tokens that have data; NaN where none has.

    Raises:
        ValueError: If the class token is asked for and the image is of several tiles.
    """
    if pooling == 'cls':
        if image.class_token is None:
            raise ValueError("an image of several tiles has no one class token; pass pooling='mean'")
        return image.class_token
    vectors = image.grid.reshape(len(image.grid), -1)
    known = vectors[:, np.isfinite(vectors).all(axis=0)]
    if not known.shape[1]:
        return np.full(len(vectors), np.nan, np.float32)
    pooled: np.ndarray = known.mean(axis=1, dtype=np.float64) if pooling == 'mean' else known.max(axis=1)
    return pooled.astype(np.float32)


def embed_batches(
    encoder: Encoder, batches: Iterator[np.ndarray], total: int, *, pooling: Pooling | None
) -> Iterator[np.ndarray]:
    """Embed batches of images (n, bands, H, W), no larger than a tile, NaN where there is no data.

    Args:
        encoder: Of their bands.
        batches: Of images.
        total: Number of images, for the progress bar.
        pooling: None for grids.

    Yields:
        For each image a vector (dimensions,), or a grid (dimensions, rows, columns).
    """
    micro = tiles.MicroBatches(encoder.encode)
    with ProgressBar(total, 'embedding', 'image') as bar:
        for batch in batches:
            for part, (grids, tokens) in micro.parts(torch.from_numpy(batch)):
                values = grids.float().cpu().numpy()
                firsts = None if tokens is None else tokens.float().cpu().numpy()
                for number, image in enumerate(batch[part]):
                    grid = values[number]
                    absent = _absent(image, encoder.network.stride)
                    if absent.any():
                        grid[:, absent] = np.nan
                    token = None if firsts is None or absent.all() else firsts[number]
                    if pooling is None:
                        yield grid
                    elif absent.all():
                        yield np.full(len(grid), np.nan, np.float32)
                    else:
                        yield pool(EmbeddedImage(grid, token), pooling)
                bar.update(len(values))


def _absent(image: np.ndarray, stride: int) -> np.ndarray:
    """Return which tokens of an image (bands, H, W) lack data."""
    gaps = np.isnan(image).any(axis=0)
    height, width = gaps.shape
    if not gaps.any():
        return np.zeros((-(-height // stride), -(-width // stride)), bool)
    padded = np.pad(gaps, ((0, -height % stride), (0, -width % stride)), constant_values=True)
    return coarse.coarsen_absent(padded, (0, 0), (height, width), stride)


def batch_size_of(shape: tuple[int, int], batch_size: int | None, device: torch.device) -> int:
    """Return how many images of a height and width are embedded together on a device."""
    if batch_size is not None:
        return batch_size
    pixels = CPU_PIXELS_AT_ONCE if device.type == 'cpu' else PIXELS_AT_ONCE
    return min(max(pixels // (shape[0] * shape[1]), 1), MOST_AT_ONCE)


class MemoryRaster(Raster):
    """An image that memory holds, read as rasters are.

    Args:
        pixels: (bands, H, W) float32, NaN where there is no data.
        box: Its place; None for none.
    """

    def __init__(self, pixels: np.ndarray, box: GeoBox | None = None) -> None:
        count, height, width = pixels.shape
        self._pixels = pixels
        super().__init__(
            'the array',
            GeoBox((height, width), Affine.identity(), None) if box is None else box,
            dtypes=[str(pixels.dtype)] * count,
            descriptions=[None] * count,
            nodatavals=[None] * count,
            block_shapes=[(min(256, height), width)] * count,
            scales=[1.0] * count,
            offsets=[0.0] * count,
            colorinterp=[ColorInterp.undefined] * count,
            crs=None if box is None else box.crs,
        )

    def read_masked(
        self, window: Window, indexes: Sequence[int], out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window that lies inside the image."""
        rows = slice(int(window.row_off), int(window.row_off + window.height))
        cols = slice(int(window.col_off), int(window.col_off + window.width))
        found = self._pixels[[index - 1 for index in indexes], rows, cols]
        gaps = np.isnan(found).any(axis=0)
        if out is not None:
            out[...] = found
            found = out
        return found, ~gaps if gaps.any() else None


class GridStore:
    """Takes the rows of one grid into memory.

    Args:
        dimensions: Of the vectors.
        window: Of the grid of the whole raster.
        parts: What it is computed in.
    """

    def __init__(self, dimensions: int, window: Window, parts: Sequence[Part]) -> None:
        self.next_rows = [part.top for part in parts]
        self._parts, self._corner = parts, (int(window.row_off), int(window.col_off))
        self.values = np.full((dimensions, int(window.height), int(window.width)), np.nan, np.float32)

    def write(self, part: int, row: int, pixels: Sequence[np.ndarray]) -> None:
        """Take rows of a part."""
        (values,), core = pixels, self._parts[part].core
        top, left = row - self._corner[0], int(core.col_off) - self._corner[1]
        self.values[:, top : top + values.shape[1], left : left + values.shape[2]] = values


StoreMaker = Callable[[int, Window, Sequence[Part]], Any]
"""Makes what takes the rows: of vectors of so many dimensions, in a window of the grid, computed in these parts."""


def stream_grid(
    encoder: Encoder,
    source: Source,
    make_store: StoreMaker,
    *,
    read: ReadOptions,
    tiling: TilingOptions,
    area: PixelArea | None = None,
    progress: map_progress.ProgressFn | None = None,
) -> Any:
    """Embed an open raster tile by tile, and hand the rows of its grid to a store.

    Args:
        encoder: Of its bands.
        source: The raster.
        make_store: Makes the store, which is returned when it has all rows.
        read: How stored values become the network's units.
        tiling: How tiles are cut; its tile size is that of the encoder, where it names none.
        area: What is embedded, in pixels of the raster; None for all.
        progress: Called after each batch of tiles.

    Raises:
        RasterError: If the raster cannot be read.
    """
    network, stride = encoder.network, encoder.network.stride
    blend = computing.choose_blend(network, tiling)
    side, halo = computing.choose_tile(encoder.spec, network, with_side(tiling, encoder.side), blend=blend)
    grid = computing.cut_raster(network, source.box, tiling, tile_size=side, halo=halo, stride=stride)
    layers = make_layers(encoder.encoding())
    whole = Window(0, 0, source.shape[1], source.shape[0])
    window = coarse.coarsen_window(whole if area is None else area.window, stride)
    parts = map_parts.divide_parts([source], grid, window, layers, tiling, blend, stride=stride)
    store = make_store(network.dimensions, window, parts)
    with torch.inference_mode():
        map_parts.compute_parts(
            [source],
            computing.make_compute(network, [source], grid.enlarged(stride), tiling),
            grid,
            parts,
            layers,
            store,
            read=read,
            tiling=tiling,
            blend=blend,
            every_date=False,
            area=area,
            progress=progress,
            stride=stride,
        )
    return store


def with_side(tiling: TilingOptions, side: int) -> TilingOptions:
    """Return the options with the side of the encoder's images, where they name none."""
    return tiling if tiling.tile_size is not None else replace(tiling, tile_size=side)


def embed_image(
    encoder: Encoder, pixels: np.ndarray, *, pooling: Pooling | None, blend: Blend | None = None
) -> np.ndarray:
    """Embed an image (bands, H, W) of any size, NaN where there is no data: a vector, or with no pooling the grid.

    Raises:
        ValueError: If it is of several tiles, which have no one class token, and that is asked for.
    """
    if max(pixels.shape[1:]) <= encoder.side:
        return next(embed_batches(encoder, iter([pixels[None]]), 1, pooling=pooling))
    if pooling == 'cls':
        raise ValueError(SEVERAL.format(side=encoder.side))
    source = Source(MemoryRaster(pixels), tuple(range(1, len(pixels) + 1)))
    tiling = TilingOptions(blend=blend, batch_size=encoder.images)
    store = stream_grid(encoder, source, GridStore, read=ReadOptions(), tiling=tiling)
    return store.values if pooling is None else pool(EmbeddedImage(store.values, None), pooling)


def as_images(source: Any, nodata: NoData) -> np.ndarray:
    """Return arrays or tensors (bands, H, W) or (items, bands, H, W) with items, NaN where there is no data.

    Raises:
        ValueError: If they are of another shape or hold no numbers, or there is not one NoData value for each band.
    """
    masked = np.ma.getmaskarray(source) if isinstance(source, np.ma.MaskedArray) else None
    array = np.asarray(source.detach().cpu() if isinstance(source, torch.Tensor) else np.ma.getdata(source))
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(
            f'images are (bands, height, width), or (items, bands, height, width) for several; got an array of shape '
            f'{array.shape}'
        )
    if array.dtype.kind not in 'iufb':
        raise ValueError(f'pixels must be real numbers, got an array of {array.dtype}')
    images = array.astype(np.float32)
    gaps = ~np.isfinite(images)
    values = list(nodata) if isinstance(nodata, Sequence) else [nodata] * array.shape[-3]
    if len(values) != array.shape[-3]:
        raise ValueError(f'nodata must be a number, or one for each of {array.shape[-3]} bands; got {len(values)}')
    for band, value in enumerate(values):
        if value is not None and not np.isnan(value):
            gaps[..., band, :, :] |= array[..., band, :, :] == value
    if masked is not None:
        gaps |= masked
    images, gaps = (part[None] if array.ndim == 3 else part for part in (images, gaps))
    # missing in one band is missing in all
    images[np.broadcast_to(gaps.any(axis=1, keepdims=True), images.shape)] = np.nan
    return images
