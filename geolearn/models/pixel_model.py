"""PixelModel: what models that map pixels do with rasters."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geolearn.inference import area, mapping, reading, tiles
from geolearn.models import base


class PixelModel(base.Model):
    """A model whose output has a value for each pixel, and which maps rasters of any size."""

    @property
    @abstractmethod
    def encoding(self) -> mapping.Encoding:
        """How the network's outputs become a map's pixels."""

    def use_on_raster(self, sources: Sequence[str | Path], dst: str | Path, options: Mapping[str, Any]) -> Path:
        """Map rasters with the options of `predict_raster`."""
        return self.predict_raster(base.one_or_several(sources), dst, **options)

    def predict_raster(
        self,
        src: reading.RasterSource,
        dst: str | Path,
        *,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        scale: tiles.Scale | None = None,
        offset: float = 0.0,
        nodata: tiles.NoData = None,
        resolution: tiles.Resolution | None = None,
        aoi: Any = None,
        bbox: Sequence[float] | None = None,
        bbox_crs: str | int | None = None,
        tile_size: int | None = None,
        halo: int | None = None,
        batch_size: int = 4,
        device: str | None = None,
        compile: bool = False,
        overwrite: bool = False,
        cog: bool = True,
    ) -> Path:
        """Map a raster of any size to a GeoTIFF: of class values, or of float32 values in regression, NaN for NoData.

        Memory depends on the tile size and the raster's width, never on its area. Bands are matched by name, else by
        count, else refused. Pixels without data come out as NoData.

        Args:
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
            resolution: Side of the pixels to resample to while reading, in units of the raster's CRS, or
                ``'training'``. Without it, rasters whose pixels are over 1.5 times larger or smaller than in training
                are refused.
            aoi: Area to map, the rest is NoData: a vector file or GeoDataFrame, which is reprojected; or a geometry in
                the raster's CRS. The map ends where the area does.
            bbox: Left, bottom, right, top of the part to map, in the raster's CRS or `bbox_crs`.
            bbox_crs: CRS of `bbox`, such as ``'EPSG:4326'``; None for the raster's.
            tile_size: Side of the tiles in pixels; None takes twice the chip size for backbones with a position grid
                and at least 512 for others.
            halo: Half of what neighbouring tiles share, at least; None takes an eighth of the chip size for backbones
                with a position grid, whose tiles fade into each other there, and 32 for others, which drop it.
            batch_size: Tiles computed together.
            device: Torch device; None means CUDA where there is one.
            compile: Compile the network first: up to a minute, then convolutions run 1.1 to 1.4 times as fast.
            overwrite: Replace `dst` if it exists.
            cog: Write a cloud-optimized GeoTIFF, with overviews; False writes a plain one, in half the time and disk.

        Returns:
            The path written.

        Raises:
            RasterError: If bands, units, dates or pixel sizes do not fit, `dst` exists, or reading or writing fails; no
                part of `dst` is left.
        """
        return mapping.map_raster(
            self.spec,
            self.network,
            self.encoding,
            src,
            dst,
            read=tiles.ReadOptions(
                bands,
                sensor,
                scale,
                offset,
                nodata,
                resolution,
                self.spec.is_radar,
                area.AreaOfInterest(aoi, bbox, bbox_crs),
            ),
            tiling=tiles.TilingOptions(tile_size, halo, batch_size, device, compile),
            every_date=self.needs_every_date,
            overwrite=overwrite,
            cog=cog,
        )
