"""What computes the tiles of a map: torch, or the network's ONNX graph in onnxruntime or OpenVINO, on the CPU."""

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal, get_args

import numpy as np

from geolearn import errors, extras
from geolearn.precision import Precision

EngineName = Literal['torch', 'onnx', 'openvino']
"""What computes: torch, onnxruntime or OpenVINO."""

Engine = Literal['torch', 'onnx', 'openvino', 'auto']
"""The same, or ``'auto'``, the fastest of those installed."""

ENGINES: tuple[EngineName, ...] = get_args(EngineName)

LIBRARIES: dict[EngineName, str] = {'torch': 'torch', 'onnx': 'onnxruntime', 'openvino': 'openvino'}

RunGraph = Callable[[np.ndarray], np.ndarray]
"""Takes images (N, [dates,] bands, h, w) float32, NaN where there is no data, and returns (N, C, h, w) float32."""

REFUSALS = ('Fail', 'InvalidArgument', 'InvalidGraph', 'InvalidProtobuf', 'NotImplemented', 'RuntimeException')
"""What onnxruntime raises for graphs; the errors have no base of their own."""

PROVIDERS = ('CPUExecutionProvider',)

FLIPS: tuple[tuple[bool, int], ...] = ((False, 0), (True, 0), (True, 2), (False, 2))
"""Whether columns are flipped, and quarter turns, of test-time augmentation by flips."""

TURNS = (*FLIPS, (False, 1), (True, 1), (False, 3), (True, 3))


def augment_outputs(run: Callable[[Any], Any], images: Any, ways: Sequence[tuple[bool, int]], library: Any) -> Any:
    """Return the mean of the outputs (N, C, h, w) over images that are flipped and turned in several ways.

    Args:
        run: From images (N, [dates,] bands, h, w), which may be turned, to float32 outputs of their size.
        images: Tensors, or arrays.
        ways: Such as `FLIPS` or `TURNS`.
        library: That they are of: torch, or numpy.
    """
    total: Any = None
    for flipped, turns in ways:
        image = library.rot90(library.flip(images, (-1,)) if flipped else images, turns, (-2, -1))
        outputs = library.rot90(run(image), -turns, (-2, -1))
        outputs = library.flip(outputs, (-1,)) if flipped else outputs
        total = outputs if total is None else total + outputs
    return total / len(ways)


HALF_ENGINES: tuple[EngineName, ...] = ('torch', 'openvino')
"""That compute in half precision on CPUs; onnxruntime has no kernels for it there."""


def installed_engines(precision: Precision | None = None) -> tuple[EngineName, ...]:
    """Return the engines whose libraries are installed and that compute in a precision, torch first.

    Args:
        precision: None for float32.
    """
    names = ENGINES if precision is None else HALF_ENGINES
    return tuple(name for name in names if extras.is_installed(LIBRARIES[name]))


def describe(name: EngineName) -> str:
    """Return an engine and the version of its library."""
    return f'{name} {version(LIBRARIES[name])}'


def require_engine(name: EngineName) -> None:
    """Import the library of an engine.

    Raises:
        MissingExtraError: If it is not installed.
    """
    if name != 'torch':
        _require_library(name)


_TELEMETRY = 'openvino_telemetry'


def _require_library(name: EngineName) -> Any:
    """Return the library of an engine; OpenVINO without what reports its use.

    openvino_telemetry sends reports over the network when OpenVINO is imported, which is the user's to decide, and
    leaves a thread that keeps readers from forking. OpenVINO does without it where it is not installed.
    """
    given = {'extra': name, 'to': f"map with engine='{name}'"}
    if name != 'openvino' or 'openvino' in sys.modules or _TELEMETRY in sys.modules:
        return extras.require(LIBRARIES[name], **given)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # as for one that is not installed
    try:
        return extras.require(LIBRARIES[name], **given)
    finally:
        sys.modules.pop(_TELEMETRY, None)  # another thread that maps may have been faster


def list_refusals() -> tuple[type[Exception], ...]:
    """Return the classes of what onnxruntime raises for graphs and their inputs."""
    state = extras.require('onnxruntime.capi.onnxruntime_pybind11_state', extra='onnx', to='run an ONNX graph')
    return tuple(getattr(state, name) for name in REFUSALS)


def open_session(
    graph: bytes, *, threads: int | None = None, providers: Sequence[str] = PROVIDERS, shown: str = 'the model'
) -> Any:
    """Open an ONNX graph in onnxruntime.

    Args:
        graph: The file's content.
        threads: That compute; None takes all cores.
        providers: onnxruntime's names of what computes.
        shown: Name of what holds the graph, in messages.

    Raises:
        BundleError: If onnxruntime does not read it.
        MissingExtraError: If onnxruntime is not installed.
    """
    runtime = extras.require('onnxruntime', extra='onnx', to='run an ONNX graph')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # threads that wait busily for the next layer take the processor from those that read and write rasters
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(graph, options, providers=list(providers))
    except list_refusals() as error:
        raise errors.BundleError(f'onnxruntime does not read the graph in {shown}: {str(error)[:300]}') from error


def open_graph(name: EngineName, graph: bytes, *, threads: int, precision: Precision | None = None) -> RunGraph:
    """Return what runs an ONNX graph on the CPU with an engine; the last one stays open for the next map.

    Args:
        name: onnxruntime or OpenVINO.
        graph: The file's content; it takes ``images``, and has one output.
        threads: That compute.
        precision: Of matrix products and convolutions, for engines of `HALF_ENGINES`; None for float32.

    Raises:
        ArgumentError: If the engine has no such precision on this processor.
        BundleError: If the engine does not read it.
        MissingExtraError: If the engine is not installed.
    """
    opened = _open_graph(name, graph, threads, precision)
    if name == 'onnx':
        return lambda images: opened.run(None, {'images': images})[0]
    request = opened.create_infer_request()  # each map has its own: threads may map at once
    # the result would be overwritten by the next image
    return lambda images: np.array(request.infer([images])[0])


def close_graphs() -> None:
    """Let the next `open_graph` open its graph anew."""
    _open_graph.cache_clear()


@lru_cache(maxsize=1)
def _open_graph(name: EngineName, graph: bytes, threads: int, precision: Precision | None) -> Any:
    """Return what `open_graph` runs a graph with: for a large transformer, opening takes as long as ten tiles."""
    if name == 'onnx':
        return open_session(graph, threads=threads)
    library = _require_library(name)
    core = library.Core()
    if precision is not None and precision.upper() not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        raise errors.ArgumentError(
            f"mixed_precision={precision!r} with engine='openvino' needs a processor with instructions for it, which "
            'this one has not; leave out mixed_precision'
        )
    # without a hint OpenVINO would take bfloat16 on its own on some processors
    hints = {
        'INFERENCE_PRECISION_HINT': precision or 'f32',
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_NUM_THREADS': str(threads),
    }
    try:
        return core.compile_model(core.read_model(model=graph), 'CPU', hints)
    except RuntimeError as error:
        raise errors.BundleError(f'OpenVINO does not read the graph: {str(error)[:300]}') from error
