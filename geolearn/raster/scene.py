"""Bands of one scene in a file each: Sentinel-2 SAFE, Landsat Collection 2, EO Browser, or any such list."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from geolearn.bands import find_sensor
from geolearn.errors import RasterError

log = logging.getLogger('geolearn')

SUFFIXES = ('.tif', '.tiff', '.jp2', '.img')
"""Files that may hold a band in a folder."""

METADATA_BYTES = 16 * 2**20


class BandFile(NamedTuple):
    """A file that holds one band, and the name of the band as its own name has it.

    `resolution` is that in the file's name in meters (Sentinel-2's ``_10m``), 0 where there is none.
    """

    path: Path
    name: str
    resolution: int = 0


class Scene(NamedTuple):
    """What a folder holds.

    Args:
        files: The bands, in order.
        sensor: Whose they are.
        nodata: Value that the product declares as NoData but its files do not, or None.
        note: How stored values become the product's units, or None.
        offset: What is added to stored values before they are divided, or None where the product does not say.
    """

    files: tuple[BandFile, ...]
    sensor: str | None
    nodata: float | None = None
    note: str | None = None
    offset: float | None = None


_S2 = re.compile(r'(?:^|[_\-. ])(B(?:0[1-9]|1[0-2]|8A))(?:_(10|20|60)m)?$', re.IGNORECASE)
_LANDSAT = re.compile(r'^(L[COTEM]0[1-9])_.*?_((?:SR_|ST_)?B\d{1,2})$', re.IGNORECASE)
_LANDSAT_SENSORS = {'04': 'landsat5', '05': 'landsat5', '07': 'landsat7', '08': 'landsat8', '09': 'landsat9'}
_BROWSER = re.compile(r'_(Sentinel-2_L[12][AC]|Landsat_[^_]+(?:_L\d)?)_(B\d{1,2}A?)(?:_\(Raw\))?$', re.IGNORECASE)


_QUALITY = re.compile(
    r'(^|[_\-. ])(SCL|QA\d*|QA_PIXEL|QA_RADSAT|SR_QA_AEROSOL|PIXEL_QA|FMASK|CLM|CLP|CLD|SNW|CLDPRB|SNWPRB|'
    r'UDM2?|DATAMASK|MSK_[A-Z]+)([_\-. ](10|20|60)m)?$',
    re.IGNORECASE,
)
"""Ends of the names of files that hold codes or probabilities of clouds, shadows and the like, and no measurements."""


def is_quality(path: str | Path) -> bool:
    """Whether the name of a file says that it holds the quality of pixels: classes, flags or masks of clouds."""
    return _QUALITY.search(re.sub(r'_\(raw\)$', '', Path(path).stem, flags=re.IGNORECASE)) is not None


def read_name(path: str | Path) -> BandFile | None:
    """Find the name of the band in the name of a file as agencies write it; None where it follows no such custom."""
    stem = Path(path).stem
    if match := _BROWSER.search(stem):
        return BandFile(Path(path), match[2].upper())
    if match := _LANDSAT.match(stem):
        return BandFile(Path(path), match[2].upper())
    stem = re.sub(r'_\(raw\)$', '', stem, flags=re.IGNORECASE)
    if match := _S2.search(stem):
        return BandFile(Path(path), match[1].upper(), int(match[2] or 0))
    return None


def sensor_of(paths: Sequence[str | Path]) -> str | None:
    """Return the sensor that the names of the files of one scene tell; None where they tell none."""
    found = {_sensor_of(Path(path)) for path in paths}
    return found.pop() if len(found) == 1 else None


def _sensor_of(path: Path) -> str | None:
    stem = path.stem
    if match := _LANDSAT.match(stem):
        return find_sensor(_LANDSAT_SENSORS.get(match[1][2:]))
    if match := _BROWSER.search(stem):
        return find_sensor(match[1].replace('_', ' ')) or find_sensor(match[1].split('_')[0])
    if re.match(r'(S2[ABC]_|T\d{2}[A-Z]{3}_|L2A_T\d{2}[A-Z]{3}_)', stem) or '.SAFE' in str(path):
        return find_sensor('sentinel-2')
    return None


def name_files(paths: Sequence[str | Path]) -> list[str] | None:
    """Name the band that each of several files holds, after what differs between their names.

    Returns:
        A name for each, all different; None where the names tell no bands: equal ones, mere numbers, dates.
    """
    known = [read_name(path) for path in paths]
    if all(known):
        names = [file.name for file in known if file is not None]
    else:
        names = _differing_parts([Path(path).stem for path in paths])
    if len({name.lower() for name in names}) < len(names) or not all(re.search(r'[^\W\d_]', name) for name in names):
        return None
    called_bands = all(re.fullmatch(r'(band|b|ch|channel)[_ ]?\d+a?', name, re.IGNORECASE) for name in names)
    return None if _count_up(names) and not (all(known) or called_bands) else names


def _differing_parts(stems: Sequence[str]) -> list[str]:
    """Return the words of each name that not all of the names share at the beginning and at the end."""
    words = [re.split(r'[_\-. ]+', stem) for stem in stems]
    shortest = min(map(len, words))
    head = 0
    while head < shortest - 1 and len({tuple(row[: head + 1]) for row in words}) == 1:
        head += 1
    tail = 0
    while tail < shortest - head - 1 and len({tuple(row[len(row) - tail - 1 :]) for row in words}) == 1:
        tail += 1
    return ['_'.join(row[head : len(row) - tail]) for row in words]


def _count_up(names: Sequence[str]) -> bool:
    """Whether names differ by their digits only, as tiles and versions do: tile1, tile2, ..."""
    return len(names) > 1 and len({re.sub(r'\d+', '', name) for name in names}) == 1


def find_scene(folder: Path, bands: Sequence[str] | None = None) -> Scene:
    """Find the bands of the scene in a folder: a SAFE product or a part of it, a Landsat scene, or files of bands.

    Args:
        folder: The folder.
        bands: Names of those to take, in order; None takes all that hold light: no quality bands, no panchromatic one.

    Raises:
        RasterError: If there are none, several scenes, or one that is wanted is not there.
    """
    images = image_files(folder)
    found = [file for path in images if (file := read_name(path))]
    if not found:
        named = name_files(images) if len(images) > 1 else None
        if named is None:
            listed = ', '.join(path.name for path in images[:5]) or 'no raster'
            raise RasterError(
                f'{folder} is a folder that holds {listed}; a folder must be a SAFE product, a Landsat scene or a file '
                'for each band, named after it (B02.tif, B03.tif, ...). Pass the files themselves'
            )
        found = [BandFile(path, name) for path, name in zip(images, named)]
    files = _choose(_of_one_scene(found, folder), folder, bands)
    sensor = sensor_of([file.path for file in files])
    nodata, note, offset = _product_facts(folder, files)
    return Scene(files, sensor, nodata, note, offset)


def image_files(folder: Path) -> list[Path]:
    """Return the rasters of a folder, or of what holds those of a Sentinel-2 product, without those of quality."""
    inner = sorted(folder.glob('GRANULE/*/IMG_DATA')) or (
        [folder / 'IMG_DATA'] if (folder / 'IMG_DATA').is_dir() else []
    )
    if len(inner) > 1:
        raise RasterError(f'{folder} holds {len(inner)} granules; pass one of them, such as {inner[0]}')
    root = inner[0] if inner else folder
    folders = [root, *(path for path in sorted(root.glob('R[126]0m')) if path.is_dir())]
    found = sorted(
        path for place in folders for path in place.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    return [path for path in found if not is_quality(path)] or found


def _of_one_scene(files: Sequence[BandFile], folder: Path) -> list[BandFile]:
    """Keep the finest file of each band.

    Raises:
        RasterError: If several files hold the same band at the same resolution.
    """
    best: dict[str, BandFile] = {}
    for file in files:
        other = best.get(file.name)
        if other is None or 0 < file.resolution < other.resolution:
            best[file.name] = file
        elif file.resolution == other.resolution:
            raise RasterError(
                f'{folder} holds {file.name} twice, {other.path.name} and {file.path.name}: several scenes? Pass the '
                'files of one'
            )
    return sorted(best.values(), key=lambda file: _order(file.name))


def _order(name: str) -> tuple[int, float, str]:
    match = re.fullmatch(r'(SR_|ST_)?B(\d+)(A?)', name)
    return (0, int(match[2]) + 0.5 * bool(match[3]), name) if match else (1, 0, name)


def _choose(files: Sequence[BandFile], folder: Path, bands: Sequence[str] | None) -> tuple[BandFile, ...]:
    if bands is None:
        kept = [file for file in files if not _is_left_out(file)]
        return tuple(kept or files)
    spelled = {_spelling(file.name): file for file in files}
    names = [_spelling(band) for band in bands]
    if not all(name in spelled for name in names) and len(bands) == len(files):
        return tuple(file._replace(name=band) for file, band in zip(files, bands))
    if missing := [band for band, name in zip(bands, names) if name not in spelled]:
        raise RasterError(f'{folder} holds no band {missing[0]!r}; it holds {", ".join(file.name for file in files)}')
    return tuple(spelled[name]._replace(name=band) for band, name in zip(bands, names))


def _spelling(name: str) -> str:
    return re.sub(r'(?<!\d)0+(?=\d)', '', re.sub(r'^(sr|st)_', '', name.lower()))


def _is_left_out(file: BandFile) -> bool:
    """Whether a band is left out unless it is asked for: Landsat's panchromatic one and surface temperature."""
    match = _LANDSAT.match(file.path.stem)
    if match is None:
        return False
    return file.name.startswith('ST_') or (file.name == 'B8' and match[1][2:] in ('07', '08', '09'))


def _product_facts(folder: Path, files: Sequence[BandFile]) -> tuple[float | None, str | None, float | None]:
    """Read what the product states of its values: its NoData value, a sentence for people, and its offset."""
    landsat = _LANDSAT.match(files[0].path.stem)
    if landsat and any(file.path.stem.upper().rpartition('_SR_')[1] for file in files):
        note = (
            'Landsat Collection 2 surface reflectance is stored value * 0.0000275 - 0.2; bands are taken as '
            'stored. A model that was trained on reflectance maps them with scale=0.0000275, offset=-0.2'
        )
        return 0, note, None
    metadata = _metadata_file(folder)
    if metadata is None:
        is_sentinel = sensor_of([file.path for file in files]) == find_sensor('sentinel-2')
        return 0 if is_sentinel else None, None, None
    offset, quantification = _sentinel_values(metadata)
    if quantification is None or offset is None:
        return 0, None, None
    if not offset:
        return 0, f'Sentinel-2 reflectance is stored value / {quantification:g}', 0.0
    note = (
        f'this Sentinel-2 product (baseline 04.00 or later) states an offset of {offset:g}: reflectance is '
        f'(stored value {offset:+g}) / {quantification:g}. Bands are taken as stored; a model that '
        f'was trained on older products maps them with scale=1, offset={offset:g}'
    )
    return 0, note, offset


def _metadata_file(folder: Path) -> Path | None:
    place = Path(os.path.abspath(folder))
    for parent in (place, *place.parents[:4]):
        for name in ('MTD_MSIL2A.xml', 'MTD_MSIL1C.xml'):
            if (parent / name).is_file():
                return parent / name
    return None


def _sentinel_values(path: Path) -> tuple[float | None, float | None]:
    """Return the offset (0 where none is stated) and the divisor of a product's values, None where not known."""
    try:
        if path.stat().st_size > METADATA_BYTES:
            return None, None
        text = path.read_bytes()
        if b'<!DOCTYPE' in text or b'<!ENTITY' in text:
            return None, None
        root = ElementTree.fromstring(text)
        offsets = {float(item.text or 0) for tag in ('BOA_ADD_OFFSET', 'RADIO_ADD_OFFSET') for item in root.iter(tag)}
        divisors = [
            float(item.text or 0)
            for tag in ('BOA_QUANTIFICATION_VALUE', 'QUANTIFICATION_VALUE')
            for item in root.iter(tag)
        ]
    except (OSError, ElementTree.ParseError, ValueError):
        return None, None
    return (None if len(offsets) > 1 else next(iter(offsets), 0.0)), (
        divisors[0] if divisors and divisors[0] > 0 else None
    )
