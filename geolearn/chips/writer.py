"""Write chip folders in ArcGIS's layout: images/, labels/, .emd, statistics, map.txt."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np

from geolearn.bands import Band
from geolearn.chips.emd import EMD_NAME, STATS_NAME, WELL_KNOWN_KEY, WELL_KNOWN_NAMES
from geolearn.classes import ClassInfo, index_table
from geolearn.errors import ChipFolderError
from geolearn.raster import GeoBox, write_raster
from geolearn.statistics import RunningStatistics


class ClassifiedTilesWriter:
    """Write chips one by one, then the metadata that describes all of them; the folder appears when it is whole.

    A context manager: `add` chips inside; leaving it writes the metadata, or deletes everything where an error does so.

    Args:
        folder: New or empty folder.
        bands: Bands of the images, in order.
        classes: Classes that labels may hold; 0 stands for unlabelled and need not be listed.
        tile_size: Side of the chips in pixels.
        sensor: Name of the sensor as ArcGIS would write it, such as ``'Sentinel-2'``.
        nodata: NoData value of the images.

    Raises:
        ChipFolderError: If the folder already holds files, or a class value fits no label raster.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        bands: Sequence[Band],
        classes: Sequence[ClassInfo],
        tile_size: int,
        sensor: str = 'Undefined',
        nodata: float | None = None,
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ChipFolderError(f'{self.folder} is a file; export into a new folder')
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise ChipFolderError(f'{self.folder} is not empty; export into a new folder so that two exports never mix')
        index_table(classes)  # refuses values that no label raster can hold
        self._bands, self._classes = tuple(bands), tuple(classes)
        self._tile_size, self._sensor, self._nodata = tile_size, sensor, nodata
        self._listed = {0} | {info.value for info in classes}
        self._statistics, self._counts = RunningStatistics(), Counter[int]()
        self._chips_with = Counter[int]()
        self._classes_per_chip: list[int] = []
        self._cell_size: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        self._part = self.folder.parent / f'.{self.folder.name}-{uuid4().hex[:8]}.part'
        try:
            for name in ('images', 'labels'):
                (self._part / name).mkdir(parents=True)
        except OSError as error:
            raise ChipFolderError(f'cannot write {self.folder}: {error.strerror}') from error
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def add(self, pixels: np.ndarray, label: np.ndarray, geobox: GeoBox, *, mask: np.ndarray | None = None) -> None:
        """Write one chip.

        Args:
            pixels: (bands, height, width) in the dtype to store.
            label: (height, width) of class values, 0 where unlabelled.
            geobox: Place of the chip.
            mask: True where the pixels are valid; None where all are.

        Raises:
            ChipFolderError: If band count, size or class values do not fit.
        """
        if pixels.shape[0] != len(self._bands) or pixels.shape[1:] != label.shape:
            raise ChipFolderError(
                f'chip of {pixels.shape} pixels with label {label.shape} does not fit {len(self._bands)} bands'
            )
        values, counts = (a.tolist() for a in np.unique(label, return_counts=True))
        if unknown := set(values) - self._listed:
            raise ChipFolderError(f'label holds {sorted(unknown)}, which are no class values: {sorted(self._listed)}')
        name = f'{len(self._classes_per_chip):012d}.tif'
        place: dict[str, Any] = {'transform': geobox.transform, 'crs': geobox.crs}
        names = [band.name for band in self._bands]
        write_raster(self._part / 'images' / name, pixels, nodata=self._nodata, band_names=names, **place)
        write_raster(
            self._part / 'labels' / name, label.astype(np.uint8 if max(self._listed) < 256 else np.uint16), **place
        )
        self._statistics.add(pixels, mask)
        present = [value for value in values if value]
        self._counts.update(dict(zip(values, counts)))
        self._chips_with.update(present)
        self._classes_per_chip.append(len(present))
        side_x, side_y = geobox.resolution
        self._cell_size = {'x': side_x, 'y': side_y, 'spatialReference': {'wkt': geobox.crs} if geobox.crs else {}}

    def _finish(self) -> None:
        if not self._classes_per_chip:
            raise ChipFolderError(f'no chip was written to {self.folder}: no tile holds both image and label')
        names = [f'{index:012d}.tif' for index in range(len(self._classes_per_chip))]
        # ArcGIS writes backslashes and a trailing blank; its own reader relies on neither
        rows = ''.join(f'images\\{name}  labels\\{name} \n' for name in names)
        texts = {
            'map.txt': rows,
            'stats.txt': self._stats_text(),
            STATS_NAME: json.dumps(self._accumulated_stats(), indent=2),
            EMD_NAME: json.dumps(self._emd(), indent=2),
        }
        for name, text in texts.items():
            try:
                (self._part / name).write_text(text, encoding='utf-8')
            except OSError as error:
                raise ChipFolderError(f'cannot write {self.folder / name}: {error.strerror}') from error
        try:
            if self.folder.is_dir():
                self.folder.rmdir()  # Windows renames onto nothing, not even onto an empty folder
            self._part.rename(self.folder)
        except OSError as error:
            raise ChipFolderError(f'cannot write {self.folder}: {error.strerror}') from error

    def _properties(self) -> dict[str, Any]:
        return {'RasterCount': 1, 'SensorName': self._sensor, 'BandNames': [band.name for band in self._bands]}

    def _emd(self) -> dict[str, Any]:
        found = self._statistics.result()
        columns = zip(self._bands, found.minimum, found.maximum, found.mean, found.std)
        return {
            'ImageHeight': self._tile_size,
            'ImageWidth': self._tile_size,
            'MetaDataMode': 'Classified_Tiles',
            'BlackenAroundFeature': False,
            'IsMultidimensional': False,
            'CropTileMode': 'Fixed_Size',
            'ImageSpaceUsed': 'MAP_SPACE',
            'MinCellSize': self._cell_size,
            'MaxCellSize': self._cell_size,
            'Classes': [{'Value': c.value, 'Name': c.name, 'Color': list(c.color)} for c in self._classes],
            'InputRastersProps': self._properties(),
            'AllTilesStats': [
                {'BandName': band.name, 'Min': low, 'Max': high, 'Mean': mean, 'StdDev': std}
                for band, low, high, mean, std in columns
            ],
            WELL_KNOWN_KEY: WELL_KNOWN_NAMES,
            'geolearn': {'wavelengths_um': [band.wavelength_um for band in self._bands]},
        }

    def _accumulated_stats(self) -> dict[str, Any]:
        s = self._statistics
        columns = zip(s.minimum.tolist(), s.maximum.tolist(), s.mean.tolist(), s.m2.tolist(), s.count.tolist())
        return {
            'Version': 1,
            'NumBands': len(self._bands),
            'TileSizeX': self._tile_size,
            'TileSizeY': self._tile_size,
            'NumClasses': len(self._classes),
            'NumTiles': len(self._classes_per_chip),
            'NumTilesAsDouble': len(self._classes_per_chip),
            'NextTileIndex': len(self._classes_per_chip),
            'OutputFeatures': False,
            'MetaDataMode': 'Classified_Tiles',
            'MinCellSize': self._cell_size,
            'MaxCellSize': self._cell_size,
            'Classes': [{'ClassValue': c.value, 'ClassName': c.name, 'Color': list(c.color)} for c in self._classes],
            'ClassPixelStats': {
                'NumClasses': len(self._classes),
                'NumImagesTotal': len(self._classes_per_chip),
                'NumImagesPerClass': [self._chips_with[c.value] for c in self._classes],
                'NumPixelsPerClass': [self._counts[c.value] for c in self._classes],
            },
            'InputRastersProps': self._properties(),
            'BandStatsState': [
                {'Min': low, 'Max': high, 'Mean': 0, 'StdDev': 0, 'M1': mean, 'M2': m2, 'Num': int(count)}
                for low, high, mean, m2, count in columns
            ],
        }

    def _stats_text(self) -> str:
        per_chip = self._classes_per_chip
        mean = sum(per_chip) / len(per_chip)
        lines = [
            f'images = {len(per_chip)} *{len(self._bands)}*{self._tile_size}*{self._tile_size}',
            f'classes = {len(self._classes)}',
            f'classes per image = [min = {min(per_chip)}, mean = {mean:.2f}, max = {max(per_chip)}]',
            f'{"cls name":<30}{"cls value":>10}{"images":>10}{"pixels":>14}',
        ]
        for info in self._classes:
            counts = f'{self._chips_with[info.value]:>10}{self._counts[info.value]:>14}'
            lines.append(f'{info.name:<30}{info.value:>10}{counts}')
        return '\n'.join(lines) + '\n'
