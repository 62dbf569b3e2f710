"""KITTI_rectangles: 15 columns for each box, of which ArcGIS uses the class value and the box."""

from geolearn.chips.label import Label, Task
from geolearn.chips.writers._format import ChipFile, FormatWriter, boxes_of, digits


class KittiWriter(FormatWriter):
    """``labels/<chip>.txt``, a line for each object; empty for a chip without objects."""

    task = Task.OBJECTS

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Write the boxes."""
        lines = [
            f'{value} 0.00 0 0 {" ".join(map(digits, box))} 0 0 0 0 0 0 0\n' for value, box in boxes_of(label, chip)
        ]
        return (self.write_text(f'labels/{chip.stem}.txt', ''.join(lines)),)
