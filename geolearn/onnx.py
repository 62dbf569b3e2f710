"""Use the ONNX graph of a bundle on rasters: onnxruntime, numpy and rasterio are enough, torch is not needed.

Tiles, overlaps, NoData, checks of bands, units and pixel sizes, and class values are those of `predict_raster` and
`detect_objects`.
"""

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from geolearn import errors, extras, tiling
from geolearn._version import __version__
from geolearn.bundle import DetectionFacts, Export, GraphFacts, find_bundle, read_emd, read_onnx
from geolearn.inference.engines import PROVIDERS, open_session
from geolearn.inference.geojson import write_geojson
from geolearn.inference.merging import Merge, TileDetections
from geolearn.inference.picking import pick_objects
from geolearn.inference.placing import (
    ArrayDetections,
    DetectOptions,
    choose_halo,
    merge_tiles,
    number_tiles,
    place,
)
from geolearn.inference.reading import RasterSource, open_dates
from geolearn.inference.targets import check_target
from geolearn.inference.tiles import NoData, ReadOptions, Resolution, RollingRows, Scale, Source, fill_tile
from geolearn.inference.vectors import check_crs, check_vector_target, objects_to_features, write_layer
from geolearn.networks.spec import ModelSpec, decode
from geolearn.progress import ProgressBar
from geolearn.raster import RasterWriter
from geolearn.raster.acquisition import FAR_KM, acquisition_date, distance_km, middle_of
from geolearn.raster.ground import other_resolution
from geolearn.raster.nodata import missing
from geolearn.raster.writing import BLOCK_SIZE

log = logging.getLogger('geolearn')


class OnnxModel:
    """The graph of a bundle.

    Args:
        spec: Of the model.
        facts: Of the graph.
        session: onnxruntime's, which holds it.
    """

    def __init__(self, spec: ModelSpec, facts: GraphFacts, session: Any) -> None:
        self.spec, self.facts, self._session = spec, facts, session

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

    def detect(self, images: np.ndarray, *, threshold: float = 0.5, nms_overlap: float = 0.3) -> list[ArrayDetections]:
        """Detect the objects in images; for rasters see `detect_objects`.

        Args:
            images: As for `run`.
            threshold: Lowest score of an object, 0..1.
            nms_overlap: Intersection over union of two objects of one class above which the lower-scoring is dropped.

        Returns:
            The objects of each image by descending score: boxes in its pixels, class indices and scores.

        Raises:
            BundleError: If the model detects no objects, or the graph is not what its manifest says.
        """
        shape = (images.shape[-2], images.shape[-1])
        facts = self._detection
        outputs = self.run(images)
        return pick_objects(outputs, facts, self._filled(shape), shape, threshold=threshold, nms_overlap=nms_overlap)

    @property
    def _detection(self) -> DetectionFacts:
        if self.facts.detection is None:
            raise errors.BundleError(f'a {self.spec.model} detects no objects; use predict_raster, or run()')
        return self.facts.detection

    @property
    def nodata(self) -> float:
        """Of maps: a value that no class has, or NaN."""
        return float('nan') if self.facts.nodata is None else self.facts.nodata

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
        tile_size: int | None = None,
        halo: int | None = None,
        batch_size: int = 4,
        overwrite: bool = False,
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
            tile_size: Side of the tiles in pixels; None takes that of `predict_raster`.
            halo: Half of what neighboring tiles share, at least; None takes that of `predict_raster`.
            batch_size: Tiles computed together.
            overwrite: Replace `dst` if it exists.

        Returns:
            The path written.

        Raises:
            RasterError: If bands, units, dates or pixel sizes do not fit, `dst` exists, or reading or writing fails.
            BundleError: If the model does not map pixels.
        """
        if self.facts.output == 'chip classes':
            raise errors.BundleError(f'a {self.spec.model} classifies whole images; pass them to run()')
        if self.facts.output == 'objects':
            raise errors.BundleError(f'a {self.spec.model} detects objects; call detect_objects')
        read = ReadOptions(bands, sensor, scale, offset, nodata, resolution, self.spec.is_radar, dates=dates)
        target = check_target(src, Path(dst).expanduser(), overwrite=overwrite)
        with ExitStack() as stack:
            sources = open_dates(src, self.spec, read, stack)
            self._check_scene(sources, read)
            grid = self._cut(sources[0], tile_size, halo)
            self._map(sources, grid, target, read, batch_size)
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
        tile_size: int | None = None,
        overlap: int | None = None,
        batch_size: int = 4,
        merge: Merge = 'nms',
        overwrite: bool = False,
    ) -> Path:
        """Find the objects in a raster of any size and write them as a layer, as the model's `detect_objects` does.

        Args:
            src: As for `predict_raster`; so are `bands` to `dates`.
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
            tile_size: Side of the tiles in pixels; None takes that of `detect_objects`.
            overlap: Pixels that tiles share; None takes what nearly all objects fit in, at most half a tile.
            batch_size: Tiles computed together.
            merge: What becomes of objects of one class that overlap: ``'nms'``, ``'soft_nms'`` or ``'weighted'``.
            overwrite: Replace `dst` if it exists.

        Returns:
            The path written.

        Raises:
            RasterError: If bands, units, dates or pixel sizes do not fit, `dst` exists, or reading or writing fails.
            BundleError: If the model detects no objects, or the graph is not what its manifest says.
            MissingExtraError: If `dst` is not GeoJSON and the libraries that write it are missing.
            ValueError: If a number is out of its range.
        """
        facts, options = self._detection, DetectOptions(threshold, nms_overlap, overlap=overlap, merge=merge)
        read = ReadOptions(bands, sensor, scale, offset, nodata, resolution, self.spec.is_radar, dates=dates)
        target = check_target(src, check_vector_target(dst, plain=True), overwrite=overwrite)
        with ExitStack() as stack:
            sources = open_dates(src, self.spec, read, stack)
            self._check_scene(sources, read)
            check_crs(target, sources[0].box, src)
            grid = self._cut(sources[0], tile_size, None, overlap)
            parts = list(self._detect_tiles(sources, grid, read, options, batch_size))
            if not parts:
                log.warning('%s holds no data where objects are detected; none can be', sources[0].dataset.name)
            objects, box = merge_tiles(parts, grid, options, None), sources[0].box
            if target.suffix.lower() == '.geojson':
                return write_geojson(objects, target, box, self.spec.class_infos, oriented=facts.oriented)
            frame = objects_to_features(objects, box, self.spec.class_infos, outlined=False, oriented=facts.oriented)
            return write_layer(frame, target, geometry_type='Polygon', classes=self.spec.class_infos)

    def _detect_tiles(
        self,
        sources: Sequence[Source],
        grid: tiling.TileGrid,
        read: ReadOptions,
        options: DetectOptions,
        batch_size: int,
    ) -> Iterator[TileDetections]:
        """Yield the objects of each tile that shows data, in pixels of the raster."""
        numbers, tiles = number_tiles(grid), _read_tiles(sources, grid, read)
        with ProgressBar(len(numbers), 'detecting', 'tile') as bar:
            done = 0
            while held := list(islice(tiles, max(1, batch_size))):
                images = np.stack([pixels for _, pixels in held])
                found = self.detect(images, threshold=options.threshold, nms_overlap=options.overlap_in_tile)
                for (tile, _), detections in zip(held, found):
                    corner = (int(tile.read.row_off), int(tile.read.col_off))
                    yield place(detections, grid, corner, numbers[corner], sources[0].shape)
                bar.update(numbers[corner] + 1 - done)
                done = numbers[corner] + 1
            bar.update(len(numbers) - done)

    def _check_scene(self, sources: Sequence[Source], read: ReadOptions) -> None:
        """Refuse rasters of other dates, another region or other pixel sizes than the graph holds as constants."""
        fixed = tuple(date.fromisoformat(day) for day in self.facts.dates)
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
        self, sources: Sequence[Source], grid: tiling.TileGrid, dst: Path, read: ReadOptions, batch_size: int
    ) -> None:
        classes = self.facts.output == 'classes'
        infos = self.spec.class_infos if classes else ()
        writer = RasterWriter(
            dst,
            sources[0].box,
            dtype=self.facts.dtype,
            nodata=self.nodata,
            colors={info.value: info.color for info in infos} or None,
            class_names={info.value: info.name for info in infos} or None,
            band_names=('class' if classes else 'prediction',),
            tags={'MODEL': self.spec.model, 'BACKBONE': self.spec.backbone, 'SOFTWARE': f'geolearn {__version__}'},
        )
        with writer, ProgressBar(len(grid.rows) * len(grid.cols), 'mapping', 'tile') as bar:
            rows = _RowsOfTiles(self, grid, sources[0].shape, writer)
            for top, tiles in groupby(_read_tiles(sources, grid, read), key=lambda item: item[0].read.row_off):
                rows.advance(int(top))
                held = list(tiles)
                for start in range(0, len(held), batch_size):
                    part = held[start : start + batch_size]
                    outputs = self.run(np.stack([pixels for _, pixels in part]))
                    for (tile, pixels), output in zip(part, outputs):
                        rows.put(tile, output, missing(pixels, every_date=self.facts.every_date))
                bar.update(len(held))
            rows.advance(sources[0].shape[0])


def _read_tiles(
    sources: Sequence[Source], grid: tiling.TileGrid, read: ReadOptions
) -> Iterator[tuple[tiling.Tile, np.ndarray]]:
    """Yield tiles in file order with their pixels ([dates,] bands, h, w); those without a valid pixel are left out."""
    height, width = grid.tile_shape
    rolling, (rows, cols) = [RollingRows(source, height) for source in sources], sources[0].shape
    for tile in grid:
        top, left = int(tile.read.row_off), int(tile.read.col_off)
        inside = np.s_[max(top, 0) : min(top + height, rows), max(left, 0) : min(left + width, cols)]
        corner = (inside[0].start - top, inside[1].start - left)
        pixels = np.empty((len(sources), len(sources[0].indexes), height, width), np.float32)
        # every date is read, so that all of them stay in step
        if any([fill_tile(target, date, inside, corner, read) for target, date in zip(pixels, rolling)]):
            yield tile, pixels if len(sources) > 1 else pixels[0]


class _RowsOfTiles:
    """Add up outputs of tiles by weight, and write rows that are complete; memory holds one row of tiles.

    Args:
        model: Encodes outputs.
        grid: The tiles.
        shape: Height and width of the raster.
        writer: Where rows go.
    """

    def __init__(self, model: OnnxModel, grid: tiling.TileGrid, shape: tuple[int, int], writer: RasterWriter) -> None:
        self._model, self._writer, self._shape, (self._height, self._side) = model, writer, shape, grid.tile_shape
        self._down, self._across = (
            self._weigh(spans, side, length)
            for spans, side, length in zip((grid.rows, grid.cols), grid.tile_shape, shape)
        )
        self._top = self._written = 0
        self._sums: np.ndarray | None = None
        self._weights = np.zeros((self._height, shape[1]), np.float32)
        self._absent = np.ones((self._height, shape[1]), bool)
        self._ready: list[np.ndarray] = []

    def _weigh(self, spans: Sequence[tuple[int, int, int]], side: int, length: int) -> Mapping[int, np.ndarray]:
        """Return the weights of a tile's pixels along one axis by its start: of the core alone, or fading."""
        starts = [start for start, _, _ in spans]
        if self._model.facts.position_grid:
            return dict(zip(starts, tiling.blend_weights(starts, side, length)))
        places = np.arange(side)
        return {
            start: ((places + start >= first) & (places + start < last)).astype(np.float32)
            for start, first, last in spans
        }

    def put(self, tile: tiling.Tile, outputs: np.ndarray, absent: np.ndarray) -> None:
        """Add a tile's outputs (C, h, w); `absent` (h, w) is True where there is no data."""
        if self._sums is None:
            self._sums = np.zeros((len(outputs), *self._weights.shape), np.float32)
        row, col = int(tile.read.row_off), int(tile.read.col_off)
        top, left = max(-row, 0), max(-col, 0)
        bottom, right = min(self._height, self._shape[0] - row), min(self._side, self._shape[1] - col)
        inside = np.s_[top:bottom, left:right]
        place = np.s_[row + top - self._top : row + bottom - self._top, col + left : col + right]
        weights = np.outer(self._down[row], self._across[col])[inside]
        self._sums[:, *place] += outputs[:, *inside] * weights
        self._weights[place] += weights
        self._absent[place] = absent[inside]

    def advance(self, row: int) -> None:
        """Write the rows above `row`, which no later tile shows."""
        while self._top < row:
            count = min(row - self._top, self._height)
            pixels = np.full((count, self._shape[1]), self._model.nodata, self._model.facts.dtype)
            present = ~self._absent[:count]
            if self._sums is not None and present.any():
                means = self._sums[:, :count] / np.maximum(self._weights[:count], 1e-6)
                pixels[present] = self._model.encode(means[None])[0][present]
                self._sums[:, : self._height - count] = self._sums[:, count:].copy()
                self._sums[:, self._height - count :] = 0
            for held, empty in ((self._weights, 0), (self._absent, True)):
                held[: self._height - count] = held[count:].copy()
                held[self._height - count :] = empty
            self._top += count
            self._ready.append(pixels)
            self._flush()

    def _flush(self) -> None:
        """Hand whole block rows to the writer, and what is left at the end."""
        rows = np.concatenate(self._ready)
        count = len(rows) if self._top == self._shape[0] else len(rows) // BLOCK_SIZE * BLOCK_SIZE
        if count:
            self._writer.write(self._written, rows[:count])
            self._written += count
        self._ready = [rows[count:]]


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
    return OnnxModel(spec, facts, session)


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
    parser.add_argument('--overwrite', action='store_true', help='replace the map if it exists')
    given = parser.parse_args(argv)
    sources = given.sources[0] if len(given.sources) == 1 else given.sources
    try:
        model = load_model(given.model)
        options = {'scale': given.scale, 'offset': given.offset, 'overwrite': given.overwrite}
        if model.facts.output == 'objects':
            model.detect_objects(sources, given.out, threshold=given.threshold, **options)
        else:
            model.predict_raster(sources, given.out, **options)
    except (errors.GeoLearnError, ValueError, OSError) as error:
        parser.exit(2, f'{error}\n')


if __name__ == '__main__':
    main()
