"""`predict_raster`, a function that each class of models of pixels takes as its method.

A class between `Model` and those classes, for one method, would be one more level to read through.
"""

import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from geolearn.errors import RasterError
from geolearn.inference import area, cluster, lines, map_progress, mapping, reading, shares
from geolearn.inference.encoding import Output, ProbabilityType
from geolearn.inference.engines import Engine
from geolearn.inference.layers import Encoding
from geolearn.inference.options import NoData, ReadOptions, Resolution, Scale, TilingOptions
from geolearn.inference.plan import Blend, choose_share
from geolearn.inference.targets import check_target, claim_target
from geolearn.inference.vectors import check_vector_target
from geolearn.networks.spec import ModelSpec
from geolearn.precision import Precision
from geolearn.raster import Dequantize


class MapsPixels(Protocol):
    """What is needed of a model whose output has a value for each pixel."""

    spec: ModelSpec
    network: Any
    needs_every_date: ClassVar[bool]

    @property
    def encoding(self) -> Encoding:
        """How the network's outputs become a map's pixels."""

    def onnx_graph(self, shape: tuple[int, int]) -> bytes:
        """Return the network as an ONNX graph that takes images of a height and width."""


def predict_raster(
    self: MapsPixels,
    src: reading.RasterSource,
    dst: str | Path,
    *,
    bands: Sequence[str] | None = None,
    sensor: str | None = None,
    scale: Scale | None = None,
    offset: float = 0.0,
    nodata: NoData = None,
    dequantize: Dequantize | None = None,
    product: str | None = None,
    resolution: Resolution | None = None,
    dates: Sequence[date | str] | None = None,
    aoi: Any = None,
    bbox: Sequence[float] | None = None,
    bbox_crs: str | int | None = None,
    outputs: Sequence[Output] = ('classes',),
    probability_dtype: ProbabilityType = 'uint8',
    layout: Literal['files', 'bands'] = 'files',
    tile_size: int | None = None,
    halo: int | None = None,
    blend: Blend | None = None,
    augment: bool | Literal['flips'] = False,
    batch_size: int | None = None,
    device: str | None = None,
    compile: bool = False,
    engine: Engine = 'torch',
    mixed_precision: Precision | bool | None = None,
    max_memory: int | None = None,
    overwrite: bool = False,
    cog: bool = True,
    resume: bool = False,
    part: tuple[int, int] | None = None,
    merge_parts: bool = False,
    client: Any = None,
    progress: map_progress.ProgressFn | None = None,
) -> Path:
    """Map a raster of any size to a GeoTIFF: of class values, or of float32 values in regression, NaN for NoData.

    Memory depends on the tile size and the raster's width, never on its area. Bands are matched by name, else by
    count, else refused. Pixels without data come out as NoData.

    Args:
        self: The model.
        src: A raster, or several that make one mosaic. For models of several dates a list of one such for each
            date, oldest first, or one raster with all bands of the first date before those of the second.
        dst: GeoTIFF to write; it appears only when it is whole.
        bands: Names of the raster's bands in file order, where the file names none or wrong ones.
        sensor: Whose names the bands have, such as ``'Sentinel-2'`` for ``'B04'``; color names need none.
        scale: Multiplies pixel values, where the raster's units are not those of the training chips. Values far
            from what the model was trained on are refused, unless 1 is given, which asserts that they are right.
            ``'db'`` makes decibels of radar bands that are linear power.
        offset: Is added after that.
        nodata: Value that marks missing pixels where the file does not say so, or one for each band of the file.
        dequantize: How the stored codes of precomputed embeddings become vectors, ``'alphaearth'`` or ``'tessera'``;
            None does what the model was trained with.
        product: Name and version of the embeddings that the raster holds, such as ``'alphaearth v1'``, where its tags
            and file names do not say it. Another product or version than that of training is refused.
        resolution: Side of the pixels to resample to while reading, in units of the raster's CRS, or
            ``'training'``. Without it, rasters whose pixels are over 1.5 times larger or smaller than in training
            are refused.
        dates: When the images were taken, one for each date, such as ``['2024-05-01']``, for networks that read it;
            None takes what the files state.
        aoi: Area to map, the rest is NoData: a vector file or GeoDataFrame, which is reprojected; or a geometry in
            the raster's CRS. The map ends where the area does.
        bbox: Left, bottom, right, top of the part to map, in the raster's CRS or `bbox_crs`.
        bbox_crs: CRS of `bbox`, such as ``'EPSG:4326'``; None for the raster's.
        outputs: What to write: ``'classes'``, ``'probabilities'`` (a band for each class) and ``'confidence'`` (the
            highest probability); classifiers only. The first goes to `dst`, others to files beside it, such as
            ``map_confidence.tif``. Probabilities are calibrated where `calibrate` was called.
        probability_dtype: Of probabilities and confidence: ``'uint8'`` in steps of 0.004, which the file states as
            its scale, 255 for NoData; ``'float16'`` or ``'float32'``, NaN for NoData.
        layout: ``'bands'`` puts all outputs into one file of `probability_dtype`, classes first.
        tile_size: Side of the tiles in pixels; None takes 512, or the chip size if larger, for convolutions, and for
            large rasters 256 or 768 where a short measurement finds them faster by a tenth; for backbones with a
            position grid the chip size, or twice of it with ``blend='crop'``. The tags of the map state it.
        halo: Half of what neighboring tiles share, at least; None takes 32, or an eighth of the chip size for
            backbones with a position grid.
        blend: How neighboring tiles meet: ``'hann'`` lets outputs fade into each other over what tiles share,
            ``'crop'`` cuts in the middle of it. None takes ``'hann'`` for backbones with a position grid, where
            lines would show; it computes each pixel 1.8 times, 1.3 times with ``'crop'``.
        augment: Test-time augmentation: the mean over 8 flips and turns of each tile, at 8 times the cost, or
            ``'flips'``, over 4 flips at 4 times the cost.
        batch_size: Tiles computed together; None takes 1 on a CPU, where a map is the same for any, and on graphics
            cards 4 or what a short measurement finds fastest.
        device: Torch device; None means CUDA where there is one.
        compile: Compile the network first: up to a minute, then convolutions run 1.1 to 1.4 times as fast.
        engine: What computes: ``'torch'``; on the CPU also ``'onnx'`` (onnxruntime) and ``'openvino'``, which run the
            network's ONNX graph, of the bundle where ``save(..., export='onnx')`` wrote one, else made first; or
            ``'auto'``, the fastest of those installed by a short measurement. Maps may differ in a few pixels.
        mixed_precision: ``'bf16'`` computes matrix products and convolutions in half precision: on graphics cards, and
            on CPUs with instructions for it, 1.6 to 1.9 times as fast; about 1 pixel of 100 to 500 gets another class.
            ``'fp16'`` is for CUDA alone, True takes the better of them on a GPU. None computes in float32. With
            ``engine='openvino'`` and ``'auto'`` too; onnxruntime computes in float32 on CPUs.
        max_memory: Bytes that rows and tiles may take, besides the network and what it computes; None for 160 MiB, or
            72 MiB where a raster is stored in tiles and ``blend`` is ``'crop'``. Wider rasters are mapped in parts side
            by side, at the cost of reading some blocks twice.
        overwrite: Replace files that exist.
        cog: Write cloud-optimized GeoTIFFs, with overviews; False writes plain ones.
        resume: Continue a run that was killed or failed, from what is kept in the folder ``<dst>.part``; the map is
            the same to the byte as that of a run without a break.
        part: Compute one of several parts of the map alone, for machines that share a disk: ``(3, 40)`` is the third of
            forty. It stays in the folder ``<dst>.part``, which is returned; the same call again does only what is
            missing.
        merge_parts: Write the map, once all its parts are computed: the same to the byte as that of one machine.
        client: A `dask.distributed.Client`: its workers, which see the same disk, compute the map in blocks. A block
            that fails is tried again twice. The map is the same to the byte, and the same call again does only what is
            missing.
        progress: Called with a `geolearn.inference.map_progress.MapProgress` after each batch of tiles (on a cluster:
            after each block), and twice a second while the files are made.

    Returns:
        The path written.

    Raises:
        RasterError: If bands, units, dates or pixel sizes do not fit, `dst` exists, or reading or writing fails; no
            part of `dst` is left.
        CheckpointError: If there is no run to resume, or what is finished cannot be kept.
        ExportError: If another engine than torch cannot run the network.
        MissingExtraError: If that engine is not installed.
    """
    request = mapping.MapRequest(
        src,
        dst,
        ReadOptions(
            bands,
            sensor,
            scale,
            offset,
            nodata,
            resolution,
            self.spec.is_radar,
            area.AreaOfInterest(aoi, bbox, bbox_crs),
            dequantize,
            product,
            dates,
        ),
        TilingOptions(
            tile_size,
            halo,
            batch_size,
            device,
            compile,
            blend=blend,
            augment=augment,
            max_memory=max_memory,
            engine=engine,
            mixed_precision=mixed_precision,
        ),
        mapping.MapOptions(
            outputs,
            probability_dtype,
            layout,
            cog=cog,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
        ),
        self.needs_every_date,
        self.onnx_graph,
    )
    model = self.spec, self.network, self.encoding
    share = choose_share(part, merge_parts=merge_parts)
    if client is not None:
        cluster.refuse_parts(part, merge_parts=merge_parts)
        return cluster.map_on_cluster(self, request, client)
    if share is not None or merge_parts:
        return shares.map_in_shares(*model, request, share)
    return mapping.map_request(*model, request)


class MapsLines(MapsPixels, Protocol):
    """What is needed of a model some of whose classes are lines."""

    def _lines(self) -> tuple[int, ...]:
        """Return the indices of the classes that the loss knows as lines."""

    def predict_raster(
        self,
        src: reading.RasterSource,
        dst: str | Path,
        *,
        bands: Sequence[str] | None,
        sensor: str | None,
        scale: Scale | None,
        offset: float,
        nodata: NoData,
        resolution: Resolution | None,
        dates: Sequence[date | str] | None,
        aoi: Any,
        bbox: Sequence[float] | None,
        bbox_crs: str | int | None,
        outputs: Sequence[Output],
        tile_size: int | None,
        augment: bool | Literal['flips'],
        batch_size: int | None,
        device: str | None,
        cog: bool,
    ) -> Path:
        """Map a raster."""


def predict_lines(
    self: MapsLines,
    src: reading.RasterSource,
    dst: str | Path,
    *,
    classes: Sequence[int] | None = None,
    threshold: float = 0.5,
    min_length: float = 20.0,
    simplify: float = 1.0,
    bridge: float = 20.0,
    most_width: int = 64,
    bands: Sequence[str] | None = None,
    sensor: str | None = None,
    scale: Scale | None = None,
    offset: float = 0.0,
    nodata: NoData = None,
    resolution: Resolution | None = None,
    dates: Sequence[date | str] | None = None,
    aoi: Any = None,
    bbox: Sequence[float] | None = None,
    bbox_crs: str | int | None = None,
    tile_size: int | None = None,
    augment: bool | Literal['flips'] = False,
    batch_size: int | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the center lines of roads, rivers or edges in a raster of any size as a layer.

    Probabilities are mapped, what is above `threshold` is thinned, spurs shorter than the line is wide are removed,
    ends that point at each other are joined, and short lines are left out. Lines are connected across tiles, and
    reach the edge where they leave the raster. Memory depends on the raster's width and on the length of the lines.

    Args:
        self: The model.
        src: A raster, or several that make one mosaic; see `predict_raster` for this and for how it is read.
        dst: Layer to write: .gpkg, .parquet, .geojson (which is in WGS84) or .shp.
        classes: Label values of the classes that are lines; None takes those that the loss knows by its
            ``cldice_fraction``, else all but 0.
        threshold: Lowest probability of a line's pixel.
        min_length: Pixels; what is connected and shorter, all its lines together, is left out.
        simplify: Pixels by which lines may move to have fewer points; 0 leaves them as they are.
        bridge: Pixels; the longest gap between two ends that point at each other, within 30 degrees.
        most_width: Pixels; what is wider is no line, and is left out.
        bands: Names of the raster's bands in file order, where the file names none or wrong ones.
        sensor: Whose names the bands have.
        scale: Multiplies pixel values, where the raster's units are not those of the training chips.
        offset: Is added after that.
        nodata: Value that marks missing pixels where the file does not say so, or one for each band of the file.
        resolution: Side of the pixels to resample to while reading, in units of the raster's CRS, or ``'training'``.
        dates: When the images were taken, one for each date, such as ``['2024-05-01']``, for networks that read it;
            None takes what the files state.
        aoi: Area to map: a vector file or GeoDataFrame, or a geometry in the raster's CRS.
        bbox: Left, bottom, right, top of the part to map, in the raster's CRS or `bbox_crs`.
        bbox_crs: CRS of `bbox`, such as ``'EPSG:4326'``; None for the raster's.
        tile_size: Side of the tiles in pixels.
        augment: Test-time augmentation; see `predict_raster`.
        batch_size: Tiles computed together.
        device: Torch device; None means CUDA where there is one.
        overwrite: Replace `dst` if it exists.

    Returns:
        The path written. Columns: ``Class`` (name), ``value``, ``length`` and ``width`` (in units of the CRS; meters
        where these are degrees) and ``Confidence`` (mean probability in percent); the longest first.

    Raises:
        RasterError: If bands, units or pixel sizes do not fit, `dst` exists, or reading fails.
        FileWriteError: If `dst` cannot be written; no part of it is left.
        MissingExtraError: If the libraries of the extra ``vector`` are not installed.
        ValueError: If a number is out of its range, or it is not clear which classes are lines.
    """
    if self.needs_every_date:
        raise RasterError(f'{self.spec.model} maps pairs of rasters; lines come from models of one raster')
    options = lines.LineOptions(threshold, min_length, simplify, bridge, most_width)
    chosen = lines.choose_line_bands(self.spec.class_infos, classes, self._lines())
    target = check_target(src, check_vector_target(dst), overwrite=overwrite, layers=[aoi])
    with claim_target(target), tempfile.TemporaryDirectory(dir=target.parent, prefix='.geolearn-lines-') as folder:
        mapped = self.predict_raster(
            src,
            Path(folder, 'probabilities.tif'),
            bands=bands,
            sensor=sensor,
            scale=scale,
            offset=offset,
            nodata=nodata,
            resolution=resolution,
            dates=dates,
            aoi=aoi,
            bbox=bbox,
            bbox_crs=bbox_crs,
            outputs=('probabilities',),
            tile_size=tile_size,
            augment=augment,
            batch_size=batch_size,
            device=device,
            cog=False,
        )
        return lines.vectorize_lines(mapped, target, chosen, options)
