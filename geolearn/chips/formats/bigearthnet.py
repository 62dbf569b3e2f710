"""BigEarthNet: a folder for each patch, a file for each band, labels beside the bands or in one table."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from geolearn.chips.emd import ExportMetadata, read_json
from geolearn.chips.formats.content import FolderContent
from geolearn.chips.formats.tiles import read_class_raster
from geolearn.chips.label import ChipSource, Label, LabelReader, Listing, Task, read_no_label
from geolearn.classes import ClassInfo, default_color
from geolearn.errors import ChipFolderError

_LEVEL_3 = """
111 Continuous urban fabric
112 Discontinuous urban fabric
121 Industrial or commercial units
122 Road and rail networks and associated land
123 Port areas
124 Airports
131 Mineral extraction sites
132 Dump sites
133 Construction sites
141 Green urban areas
142 Sport and leisure facilities
211 Non-irrigated arable land
212 Permanently irrigated land
213 Rice fields
221 Vineyards
222 Fruit trees and berry plantations
223 Olive groves
231 Pastures
241 Annual crops associated with permanent crops
242 Complex cultivation patterns
243 Land principally occupied by agriculture, with significant areas of natural vegetation
244 Agro-forestry areas
311 Broad-leaved forest
312 Coniferous forest
313 Mixed forest
321 Natural grassland
322 Moors and heathland
323 Sclerophyllous vegetation
324 Transitional woodland/shrub
331 Beaches, dunes, sands
332 Bare rock
333 Sparsely vegetated areas
334 Burnt areas
335 Glaciers and perpetual snow
411 Inland marshes
412 Peatbogs
421 Salt marshes
422 Salines
423 Intertidal flats
511 Water courses
512 Water bodies
521 Coastal lagoons
522 Estuaries
523 Sea and ocean
"""

_NINETEEN: dict[str, tuple[int, ...]] = {
    'Urban fabric': (111, 112),
    'Industrial or commercial units': (121,),
    'Arable land': (211, 212, 213),
    'Permanent crops': (221, 222, 223, 241),
    'Pastures': (231,),
    'Complex cultivation patterns': (242,),
    'Land principally occupied by agriculture, with significant areas of natural vegetation': (243,),
    'Agro-forestry areas': (244,),
    'Broad-leaved forest': (311,),
    'Coniferous forest': (312,),
    'Mixed forest': (313,),
    'Natural grassland and sparsely vegetated areas': (321, 333),
    'Moors, heathland and sclerophyllous vegetation': (322, 323),
    'Transitional woodland, shrub': (324,),
    'Beaches, dunes, sands': (331,),
    'Inland wetlands': (411, 412),
    'Coastal wetlands': (421, 422),
    'Inland waters': (511, 512),
    'Marine waters': (521, 522, 523),
}

_ROWS = [line.split(maxsplit=1) for line in _LEVEL_3.strip().splitlines()]

CORINE = tuple(ClassInfo(int(code), name, default_color(position)) for position, (code, name) in enumerate(_ROWS))
"""The 44 classes of level 3; values are CORINE's codes."""

CLASSES_43 = tuple(info for info in CORINE if info.value != 335)
"""What patches of BigEarthNet v1 are labelled with: no glacier lies in the ten countries."""

CLASSES_19 = tuple(ClassInfo(value, name, default_color(value - 1)) for value, name in enumerate(_NINETEEN, 1))
"""The classes of BigEarthNet-MM and v2, in their published order."""

VALUE_43 = {info.name: info.value for info in CLASSES_43}
"""CORINE code of each of the 43 names."""

_VALUE_OF_CODE = {code: value for value, codes in enumerate(_NINETEEN.values(), 1) for code in codes}

VALUE_19: dict[str, int | None] = {name: _VALUE_OF_CODE.get(code) for name, code in VALUE_43.items()} | {
    info.name: info.value for info in CLASSES_19
}
"""Value among the 19 classes of each of the 43 names and of the 19 themselves; None for the 11 that were dropped."""

BANDS = {
    'Sentinel-2': tuple('B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12'.split()),
    'Sentinel-1': ('VV', 'VH'),
}

TABLE = 'metadata.parquet'

PARTS = ('train', 'val', 'test')
"""As the data set calls them."""

MAPS = 'Reference_Maps'

_JSON = '_labels_metadata.json'

_MAP = '_reference_map.tif'

_Labelled = dict[str, tuple[Path, list[str]]]
"""For each patch the file that its labels were read from, and their names."""


@dataclass
class _Patches:
    """Files by name of the patch, as they are found."""

    bands: dict[str, dict[str, Path]] = field(default_factory=dict)
    sensors: dict[str, dict[str, Path]] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    maps: dict[str, Path] = field(default_factory=dict)


def list_bigearthnet(folder: Path, metadata: ExportMetadata) -> Listing:
    """List patches with the 19 classes of BigEarthNet-MM and v2; v1's 43 names are translated.

    Patches of which nothing is left among the 19 classes are left out. Where no patch has labels but reference maps
    exist, these are the labels, with CORINE codes as values.

    Raises:
        ChipFolderError: If there is no whole patch, patches of both sensors, or labels that cannot be read.
    """
    return _list(folder, CLASSES_19, VALUE_19)


def list_bigearthnet_43(folder: Path, metadata: ExportMetadata) -> Listing:
    """List patches with the 43 classes of BigEarthNet v1, whose values are CORINE codes; else as `list_bigearthnet`.

    Raises:
        ChipFolderError: As `list_bigearthnet`, and if the labels are of the 19 classes.
    """
    return _list(folder, CLASSES_43, VALUE_43)


def is_bigearthnet(folder: Path, *, depth: int = 3, folders: int = 200) -> bool:
    """Whether patches lie at most `depth` folders down; only the first `folders` folders are searched."""
    waiting, seen = [(folder, 0)], 0
    while waiting and seen < folders:
        (here, level), seen = waiting.pop(), seen + 1
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            continue
        if any(_sensor_of(here.name, entry.name) or entry.name == here.name + _MAP for entry in entries):
            return True
        if level < depth:
            waiting += [(here / entry.name, level + 1) for entry in entries[::-1] if entry.is_dir()]
    return False


def is_bigearthnet_folder(content: FolderContent) -> bool:
    """Whether there are patches, and no images/."""
    return not content.images.is_dir() and is_bigearthnet(content.root)


def _sensor_of(patch: str, file: str) -> str | None:
    """Return the sensor if a file is a band of the patch that its folder is named after."""
    sensor = {'S2': 'Sentinel-2', 'S1': 'Sentinel-1'}.get(patch[:2])
    stem, suffix = os.path.splitext(file)
    if sensor is None or suffix.lower() not in ('.tif', '.tiff') or not stem.startswith(patch + '_'):
        return None
    return sensor if stem[len(patch) + 1 :] in BANDS[sensor] else None


def _list(folder: Path, classes: tuple[ClassInfo, ...], values: Mapping[str, int | None]) -> Listing:
    patches = _find(folder)
    sensor = _only_sensor(folder, patches)
    notes: list[str] = []
    whole = _whole_patches(folder, patches.bands, BANDS[sensor], notes)
    found = _read_labels(patches.labels, notes) or _read_table(folder, whole)
    parts = _by_part(read_parts(folder, list(whole)))
    build = partial(Listing, band_names=BANDS[sensor], sensor=sensor, parts=parts)
    if labelled := {name: found[name] for name in whole if name in found}:
        readers = _value_readers(labelled, values, len(classes), notes)
        _note_lonely(whole, labelled, 'labels', notes)
        return build(Task.LABELS, _chips(whole, readers), classes, notes=tuple(notes))
    maps = patches.maps or _maps_beside(folder)
    if mapped := {name: maps[name] for name in whole if name in maps}:
        _note_lonely(whole, mapped, 'reference map', notes)
        readers = {name: (path, partial(read_class_raster, path)) for name, path in mapped.items()}
        notes.append('no patch has labels; the reference maps are read, with CORINE codes as class values')
        return build(Task.PIXELS, _chips(whole, readers), CORINE, notes=tuple(notes))
    notes.append(f'no patch has labels (*{_JSON} or {TABLE}) or a reference map; the images are read alone')
    return build(
        Task.UNLABELLED, _chips(whole, {name: (None, read_no_label) for name in whole}), (), notes=tuple(notes)
    )


def _find(folder: Path) -> _Patches:
    """Walk through everything below a folder once."""
    patches = _Patches()
    for here, _, files in os.walk(folder, onerror=_refuse):
        path = Path(here)
        for file in files:
            if sensor := _sensor_of(path.name, file):
                bands = patches.bands.setdefault(path.name, {})
                name = os.path.splitext(file)[0][len(path.name) + 1 :]
                if name in bands:
                    raise ChipFolderError(f'{bands[name]} and {path / file} are one band twice; remove one of them')
                bands[name] = path / file
                patches.sensors.setdefault(sensor, {}).setdefault(path.name, path)
            elif file == path.name + _JSON:
                patches.labels[path.name] = path / file
            elif file == path.name + _MAP:
                patches.maps[path.name] = path / file
    return patches


def _refuse(error: OSError) -> None:
    raise ChipFolderError(f'cannot list {error.filename}: {error.strerror}') from error


def _only_sensor(folder: Path, patches: _Patches) -> str:
    if not patches.sensors:
        raise ChipFolderError(
            f'{folder} holds no patch of BigEarthNet; a patch is a folder such as S2A_MSIL2A_..._36_85 with a file for '
            'each band, S2A_MSIL2A_..._36_85_B02.tif, or S1A_IW_GRDH_..._VV.tif'
        )
    if len(patches.sensors) > 1:
        roots = [os.path.commonpath(found.values()) for found in patches.sensors.values()]
        held = ' and '.join(f'{len(found)} of {sensor}' for sensor, found in patches.sensors.items())
        raise ChipFolderError(f'{folder} holds patches {held}; pass the folder of one sensor: {" or ".join(roots)}')
    return next(iter(patches.sensors))


def _whole_patches(
    folder: Path, found: Mapping[str, Mapping[str, Path]], wanted: tuple[str, ...], notes: list[str]
) -> dict[str, tuple[Path, ...]]:
    """Return the band files, in order, of each patch that has all of them."""
    broken = sorted(name for name, bands in found.items() if len(bands) < len(wanted))
    whole = {name: tuple(found[name][band] for band in wanted) for name in sorted(found.keys() - set(broken))}
    if broken:
        missing = ', '.join(band for band in wanted if band not in found[broken[0]])
        text = f'{len(broken)} patches lack bands, the first is {broken[0]} without {missing}'
        if not whole:
            raise ChipFolderError(f'{folder}: {text}; none is whole')
        notes.append(f'{text}; they were left out')
    return whole


def _read_labels(files: Mapping[str, Path], notes: list[str]) -> _Labelled:
    found: _Labelled = {}
    broken: list[str] = []
    for name, path in files.items():
        try:
            labels = read_json(path).get('labels')
        except ChipFolderError as error:
            broken.append(str(error))
            continue
        if isinstance(labels, list) and all(isinstance(label, str) for label in labels):
            found[name] = path, labels
        else:
            broken.append(f'{path} has no list of labels')
    if broken and not found:
        raise ChipFolderError(f'none of {len(broken)} label files can be read; the first: {min(broken)}')
    if broken:
        notes.append(f'{len(broken)} label files cannot be read and were left out; the first: {min(broken)}')
    return found


def _read_table(folder: Path, whole: Iterable[str]) -> _Labelled:
    """Read v2's table, in the folder or at most two above it; radar patches stand in it under s1_name."""
    path = next((p for p in (above / TABLE for above in (folder, *folder.parents[:2])) if p.is_file()), None)
    if path is None:
        return {}
    import pandas as pd

    key = 's1_name' if next(iter(whole)).startswith('S1') else 'patch_id'
    try:
        table = pd.read_parquet(path, columns=[key, 'labels'])
    except ImportError as error:
        raise ChipFolderError(
            f"{path} holds the labels; reading it needs pyarrow: pip install 'pyarrow>=14'"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ChipFolderError(f'cannot read columns {key} and labels of {path}: {error}') from error
    return {str(name): (path, [str(label) for label in labels]) for name, labels in zip(table[key], table['labels'])}


def read_parts(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the published part of each patch, ``'train'``, ``'val'`` or ``'test'``, of those that have one.

    Parts are in ``train.csv``, ``val.csv`` and ``test.csv``, a patch on each line, or its names of both sensors with
    a comma between; or in the table of version 2.

    Args:
        folder: That of the patches; lists and table lie in it or at most two above it.
        names: Of the patches.
    """
    wanted, listed = set(names), dict[str, str]()
    for above in (folder, *folder.parents[:2]):
        for part in PARTS:
            path = above / f'{part}.csv'
            if path.is_file():
                lines = path.read_text(encoding='utf-8-sig').splitlines()
                listed |= {cell.strip(): part for line in lines for cell in line.split(',') if cell.strip()}
        if found := {name: part for name, part in listed.items() if name in wanted}:
            return found
    return {name: part for name, part in _parts_of_table(folder, wanted).items() if name in wanted}


def _parts_of_table(folder: Path, wanted: set[str]) -> dict[str, str]:
    path = next((p for p in (above / TABLE for above in (folder, *folder.parents[:2])) if p.is_file()), None)
    if path is None or not wanted:
        return {}
    import pandas as pd

    key = 's1_name' if next(iter(wanted)).startswith('S1') else 'patch_id'
    try:
        table = pd.read_parquet(path, columns=[key, 'split'])
    except (ImportError, OSError, ValueError, KeyError, RuntimeError):  # labels say what is missing
        return {}
    spelled = {'validation': 'val'}
    return {str(name): spelled.get(str(part), str(part)) for name, part in zip(table[key], table['split'])}


def _by_part(parts: Mapping[str, str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found = {'train': 'train', 'val': 'valid', 'test': 'test'}
    return tuple(
        (found[part], listed)
        for part in PARTS
        if (listed := tuple(sorted(name for name, its in parts.items() if its == part)))
    )


def _maps_beside(folder: Path) -> dict[str, Path]:
    """Find reference maps in a folder beside this one or beside the one above it."""
    beside = next((p for p in (above / MAPS for above in folder.parents[:2]) if p.is_dir()), None)
    return {} if beside is None else _find(beside).maps


def _value_readers(
    labelled: _Labelled, values: Mapping[str, int | None], count: int, notes: list[str]
) -> dict[str, tuple[Path, LabelReader]]:
    """Translate names to values; a patch of which nothing is left gets no reader."""
    readers: dict[str, tuple[Path, LabelReader]] = {}
    for name, (path, labels) in labelled.items():
        if unknown := [label for label in labels if label not in values]:
            hint = "; pass dataset_type='BigEarthNet'" if unknown[0] in VALUE_19 else ''
            raise ChipFolderError(
                f'{path} lists {unknown[0]!r} for {name}, which is not one of the {count} classes{hint}'
            )
        kept = {value for label in labels if (value := values[label]) is not None}
        if kept:
            readers[name] = path, partial(read_patch_values, tuple(sorted(kept)))
    if len(readers) < len(labelled):
        notes.append(
            f'{len(labelled) - len(readers)} patches hold nothing of the {count} classes and were left out, '
            f'the first is {min(labelled.keys() - readers.keys())}'
        )
    if not readers:
        raise ChipFolderError(f'none of {len(labelled)} patches holds any of the {count} classes: {min(labelled)} ...')
    return readers


def _note_lonely(whole: Mapping[str, object], known: Mapping[str, object], what: str, notes: list[str]) -> None:
    if lonely := sorted(whole.keys() - known.keys()):
        notes.append(f'{len(lonely)} patches have no {what} and were left out, the first is {lonely[0]}')


def _chips(
    whole: Mapping[str, tuple[Path, ...]], readers: Mapping[str, tuple[Path | None, LabelReader]]
) -> tuple[ChipSource, ...]:
    return tuple(
        ChipSource(name, (whole[name],), () if path is None else (path,), read)
        for name, (path, read) in sorted(readers.items())
    )


def read_patch_values(values: tuple[int, ...], shape: tuple[int, int]) -> Label:
    """Return the label of a patch that holds these classes, whatever its shape."""
    return Label(class_ids=np.array(values, np.int64))
