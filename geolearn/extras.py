"""Import libraries that only some tasks need, or say how to install them."""

import importlib
from types import ModuleType

from geolearn.errors import MissingExtraError


def require(module: str, *, extra: str, to: str) -> ModuleType:
    """Return an optional module.

    Args:
        module: Full name, such as ``'pycocotools.mask'``.
        extra: The extra of geolearn that brings it, such as ``'detection'``.
        to: What it is needed for, such as ``'read COCO outlines'``.

    Raises:
        MissingExtraError: If the library is not installed; the message holds the install line.
    """
    library = module.split('.')[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split('.')[0] != library:
            raise
        raise MissingExtraError(
            f"{library} is needed to {to}; install it with: pip install 'geolearn[{extra}]'"
        ) from error
