"""Model classes by name. Names from bundles are looked up here and nowhere else."""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from geolearn.models._model import Model

MODELS: dict[str, type['Model']] = {}
"""Filled by `register_model`."""

M = TypeVar('M', bound='type[Model]')


def register_model(cls: M) -> M:
    """Make a model class known to `load_model` under its name."""
    if cls.__name__ in MODELS:
        raise ValueError(f'model {cls.__name__!r} is already registered by {MODELS[cls.__name__].__module__}')
    MODELS[cls.__name__] = cls
    return cls
