import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'geolearn'
FILES = sorted(PACKAGE.rglob('*.py'))
LAYERS = (
    'errors _version extras device files progress parallel arguments history classes bands raster statistics units '
    'normalize tiling batch bundle augment chips backbones decoders losses metrics networks plotting data prepare '
    'training inference report models arcgis synthetic demo cli __main__'
).split()


def name(path):
    return path.relative_to(PACKAGE).as_posix()


def layer(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported(nodes):
    """Full names of what the import statements among `nodes` bring in."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def everywhere(path):
    """Root packages of all imports, also of those inside functions, but not of those for type checkers alone."""
    tree = ast.parse(path.read_text())
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test))
    ]
    return {found.split('.')[0] for found in imported(ast.walk(tree))}


def test_every_file_has_a_layer():
    assert {layer(path) for path in FILES} == {*LAYERS, '__init__'}


@pytest.mark.parametrize('path', FILES, ids=name)
def test_imports_run_downhill(path):
    below = LAYERS[: LAYERS.index(layer(path)) + 1] if layer(path) in LAYERS else ['_version']
    parts = [found.split('.') for found in imported(ast.parse(path.read_text()).body)]
    uphill = {p[1] for p in parts if p[0] == 'geolearn' and len(p) > 1} - {*below, '__version__'}
    assert not uphill, f'{name(path)} imports {uphill}, which lie above it'


@pytest.mark.parametrize('path', FILES, ids=name)
def test_imports_are_absolute(path):
    nodes = ast.walk(ast.parse(path.read_text()))
    assert not [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize(('library', 'home'), [('fastai', 'training'), ('matplotlib', 'plotting')])
def test_one_layer_alone_knows(library, home):
    assert {layer(path) for path in FILES if library in everywhere(path)} == {home}


def test_only_the_raster_package_opens_rasters():
    def opens(path):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
        return any(node.attr == 'open' and getattr(node.value, 'id', '') == 'rasterio' for node in nodes)

    def takes_open(path):
        return 'rasterio.open' in set(imported(ast.walk(ast.parse(path.read_text()))))

    assert {layer(path) for path in FILES if opens(path) or takes_open(path)} == {'raster'}


def test_importing_geolearn_takes_no_torch():
    heavy = "[m for m in ('torch', 'fastai', 'rasterio', 'matplotlib', 'timm', 'pandas') if m in sys.modules]"
    code = f'import sys, geolearn; dir(geolearn); print({heavy})'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == '[]'


def test_every_public_name_is_found_and_no_other():
    import geolearn

    assert all(getattr(geolearn, public) is not None for public in geolearn.__all__)
    with pytest.raises(AttributeError, match="module 'geolearn' has no attribute 'prepare_dta'"):
        geolearn.prepare_dta  # noqa: B018
