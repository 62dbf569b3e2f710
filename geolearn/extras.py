"""Import libraries that only some tasks need, or say how to install them."""

import importlib
import importlib.util
from types import ModuleType

from geolearn.errors import MissingExtraError

EXTRAS = {
    'vector': ('geopandas>=1.0', 'shapely>=2.0.3', 'pyarrow>=14'),
    'stac': ('pystac-client>=0.7',),
    'xarray': ('xarray>=2023.12', 'zarr>=2.16'),
    'dask': ('distributed>=2024.8',),
    'detection': ('pycocotools>=2.0.7',),
    'detr': ('transformers>=5.18',),
    'onnx': ('onnx>=1.17', 'onnxscript>=0.5', 'onnxruntime>=1.20'),
    'openvino': ('openvino>=2025.0', 'onnx>=1.17', 'onnxscript>=0.5', 'onnxruntime>=1.20'),
    'sklearn': ('scikit-learn>=1.4',),
    'serve': ('fastapi>=0.115', 'uvicorn>=0.30', 'python-multipart>=0.0.12', 'rio-tiler>=7'),
    'web': ('folium>=0.17',),
    'faiss': ('faiss-cpu>=1.9',),
    'umap': ('umap-learn>=0.5.7',),
    'completion': ('shtab>=1.7',),
    'tensorboard': ('tensorboard>=2.17',),
    'mlflow': ('mlflow>=2.14',),
    'wandb': ('wandb>=0.17',),
}
"""What each extra of setup.cfg installs. Errors name the libraries: that works however geolearn was installed."""


def install_command(extra: str, *, without: str = '') -> str:
    """Return the shell command that installs what is missing of an extra.

    Args:
        extra: One of `EXTRAS`.
        without: A library that is known to be missing, whatever Python's import system says.
    """
    missing = [line for line in EXTRAS[extra] if _name(line) == without or not is_installed(_name(line))]
    return 'pip install ' + ' '.join(repr(line) for line in missing or EXTRAS[extra])


def require(module: str, *, extra: str, to: str) -> ModuleType:
    """Return an optional module.

    Args:
        module: Full name, such as ``'pycocotools.mask'``.
        extra: The extra of setup.cfg that brings it, such as ``'detection'``.
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
        command = install_command(extra, without=library)
        raise MissingExtraError(f'{library} is needed to {to}; install it with: {command}') from error


_MODULES = {'faiss_cpu': 'faiss', 'scikit_learn': 'sklearn', 'umap_learn': 'umap'}
"""Modules of libraries that are imported under another name."""


def _name(requirement: str) -> str:
    """Return the name of the module that a library is imported as."""
    name = requirement.partition('>=')[0].replace('-', '_')
    return _MODULES.get(name, name)


def is_installed(library: str) -> bool:
    """Say whether Python finds a library, without importing it."""
    return importlib.util.find_spec(library) is not None
