"""Read folders in the layout of BigEarthNet: patches, their classes of both nomenclatures, places and parts.

Version 1 has a folder for each patch, with a raster for each band and ``*_labels_metadata.json``; version 2 has these
folders inside one for each scene, and ``metadata.parquet`` beside them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from geolearn import extras
from geolearn.chips.formats import bigearthnet
from geolearn.errors import ChipFolderError, UnknownNameError
from geolearn.raster import read_image

Sensor = Literal['s1', 's2']

BANDS = {'s1': bigearthnet.BANDS['Sentinel-1'], 's2': bigearthnet.BANDS['Sentinel-2']}
"""In the order in which they are stacked."""

SENSORS = {'s1': 'sentinel1', 's2': 'sentinel2_l2a'}
"""Names of geolearn for the sensors."""

CLASSES_19 = tuple(info.name for info in bigearthnet.CLASSES_19)

CLASSES_43 = tuple(sorted(info.name for info in bigearthnet.CLASSES_43))

TO_19: dict[str, str | None] = {
    name: None if (value := bigearthnet.VALUE_19[name]) is None else CLASSES_19[value - 1] for name in CLASSES_43
}
"""What each of the 43 classes (level 3 of CORINE Land Cover) becomes among the 19; None for those left out."""

_LABELS = '_labels_metadata.json'


@dataclass(frozen=True, eq=False)
class BigEarthNet:
    """The patches of a folder.

    Args:
        names: Of the patches.
        folders: Of each patch, with a raster for each band.
        sensor: ``'s1'`` or ``'s2'``.
        labels: Names of the classes of each patch, of one nomenclature.
        classes: All classes of that nomenclature: 43, or 19 where only those are known.
        positions: (patches, 2) map coordinates of the upper left corner; NaN where they are not known.
        zones: CRS of each position.
        parts: ``'train'``, ``'val'`` or ``'test'`` of each patch; empty where nothing says so.
    """

    names: tuple[str, ...]
    folders: tuple[Path, ...] = field(repr=False)
    sensor: Sensor
    labels: tuple[tuple[str, ...], ...] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    positions: np.ndarray = field(repr=False)
    zones: tuple[str, ...] = field(repr=False)
    parts: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def presence(self, count: int) -> np.ndarray:
        """Return which patch has which of 19 or 43 classes: (patches, classes) bool.

        Raises:
            ValueError: If the folder does not name the 43 classes, or `count` is another number.
        """
        if count not in (19, 43):
            raise ValueError(f'BigEarthNet has nomenclatures of 19 and 43 classes, got {count}')
        if count == 43 and len(self.classes) == 19:
            raise ValueError('this folder names the 19 classes alone, as version 2 does; probe those')
        names = CLASSES_19 if count == 19 else CLASSES_43
        column = {name: index for index, name in enumerate(names)}
        table = np.zeros((len(self), count), bool)
        for row, labels in zip(table, self.labels):
            for label in labels:
                name = TO_19.get(label, label) if count == 19 else label
                if name is not None:
                    row[column[name]] = True
        return table

    def image(self, position: int) -> np.ndarray:
        """Read a patch as (bands, 120, 120) float32; bands of 20 and 60 m are repeated to 10 m.

        Raises:
            ChipFolderError: If a band is missing, or of another size.
        """
        folder, name = self.folders[position], self.names[position]
        planes = []
        for band in BANDS[self.sensor]:
            path = folder / f'{name}_{band}.tif'
            if not path.is_file():
                raise ChipFolderError(
                    f'{folder} has no {path.name}; a patch needs the bands {", ".join(BANDS[self.sensor])}'
                )
            pixels, mask, _ = read_image(path)
            plane = pixels[0].astype(np.float32)
            if mask is not None:
                plane[~np.broadcast_to(mask, pixels.shape)[0]] = np.nan
            planes.append(plane)
        side = max(len(plane) for plane in planes)
        if any(side % len(plane) or plane.shape[0] != plane.shape[1] for plane in planes):
            shapes = ', '.join(f'{band} {plane.shape}' for band, plane in zip(BANDS[self.sensor], planes))
            raise ChipFolderError(f'the bands of {folder} do not fit together: {shapes}')
        return np.stack([np.kron(p, np.ones((side // len(p),) * 2, np.float32)) for p in planes])

    @property
    def images(self) -> 'PatchImages':
        """The patches as a sequence of arrays, each read when it is asked for."""
        return PatchImages(self)


class PatchImages(Sequence[np.ndarray]):
    """Patches as a sequence of arrays.

    Args:
        source: Whose patches.
    """

    def __init__(self, source: BigEarthNet) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: Any) -> Any:
        return self._source.image(position)


def read_bigearthnet(folder: str | Path, sensor: Sensor = 's1') -> BigEarthNet:
    """Find the patches of a folder in the layout of BigEarthNet, version 1 or 2.

    Parts are read from ``train.csv``, ``val.csv`` and ``test.csv`` in the folder (a patch name on each line, the first
    column), or from ``metadata.parquet`` of version 2.

    Args:
        folder: The root, or any folder above the patches.
        sensor: ``'s1'`` for Sentinel-1 (VV, VH), ``'s2'`` for Sentinel-2.

    Raises:
        UnknownNameError: If there is no such sensor.
        ChipFolderError: If the folder holds no patches with labels.
        MissingExtraError: If version 2 is to be read and pyarrow is not installed.
    """
    if sensor not in BANDS:
        raise UnknownNameError('sensor of BigEarthNet', str(sensor), BANDS)
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ChipFolderError(f'there is no folder {root}')
    found = dict(sorted(_find_patches(root, sensor)))
    if not found:
        first = BANDS[sensor][0]
        raise ChipFolderError(
            f'no patch of {sensor} lies in {root}: needed are folders that hold NAME_{first}.tif and the other bands, '
            'where NAME is that of the folder; for the other sensor pass sensor='
        )
    tables = sorted(root.rglob('metadata.parquet'))
    if tables:
        return _of_version_2(found, sensor, tables[0])
    return _of_version_1(root, found, sensor)


def _find_patches(root: Path, sensor: Sensor) -> Iterator[tuple[str, Path]]:
    suffix = f'_{BANDS[sensor][0]}.tif'
    for path in root.rglob(f'*{suffix}'):
        if path.name == f'{path.parent.name}{suffix}':
            yield path.parent.name, path.parent


def _of_version_1(root: Path, found: dict[str, Path], sensor: Sensor) -> BigEarthNet:
    labels, positions, zones = [], np.full((len(found), 2), np.nan), []
    for place, (name, folder) in zip(positions, found.items()):
        path = folder / f'{name}{_LABELS}'
        try:
            facts = json.loads(path.read_text(encoding='utf-8'))
            labels.append(_known(facts['labels'], CLASSES_43, path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, ChipFolderError):
                raise
            raise ChipFolderError(
                f'{path} does not name the labels of its patch ({error}); needed is {{"labels": [...]}} in it, or '
                'metadata.parquet of version 2'
            ) from error
        corner = facts.get('coordinates') or {}
        place[:] = corner.get('ulx', np.nan), corner.get('uly', np.nan)
        zones.append(str(facts.get('projection', '')))
    listed = bigearthnet.read_parts(root, found)
    parts = tuple(listed.get(name, '') for name in found) if listed else ()
    return BigEarthNet(
        tuple(found), tuple(found.values()), sensor, tuple(labels), CLASSES_43, positions, tuple(zones), parts
    )


def _known(labels: Any, classes: Sequence[str], path: Path) -> tuple[str, ...]:
    names = tuple(str(label) for label in labels)
    for name in names:
        if name not in classes:
            raise ChipFolderError(f'{path} names {name!r}, which is none of the {len(classes)} classes of BigEarthNet')
    return names


def _of_version_2(found: dict[str, Path], sensor: Sensor, table: Path) -> BigEarthNet:
    parquet = extras.require('pyarrow.parquet', extra='vector', to='read metadata.parquet of BigEarthNet')
    key = 's1_name' if sensor == 's1' else 'patch_id'
    try:
        columns = parquet.read_table(table, columns=[key, 'labels', 'split']).to_pydict()
    except (OSError, ValueError, KeyError) as error:
        raise ChipFolderError(
            f'{table} lacks {key}, labels or split, as BigEarthNet version 2 has them: {error}'
        ) from error
    rows = {name: (labels, part) for name, labels, part in zip(columns[key], columns['labels'], columns['split'])}
    known = {name: folder for name, folder in found.items() if name in rows}
    if not known:
        raise ChipFolderError(f'{table} names none of the {len(found):,} patches, such as {next(iter(found))}')
    labels = tuple(_known(rows[name][0], CLASSES_19, table) for name in known)
    parts = tuple({'validation': 'val'}.get(rows[name][1], str(rows[name][1])) for name in known)
    positions, zones = np.full((len(known), 2), np.nan), []
    for place, (name, folder) in zip(positions, known.items()):
        _, _, box = read_image(folder / f'{name}_{BANDS[sensor][0]}.tif')
        place[:] = box.transform.c, box.transform.f
        zones.append(str(box.crs or ''))
    return BigEarthNet(tuple(known), tuple(known.values()), sensor, labels, CLASSES_19, positions, tuple(zones), parts)
