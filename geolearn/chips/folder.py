"""Find an export folder and pair its images with their labels."""

from dataclasses import dataclass
from pathlib import Path

from geolearn.chips.emd import EMD_NAME
from geolearn.errors import ChipFolderError

IMAGE_SUFFIXES = frozenset({'.tif', '.tiff', '.png', '.jpg', '.jpeg', '.mrf'})


@dataclass(frozen=True)
class ChipFiles:
    """The image of a chip and the raster that labels it."""

    image: Path
    label: Path


@dataclass(frozen=True)
class Listing:
    """What an export folder holds.

    Args:
        chips: Images that have a label, sorted by name.
        unlabelled: Images without one.
        orphans: Labels without an image.
    """

    chips: tuple[ChipFiles, ...]
    unlabelled: tuple[Path, ...]
    orphans: tuple[Path, ...]


def find_export(path: str | Path) -> Path:
    """Return the folder that holds the .emd: `path` itself, its parent if `path` is its images, or one level down.

    Raises:
        ChipFolderError: If there is none, or several; the message lists what was found.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ChipFolderError(f'{folder} is no folder; pass the folder that holds {EMD_NAME}')
    if (folder / EMD_NAME).is_file():
        return folder
    if (folder.parent / EMD_NAME).is_file() and folder.name in ('images', 'images2', 'labels'):
        return folder.parent
    below = sorted(child for child in folder.iterdir() if child.is_dir() and (child / EMD_NAME).is_file())
    if len(below) == 1:
        return below[0]
    if below:
        names = ', '.join(child.name for child in below[:8])
        raise ChipFolderError(f'{folder} holds {len(below)} exports ({names}); pass one of them')
    entries = sorted(child.name + '/' * child.is_dir() for child in folder.iterdir())
    shown = ', '.join(entries[:8]) + (', ...' if len(entries) > 8 else '') if entries else 'nothing'
    raise ChipFolderError(
        f'{folder} is no export of training data: no {EMD_NAME} in it or one level down; it holds {shown}. '
        'Pass the folder that "Export Training Data For Deep Learning" or export_training_data wrote'
    )


def list_chips(folder: Path) -> Listing:
    """Pair `images/` with `labels/` by file stem; sidecar files and gaps in the numbering do not matter.

    Raises:
        ChipFolderError: If a folder is missing or no image has a label.
    """
    images = _rasters(folder, 'images')
    labels = _rasters(folder, 'labels')
    chips = tuple(ChipFiles(images[stem], labels[stem]) for stem in sorted(images) if stem in labels)
    if not chips:
        raise ChipFolderError(
            f'{folder}: none of {len(images)} images has a label among {len(labels)} label rasters; '
            'an image and its label must share their name, such as images/000000001.tif and labels/000000001.tif'
        )
    unlabelled = tuple(images[stem] for stem in sorted(images.keys() - labels.keys()))
    orphans = tuple(labels[stem] for stem in sorted(labels.keys() - images.keys()))
    return Listing(chips, unlabelled, orphans)


def _rasters(folder: Path, name: str) -> dict[str, Path]:
    below = folder / name
    if not below.is_dir():
        raise ChipFolderError(f'{folder} has no {name}/ folder; a Classified_Tiles export has images/ and labels/')
    found: dict[str, Path] = {}
    for path in sorted(below.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.'):
            if path.stem in found:
                raise ChipFolderError(f'{found[path.stem]} and {path} are one chip twice; remove one of them')
            found[path.stem] = path
    return found
