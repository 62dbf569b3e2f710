"""Change how training chips are shown: mixed with one another, or rare classes more often."""

from dataclasses import replace

from geolearn.augment import Augmentation, Chain, Mixup
from geolearn.chips.balance import repeat_factors
from geolearn.chips.loader import ChipLoader
from geolearn.data import ChipData
from geolearn.models.classification.options import ChipOptions


def shown_as(data: ChipData, options: ChipOptions) -> ChipData:
    """Return the chips as the options show them while training; validation stays as it is.

    Raises:
        ValueError: If mixup is asked for and the data mixes its chips already.
    """
    loading = data.train_dl.options
    if options.mixup:
        transform = loading.transform
        if isinstance(transform, Augmentation) and (transform.mixup_alpha or transform.cutmix_alpha):
            raise ValueError('the data mixes its chips already (transforms=); leave out mixup here or there')
        mixup = Mixup(options.mixup, data.c)
        loading = replace(loading, transform=mixup if transform is None else Chain([transform, mixup]))
    if options.oversample and loading.repeats is None:
        held = data.table.amounts([info.value for info in data.class_infos])[list(data.split.train)] > 0
        loading = replace(loading, repeats=repeat_factors(held))
    if loading is data.train_dl.options:
        return data
    return replace(data, train_dl=ChipLoader(data.train_dl.dataset, loading))
