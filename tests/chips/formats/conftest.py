"""Label files of text, beside images that nobody opens."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write_pairs() -> Callable[..., Path]:
    """Write ``images/`` and ``labels/``: `write_pairs(folder, {name: text}, suffix, images=...)`."""

    def write(folder, labels, suffix, *, images=None):
        for name in ('images', 'labels'):
            (folder / name).mkdir(parents=True)
        for name in labels if images is None else images:
            (folder / 'images' / f'{name}.tif').touch()
        for name, text in labels.items():
            (folder / 'labels' / f'{name}{suffix}').write_text(text, encoding='utf-8')
        return folder

    return write


@pytest.fixture
def text_reader(tmp_path) -> Callable[..., Callable]:
    """Make a function that reads the label of a text, or of bytes: `text_reader(read_voc, VALUES, '.xml')`."""

    def make(read, values, suffix):
        def read_label(text, shape=(100, 200)):
            path = tmp_path / f'chip{suffix}'
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            return read(path, values, shape)

        return read_label

    return make
