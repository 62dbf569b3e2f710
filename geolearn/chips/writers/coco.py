"""COCO_rectangles: one JSON file with the objects of all chips, outlined exactly by run lengths."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np

from geolearn.chips.label import Label, Task
from geolearn.chips.writers._format import ChipFile, FormatWriter, boxes_of


class CocoWriter(FormatWriter):
    """``labels.json``; a category's id is the class value, an image's id is its number."""

    task = Task.INSTANCES
    folders = ('images',)

    def __init__(self, root: Path, classes: Any, compress: str) -> None:
        super().__init__(root, classes, compress)
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Keep the objects for `finish`."""
        number = int(chip.stem)
        picture = {'id': number, 'file_name': chip.file, 'width': chip.shape[1], 'height': chip.shape[0]}
        masks = label.masks or (None,) * len(label.values)
        rows = []
        for (value, (left, top, right, bottom)), mask in zip(boxes_of(label, chip), masks):
            row: dict[str, Any] = {
                'image_id': number,
                'category_id': value,
                'bbox': [left, top, right - left, bottom - top],
                'area': (right - left) * (bottom - top) if mask is None else int(mask.sum()),
                'iscrowd': 0,
            }
            if mask is not None:
                row['segmentation'] = {'size': list(mask.shape), 'counts': run_lengths(mask)}
            rows.append(row)
        with self._lock:
            self._rows[chip.stem] = picture, rows
        return ()

    def finish(self) -> None:
        """Write the file."""
        ordered = [self._rows[stem] for stem in sorted(self._rows)]
        objects = [row for _, rows in ordered for row in rows]
        content = {
            'info': {'description': 'written by geolearn'},
            'categories': [{'id': info.value, 'name': info.name} for info in self.classes],
            'images': [picture for picture, _ in ordered],
            'annotations': [{'id': position, **row} for position, row in enumerate(objects, 1)],
        }
        self.write_text('labels.json', json.dumps(content))


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return how many pixels lie outside, inside, outside, ... down the columns of a mask (height, width)."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    edges = np.concatenate([[0], ends, [mask.size]])
    counts = np.diff(edges).tolist()
    return counts[:-1] if len(counts) % 2 and counts[-1] == 0 else counts
