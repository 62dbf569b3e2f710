# %% [markdown]
# # Land cover from a scene and a few polygons
# Chips are cut from one generated Sentinel-2 scene, a small network is trained, and a scene that it has never seen is
# mapped.

# %%
import tempfile
from pathlib import Path

from geolearn import UNet, export_training_data, prepare_data
from geolearn.plotting.maps import plot_map
from geolearn.synthetic import CLASSES, make_scene, write_scene

SIZE, EPOCHS = 384, 10
folder = Path(tempfile.mkdtemp())
write_scene(make_scene(SIZE, seed=1), folder / 'scene.tif', folder / 'labels.tif')
write_scene(make_scene(SIZE // 2, seed=2), folder / 'new.tif', folder / 'new_labels.tif')

# %% [markdown]
# Chips of 64 pixels; label 0 (clouds, border) is ignored, and blocks of land are held out for validation.

# %%
chips = export_training_data(
    folder / 'scene.tif', folder / 'labels.tif', folder / 'chips', classes=CLASSES, tile_size=64, sensor='Sentinel-2'
)
data = prepare_data(chips, chip_size=64, batch_size=8, ignore_classes=[0], split='blocks', block_size=1280)
data.show_batch(rows=1)

# %%
model = UNet(data, 'resnet18', pretrained=False)
model.fit(EPOCHS, lr=3e-3)
model.per_class_metrics()

# %% [markdown]
# The map has the colors and names of its classes; `show_map` shows it over streets.

# %%
model.predict_raster(folder / 'new.tif', folder / 'map.tif')
plot_map(folder / 'map.tif')
