"""`embed_many`: all scenes of a catalog, with a manifest, in a run that can be continued."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

from rasterio.errors import RasterioError

from geolearn import errors
from geolearn.bands import Band
from geolearn.embed import grids, opening, scaling
from geolearn.embed.encoder import Encoder, EncoderOptions, Pooling
from geolearn.inference.catalog import file_state, list_scenes
from geolearn.inference.options import NoData, Scale
from geolearn.inference.reading import open_dates
from geolearn.models.predict_many import ManyResult, map_catalog
from geolearn.models.raster_use import RASTERS, RasterUse, one_or_several
from geolearn.raster.scaling import Units, check_same_units

log = logging.getLogger('geolearn')

OPTIONS = tuple(item.name for item in fields(grids.GridOptions) if item.name not in ('overwrite', 'progress'))


class SceneEmbedder:
    """Embeds scenes with one encoder, as models map them.

    Args:
        first: The scene that bands and units are those of.
        encoder: Of their bands.
        read: How stored values become its units.
        zones: Layer whose zones get a vector each; None for grids.
        pooling: Over zones.
    """

    raster_use: ClassVar[RasterUse] = RasterUse('embeds rasters', RASTERS, OPTIONS)

    def __init__(
        self, first: opening.OpenRaster, encoder: Encoder, *, zones: Any = None, pooling: Pooling = 'mean'
    ) -> None:
        self.units = Units.of(first.source.dataset, first.source.indexes)
        read = first.read
        self.encoder, self.read, self.zones, self.pooling = encoder, read, zones, pooling
        self.spec, self.network = encoder.spec, encoder.network

    def use_on_raster(self, sources: Sequence[Any], dst: str | Path, options: Mapping[str, Any]) -> Path:
        """Write the embeddings of one raster, or of a mosaic."""
        source = one_or_several(sources)
        with ExitStack() as stack:
            (found,) = open_dates(source, self.encoder.spec, replace(self.read, is_checked=True), stack)
            check_same_units(self.units, Units.of(found.dataset, found.indexes))
        chosen = grids.GridOptions(**options)
        if self.zones is None:
            return grids.write_grid(self.encoder, source, Path(dst), read=self.read, options=chosen)
        return grids.write_zones(
            self.encoder, source, Path(dst), read=self.read, options=chosen, zones=self.zones, pooling=self.pooling
        )


class ZoneEmbedder(SceneEmbedder):
    """The same with a vector for each zone."""

    raster_use: ClassVar[RasterUse] = RasterUse(
        'embeds zones', ('.parquet',), tuple(name for name in OPTIONS if name not in ('resume', 'aoi', 'bbox'))
    )


def embed_many(
    catalog: Any,
    folder: str | Path,
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
    zones: Any = None,
    pooling: Pooling = 'mean',
    tile: int | None = None,
    context: int | None = None,
    device: str | None = None,
    resolution_m: float | None = None,
    pretrained: bool = True,
    weights: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    check_values: bool = True,
) -> ManyResult:
    """Embed all scenes of a catalog as `embed_raster` does; a scene that fails is listed, and the others go on.

    Bands, units and normalization are those of the first scene that can be opened; scenes in other units, or with
    pixels of another size, fail. ``manifest.csv`` in the folder has a row for each scene: its file, state, seconds and
    error. The same call again does only the scenes that are missing, have failed, or whose files have changed since.

    Args:
        catalog: A folder, of which each raster and each folder in it is a scene; a list of rasters; a GeoDataFrame or
            vector file with a column ``location`` or ``path``; or a STAC collection.
        folder: For the embeddings, each called as its scene; made if it is not there.
        backbone: Its name; see `geolearn.list_backbones`.
        layer: Whose output is taken; see `embed`.
        normalize: What pixels are normalized by; see `embed`.
        bands: The bands to take, by name, or the names of all bands in file order.
        sensor: Whose names the bands have.
        wavelengths: Center of each band in micrometers, None for radar.
        scale: Multiplies pixel values before they are normalized; ``'db'`` makes decibels of linear power.
        offset: Is added after that.
        nodata: Value that marks missing pixels.
        zones: Polygons or points that get a vector each, of the scenes that show them: a GeoParquet file for each scene
            instead of a grid.
        pooling: ``'mean'`` or ``'max'`` over the tokens of a zone.
        tile: Side of the tiles that are computed together, in pixels: memory and speed follow from it. Vectors of
            transformers do not depend on it. None takes what is fast, 512 for convolutional networks.
        context: Side of the images that a transformer sees, in pixels; larger ones are cut into such, which overlap.
            None takes that of its pretraining. A transformer sees all of an image at once, and where in it a token
            lies: vectors of another context are others.
        device: Torch device; None means CUDA where there is one.
        resolution_m: Of the images in meters per pixel, for backbones whose positions depend on it.
        pretrained: Whether to fill the backbone with its published weights.
        weights: A file or folder with weights, or a .dlpk, instead of fetching them.
        options: Keywords of `embed_raster` that hold for all scenes: halo, blend, batch_size, max_memory, aoi, bbox,
            bbox_crs, resolution, dtype, cog.
        overwrite: Embed all scenes anew, and replace files that exist.
        check_values: Whether to refuse values that look normalized already.

    Returns:
        What became of each scene.

    Raises:
        ArgumentError: If there is no such option.
        RasterError: If the catalog lists no scene, or none can be opened.
        CheckpointError: If the folder holds embeddings of another backbone or of other options.
    """
    folder = Path(folder).expanduser()
    chosen = EncoderOptions(
        backbone, layer, normalize, pretrained, weights, wavelengths, resolution_m, tile, context, device, check_values
    )
    wanted = opening.Wanted(bands, sensor, nodata, scale, offset)
    opened = _open_first(catalog, folder, chosen, wanted)
    # the layer is told apart by the manifest, as models are
    name = 'Embeddings' if layer == -1 else f'Embeddings of layer {layer}'
    encoder = replace(opened.encoder, spec=replace(opened.encoder.spec, model=name))
    kind = SceneEmbedder if zones is None else ZoneEmbedder
    embedder = kind(opened, encoder, zones=zones, pooling=pooling)
    given = {'tile_size': encoder.side, **(options or {})}
    if unknown := sorted({*given} - {*kind.raster_use.options}):
        raise errors.ArgumentError(
            f'options of all scenes are {", ".join(sorted(kind.raster_use.options))}; got {", ".join(unknown)}'
        )
    read = opened.read
    facts = {
        'bands': [(band.name, band.wavelength_um) for band in encoder.spec.bands],
        'units': [read.scale, read.offset, read.nodata],
        'resolution_m': resolution_m,
        'zones': None if zones is None else file_state(zones),
        'pooling': pooling if zones is not None else None,
    }
    return map_catalog(embedder, catalog, folder, given, overwrite=overwrite, facts=facts)


def _open_first(catalog: Any, folder: Path, options: EncoderOptions, wanted: opening.Wanted) -> opening.OpenRaster:
    """Open the first scene that can be opened, and build the encoder for it."""
    failure: Exception | None = None
    for scene in list_scenes(catalog, folder=folder):
        try:
            with ExitStack() as stack:
                return opening.open_to_embed(scene.source, options, wanted, stack)
        except (errors.RasterError, RasterioError, OSError) as error:
            log.warning('%s cannot be opened: %s', scene.name, error)
            failure = failure or error
    assert failure is not None  # a catalog without a scene is refused
    raise failure
