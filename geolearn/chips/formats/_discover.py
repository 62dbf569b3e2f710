"""Find the folder that holds chips, at or near the path that was given, and what its .emd says about the format."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

from geolearn.chips.emd import EMD_NAME, STATS_NAME, ExportMetadata, read_json
from geolearn.chips.formats._recognise import find_fault, has_images, recognise
from geolearn.errors import ChipFolderError

_PARTS = ('images', 'images2', 'labels', 'labels2')


class Found(NamedTuple):
    """A folder of chips: where it is, what its content looks like if it has no .emd, and how it was found."""

    folder: Path
    recognised: str | None
    notes: tuple[str, ...]


def find_folder(path: str | Path, wanted: str | None, known: Iterable[str]) -> Found:
    """Find chips in `path` itself, in its parent if `path` is its images, or one level down.

    Args:
        path: What the user gave.
        wanted: dataset_type if the user gave one; then a folder without .emd need not look like anything known.
        known: Names of dataset_type, for messages.

    Raises:
        ChipFolderError: If there is no such folder, or several; the message lists what was found.
    """
    folder = Path(path)
    try:
        folder = folder.expanduser()
        if not folder.is_dir():
            raise ChipFolderError(f'{folder} is no folder; pass the folder that holds {EMD_NAME} or images/')
        return _with_emd(folder) or _without_emd(folder, wanted) or _refuse(folder, known)
    except RuntimeError as error:  # ~name of somebody who has no home
        raise ChipFolderError(f'{folder} is no folder: {error}') from error
    except OSError as error:
        raise ChipFolderError(f'cannot list {error.filename or folder}: {error.strerror}') from error


def _with_emd(folder: Path) -> Found | None:
    if (folder / EMD_NAME).is_file():
        return Found(folder, None, ())
    if folder.name in _PARTS and (folder.parent / EMD_NAME).is_file():
        return _moved(folder, folder.parent, None)
    below = [child for child in _children(folder) if (child / EMD_NAME).is_file()]
    return _moved(folder, _only(folder, below), None) if below else None


def _without_emd(folder: Path, wanted: str | None) -> Found | None:
    if folder.name in _PARTS and (folder.parent / 'images').is_dir() and (kind := wanted or recognise(folder.parent)):
        return _moved(folder, folder.parent, kind)
    if kind := recognise(folder):
        return Found(folder, kind, ())
    if wanted and (folder / 'images').is_dir():
        return Found(folder, None, ())
    children = [child for child in _children(folder) if child.name not in _PARTS]
    below = {child: kind for child in children if (kind := recognise(child))}
    if not below and wanted:
        below = {child: '' for child in children if (child / 'images').is_dir()}
        if not below:
            return Found(folder, None, ())
    return _moved(folder, child := _only(folder, list(below)), below[child] or None) if below else None


def _moved(given: Path, folder: Path, recognised: str | None) -> Found:
    return Found(folder, recognised, (f'{given} itself is no export; reading {folder}',))


def _only(folder: Path, below: list[Path]) -> Path:
    if len(below) > 1:
        names = ', '.join(child.name for child in below[:8]) + (', ...' if len(below) > 8 else '')
        raise ChipFolderError(f'{folder} holds {len(below)} exports ({names}); pass one of them')
    return below[0]


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith('.'))


def _refuse(folder: Path, known: Iterable[str]) -> NoReturn:
    faults = [fault for place in (folder, *_children(folder)) if (fault := find_fault(place))]
    raise ChipFolderError(
        f'{folder} is no export of training data: no {EMD_NAME} in it or one level down; it holds {_describe(folder)}, '
        f'which is nothing known or could be several things{f" ({faults[0]})" if faults else ""}. Pass the folder that '
        '"Export Training Data For Deep Learning" or export_training_data wrote, or name the format: '
        f'dataset_type={" | ".join(known)}'
    )


def _describe(folder: Path) -> str:
    """List what lies in a folder, and in its labels/."""
    shown = _entries(folder)
    if (folder / 'labels').is_dir():
        shown += f' (labels/ holds {_entries(folder / "labels")})'
    return shown


def _entries(folder: Path) -> str:
    entries = sorted(child.name + '/' * child.is_dir() for child in folder.iterdir())
    return ', '.join(entries[:8]) + (', ...' if len(entries) > 8 else '') if entries else 'nothing'


def emd_type(folder: Path, metadata: ExportMetadata) -> str | None:
    """Return the dataset_type that an export's own word amounts to, or None where it says nothing."""
    if metadata.metadata_mode == 'Classified_Tiles' and has_images(folder / 'images2'):
        return 'MultiTemporal_Tiles' if metadata.dates or has_images(folder / 'images3') else 'ChangeDetection'
    return metadata.metadata_mode or recognise(folder)


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
