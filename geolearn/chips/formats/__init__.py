"""Formats of chip folders: which files make up each chip, whatever program wrote them; one table of all formats."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from geolearn.chips.emd import EMD_NAME, STATS_NAME, ExportMetadata, read_metadata
from geolearn.chips.formats import bigearthnet, coco, dota, imagenet, kitti, labeled, panoptic, rcnn, tiles, voc, yolo
from geolearn.chips.formats.angles import check_box_angles
from geolearn.chips.formats.content import ChipFormat
from geolearn.chips.formats.discover import ChipFolder, emd_type, find_folder, refuse_what_is_not_read
from geolearn.chips.formats.files import stale_map_notes
from geolearn.chips.formats.image_targets import use_images_as_targets
from geolearn.chips.formats.published import PUBLISHED
from geolearn.chips.formats.writing import FormatWriter
from geolearn.chips.label import Label, LabelReader, Listing, Target, check_target
from geolearn.chips.meaning.values import refuse_unlabelled
from geolearn.errors import ChipFolderError, UnknownNameError

__all__ = ['FORMATS', 'ChipFormat', 'OpenedFolder', 'find_writer', 'open_chips']

FORMATS: Mapping[str, ChipFormat] = MappingProxyType(
    {
        'Classified_Tiles': ChipFormat(
            'a class, or a number, per pixel',
            'images/ and labels/ (or masks/) with a raster of the same name for each image, or of a name with another '
            'prefix or suffix (img_1, mask_1), or both in one folder (1_sat.jpg, 1_mask.png; 1.jpg, 1.png)',
            tiles.list_classified_tiles,
            tiles.ClassifiedWriter,
            tiles.is_classified_tiles,
        ),
        'ChangeDetection': ChipFormat(
            'a class per pixel for images of two dates',
            'images/, images2/ and labels/, or A/, B/ and label/ (pre/, post/, masks/), with rasters of the same names',
            tiles.list_change_detection,
            fits=tiles.is_change_detection,
        ),
        'MultiTemporal_Tiles': ChipFormat(
            'a class per pixel for images of several dates',
            'images/, images2/, images3/ ... and labels/ with rasters of the same names',
            tiles.list_multitemporal_tiles,
            fits=tiles.is_multitemporal_tiles,
        ),
        'PASCAL_VOC_rectangles': ChipFormat(
            'boxes in XML',
            'images/ and labels/, or JPEGImages/ and Annotations/, or side by side: an XML file for each image',
            voc.list_voc,
            voc.VocWriter,
            voc.is_voc,
        ),
        'KITTI_rectangles': ChipFormat(
            'boxes in text',
            'images/ and labels/ with a text file for each image, 15 columns in a line, boxes in pixels',
            kitti.list_kitti,
            kitti.KittiWriter,
            kitti.is_kitti,
        ),
        'RCNN_Masks': ChipFormat(
            'outlined objects in rasters',
            'images/ and labels/<class name>/ with rasters that number the objects of the class',
            rcnn.list_rcnn_masks,
            rcnn.RcnnWriter,
            rcnn.is_rcnn_masks,
        ),
        'Labeled_Tiles': ChipFormat(
            'one class for each chip, in XML',
            'images/ and labels/ with an XML file for each image, and an .emd',
            labeled.list_labeled_tiles,
            labeled.LabeledWriter,
        ),
        'MultiLabeled_Tiles': ChipFormat(
            'any number of classes for each chip, in XML',
            'images/ and labels/ with an XML file for each image, and an .emd',
            labeled.list_multilabeled_tiles,
            labeled.MultiLabeledWriter,
        ),
        'Imagenet': ChipFormat(
            'one class for each chip, by folder',
            '<class name>/ or images/<class name>/ with the images of the class',
            imagenet.list_imagenet,
            imagenet.ImagenetWriter,
            imagenet.is_imagenet,
            generic=True,
        ),
        'Export_Tiles': ChipFormat(
            'images without labels',
            'images/ alone',
            tiles.list_export_tiles,
            tiles.ExportTilesWriter,
            tiles.is_export_tiles,
            generic=True,
        ),
        'Panoptic_Segmentation': ChipFormat(
            'a class per pixel, and outlined objects',
            'images/, labels/ with class values, and labels2/<class name>/ with numbered objects',
            panoptic.list_panoptic,
            panoptic.PanopticWriter,
            panoptic.is_panoptic,
        ),
        'COCO_rectangles': ChipFormat(
            'boxes or outlined objects in one JSON file',
            'images in any folder, and labels.json, instances*.json or another COCO file beside it or in annotations/',
            coco.list_coco,
            coco.CocoWriter,
            coco.is_coco,
        ),
        'YOLO_rectangles': ChipFormat(
            'boxes or outlined objects in text',
            'images/ and labels/ with a text file for each image, in shares of the image, and classes.txt or data.yaml',
            yolo.list_yolo,
            yolo.YoloWriter,
            yolo.is_yolo,
        ),
        'DOTA': ChipFormat(
            'oriented boxes in text',
            'images/ and labelTxt/ (or labelTxt-v1.0/, labels/) with a text file for each image: x and y of four '
            'corners in pixels, a class, and 0 or 1 for difficult in a line',
            dota.list_dota,
            dota.DotaWriter,
            dota.is_dota,
        ),
        'YOLO_OBB': ChipFormat(
            'oriented boxes in text',
            'images/ and labels/ with a text file for each image: a class number and x, y of four corners in shares of '
            'the image, and data.yaml that says task: obb',
            yolo.list_yolo_obb,
            yolo.YoloObbWriter,
            yolo.is_yolo_obb,
        ),
        'COCO_OBB': ChipFormat(
            'oriented boxes in one JSON file',
            'images in any folder, and a COCO file with polygons, or boxes of five numbers whose angles box_angles= '
            'names',
            coco.list_coco_obb,
            coco.CocoObbWriter,
        ),
        'BigEarthNet': ChipFormat(
            '19 classes of land cover, any number for each chip',
            'the folders of patches of BigEarthNet',
            bigearthnet.list_bigearthnet,
            fits=bigearthnet.is_bigearthnet_folder,
        ),
        'BigEarthNet-43': ChipFormat(
            'the 43 classes of CORINE, any number for each chip',
            'the folders of patches of BigEarthNet',
            bigearthnet.list_bigearthnet_43,
        ),
        **PUBLISHED,
    }
)
"""Every format by its dataset_type, which export_training_data calls metadata_format."""

_ALIASES = {
    'Panoptic': 'Panoptic_Segmentation',
    'BigEarthNet-19': 'BigEarthNet',
    'Pix2Pix': 'Export_Tiles',
    'superres': 'Export_Tiles',
}


def find_type(dataset_type: str) -> str:
    """Return the key of `FORMATS` that a name stands for, in upper or lower case, with or without ``_`` and ``-``.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    if dataset_type in FORMATS:
        return dataset_type
    known = {_bare(name): name for name in FORMATS} | {_bare(alias): name for alias, name in _ALIASES.items()}
    if (bare := _bare(dataset_type)) not in known:
        raise UnknownNameError('dataset_type', dataset_type, [*FORMATS, *_ALIASES])
    return known[bare]


def _bare(name: str) -> str:
    return re.sub(r'[\W_]+', '', name).casefold()


def find_writer(metadata_format: str) -> type[FormatWriter]:
    """Return the writer of a format.

    Raises:
        UnknownNameError: If there is none of that name.
    """
    found = FORMATS.get(metadata_format)
    if found is None or found.writer is None:
        raise UnknownNameError('metadata format', metadata_format, [name for name in FORMATS if FORMATS[name].writer])
    return found.writer


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


def open_chips(
    path: str | Path,
    dataset_type: str | None = None,
    *,
    target: Target | None = None,
    downsample: int = 1,
    nodata: Sequence[float] = (),
    unlabelled: Sequence[float] = (),
    box_angles: str | None = None,
) -> OpenedFolder:
    """Find a folder of chips and list what is in it; nothing is written there.

    Args:
        path: The folder, its ``images/``, or the folder above it.
        dataset_type: A key of `FORMATS`; None takes the .emd's word, or else what the content shows beyond doubt.
        target: What the pixels of label rasters are; see `choose_target`.
        downsample: Of images that are to be predicted; see `use_images_as_targets`.
        nodata: NoData value of the images, or one for each band; empty takes those that the .emd states.
        unlabelled: Values of label rasters that mean "not labelled", beside what they declare.
        box_angles: What the angles of boxes of five numbers are; see `angles.BOX_ANGLES`.

    Raises:
        UnknownNameError: If `dataset_type` or `target` is unknown.
        ChipFolderError: If there are no chips, the format is not recognized or labels are not what `target` says; the
            message says what was found.
    """
    check_target(target)
    check_box_angles(box_angles)
    if downsample != 1 and target != 'images':
        raise ChipFolderError(f"downsample={downsample} is for target='images'; pass both, or neither")
    wanted = None if dataset_type is None else find_type(dataset_type)
    found = find_folder(path, wanted, FORMATS)
    has_emd = (found.folder / EMD_NAME).is_file()
    metadata = read_metadata(found.folder) if has_emd else ExportMetadata.empty()
    kind, notes = _choose_type(found, metadata, wanted, has_emd)
    if has_emd:
        refuse_what_is_not_read(found.folder, kind)
    read = FORMATS[kind].read
    if box_angles is not None:
        if kind != 'COCO_OBB':
            raise ChipFolderError(
                f'box_angles={box_angles!r} is for COCO_OBB, but {found.folder} is read as {kind}, which has no boxes '
                'of five numbers; leave it out'
            )
        read = partial(coco.list_coco_obb, box_angles=box_angles)
    elif wanted == 'COCO_rectangles':
        read = partial(coco.list_coco, level=True)
    listing = tiles.split_dates(found.folder, metadata, read(found.folder, metadata))
    if target == 'images':
        listing = use_images_as_targets(found.folder, listing, downsample)
    else:
        listing = tiles.choose_target(listing, target)
    stated = listing.nodata
    listing = _with_values(listing, tuple(nodata) or metadata.nodata or stated, (*listing.unlabelled, *unlabelled))
    stale = stale_map_notes(found.folder, listing.chips)
    return OpenedFolder(found.folder, kind, metadata, listing, (*found.notes, *notes, *stale))


def _with_values(listing: Listing, nodata: tuple[float, ...], unlabelled: tuple[float, ...]) -> Listing:
    """Return a listing whose chips know what else means NoData, in images and in label rasters."""
    refuse_unlabelled(listing.task, unlabelled)
    if not nodata and not unlabelled:
        return listing

    def reader(given: Callable[..., Label]) -> LabelReader:
        return partial(given, unlabelled=unlabelled) if unlabelled else given

    chips = tuple(replace(chip, nodata=nodata, read_label=reader(chip.read_label)) for chip in listing.chips)
    return replace(listing, chips=chips, nodata=nodata, unlabelled=unlabelled)


def _choose_type(
    found: ChipFolder, metadata: ExportMetadata, wanted: str | None, has_emd: bool
) -> tuple[str, list[str]]:
    """Return the dataset_type, and notes on where it comes from."""
    notes = []
    if not has_emd and (found.folder / STATS_NAME).is_file():
        notes.append(f'{found.folder} has {STATS_NAME} but no {EMD_NAME}; neither is read')
    said = emd_type(found.folder, metadata, FORMATS) if has_emd else found.recognized
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
