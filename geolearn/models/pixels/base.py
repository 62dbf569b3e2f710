"""What models of pixels share: they map rasters."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from geolearn.models._model import Model
from geolearn.models.mapping import MapModel, RasterSource, Reading, Running, map_with_model
from geolearn.models.pixels.segmenter import Segmenter


class PixelModel(Model):
    """A model whose network gives every pixel a class or a number."""

    network: Segmenter

    @abstractmethod
    def _map_model(self) -> MapModel:
        """Say what maps, and what its outputs mean."""

    def predict_raster(
        self,
        src: RasterSource,
        dst: str | Path,
        *,
        bands: Sequence[str] | None = None,
        sensor: str | None = None,
        scale: float | None = None,
        offset: float = 0.0,
        tile_size: int | None = None,
        halo: int | None = None,
        batch_size: int = 4,
        device: str | None = None,
        compile: bool = False,
    ) -> Path:
        """Map a raster of any size to a GeoTIFF: of class values, or of float32 numbers with NaN for NoData.

        Memory depends on the tile size and the raster's width, never on its area. Bands are matched by name, else by
        count, else refused. Pixels without data come out as NoData.

        Args:
            src: A raster, or several that make one mosaic. For models of several dates a list of one such for each
                date, oldest first, or one raster with all bands of the first date before those of the second.
            dst: GeoTIFF to write; it appears only when it is whole.
            bands: Names of the raster's bands in file order, where the file names none or wrong ones.
            sensor: Whose names the bands have, such as ``'Sentinel-2'`` for ``'B04'``; colour names need none.
            scale: Multiplies pixel values, where the raster's units are not those of the training chips. Values far
                from what the model was trained on are refused, unless 1 is given, which says that they are right.
            offset: Is added after that.
            tile_size: Side of the tiles in pixels; None takes twice the chip size for backbones with a position grid
                and at least 512 for others.
            halo: Pixels dropped at inner tile edges; None takes an eighth of the chip size, or 32 for CNNs.
            batch_size: Tiles computed together.
            device: Torch device; None means CUDA where there is one.
            compile: Compile the network first: up to a minute, then convolutions run 1.1 to 1.4 times as fast.

        Returns:
            The path written.

        Raises:
            RasterError: If bands, units or dates do not fit, or reading or writing fails; no part of `dst` is left.
        """
        reading = Reading(bands, sensor, scale, offset)
        running = Running(tile_size, halo, batch_size, device, compile)
        return map_with_model(self._map_model(), src, dst, reading, running)
