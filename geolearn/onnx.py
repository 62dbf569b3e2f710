"""Use the ONNX graph of a bundle on rasters: onnxruntime, numpy and rasterio are enough, torch is not needed.

Tiles, overlaps, NoData, checks of bands, units and pixel sizes, and class values are those of `predict_raster` and
`detect_objects`.
"""

import argparse
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rasterio.windows import Window

from geolearn import errors, extras, tiling
from geolearn.arguments import check_call, check_methods
from geolearn.bundle import DetectionFacts, Export, GraphFacts, find_bundle, read_emd, read_onnx
from geolearn.inference.area import AreaOfInterest, layers_of
from geolearn.inference.engines import FLIPS, PROVIDERS, TURNS, augment_outputs, open_session
from geolearn.inference.flipped import detect_flipped
from geolearn.inference.geojson import write_geojson
from geolearn.inference.layers import map_tags, plain_layer
from geolearn.inference.map_parts import compute_parts, divide_parts, write_map
from geolearn.inference.merging import Merge
from geolearn.inference.options import NoData, ReadOptions, Resolution, Scale, TilingOptions
from geolearn.inference.picking import pick_objects
from geolearn.inference.placing import ArrayDetections, DetectOptions, choose_halo, detect_in_tiles, merge_tiles
from geolearn.inference.plan import Blend, tiles_reaching
from geolearn.inference.reading import RasterSource, locate_area, open_dates
from geolearn.inference.resume import open_checkpoint, run_facts
from geolearn.inference.source import Source
from geolearn.inference.store import PieceStore, open_journal
from geolearn.inference.targets import check_space, check_target
from geolearn.inference.vectors import check_crs, check_vector_target, objects_to_features, write_layer
from geolearn.networks.spec import ModelSpec, decode
from geolearn.raster.acquisition import FAR_KM, acquisition_date, distance_km, middle_of
from geolearn.raster.area import PixelArea
from geolearn.raster.arrays import is_zarr
from geolearn.raster.ground import other_resolution
from geolearn.raster.opening import find_driver


@check_methods
class OnnxModel:
    """The graph of a bundle.

    Args:
        spec: Of the model.
        facts: Of the graph.
        session: onnxruntime's, which holds it.
        digest: A hash of the graph: runs of another one are not resumed.
        most_at_once: Images that are computed together for rasters; None for any number. On CPUs images of a batch
            round otherwise than single ones, which are as fast.
    """

    def __init__(
        self, spec: ModelSpec, facts: GraphFacts, session: Any, *, digest: str = '', most_at_once: int | None = 1
    ) -> None:
        self.spec, self.facts, self._session = spec, facts, session
        self._digest, self._most = digest, most_at_once

    def run(self, images: np.ndarray) -> np.ndarray:
        """Compute outputs of images.

        Args:
            images: (N, bands, H, W), or (N, dates, bands, H, W) of models of several dates, in the units of the
                training chips, NaN where there is no data; of any size, which is filled up to what the graph takes.

        Returns:
            (N, outputs, H, W) float32, or (N, classes) of classifiers of chips: logits, or values.
        """
        height, width = images.shape[-2:]
        wanted = self._filled((height, width))
        room = [(0, 0)] * (images.ndim - 2) + [(0, side - own) for side, own in zip(wanted, (height, width))]
        if min(after for _, after in room) < 0:
            raise ValueError(f'this graph takes images of up to {wanted} pixels, got {(height, width)}')
        filled = np.pad(np.asarray(images, np.float32), room, constant_values=np.nan) if any(map(any, room)) else images
        outputs: np.ndarray = self._session.run(None, {'images': np.ascontiguousarray(filled, np.float32)})[0]
        return outputs[..., :height, :width] if outputs.ndim == 4 else outputs

    def _filled(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width that images are filled up to."""
        multiple = self.facts.multiple
        height, width = (-(-side // multiple) * multiple for side in shape)
        return self.facts.size or (height, width)

    def detect(
        self,
        images: np.ndarray,
        *,
        threshold: float = 0.5,
        nms_overlap: float = 0.3,
        augment: bool | Literal['flips'] = False,
    ) -> list[ArrayDetections]:
        """Detect the objects in images; for rasters see `detect_objects`.

        Args:
            images: As for `run`.
            threshold: Lowest score of an object, 0..1.
            nms_overlap: Intersection over union of two objects of one class above which the lower-scoring is dropped.
            augment: Detect four times, flipped, and take the mean; ``'flips'`` is the same.

        Returns:
            The objects of each image by descending score: boxes in its pixels, class indices and scores.

        Raises:
            BundleError: If the model detects no objects, or the graph is not what its manifest says.
        """
        shape = (images.shape[-2], images.shape[-1])
        pick = partial(pick_objects, facts=self._detection, filled=self._filled(shape), size=shape)
        if augment:
            return detect_flipped(
                lambda flipped: pick(self.run(flipped)), images, np, threshold=threshold, nms_overlap=nms_overlap
            )
        return pick(self.run(images), threshold=threshold, nms_overlap=nms_overlap)

    @property
    def _detection(self) -> DetectionFacts:
        if self.facts.detection is None:
            raise errors.BundleError(f'a {self.spec.model} detects no objects; use predict_raster, or run()')
        return self.facts.detection

    @property
    def nodata(self) -> float:
        """Of maps: a value that no class has, or NaN."""
        return float('nan') if self.facts.nodata is None else self.facts.nodata

    @property
    def dtype(self) -> str:
        """Of maps."""
        return self.facts.dtype

    @property
    def colors(self) -> Mapping[int, tuple[int, int, int]] | None:
        """Color of each class value of maps; None where they hold others."""
        return {info.value: info.color for info in self.spec.class_infos} if self.facts.output == 'classes' else None

    @property
    def class_names(self) -> Mapping[int, str] | None:
        """Name of each class value of maps; None where they hold others."""
        return {info.value: info.name for info in self.spec.class_infos} if self.facts.output == 'classes' else None

    def encode(self, outputs: np.ndarray) -> np.ndarray:
        """Turn outputs (N, C, H, W) into the pixels of a map (N, H, W): class values, or values."""
        if self.facts.output == 'values':
            return outputs[:, 0].astype(self.facts.dtype)
        values = np.array([info.value for info in self.spec.class_infos], self.facts.dtype)
        found: np.ndarray = values[outputs.argmax(1)]
        return found

    def predict_raster(
        self,
        src: RasterSource,
        dst: str | Path,
        *,
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
        halo: int | None = None,
        augment: bool | Literal['flips'] = False,
        batch_size: int = 4,
        overwrite: bool = False,
        cog: bool = True,
        resume: bool = False,
    ) -> Path:
        """Map a raster of any size to a GeoTIFF, as the `predict_raster` of the model does.

        Args:
            src: A raster, several that make one mosaic, or one such for each date.
            dst: GeoTIFF to write.
            bands: Names of the raster's bands in file order, where it does not say.
            sensor: Sensor whose band names these are.
            scale: Factor that brings values to the units of the training chips; 1 states that they are in them.
            offset: Added after scaling.
            nodata: Value that marks missing pixels, on top of what the file says.
            resolution: Side of the pixels to resample to while reading, or ``'training'``.
            dates: When the images were taken, for networks that read it; None takes what the files state.
            aoi: Area to map, the rest is NoData: a vector file or GeoDataFrame, which is reprojected; or a geometry in
                the raster's CRS. Needs the libraries of the extra ``vector``.
            bbox: Left, bottom, right, top of the part to map, in the raster's CRS or `bbox_crs`.
            bbox_crs: CRS of `bbox`, such as ``'EPSG:4326'``, with the libraries of ``vector``; None for the raster's.
            tile_size: Side of the tiles in pixels; None takes that of `predict_raster`.
            halo: Half of what neighboring tiles share, at least; None takes that of `predict_raster`.
            augment: Test-time augmentation: the mean over 8 flips and turns of each tile, at 8 times the cost, or
                ``'flips'``, over 4 flips at 4 times the cost.
            batch_size: Tiles read together, and computed together but on CPUs.
            overwrite: Replace `dst` if it exists.
            cog: Write a cloud-optimized GeoTIFF, with overviews; False writes a plain one.
            resume: Continue a run that was killed or failed, from what is kept in the folder ``<dst>.part``; on CPUs
                the map is the same to the byte as that of a run without a break.

        Returns:
            The path written.

        Raises:
            RasterError: If bands, units, dates or pixel sizes do not fit, `dst` exists, or reading or writing fails.
            CheckpointError: If there is no run to resume, what is finished cannot be kept, or another run writes `dst`.
            BundleError: If the model does not map pixels.
            MissingExtraError: If libraries for the area are not installed.
            ValueError: If a number is out of its range.
        """
        if self.facts.output == 'chip classes':
            raise errors.BundleError(f'a {self.spec.model} classifies whole images; pass them to run()')
        if self.facts.output == 'objects':
            raise errors.BundleError(f'a {self.spec.model} detects objects; call detect_objects')
        area = AreaOfInterest(aoi, bbox, bbox_crs)
        read = ReadOptions(bands, sensor, scale, offset, nodata, resolution, self.spec.is_radar, area, dates=dates)
        cut = TilingOptions(tile_size, halo, batch_size, augment=augment)
        target = check_target(src, Path(dst).expanduser(), overwrite=overwrite, layers=layers_of(area))
        if not is_zarr(target):
            find_driver(target, by_rows=True)
        with ExitStack() as stack:
            sources = open_dates(src, self.spec, read, stack, whole=True)
            self._check_scene(sources, read)
            grid = self._cut(sources[0], tile_size, halo)
            self._map(sources, grid, target, read, cut, cog=cog, resume=resume)
        return target

    def detect_objects(
        self,
        src: RasterSource,
        dst: str | Path,
        *,
        threshold: float = 0.5,
        nms_overlap: float = 0.3,
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
        overlap: int | None = None,
        batch_size: int = 4,
        augment: bool | Literal['flips'] = False,
        merge: Merge = 'nms',
        overwrite: bool = False,
        resume: bool = False,
    ) -> Path:
        """Find the objects in a raster of any size and write them as a layer, as the model's `detect_objects` does.

        Args:
            src: As for `predict_raster`; so are `bands` to `bbox_crs`.
            dst: Layer to write: .geojson, which is in WGS84; or .gpkg, .parquet or .shp with the libraries of the extra
                ``vector``.
            threshold: Lowest score of an object, 0..1.
            nms_overlap: Two objects of one class that overlap more, intersection over union, are merged.
            bands: Names of the raster's bands in file order, where it does not say.
            sensor: Sensor whose band names these are.
            scale: Factor that brings values to the units of the training chips; 1 states that they are in them.
            offset: Added after scaling.
            nodata: Value that marks missing pixels, on top of what the file says.
            resolution: Side of the pixels to resample to while reading, or ``'training'``.
            dates: When the images were taken, for networks that read it; None takes what the files state.
            aoi: Area that holds the middles of the objects' boxes.
            bbox: Left, bottom, right, top of such a part, in the raster's CRS or `bbox_crs`.
            bbox_crs: CRS of `bbox`; None for the raster's.
            tile_size: Side of the tiles in pixels; None takes that of `detect_objects`.
            overlap: Pixels that tiles share; None takes what nearly all objects fit in, at most half a tile.
            batch_size: Tiles read together, and computed together but on CPUs.
            augment: Detect in each tile four times, flipped, and take the mean, at 4 times the cost; ``'flips'`` is the
                same.
            merge: What becomes of objects of one class that overlap: ``'nms'``, ``'soft_nms'`` or ``'weighted'``.
            overwrite: Replace `dst` if it exists.
            resume: Continue a run that was killed or failed, from what is kept in ``<dst>.part``.

        Returns:
            The path written.

        Raises:
            RasterError: If bands, units, dates or pixel sizes do not fit, `dst` exists, or reading or writing fails.
            CheckpointError: If there is no run to resume, what is finished cannot be kept, or another run writes `dst`.
            BundleError: If the model detects no objects, or the graph is not what its manifest says.
            MissingExtraError: If `dst` is not GeoJSON and the libraries that write it are missing, or those for `aoi`.
            ValueError: If a number is out of its range.
        """
        options = DetectOptions(threshold, nms_overlap, augment, overlap=overlap, merge=merge, resume=resume)
        detection = self._detection
        area = AreaOfInterest(aoi, bbox, bbox_crs)
        read = ReadOptions(bands, sensor, scale, offset, nodata, resolution, self.spec.is_radar, area, dates=dates)
        cut = TilingOptions(tile_size, batch_size=batch_size, augment=bool(augment))
        target = check_target(src, check_vector_target(dst, plain=True), overwrite=overwrite, layers=layers_of(area))
        with ExitStack() as stack:
            sources = open_dates(src, self.spec, read, stack, whole=True)
            self._check_scene(sources, read)
            box, wanted = sources[0].box, locate_area(sources[0], read)
            check_crs(target, box, src)
            grid = self._cut(sources[0], tile_size, None, overlap)
            facts = self._run_facts(sources, grid, read, cut, wanted)
            facts |= {name: getattr(options, name) for name in ('threshold', 'nms_overlap', 'merge')}
            if wanted is not None:
                grid = tiles_reaching(grid, wanted.window)
            checkpoint = stack.enter_context(open_checkpoint(target, facts, resume=resume))

            def detect(images: np.ndarray) -> list[ArrayDetections]:
                return self.detect(images, threshold=threshold, nms_overlap=options.overlap_in_tile, augment=augment)

            parts = detect_in_tiles(
                sources,
                _Compute(detect, self._most),
                grid,
                read=read,
                batch_size=batch_size,
                options=options,
                checkpoint=checkpoint,
                area=wanted,
            )
            objects = merge_tiles(parts, grid, options, wanted)
            infos, oriented = self.spec.class_infos, detection.oriented
            if target.suffix.lower() == '.geojson':
                write_geojson(objects, target, box, infos, oriented=oriented)
            else:
                frame = objects_to_features(objects, box, infos, outlined=False, oriented=oriented)
                write_layer(frame, target, geometry_type='Polygon', classes=infos)
            checkpoint.remove()
        return target

    def _run_facts(
        self,
        sources: Sequence[Source],
        grid: tiling.TileGrid,
        read: ReadOptions,
        options: TilingOptions,
        area: PixelArea | None,
    ) -> dict[str, Any]:
        """Return what must be equal for a run to be resumed."""
        return {
            **run_facts(self.spec, self._digest, sources, grid, read),
            'nodata': read.nodata,
            # single images are the same in any batch
            'batch_size': self._most or options.batch_size,
            'augment': options.augment,
            # these are beside the graph, of which the hash is
            'classes': [[info.value, info.name, info.color] for info in self.spec.class_infos],
            'graph': asdict(self.facts),
            'area': None if area is None else area.digest(),
        }

    def _check_scene(self, sources: Sequence[Source], read: ReadOptions) -> None:
        """Refuse rasters of other dates, another region or other pixel sizes than the graph holds as constants."""
        fixed = tuple(date.fromisoformat(day) for day in self.facts.dates)
        if read.days is not None and not fixed:
            raise ValueError(
                f'this model on {self.spec.backbone} does not read when images were taken; leave dates out, got '
                f'{", ".join(map(str, read.days))}'
            )
        days: tuple[date | None, ...] = read.days or tuple(acquisition_date(source.dataset) for source in sources)
        instead = f'map it with load_model(...).predict_raster, which takes those of the raster ({self.spec.backbone})'
        if fixed and days != fixed:
            raise errors.RasterError(
                f'the graph is of images taken on {", ".join(self.facts.dates)}, and the raster is of '
                f'{", ".join(map(str, days))}; {instead}'
            )
        if self.facts.location is not None:
            found = middle_of(sources[0].box)
            if found is None or distance_km(found[0], self.facts.location) > FAR_KM:
                raise errors.RasterError(
                    f'the graph is of images about {self.facts.location} (latitude, longitude), and the raster lies '
                    f'{"nowhere that its CRS says" if found is None else f"about {found[0]}"}; {instead}'
                )
        fixed_m = self.facts.resolution_m
        if fixed_m is not None and (side := other_resolution(sources[0].box, fixed_m)) is not None:
            raise errors.RasterError(
                f'the graph is of pixels of {fixed_m:g} m, and those of the raster are {side:.3g} m; pass '
                f'resolution={fixed_m:g}, or {instead}'
            )

    def _cut(
        self, source: Source, tile_size: int | None, halo: int | None, overlap: int | None = None
    ) -> tiling.TileGrid:
        """Cut a raster into the tiles of `predict_raster`, or `detect_objects`."""
        facts, box = self.facts, source.box
        if facts.size is not None and tile_size is not None and tile_size > min(facts.size):
            raise ValueError(f'this graph takes tiles of up to {min(facts.size)} pixels, got tile_size={tile_size}')
        side = facts.tile_size if tile_size is None else tile_size
        edge = min(facts.halo, side // 8) if halo is None else halo
        if facts.detection is not None:
            edge = choose_halo(side, edge, typical_side=facts.detection.typical_side, overlap=overlap)
        origin = tiling.lattice_origin(box.transform, facts.multiple)
        if tile_size is not None and max(box.shape) <= tile_size:
            origin = (0, 0)
        return tiling.make_grid(box.shape, tile_size=side, halo=edge, multiple=facts.multiple, origin=origin)

    def _map(
        self,
        sources: Sequence[Source],
        grid: tiling.TileGrid,
        dst: Path,
        read: ReadOptions,
        options: TilingOptions,
        *,
        cog: bool,
        resume: bool,
    ) -> None:
        """Write the map of open rasters."""
        box, wanted = sources[0].box, locate_area(sources[0], read)
        area = PixelArea(Window(0, 0, box.shape[1], box.shape[0])) if wanted is None else wanted
        layers = (plain_layer(self, map_tags(self.spec) | {'ENGINE': 'onnx'}),)
        check_space(dst, int(area.window.height * area.window.width * layers[0].content.pixel_bytes))
        blend: Blend = 'hann' if self.facts.position_grid else 'crop'
        parts = divide_parts(sources, grid, area.window, layers, options, blend)
        compute = self._make_compute(grid, options)
        journal = open_journal(dst, self._run_facts(sources, grid, read, options, wanted), resume=resume)
        with PieceStore(dst, journal.path.parent, box, area.window, layers, parts, journal) as store:
            compute_parts(
                sources,
                compute,
                grid,
                parts,
                layers,
                store,
                read=read,
                tiling=options,
                blend=blend,
                every_date=self.facts.every_date,
                area=wanted,
            )
            write_map(store, dst, layers, parts, cog=cog)
        store.remove()

    def _make_compute(self, grid: tiling.TileGrid, options: TilingOptions) -> '_Compute':
        """Return what computes the tiles of a map, augmented as asked for."""
        if not options.augment:
            return _Compute(self.run, self._most)
        ways, size = FLIPS if options.augment == 'flips' else TURNS, self.facts.size
        height, width = grid.tile_shape
        if ways is TURNS and size is not None and (width > size[0] or height > size[1]):
            raise ValueError(
                f'augment=True turns tiles of {height} x {width} pixels, and this graph takes images of {size[0]} x '
                f"{size[1]}; pass augment='flips'"
            )
        return _Compute(lambda images: augment_outputs(self.run, images, ways, np), self._most)


class _Compute:
    """Computes tiles by a graph, in parts.

    Args:
        run: From images (n, [dates,] bands, h, w) to the outputs of each.
        most: Images of a part; None for all.
    """

    def __init__(self, run: Callable[[np.ndarray], Any], most: int | None) -> None:
        self._run, self._most = run, most

    def parts(self, pixels: np.ndarray) -> Iterator[tuple[slice, Any]]:
        """Yield which images were computed, and what came out."""
        size = self._most or len(pixels)
        for start in range(0, len(pixels), size):
            part = slice(start, min(start + size, len(pixels)))
            yield part, self._run(pixels[part])


@check_call
def load_model(
    path: str | Path, *, threads: int | None = None, providers: Sequence[str] = PROVIDERS, int8: bool = False
) -> OnnxModel:
    """Load the ONNX graph of a bundle that ``model.save(..., export='onnx')`` wrote.

    Args:
        path: The .dlpk, the .emd of an unpacked one, or the folder that holds one.
        threads: That compute; None takes all cores.
        providers: onnxruntime's names of what computes, such as ``['CUDAExecutionProvider']``.
        int8: Take the graph with weights of 8 bits, which ``export='onnx-int8'`` wrote.

    Raises:
        BundleError: If the bundle is broken, hostile or holds no ONNX graph, or onnxruntime does not read it.
        MissingExtraError: If onnxruntime is not installed.
    """
    runtime = extras.require('onnxruntime', extra='onnx', to='run an ONNX graph')
    path = find_bundle(path)
    kind: Export = 'onnx-int8' if int8 else 'onnx'
    graph, manifest = read_onnx(path, kind), read_emd(path)['geolearn']
    spec = ModelSpec.from_manifest(manifest)
    facts = read_facts(manifest, spec, path, kind)
    if unknown := sorted(set(providers) - set(runtime.get_available_providers())):
        raise errors.UnknownNameError('provider of onnxruntime', unknown[0], runtime.get_available_providers())
    session = open_session(graph, threads=threads, providers=providers, shown=str(path))
    if [given.name for given in session.get_inputs()] != ['images'] or len(session.get_outputs()) != 1:
        raise errors.BundleError(f'the graph in {path} takes or gives something else than images; save the model again')
    digest = hashlib.blake2b(graph, digest_size=16).hexdigest()
    return OnnxModel(spec, facts, session, digest=digest, most_at_once=1 if set(providers) == set(PROVIDERS) else None)


def read_facts(manifest: Mapping[str, Any], spec: ModelSpec, path: Path, kind: Export = 'onnx') -> GraphFacts:
    """Read what the manifest says of the graph.

    Raises:
        BundleError: If it says nothing of it, or nothing that can be.
    """
    exports = manifest.get('exports')
    row = exports.get(kind) if isinstance(exports, Mapping) else None
    if not isinstance(row, Mapping):
        raise errors.BundleError(f'the manifest of {path} says nothing of its ONNX graph; save the model again')
    known = {name: row[name] for name in GraphFacts.__dataclass_fields__ if name in row}
    facts = decode(GraphFacts, known, 'the ONNX graph')
    if facts.output == 'classes' and any(info.value > np.iinfo(facts.dtype).max for info in spec.class_infos):
        raise errors.BundleError(f'the manifest of {path} is broken: {facts.dtype} does not hold all class values')
    return facts


def main(argv: Sequence[str] | None = None) -> None:
    """Map a raster, or detect its objects: ``python -m geolearn.onnx landcover.dlpk scene.tif map.tif``."""
    parser = argparse.ArgumentParser(prog='python -m geolearn.onnx', description=str(__doc__).splitlines()[0])
    parser.add_argument('model', help='the .dlpk, saved with export=onnx')
    parser.add_argument('sources', nargs='+', help='raster, or several that make one mosaic or are dates')
    parser.add_argument('out', help='the map to write, such as map.tif; for detectors a layer, such as objects.geojson')
    parser.add_argument('--scale', type=float, help='factor of the pixel values')
    parser.add_argument('--offset', type=float, default=0.0, help='added after scaling')
    parser.add_argument('--threshold', type=float, default=0.5, help='lowest score of objects, 0..1')
    parser.add_argument('--aoi', help='vector file of the polygons to map, or to find objects in; the rest is NoData')
    sides = ('LEFT', 'BOTTOM', 'RIGHT', 'TOP')
    parser.add_argument('--bbox', type=float, nargs=4, metavar=sides, help='part of the raster to map')
    parser.add_argument('--bbox-crs', help='CRS of --bbox, such as EPSG:4326; that of the raster where it is not given')
    augmenting = 'predict each tile flipped too and take the mean: objects 4 times, maps 8 times with turns'
    parser.add_argument('--augment', action='store_true', help=augmenting)
    parser.add_argument('--resume', action='store_true', help='continue a run that was killed')
    parser.add_argument('--overwrite', action='store_true', help='replace the map if it exists')
    given = parser.parse_args(argv)
    sources = given.sources[0] if len(given.sources) == 1 else given.sources
    try:
        model = load_model(given.model)
        names = ('scale', 'offset', 'aoi', 'bbox', 'bbox_crs', 'augment', 'resume', 'overwrite')
        options = {name: getattr(given, name) for name in names}
        if model.facts.output == 'objects':
            model.detect_objects(sources, given.out, threshold=given.threshold, **options)
        else:
            model.predict_raster(sources, given.out, **options)
    except (errors.GeoLearnError, ValueError, OSError) as error:
        parser.exit(2, f'{error}\n')


if __name__ == '__main__':
    main()
