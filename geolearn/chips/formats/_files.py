"""List the files of a chip folder and pair images with labels by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from geolearn.errors import ChipFolderError

IMAGE_SUFFIXES = frozenset({'.tif', '.tiff', '.png', '.jpg', '.jpeg', '.mrf'})


def list_files(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Return files below a folder by their name: the path within the folder, without suffix, with forward slashes.

    Sidecar files (world files, overviews, statistics) and hidden files are passed over, as are names of other suffixes.

    Raises:
        ChipFolderError: If the folder is missing or cannot be read, or two files have one name.
    """
    wanted, found = frozenset(suffixes), dict[str, Path]()
    if not folder.is_dir():
        raise ChipFolderError(f'{folder.parent} has no {folder.name}/ folder')
    try:
        paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in wanted)
    except OSError as error:
        raise ChipFolderError(f'cannot list {folder}: {error.strerror}') from error
    for path in paths:
        relative = path.relative_to(folder)
        if any(part.startswith('.') for part in relative.parts):
            continue
        name = relative.with_suffix('').as_posix()
        if name in found:
            raise ChipFolderError(f'{found[name]} and {path} are one chip twice; remove one of them')
        found[name] = path
    return found


def pair_notes(images: Mapping[str, Path], labels: Iterable[str]) -> list[str]:
    """Tell how many images have no label and how many labels no image, with the first of each.

    Args:
        images: Images by name.
        labels: Names of labels.
    """
    known = set(labels)
    lonely, orphans = sorted(images.keys() - known), sorted(known - images.keys())
    notes = []
    if lonely:
        notes.append(f'{len(lonely)} images have no label and were left out, the first is {lonely[0]}')
    if orphans:
        notes.append(f'{len(orphans)} labels have no image and were left out, the first is {orphans[0]}')
    return notes
