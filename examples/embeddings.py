# %% [markdown]
# # Embeddings of a scene
# A backbone turns each patch of 16 x 16 pixels into a vector. `dofa_tiny` has random weights here, so that nothing is
# fetched; `backbone='dofa_base'` takes published ones, and the rest stays.

# %%
import tempfile
from pathlib import Path

import numpy as np

from geolearn import embed, embed_raster, probe
from geolearn.plotting.maps import plot_map
from geolearn.raster import read_image
from geolearn.synthetic import make_scene, write_scene

SIZE = 256
NAMES = 'B02 B03 B04 B05 B06 B07 B08 B8A B11 B12'.split()
folder = Path(tempfile.mkdtemp())
write_scene(make_scene(SIZE, seed=1), folder / 'scene.tif', folder / 'labels.tif')

# %%
embed_raster(folder / 'scene.tif', folder / 'embeddings.tif', backbone='dofa_tiny', pretrained=False)
plot_map(folder / 'embeddings.tif')  # its first three features as colors

# %% [markdown]
# What are they worth? A linear classifier tells the land cover in the middle of small images from their embeddings,
# beside two baselines that nobody trained: the statistics of the bands, and random convolutions.

# %%
scene, labels = read_image(folder / 'scene.tif')[0], read_image(folder / 'labels.tif')[0][0]
corners = [(row, column) for row in range(0, SIZE - 16, 16) for column in range(0, SIZE - 16, 16)]
corners = [(row, column) for row, column in corners if labels[row + 8, column + 8] > 0]  # 0 is cloud and border
images = np.stack([scene[:, row : row + 16, column : column + 16] for row, column in corners])
classes = np.array([labels[row + 8, column + 8] for row, column in corners])
embeddings = embed(images, 'dofa_tiny', bands=NAMES, sensor='Sentinel-2', pretrained=False)
result = probe(embeddings, classes, method='linear', positions=np.array(corners) * 10.0, folds=4, images=images)
result.show_scores('f1_macro')
