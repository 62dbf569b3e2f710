"""`embed_raster`: a raster of any size as a georeferenced grid of vectors, or a vector for each zone of a layer."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from geolearn import errors
from geolearn.bands import Band
from geolearn.embed import opening, scaling
from geolearn.embed.encoder import Encoder, EncoderOptions, Pooling, check_pooling, check_positive
from geolearn.embed.zones import pool_zones
from geolearn.inference import map_progress, mapping, reading
from geolearn.inference.area import AreaOfInterest
from geolearn.inference.options import NoData, ReadOptions, Scale, TilingOptions
from geolearn.inference.plan import Blend
from geolearn.inference.targets import check_target, claim_target

StoredType = Literal['float32', 'float16']
"""How the numbers of vectors are stored."""


@dataclass(frozen=True)
class GridOptions:
    """How a raster is cut and read, and how its grid is written; None leaves it to the encoder.

    Args:
        tile_size: Side of the images that are computed, in pixels.
        halo: Half of what neighboring tiles share, at least.
        blend: How neighboring tiles meet.
        batch_size: Tiles that are read together.
        max_memory: Bytes that rows and tiles may take.
        aoi: Area to embed.
        bbox: Left, bottom, right, top of the part to embed.
        bbox_crs: CRS of `bbox`.
        resolution: Side of the pixels to resample to while reading.
        dtype: How numbers are stored.
        cog: Whether to write a cloud-optimized GeoTIFF.
        overwrite: Replace a file that exists.
        resume: Continue a run that was killed or failed.
        progress: Called after each batch of tiles.

    Raises:
        UnknownNameError: If there is no such type.
        ValueError: If a size or number is not above 0.
    """

    tile_size: int | None = None
    halo: int | None = None
    blend: Blend | None = None
    batch_size: int | None = None
    max_memory: int | None = None
    aoi: Any = None
    bbox: Sequence[float] | None = None
    bbox_crs: str | int | None = None
    resolution: float | None = None
    dtype: StoredType = 'float32'
    cog: bool = True
    overwrite: bool = False
    resume: bool = False
    progress: map_progress.ProgressFn | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ('float32', 'float16'):
            raise errors.UnknownNameError('dtype', str(self.dtype), ('float32', 'float16'))
        for name, what in (('tile_size', 'pixels'), ('batch_size', 'tiles')):
            check_positive(name, getattr(self, name), what)

    @property
    def area(self) -> AreaOfInterest:
        """What is embedded."""
        return AreaOfInterest(self.aoi, self.bbox, self.bbox_crs)

    def tiling(self, encoder: Encoder) -> TilingOptions:
        """Return how tiles are cut for an encoder."""
        side = encoder.side if self.tile_size is None else self.tile_size
        return TilingOptions(
            side,
            self.halo,
            self.batch_size or encoder.images,
            str(encoder.device),
            blend=self.blend,
            max_memory=self.max_memory,
        )


def embed_raster(
    src: reading.RasterSource,
    dst: str | Path,
    backbone: str = 'dofa_base',
    *,
    layer: int = -1,
    normalize: scaling.Normalize = None,
    bands: str | Sequence[Band | str] | None = None,
    sensor: str | None = None,
    wavelengths: Sequence[float | None] | None = None,
    scale: Scale | None = None,
    offset: float = 0.0,
    nodata: NoData = None,
    resolution: float | None = None,
    aoi: Any = None,
    bbox: Sequence[float] | None = None,
    bbox_crs: str | int | None = None,
    zones: Any = None,
    zones_layer: str | None = None,
    pooling: Pooling = 'mean',
    tile: int | None = None,
    context: int | None = None,
    halo: int | None = None,
    blend: Blend | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    max_memory: int | None = None,
    dtype: StoredType = 'float32',
    cog: bool = True,
    overwrite: bool = False,
    resume: bool = False,
    resolution_m: float | None = None,
    pretrained: bool = True,
    weights: str | Path | None = None,
    check_values: bool = True,
    progress: map_progress.ProgressFn | None = None,
) -> Path:
    """Write the embeddings of a raster of any size: a grid of vectors, or a vector for each zone of a layer.

    The grid has a pixel for each token, as large as the stride of the backbone, and a band for each number of the
    vectors; it begins at the raster's upper left corner. Memory depends on the tile size and the raster's width, never
    on its area. Transformers see images of one size, `context`, whatever the tile size, so that grids of different tile
    sizes are the same; those of convolutional networks are, away from the borders of tiles.

    Args:
        src: A raster, or several that make one mosaic.
        dst: GeoTIFF or Zarr store (``.zarr``, with a variable for each number of the vectors) to write, or with
            `zones` a GeoParquet file; it appears only when it is whole.
        backbone: Its name; see `geolearn.list_backbones`.
        layer: Whose output is taken; see `embed`.
        normalize: What pixels are normalized by; see `embed`.
        bands: The bands to take, by name; or the names of all bands in file order, where the file names none.
        sensor: Whose names the bands have, such as ``'Sentinel-2'`` for ``'B04'``.
        wavelengths: Center of each band in micrometers, None for radar, instead of what the bands' names say.
        scale: Multiplies pixel values before they are normalized; ``'db'`` makes decibels of radar bands that are
            linear power.
        offset: Is added after that.
        nodata: Value that marks missing pixels where the file does not say so, or one for each band of the file.
        resolution: Side of the pixels to resample to while reading, in units of the raster's CRS.
        aoi: Area to embed, the rest is NoData: a vector file or GeoDataFrame, which is reprojected; or a geometry in
            the raster's CRS.
        bbox: Left, bottom, right, top of the part to embed, in the raster's CRS or `bbox_crs`.
        bbox_crs: CRS of `bbox`, such as ``'EPSG:4326'``; None for the raster's.
        zones: Polygons, lines or points, each of which gets one vector: a vector file or GeoDataFrame, which is
            reprojected. Tokens weigh by the share of them that a polygon covers; a polygon that is smaller than a token
            and a point get the vector of the token they lie in. The columns of the layer are kept.
        zones_layer: Layer of the file of zones; None takes the only one.
        pooling: ``'mean'`` or ``'max'`` over the tokens of a zone.
        tile: Side of the tiles that are computed together, in pixels: memory and speed follow from it. Vectors of
            transformers do not depend on it. None takes what is fast, 512 for convolutional networks.
        context: Side of the images that a transformer sees, in pixels; larger ones are cut into such, which overlap.
            None takes that of its pretraining. A transformer sees all of an image at once, and where in it a token
            lies: vectors of another context are others.
        halo: Half of what neighboring tiles share, at least; None takes an eighth of a tile.
        blend: How neighboring tiles meet: ``'crop'`` cuts in the middle of what they share, ``'hann'`` lets them fade
            into each other, which hides the seams of transformers at 1.4 times the cost. None takes ``'crop'``.
        batch_size: Tiles computed together; None takes 4, or on graphics cards what a short measurement finds fastest.
        device: Torch device; None means CUDA where there is one.
        max_memory: Bytes that rows and tiles may take, besides the network and what it computes; None for 160 MiB.
        dtype: How numbers are stored: ``'float32'``, or ``'float16'`` in half the space.
        cog: Write a cloud-optimized GeoTIFF, with overviews; False writes a plain one.
        overwrite: Replace a file that exists.
        resume: Continue a run that was killed or failed, from what is kept in the folder ``<dst>.part``.
        resolution_m: Of the images in meters per pixel, for backbones whose positions depend on it.
        pretrained: Whether to fill the backbone with its published weights.
        weights: A file or folder with weights, or a .dlpk, instead of fetching them.
        check_values: Whether to refuse values that look normalized already.
        progress: Called with a `geolearn.inference.map_progress.MapProgress` after each batch of tiles, and twice
            a second while the files are made.

    Returns:
        The path written; `Embeddings.load` reads it.

    Raises:
        RasterError: If the raster cannot be read, holds no data, its values look normalized already or are embeddings,
            `dst` exists, or it cannot be written; no part of `dst` is left.
        BackboneError: If the backbone has no such layer, or states no mean and std for these bands.
        BandError: If nothing says what the bands are, or one lacks a wavelength that the backbone needs.
        CheckpointError: If there is no run to resume, or what is finished cannot be kept.
        UnknownNameError: If there is no such backbone, sensor, pooling or normalization.
        ValueError: If options do not go together.
        WeightsError: If weights cannot be had or do not fit.
    """
    target = check_target(src, Path(dst).expanduser(), overwrite=overwrite, layers=[zones, aoi])
    encoding = EncoderOptions(
        backbone, layer, normalize, pretrained, weights, wavelengths, resolution_m, tile, context, device, check_values
    )
    options = GridOptions(
        None,
        halo,
        blend,
        batch_size,
        max_memory,
        aoi,
        bbox,
        bbox_crs,
        resolution,
        dtype,
        cog=cog,
        overwrite=overwrite,
        resume=resume,
        progress=progress,
    )
    wanted = opening.Wanted(bands, sensor, nodata, scale, offset)
    with ExitStack() as stack:
        opened = opening.open_to_embed(src, encoding, wanted, stack)
    if zones is None:
        return write_grid(opened.encoder, src, target, read=opened.read, options=options)
    return write_zones(
        opened.encoder, src, target, read=opened.read, options=options, layer=zones_layer, zones=zones, pooling=pooling
    )


def write_grid(
    encoder: Encoder, src: reading.RasterSource, dst: Path, *, read: ReadOptions, options: GridOptions
) -> Path:
    """Write the grid of a raster; see `embed_raster`.

    Args:
        encoder: Of the raster's bands.
        src: The raster.
        dst: GeoTIFF or Zarr store to write.
        read: How stored values become the encoder's units.
        options: How the raster is cut, and the grid written.
    """
    tiling = options.tiling(encoder)
    encoder = encoder.cutting(tiling)
    request = mapping.MapRequest(
        src,
        dst,
        replace(read, area=options.area, resolution=options.resolution),
        tiling,
        mapping.MapOptions(
            cog=options.cog, overwrite=options.overwrite, resume=options.resume, progress=options.progress
        ),
        every_date=False,
        stride=encoder.network.stride,
    )
    return mapping.map_request(encoder.spec, encoder.network, encoder.encoding(options.dtype), request)


def write_zones(
    encoder: Encoder,
    src: reading.RasterSource,
    dst: Path,
    *,
    read: ReadOptions,
    options: GridOptions,
    zones: Any,
    layer: str | None = None,
    pooling: Pooling = 'mean',
) -> Path:
    """Write a vector for each zone of a layer; see `embed_raster`.

    Args:
        encoder: Of the raster's bands.
        src: The raster.
        dst: GeoParquet to write.
        read: How stored values become the encoder's units.
        options: How the raster is cut.
        zones: A vector file or GeoDataFrame.
        layer: Of the file; None takes the only one.
        pooling: ``'mean'`` or ``'max'``.

    Raises:
        ValueError: If options do not go together.
    """
    check_pooling(pooling, encoder.network)
    if pooling == 'cls':
        raise ValueError("a zone has no class token; pass pooling='mean' or 'max'")
    if options.aoi is not None or options.bbox is not None or options.resume:
        raise ValueError('zones say themselves what is embedded, in one run; leave out aoi, bbox and resume')
    tiling = options.tiling(encoder)
    encoder = encoder.cutting(tiling)
    with ExitStack() as stack:
        stack.enter_context(claim_target(dst))
        (source,) = reading.open_dates(src, encoder.spec, replace(read, resolution=options.resolution), stack)
        return pool_zones(
            encoder,
            source,
            zones,
            dst,
            read=read,
            tiling=tiling,
            layer=layer,
            pooling=pooling,
            progress=options.progress,
        )
