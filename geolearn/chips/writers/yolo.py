"""YOLO_rectangles: centre, width and height of each box as fractions of the chip."""

from geolearn.chips.label import Label, Task
from geolearn.chips.writers._format import ChipFile, FormatWriter, boxes_of
from geolearn.chips.writers._names import check_texts


class YoloWriter(FormatWriter):
    """``labels/<chip>.txt`` with class indices in order of value, and ``classes.txt`` with their names."""

    task = Task.OBJECTS

    def check(self) -> None:
        """Refuse names that a list of lines cannot hold."""
        check_texts(self.classes, 'YOLO_rectangles')

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Write the boxes."""
        index = {value: position for position, value in enumerate(sorted(self.names))}
        height, width = chip.shape
        lines = []
        for value, (left, top, right, bottom) in boxes_of(label, chip):
            numbers = (
                (left + right) / 2 / width,
                (top + bottom) / 2 / height,
                (right - left) / width,
                (bottom - top) / height,
            )
            lines.append(f'{index[value]} {" ".join(map(repr, numbers))}\n')
        return (self.write_text(f'labels/{chip.stem}.txt', ''.join(lines)),)

    def finish(self) -> None:
        """Write the names."""
        self.write_text('classes.txt', ''.join(f'{self.names[value]}\n' for value in sorted(self.names)))
