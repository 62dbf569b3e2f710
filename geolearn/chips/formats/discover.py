"""Find the folder that holds chips, at or near the path that was given, and what its .emd says about the format."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from geolearn.chips.emd import EMD_NAME, STATS_NAME, ExportMetadata, read_json
from geolearn.chips.formats.coco import coco_fault
from geolearn.chips.formats.content import PARTS, ChipFormat, FolderContent, has_images, visible_folders
from geolearn.errors import ChipFolderError

Formats = Mapping[str, ChipFormat]
"""The table of formats, by dataset_type."""


class ChipFolder(NamedTuple):
    """A folder of chips: where it is, what its content looks like if it has no .emd, and how it was found."""

    folder: Path
    recognized: str | None
    notes: tuple[str, ...]


def recognize(folder: Path, formats: Formats) -> str | None:
    """Return the dataset_type of what lies in a folder, or None where that is nothing known or could be several."""
    content = FolderContent(folder)
    kinds = (lambda row: row.published, lambda row: not row.published and not row.generic, lambda row: row.generic)
    for is_kind in kinds:
        rows = ((name, row.fits) for name, row in formats.items() if is_kind(row))
        found = [name for name, fits in rows if fits is not None and fits(content)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def find_folder(path: str | Path, wanted: str | None, formats: Formats) -> ChipFolder:
    """Find chips in `path` itself, in its parent if `path` is its images, or one level down.

    Args:
        path: What the user gave.
        wanted: dataset_type if the user gave one; then a folder without .emd need not look like anything known.
        formats: The table of formats.

    Raises:
        ChipFolderError: If there is no such folder, or several; the message lists what was found.
    """
    folder = Path(path)
    try:
        folder = folder.expanduser()
        if not folder.is_dir():
            raise ChipFolderError(f'{folder} is no folder; pass the folder that holds {EMD_NAME} or images/')
        published = wanted is not None and formats[wanted].published
        return (
            (None if published else _with_emd(folder))
            or _without_emd(folder, wanted, formats)
            or _refuse(folder, formats)
        )
    except RuntimeError as error:  # ~name of somebody who has no home
        raise ChipFolderError(f'{folder} is no folder: {error}') from error
    except OSError as error:
        raise ChipFolderError(f'cannot list {error.filename or folder}: {error.strerror}') from error


def _with_emd(folder: Path) -> ChipFolder | None:
    if (folder / EMD_NAME).is_file():
        return ChipFolder(folder, None, ())
    if folder.name.lower() in PARTS and (folder.parent / EMD_NAME).is_file():
        return _moved(folder, folder.parent, None)
    below = [child for child in visible_folders(folder) if (child / EMD_NAME).is_file()]
    return _moved(folder, _only(folder, below), None) if below else None


def _without_emd(folder: Path, wanted: str | None, formats: Formats) -> ChipFolder | None:
    if wanted and formats[wanted].published:  # its reader finds the files, or says which layout is needed
        return ChipFolder(folder, None, ())
    part = folder.name.lower() in PARTS and FolderContent(folder.parent).images.is_dir()
    if part and (kind := wanted or recognize(folder.parent, formats)):
        return _moved(folder, folder.parent, kind)
    if kind := recognize(folder, formats):
        return ChipFolder(folder, kind, ())
    if wanted and FolderContent(folder).images.is_dir():
        return ChipFolder(folder, None, ())
    children = [child for child in visible_folders(folder) if child.name.lower() not in PARTS]
    below = {child: kind for child in children if (kind := recognize(child, formats))}
    if not below and wanted:
        below = {child: '' for child in children if FolderContent(child).images.is_dir()}
        if not below:
            return ChipFolder(folder, None, ())
    return _moved(folder, child := _only(folder, list(below)), below[child] or None) if below else None


def _moved(given: Path, folder: Path, recognized: str | None) -> ChipFolder:
    return ChipFolder(folder, recognized, (f'{given} itself is no export; reading {folder}',))


_VALID = ('valid', 'val', 'validation')


def _only(folder: Path, below: list[Path]) -> Path:
    if len(below) > 1:
        names = ', '.join(child.name for child in below[:8]) + (', ...' if len(below) > 8 else '')
        by_name = {child.name.lower(): child for child in below}
        train = by_name.get('train', by_name.get('training'))
        valid = next((by_name[name] for name in _VALID if name in by_name), None)
        test = f", test_path='{by_name['test']}'" if 'test' in by_name else ''
        advice = 'pass one of them, or a list of them'
        if train and valid:
            advice = f"they are parts of one data set: prepare_data('{train}', valid_path='{valid}'{test})"
        raise ChipFolderError(f'{folder} holds {len(below)} exports ({names}); {advice}')
    return below[0]


def _refuse(folder: Path, formats: Formats) -> NoReturn:
    faults = [fault for place in (folder, *visible_folders(folder)) if (fault := _find_fault(place))]
    layouts = '\n'.join(f'  {name}: {row.layout}' for name, row in formats.items() if row.fits is not None)
    raise ChipFolderError(
        f'{folder} is no export of training data: no {EMD_NAME} in it or one level down; it holds {_describe(folder)}, '
        f'which is nothing known or could be several things{f" ({faults[0]})" if faults else ""}. Pass the folder that '
        '"Export Training Data For Deep Learning" or export_training_data wrote, or name the format: '
        f'dataset_type={" | ".join(formats)}. Recognized without an .emd are:\n{layouts}'
    )


def _find_fault(folder: Path) -> str | None:
    """Say which file of a folder looks like labels and is none, or None where nothing does."""
    return coco_fault(folder) or FolderContent(folder).text_fault()


def _describe(folder: Path) -> str:
    """List what lies in a folder, and in its labels/."""
    shown, labels = _entries(folder), FolderContent(folder).labels
    if labels.is_dir() and labels != folder:
        shown += f' ({labels.name}/ holds {_entries(labels)})'
    return shown


def _entries(folder: Path) -> str:
    entries = sorted(child.name + '/' * child.is_dir() for child in folder.iterdir())
    return ', '.join(entries[:8]) + (', ...' if len(entries) > 8 else '') if entries else 'nothing'


def emd_type(folder: Path, metadata: ExportMetadata, formats: Formats) -> str | None:
    """Return the dataset_type that an export's own word amounts to, or None where it says nothing."""
    if metadata.metadata_mode == 'Classified_Tiles' and has_images(folder / 'images2'):
        return 'MultiTemporal_Tiles' if metadata.dates or has_images(folder / 'images3') else 'ChangeDetection'
    return metadata.metadata_mode or recognize(folder, formats)


def refuse_what_is_not_read(folder: Path, dataset_type: str) -> None:
    """Refuse exports whose chips or labels are of a kind that geolearn has no task for.

    Raises:
        ChipFolderError: If chips are time series, or labels are captions.
    """
    emd = read_json(folder / EMD_NAME)
    stats = read_json(folder / STATS_NAME) if (folder / STATS_NAME).is_file() else {}
    if emd.get('IsMultidimensional') is True or stats.get('IsMultidimensional') is True:
        raise ChipFolderError(
            f'{folder / EMD_NAME} says IsMultidimensional: its chips are time series, which are not read; '
            'export single dates'
        )
    if emd.get('SingleLabelFieldFound') == 'Caption' and dataset_type != 'Export_Tiles':
        raise ChipFolderError(
            f'{folder / EMD_NAME} says that labels are captions, which are not read; '
            "pass dataset_type='Export_Tiles' to read the images alone"
        )
