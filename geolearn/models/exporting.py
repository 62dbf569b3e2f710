"""Write a network as graphs that run without geolearn, ONNX and torch.export, and compare each with the network."""

import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from geolearn import errors, extras
from geolearn.backbones.compiling import fold_kernels
from geolearn.batch import Batch
from geolearn.bundle import EXPORT_FILES, MAX_GRAPH_SIDE, Export, GraphFacts, read_emd, read_onnx
from geolearn.classes import IGNORE_INDEX
from geolearn.inference.engines import list_refusals, open_session
from geolearn.networks.spec import ModelSpec
from geolearn.onnx import read_facts

log = logging.getLogger('geolearn')

TOLERANCE = 1e-3
"""Most that a graph's output may differ from the network's, over the largest value of the output."""

MOST_UNLIKE = 10
"""One of so many windows may differ: where the scores of two places are equal but for rounding, either is a query."""

MAX_BATCH = 1024
"""Images that a graph takes at once."""

MAX_ONNX_BYTES = 2**31 - 2**24
"""Of weights in one ONNX file, which cannot be larger than 2 GiB."""

SEED = 20


@dataclass(frozen=True)
class ExportedGraphs:
    """Graphs of one network.

    Args:
        members: Files of the bundle by name.
        manifest: What is known of each graph by its kind, as JSON: ``file``, the fields of `GraphFacts`, and
            ``largest_difference`` from the network, with the ``bound`` that it was held to. Of detectors these are of
            boxes in pixels; ``largest_score_difference`` and ``score_bound`` are those of the scores.
    """

    members: Mapping[str, bytes]
    manifest: Mapping[str, Any]


class HeldGraph(NamedTuple):
    """An ONNX graph of a network.

    Args:
        content: Of the file.
        size: The only height and width of images that it takes; None for any.
        weights: Hash of the network's weights.
    """

    content: bytes
    size: tuple[int, int] | None
    weights: str


def read_graphs(path: Path) -> list[HeldGraph]:
    """Return the ONNX graph of a bundle, one or none; also none where the bundle is gone by now."""
    try:
        manifest = read_emd(path)['geolearn']
        facts = read_facts(manifest, ModelSpec.from_manifest(manifest), path)
        return [HeldGraph(read_onnx(path), facts.size, str(manifest['exports']['onnx'].get('weights')))]
    except errors.BundleError:
        return []


def export_network(
    network: nn.Module,
    spec: ModelSpec,
    kinds: Sequence[Export],
    facts: GraphFacts,
    chips: Iterable[Batch] = (),
) -> ExportedGraphs:
    """Write a network as graphs of images in stored units, NaN where there is no data.

    Normalization and NoData are part of the graphs, and DOFA's kernels are constants in them.

    Args:
        network: On the CPU in evaluation, without low-rank updates; it is changed: its kernels become constants.
        spec: Of the model.
        kinds: Of graphs.
        facts: Of the network, as far as they are known before it is traced; with a size, for images of that alone.
        chips: To measure what weights of 8 bits cost; without them images are drawn.

    Raises:
        ExportError: If the network cannot be written as a graph, is too large for one, or the graph computes something
            else.
        MissingExtraError: If ONNX is asked for and its libraries are missing.
    """
    if {'onnx', 'onnx-int8'} & set(kinds):
        for library in ('onnx', 'onnxscript', 'onnxruntime'):
            extras.require(library, extra='onnx', to='write an ONNX graph')
    network = fold_kernels(network, torch.float32).requires_grad_(False)
    multiple = facts.multiple
    # no level of the example may be of one pixel, which tracing takes for a size that never changes
    least = 2 * multiple
    if facts.detection is not None:
        # nor may there be one window alone
        least = max(3 * max(facts.detection.strides), math.ceil(2 * facts.detection.window / facts.detection.zoom))
    side = math.ceil(max(least, spec.chip_size) / multiple) * multiple
    tile = math.ceil(facts.tile_size / multiple) * multiple
    samples = [_sample(spec, 2, side, side), _sample(spec, 1, tile, side + multiple)]
    try:
        program = None if facts.size else _trace(network, samples[0], multiple)
    except _NOT_TRACED as error:
        log.warning('the graph takes tiles of %s x %s pixels alone: %s', tile, tile, _first_line(error))
        facts, program = replace(facts, size=(tile, tile)), None
    if program is None:
        assert facts.size is not None
        samples = [_sample(spec, 2, *facts.size), _sample(spec, 1, *facts.size)]
        program = _trace_at(network, samples[0])
    try:
        return _write_all(network, program, samples, kinds, facts, chips)
    except _GraphFailsError as error:
        if facts.size is not None:
            raise
        reason = _first_line(error.__cause__) if isinstance(error.__cause__, Exception) else error
        log.warning(
            'the graph takes tiles of %s x %s pixels alone: onnxruntime fails on others: %s', tile, tile, reason
        )
        return export_network(network, spec, kinds, replace(facts, size=(tile, tile)), chips)


class _GraphFailsError(errors.ExportError):
    """A graph cannot be run on images that it should take."""


def _write_all(
    network: nn.Module,
    program: torch.export.ExportedProgram,
    samples: Sequence[Tensor],
    kinds: Sequence[Export],
    facts: GraphFacts,
    chips: Iterable[Batch],
) -> ExportedGraphs:
    """Write graphs of each kind, and compare them with the network on some images."""
    members: dict[str, bytes] = {}
    manifest: dict[str, Any] = {}
    for kind in kinds:
        if kind == 'onnx-int8':
            if _has_windows(facts):
                raise errors.ExportError(
                    'with weights of 8 bits a detection transformer takes its queries from other places, so that what '
                    "they cost cannot be said; pass export='onnx'"
                )
            written = members.get(EXPORT_FILES['onnx'])
            members[EXPORT_FILES[kind]], run = _quantize(_write_onnx(program)[0] if written is None else written)
            compared = _measure_cost(network, run, facts, chips or [Batch(images=images) for images in samples])
        else:
            members[EXPORT_FILES[kind]], run = _WRITERS[kind](program)
            compared = _compare(network, run, samples, kind, facts)
        manifest[kind] = {'file': EXPORT_FILES[kind], **asdict(facts), **compared}
    return ExportedGraphs(members, manifest)


def _sample(spec: ModelSpec, count: int, height: int, width: int) -> Tensor:
    """Draw images with the statistics of the chips, which lack data in a corner."""
    random = torch.Generator().manual_seed(SEED)
    dates = (spec.dates,) if spec.dates > 1 else ()
    mean, std = (torch.tensor(column).view(-1, 1, 1) for column in (spec.statistics.mean, spec.statistics.std))
    images = torch.randn(count, *dates, len(spec.bands), height, width, generator=random) * std + mean
    images[0, ..., : height // 3, : width // 4] = torch.nan
    return images


def _trace(network: nn.Module, example: Tensor, multiple: int) -> torch.export.ExportedProgram:
    """Trace a network for any number and size of images."""
    dim = torch.export.Dim
    shape: dict[int, Any] = {0: dim('batch', min=1, max=MAX_BATCH)}
    for axis, name in ((-2, 'height'), (-1, 'width')):
        shape[example.dim() + axis] = multiple * dim(name, min=1, max=MAX_GRAPH_SIDE // multiple)
    return _export(network, example, shape)


def _trace_at(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """Trace a network for any number of images of one size."""
    try:
        return _export(network, example, {0: torch.export.Dim('batch', min=1, max=MAX_BATCH)})
    except _NOT_TRACED as error:
        raise errors.ExportError(
            f'torch.export cannot write this network as a graph: {_first_line(error)}; save it without export='
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


_NOT_TRACED = (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError)
"""What torch.export raises where a network branches on its input, by where that is met."""


@torch.no_grad()
def _export(network: nn.Module, example: Tensor, shape: dict[int, Any]) -> torch.export.ExportedProgram:
    program = torch.export.export(network, (example,), dynamic_shapes=(shape,))
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # paths of this machine are nobody's business
    program._example_inputs = None
    return program


Run = Callable[[Tensor], Tensor]


def _write_program(program: torch.export.ExportedProgram) -> tuple[bytes, Run]:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    content = buffer.getvalue()
    return content, torch.export.load(io.BytesIO(content)).module()


def _write_onnx(program: torch.export.ExportedProgram) -> tuple[bytes, Run]:
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > MAX_ONNX_BYTES:
        raise errors.ExportError(
            f"the weights take {size / 2**30:.1f} GiB and one ONNX file holds up to 2; pass export='torch' alone"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of the exporter about itself
            written = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=['images'], output_names=['outputs']
            )
    except RuntimeError as error:
        raise errors.ExportError(
            f"this network cannot be written as ONNX: {_first_line(error)}; pass export='torch' alone"
        ) from error
    assert written is not None
    for node in written.model.graph.all_nodes():
        node.metadata_props.clear()
    content = written.model_proto.SerializeToString()
    return content, _open_onnx(content)


def _open_onnx(content: bytes) -> Run:
    """Return what runs an ONNX graph in onnxruntime."""
    session = open_session(content)
    refusals = list_refusals()

    def run(images: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, {'images': images.numpy()})[0])
        except refusals as error:
            text = f'onnxruntime fails on images of {tuple(images.shape)}: {_first_line(error)}'
            raise _GraphFailsError(f"{text}; save without export='onnx', and report it") from error

    return run


def _quantize(graph: bytes) -> tuple[bytes, Run]:
    """Store the weights of an ONNX graph in 8 bits; what goes through it is scaled to 8 bits image by image."""
    quantization = extras.require('onnxruntime.quantization', extra='onnx', to='write a graph of 8 bits')
    messages = logging.getLogger()  # onnxruntime advises and lists tensors there
    level = messages.level
    with tempfile.TemporaryDirectory() as folder:
        path, target = Path(folder) / 'model.onnx', Path(folder) / 'int8.onnx'
        path.write_bytes(graph)
        messages.setLevel(logging.ERROR)
        try:
            quantization.quantize_dynamic(
                path,
                target,
                op_types_to_quantize=['MatMul', 'Gemm', 'Conv'],
                weight_type=quantization.QuantType.QUInt8,  # convolutions take no others
            )
        finally:
            messages.setLevel(level)
        content = target.read_bytes()
    return content, _open_onnx(content)


MOST_CHIPS = 64
"""Chips on which the cost of 8 bits is measured."""


@torch.no_grad()
def _measure_cost(network: nn.Module, run: Run, facts: GraphFacts, chips: Iterable[Batch]) -> dict[str, float]:
    """Return what a graph of 8 bits costs: how its outputs differ, and accuracies where there are labels."""
    parts = _parts(facts)
    differences, differing, total = dict.fromkeys(parts, 0.0), 0, 0
    right, right_int8, labelled, count = 0, 0, 0, 0
    for batch in chips:
        images = batch.images.cpu()
        expected, found = network(images).float(), run(images)
        for name, part in parts.items():
            off = (found - expected)[..., part].abs().numpy()
            differences[name] = max(differences[name], float(np.nanmax(off, initial=0)))
        count += len(images)
        if facts.output not in ('values', 'objects'):
            ours, theirs = expected.max(1).indices, found.max(1).indices
            differing, total = differing + int((ours != theirs).sum()), total + ours.numel()
            truth = batch.masks if batch.masks is not None else batch.labels
            if truth is not None and truth.shape == ours.shape:
                truth = truth.cpu()
                known = truth != IGNORE_INDEX
                labelled += int(known.sum())
                right += int((ours == truth)[known].sum())
                right_int8 += int((theirs == truth)[known].sum())
        if count >= MOST_CHIPS:
            break
    cost: dict[str, float] = {f'largest_{name}difference': off for name, off in differences.items()}
    cost['images'] = count
    if total:
        cost['differing_share'] = differing / total
    if labelled:
        cost |= {'accuracy': right / labelled, 'accuracy_int8': right_int8 / labelled}
    return cost


_WRITERS: Mapping[Export, Callable[[torch.export.ExportedProgram], tuple[bytes, Run]]] = {
    'onnx': _write_onnx,
    'torch': _write_program,
}


def _parts(facts: GraphFacts) -> Mapping[str, slice]:
    """Return what a graph gives, by the prefix of its numbers in the manifest, as slices of its last axis."""
    if facts.detection is None:
        return {'': slice(None)}
    return {'': slice(facts.detection.numbers), 'score_': slice(facts.detection.numbers, None)}


@torch.no_grad()
def _compare(
    network: nn.Module, run: Run, samples: Sequence[Tensor], kind: Export, facts: GraphFacts
) -> dict[str, float]:
    """Return the largest difference between a graph and its network; of detectors, that of boxes and that of scores.

    Raises:
        ExportError: If it is larger than the bound.
    """
    parts = _parts(facts)
    largest, rows = dict.fromkeys(parts, 0.0), []
    for images in samples:
        expected = network(images)
        found = run(images)
        if found.shape != expected.shape:
            raise errors.ExportError(
                f'the {kind} graph gives {tuple(found.shape)} for images {tuple(images.shape)}, the network '
                f"{tuple(expected.shape)}; save without export='{kind}', and report it"
            )
        largest = {name: max(most, float(expected[..., parts[name]].abs().max())) for name, most in largest.items()}
        rows += [
            [_difference(one[..., part], other[..., part]) for part in parts.values()]
            for one, other in zip(_windows(found, facts), _windows(expected, facts))
        ]
    bounds = np.array([TOLERANCE * max(most, 1e-6) for most in largest.values()])
    differences = np.array(rows)
    alike = np.all(differences <= bounds, axis=1)
    if _has_windows(facts) and np.count_nonzero(~alike) <= max(1, len(rows) // MOST_UNLIKE) < len(rows):
        differences = differences[alike]
        if unlike := np.count_nonzero(~alike):
            log.warning(
                'in %d of %d windows the %s graph takes other queries than the network, as scores are equal but for '
                'rounding; the rest agree',
                unlike,
                len(rows),
                kind,
            )
    compared: dict[str, float] = {}
    for name, difference, bound in zip(parts, differences.max(0).tolist(), bounds.tolist()):
        if not difference <= bound:
            raise errors.ExportError(
                f'the {kind} graph differs from the network by {difference:.3g}, and {bound:.3g} is the most that is '
                f"written; save without export='{kind}', and report it"
            )
        compared |= {f'largest_{name}difference': difference, f'{name}bound': bound}
    return compared


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference; infinite where one is finite and the other not."""
    if bool((found.isfinite() != expected.isfinite()).any()):
        return math.inf
    return float(np.nanmax((found - expected).abs().numpy(), initial=0))


def _has_windows(facts: GraphFacts) -> bool:
    return facts.detection is not None and facts.detection.window > 0


def _windows(outputs: Tensor, facts: GraphFacts) -> Sequence[Tensor]:
    """Return the outputs of each window of each image, or all outputs where images are seen whole."""
    if facts.detection is None or not facts.detection.window:
        return [outputs]
    return outputs.reshape(-1, facts.detection.boxes_per_place, outputs.shape[-1]).unbind()
