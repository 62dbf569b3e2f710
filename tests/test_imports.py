import ast
import functools
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / 'geolearn'
FILES = sorted(PACKAGE.rglob('*.py'))
LAYERS = (
    'errors _version extras device precision files progress notebook parallel arguments history classes bands '
    'adaptation raster statistics units sar normalize tiling batch bundle oriented augment chips backbones '
    'decoders losses metrics networks plotting data prepare sources raster_windows training inference onnx stac '
    'report models arcgis embed probe pretrain studies serve synthetic synthetic_objects demo cli __main__'
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


def dotted(path):
    """Full name of a module, or of a package."""
    return '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts).removesuffix('.__init__')


MODULES = {dotted(path): path for path in FILES}


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


@functools.cache
def modules_imported(path):
    """Modules of geolearn that a file imports anywhere in it: at the top, in functions, for type checkers."""
    found = imported(ast.walk(tree_of(path)))
    modules = {full if full in MODULES else full.rpartition('.')[0] for full in found}
    return {module for module in modules if module in MODULES and MODULES[module] != path}


def is_private(module):
    return any(part.startswith('_') for part in module.split('.')) and module not in ('geolearn._version',)


def everywhere(path):
    """Root packages of all imports, also of those inside functions, but not of those for type checkers alone."""
    body = [
        node
        for node in tree_of(path).body
        if not (isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test))
    ]
    return {found.split('.')[0] for found in imported(ast.walk(ast.Module(body, [])))}


def test_every_file_has_a_layer():
    assert {layer(path) for path in FILES} == {*LAYERS, '__init__'}


@pytest.mark.parametrize('path', FILES, ids=name)
def test_imports_run_downhill(path):
    below = LAYERS[: LAYERS.index(layer(path)) + 1] if layer(path) in LAYERS else ['_version']
    # what geolearn/__init__.py offers is imported on first use, or by type checkers
    nodes = tree_of(path).body if layer(path) == '__init__' else ast.walk(tree_of(path))
    parts = [found.split('.') for found in imported(nodes)]
    uphill = {p[1] for p in parts if p[0] == 'geolearn' and len(p) > 1} - {*below, '__version__'}
    assert not uphill, f'{name(path)} imports {uphill}, which lie above it'


def test_no_two_modules_import_each_other_on_any_way():
    inits = {module for module, path in MODULES.items() if path.name == '__init__.py'}
    graph = {module: set(modules_imported(path)) - inits for module, path in MODULES.items() if module not in inits}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail('modules import each other: ' + ' <- '.join(error.args[1]))


def test_a_package_imports_no_module_that_imports_the_package():
    """``from geolearn.bands import x`` inside geolearn/bands/ depends on what has been imported so far."""
    wrong = [
        f'{name(path)} imports {module}'
        for path in FILES
        for module in modules_imported(path)
        if MODULES[module].name == '__init__.py' and dotted(path).startswith(f'{module}.') and module != 'geolearn'
    ]
    assert wrong == []


@pytest.mark.parametrize('path', FILES, ids=name)
def test_private_modules_stay_in_their_package(path):
    foreign = {
        module
        for module in modules_imported(path)
        if is_private(module) and MODULES[module].parent not in (path.parent, *path.parent.parents)
    }
    assert not foreign, f'{name(path)} imports {foreign}; what several packages need is no private module'


def test_tests_import_no_private_module():
    wrong = [
        f'{path.relative_to(TESTS).as_posix()} imports {module}'
        for path in sorted(TESTS.rglob('*.py'))
        for module in modules_imported(path)
        if is_private(module)
    ]
    assert wrong == []


@pytest.mark.parametrize('path', FILES, ids=name)
def test_imports_are_absolute(path):
    nodes = ast.walk(tree_of(path))
    assert not [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize(('library', 'home'), [('fastai', 'training'), ('matplotlib', 'plotting')])
def test_one_layer_alone_knows(library, home):
    assert {layer(path) for path in FILES if library in everywhere(path)} == {home}


def test_only_the_raster_package_opens_rasters():
    def opens(path):
        nodes = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)]
        return any(node.attr == 'open' and getattr(node.value, 'id', '') == 'rasterio' for node in nodes)

    def takes_open(path):
        return 'rasterio.open' in set(imported(ast.walk(tree_of(path))))

    assert {layer(path) for path in FILES if opens(path) or takes_open(path)} == {'raster'}


def test_importing_geolearn_takes_no_torch():
    heavy = "[m for m in ('torch', 'fastai', 'rasterio', 'matplotlib', 'timm', 'pandas') if m in sys.modules]"
    code = f'import sys, geolearn; dir(geolearn); print({heavy})'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == '[]'


def test_a_class_of_pixels_brings_nothing_that_it_does_not_need():
    heavy = 'torchvision timm segmentation_models_pytorch fastai pandas matplotlib transformers scipy'.split()
    code = 'import sys; from geolearn import UNet, load_model, prepare_data; '
    code += f'print([m for m in {heavy} if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == '[]'


def test_backbones_are_described_and_embeddings_read_without_torch():
    code = 'import sys; from geolearn import Embeddings, describe_backbone; from geolearn.embed import embeddings; '
    code += "print('in raw units' in repr(describe_backbone('dofa_base')), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == 'True False'


def test_every_public_name_is_found_and_no_other():
    import geolearn

    assert all(getattr(geolearn, public) is not None for public in geolearn.__all__)
    with pytest.raises(AttributeError, match="module 'geolearn' has no attribute 'prepare_dta'"):
        geolearn.prepare_dta  # noqa: B018


def test_every_class_of_models_is_public():
    import geolearn
    from geolearn.models import load_all

    aliases = {'UnetClassifier', 'PSPNetClassifier'}
    assert {*load_all(), *aliases} <= {*geolearn.__all__}


def test_type_checkers_see_the_models_that_are_loaded_on_first_use():
    from geolearn import models

    tree = ast.parse((PACKAGE / 'models' / '__init__.pyi').read_text())
    homes = {alias.name: node.module for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert homes.keys() == {*models.HOMES, *models.__all__} | {'HOMES'}
    assert all(getattr(importlib.import_module(home), name) is getattr(models, name) for name, home in homes.items())


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / '__init__.pyi').read_text())
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    import geolearn

    assert imported | {'__version__'} == set(geolearn.__all__)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(getattr(module, alias.name) is getattr(geolearn, alias.name) for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=name)
def test_transforms_are_applied_without_operators(path):
    """Affine 3 warns of ``*``, and the oldest that is allowed has no ``@``: `apply_affine` takes neither."""
    operators = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.MatMult | ast.Mult)
        and any(isinstance(side, ast.Tuple) and len(side.elts) == 2 for side in (node.left, node.right))
        and isinstance(node.left, ast.Name | ast.Attribute | ast.UnaryOp)
    ]
    assert operators == [], f'{name(path)}, lines {operators}: take geolearn.raster.geobox.apply_affine'
