# %% [markdown]
# # Ships, cars and buildings with their directions
# An oriented detector with a narrow head is trained on generated chips, from random weights, in some minutes on two
# cores. Real images want real weights (`pretrained=True`).

# %%
from geolearn import RotatedFCOS, from_arrays
from geolearn.models import RotatedOptions
from geolearn.synthetic_objects import OBJECT_CLASSES, make_object_chips

COUNT, SIDE, EPOCHS = 240, 96, 30
chips = make_object_chips(COUNT, SIDE)

# %%
data = from_arrays(
    [chip.image for chip in chips],
    [(chip.turned, chip.class_ids) for chip in chips],
    class_mapping={info.value: info.name for info in OBJECT_CLASSES},
    batch_size=4,
    val_split_pct=0.25,
)
data.show_batch(rows=1)

# %%
model = RotatedFCOS(data, 'resnet18', pretrained=False, head=RotatedOptions(fine=True, width=48, depth=2))
model.fit(EPOCHS, lr=2e-3)
model.per_class_metrics()

# %% [markdown]
# True boxes beside those that were found.

# %%
model.show_results(rows=2)
