"""Formats of chip folders: which files make up each chip, whatever program wrote them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from geolearn.chips.emd import EMD_NAME, STATS_NAME, ExportMetadata, read_metadata
from geolearn.chips.formats.bigearthnet import list_bigearthnet, list_bigearthnet_43
from geolearn.chips.formats.coco import list_coco
from geolearn.chips.formats.discover import Found, emd_type, find_folder, refuse_what_is_not_read
from geolearn.chips.formats.files import stale_map_notes
from geolearn.chips.formats.imagenet import list_imagenet
from geolearn.chips.formats.kitti import list_kitti
from geolearn.chips.formats.labeled import list_labeled_tiles, list_multilabeled_tiles
from geolearn.chips.formats.panoptic import list_panoptic
from geolearn.chips.formats.rcnn import list_rcnn_masks
from geolearn.chips.formats.tiles import (
    choose_target,
    list_change_detection,
    list_classified_tiles,
    list_export_tiles,
    list_multitemporal_tiles,
    split_dates,
)
from geolearn.chips.formats.voc import list_voc
from geolearn.chips.formats.yolo import list_yolo
from geolearn.chips.label import Listing, Target, check_target
from geolearn.errors import ChipFolderError, UnknownNameError

__all__ = ['FORMATS', 'OpenedFolder', 'open_chips']

FORMATS: Mapping[str, Callable[[Path, ExportMetadata], Listing]] = MappingProxyType(
    {
        'Classified_Tiles': list_classified_tiles,
        'ChangeDetection': list_change_detection,
        'MultiTemporal_Tiles': list_multitemporal_tiles,
        'PASCAL_VOC_rectangles': list_voc,
        'KITTI_rectangles': list_kitti,
        'RCNN_Masks': list_rcnn_masks,
        'Labeled_Tiles': list_labeled_tiles,
        'MultiLabeled_Tiles': list_multilabeled_tiles,
        'Imagenet': list_imagenet,
        'Export_Tiles': list_export_tiles,
        'Panoptic_Segmentation': list_panoptic,
        'COCO_rectangles': list_coco,
        'YOLO_rectangles': list_yolo,
        'BigEarthNet': list_bigearthnet,
        'BigEarthNet-43': list_bigearthnet_43,
    }
)
"""What lists the chips of a folder, by dataset_type."""

_ALIASES = {'Panoptic': 'Panoptic_Segmentation', 'BigEarthNet-19': 'BigEarthNet'}


@dataclass(frozen=True)
class OpenedFolder:
    """A folder of chips, found and listed; no image has been read yet.

    Args:
        folder: Where the chips are.
        dataset_type: A key of `FORMATS`.
        metadata: What the .emd says; empty where there is none.
        listing: The chips, with notes of their own.
        notes: How folder and format were found, for people.
    """

    folder: Path
    dataset_type: str
    metadata: ExportMetadata
    listing: Listing
    notes: tuple[str, ...]


def open_chips(path: str | Path, dataset_type: str | None = None, *, target: Target | None = None) -> OpenedFolder:
    """Find a folder of chips and list what is in it; nothing is written there.

    Args:
        path: The folder, its ``images/``, or the folder above it.
        dataset_type: A key of `FORMATS`; None takes the .emd's word, or else what the content shows beyond doubt.
        target: What the pixels of label rasters are; see `choose_target`.

    Raises:
        UnknownNameError: If `dataset_type` is none that geolearn reads, or there is no such `target`.
        ChipFolderError: If there are no chips, the format cannot be told or labels are not what `target` says; the
            message says what was found.
    """
    check_target(target)
    wanted = None if dataset_type is None else _ALIASES.get(dataset_type, dataset_type)
    if wanted is not None and wanted not in FORMATS:
        raise UnknownNameError('dataset_type', wanted, [*FORMATS, *_ALIASES])
    found = find_folder(path, wanted, FORMATS)
    has_emd = (found.folder / EMD_NAME).is_file()
    metadata = read_metadata(found.folder) if has_emd else ExportMetadata.empty()
    kind, notes = _choose_type(found, metadata, wanted, has_emd)
    if has_emd:
        refuse_what_is_not_read(found.folder, kind)
    listing = choose_target(split_dates(found.folder, metadata, FORMATS[kind](found.folder, metadata)), target)
    stale = stale_map_notes(found.folder, listing.chips)
    return OpenedFolder(found.folder, kind, metadata, listing, (*found.notes, *notes, *stale))


def _choose_type(found: Found, metadata: ExportMetadata, wanted: str | None, has_emd: bool) -> tuple[str, list[str]]:
    """Return the dataset_type, and notes on where it comes from."""
    notes = []
    if not has_emd and (found.folder / STATS_NAME).is_file():
        notes.append(f'{found.folder} has {STATS_NAME} but no {EMD_NAME}; neither is read')
    said = emd_type(found.folder, metadata) if has_emd else found.recognised
    kind = wanted or _ALIASES.get(said or '', said)
    if kind is None:
        raise ChipFolderError(
            f'{found.folder / EMD_NAME} does not say which format this is, and neither does what lies beside it; '
            f'pass dataset_type={" | ".join(FORMATS)}'
        )
    if kind not in FORMATS:
        raise ChipFolderError(
            f'{found.folder / EMD_NAME} says that this is {kind}, which is not read; geolearn reads '
            f'{", ".join(FORMATS)}. Export again in one of these, or pass dataset_type=... if the .emd is wrong'
        )
    if said == 'ChangeDetection' and wanted == 'Classified_Tiles':
        notes.append(f'{found.folder / "images2"} is not read, as dataset_type=Classified_Tiles was asked for')
    elif wanted and metadata.metadata_mode and wanted != _ALIASES.get(said or '', said):
        notes.append(f'{found.folder / EMD_NAME} says {said}, but it is read as {wanted}, as was asked for')
    if not wanted and not metadata.metadata_mode:
        notes.append(f'{found.folder} does not name its format; its content shows {kind}')
    return kind, notes
