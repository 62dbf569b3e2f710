"""Draw the figure of docs/probes.md: embeddings of chips of TerraMesh in a plane, by what covers the chip.

.venv/bin/python docs/draw_embeddings.py path/to/terramesh path/to/galileo_nano docs/images
"""

import argparse
from pathlib import Path

import numpy as np

from geolearn.embed import embed
from geolearn.probe import project
from geolearn.raster import read_image

BANDS = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')
NUMBERS = (2, 3, 4, 5, 6, 7, 8, 9, 11, 12)
"""Of these bands in the files, which do not name them: all of Sentinel-2 but B10."""

NAMES = ('water', 'trees', 'flooded vegetation', 'crops', 'built-up', 'bare', 'snow', 'clouds', 'rangeland')
"""Of the values 1..9 of the land-cover product."""

SIDE, STEP, SHARE, DPI = 16, 8, 0.8, 75


def read_chips(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return chips (N, 10, 16, 16) that one class covers for the most part, and these classes."""
    chips, values = [], []
    for path in sorted((folder / 'LULC').glob('*.tif')):
        label = read_image(path)[0][0]
        image = read_image(folder / 'S2L2A' / path.name, NUMBERS)[0]
        for row in range(0, label.shape[0] - SIDE + 1, STEP):
            for col in range(0, label.shape[1] - SIDE + 1, STEP):
                window = np.s_[row : row + SIDE, col : col + SIDE]
                found, counts = np.unique(label[window], return_counts=True)
                if counts.max() >= SHARE * SIDE**2:
                    chips.append(image[:, *window])
                    values.append(int(found[counts.argmax()]))
    return np.stack(chips), np.array(values)


def main() -> None:
    """Draw it, by each method that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, help='folder with S2L2A and LULC')
    parser.add_argument('weights', type=Path, help='folder with the weights of Galileo nano')
    parser.add_argument('out', type=Path, help='folder for the figures')
    parser.add_argument('--methods', nargs='+', default=['tsne'], choices=('pca', 'tsne', 'umap'))
    given = parser.parse_args()
    chips, values = read_chips(given.data)
    embeddings = embed(chips, 'galileo_nano', bands=BANDS, sensor='sentinel2_l2a', weights=given.weights)
    labels = np.array([NAMES[value - 1] for value in values])
    for method in given.methods:
        figure = project(embeddings, method).show(labels, title='Chips of 160 m, embedded by Galileo nano')
        figure.savefig(given.out / f'embeddings_{method}.png', dpi=DPI)


if __name__ == '__main__':
    main()
