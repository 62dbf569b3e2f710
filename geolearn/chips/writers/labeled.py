"""Labeled_Tiles and MultiLabeled_Tiles: the classes of a whole chip, in XML."""

from geolearn.chips.label import Label, Task
from geolearn.chips.writers._format import ChipFile, FormatWriter
from geolearn.chips.writers._names import check_texts
from geolearn.chips.writers.voc import annotation
from geolearn.errors import ChipFolderError


def only_value(label: Label, chip: ChipFile) -> int:
    """Return the class value of a chip that has one."""
    if len(label.values) != 1:
        raise ChipFolderError(f'label of chip {chip.stem} names {len(label.values)} classes; exactly one is needed')
    return int(label.values[0])


class LabeledWriter(FormatWriter):
    """``labels/<chip>.xml`` with one object: its name is the class value, its box that of the feature or the chip."""

    task = Task.LABEL

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Write the class."""
        box = (0, 0, chip.shape[1], chip.shape[0]) if label.boxes is None else label.boxes[0].tolist()
        return (self.write_text(f'labels/{chip.stem}.xml', annotation(chip, [(str(only_value(label, chip)), box)])),)


class MultiLabeledWriter(FormatWriter):
    """``labels/<chip>.xml`` with one object; its name lists class names with commas."""

    task = Task.LABELS

    def check(self) -> None:
        """Refuse names with commas, which separate names."""
        check_texts(self.classes, 'MultiLabeled_Tiles', forbidden=',')

    def write(self, chip: ChipFile, label: Label) -> tuple[str, ...]:
        """Write the classes; a chip without any has no object."""
        names = ','.join(self.names[value] for value in label.values.tolist())
        objects = [(names, (0, 0, chip.shape[1], chip.shape[0]))] if names else []
        return (self.write_text(f'labels/{chip.stem}.xml', annotation(chip, objects)),)
