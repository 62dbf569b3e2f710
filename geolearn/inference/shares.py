"""Maps that several processes compute, each a share of it; the shares become one map at the end."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from geolearn.errors import CheckpointError
from geolearn.inference import store
from geolearn.inference.layers import Encoding
from geolearn.inference.mapping import MapPlan, MapRequest, plan_map
from geolearn.inference.plan import Share
from geolearn.inference.resume import JournalInUseError
from geolearn.networks.network import Network
from geolearn.networks.spec import ModelSpec

log = logging.getLogger('geolearn')


def map_in_shares(
    spec: ModelSpec, network: Network, encoding: Encoding, request: MapRequest, share: Share | None
) -> Path:
    """Compute a share of a map, or, where `share` is None, write the map of its shares; see these two.

    Args:
        spec: What the network was trained on.
        network: Maps images to outputs.
        encoding: From its outputs to pixels.
        request: What is mapped.
        share: To compute.
    """
    read = replace(request.read, is_checked=request.read.is_checked or is_begun(Path(request.dst), share))
    with ExitStack() as stack:
        plan = plan_map(spec, network, encoding, replace(request, read=read, measures=False), stack)
        return merge_shares(plan) if share is None else map_share(plan, share)


def is_begun(target: Path, share: Share | None) -> bool:
    """Whether another share of a result was begun, and so the raster checked; what differs from it is refused.

    Args:
        target: The result.
        share: To compute; None to merge all.
    """
    return share is None or bool(store.find_journals(target.expanduser(), share.count))


def map_share(plan: MapPlan, share: Share) -> Path:
    """Compute a share of a map, or what an earlier run left of it, and keep it beside the map.

    Returns:
        The folder of the shares.

    Raises:
        RasterError: If reading or writing fails.
        CheckpointError: If the folder holds shares of another map, or another process computes this one.
    """
    with plan.open_store(store.open_share_journal(plan.target, plan.facts, share), share) as pieces:
        if pieces.is_complete:
            log.info('part %s of %s is computed already', share, plan.target)
        else:
            plan.compute(pieces, share)
    return store.parts_folder(plan.target)


def merge_shares(plan: MapPlan) -> Path:
    """Write the map of its shares, and delete these.

    Raises:
        RasterError: If it cannot be written.
        CheckpointError: If shares are missing, damaged, being computed, or of another map.
    """
    require_shares(plan.target)
    whole = store.PieceStore(plan.target, store.parts_folder(plan.target), plan.box, plan.window, plan.layers, [])

    def take(share: Share) -> bool:
        with plan.open_store(store.open_share_journal(plan.target, plan.facts, share), share) as pieces:
            whole.take_over(pieces)
            return pieces.is_complete

    collect_shares(plan.target, take)
    plan.write(whole)
    whole.remove()
    return plan.target


def collect_shares(target: Path, take: Callable[[Share], bool]) -> None:
    """Take all shares of a result.

    Args:
        target: The result.
        take: Takes one; returns whether it is complete.

    Raises:
        CheckpointError: If shares are missing, incomplete, being computed, or of another run.
    """
    count = require_shares(target)
    missing, busy = [], []
    for share in (Share(number, count) for number in range(1, count + 1)):
        try:
            if not store.has_share(target, share) or not take(share):
                missing.append(share)
        except JournalInUseError:
            busy.append(share)
    if missing or busy:
        raise CheckpointError(_unfinished(target, count, missing, busy))


def require_shares(target: Path) -> int:
    """Return how many shares a result has.

    Raises:
        CheckpointError: If none was begun.
    """
    count = store.count_shares(target)
    if count is None:
        raise CheckpointError(
            f'there are no parts of {target} to merge; compute them first, with part=(1, 40) to part=(40, 40)'
        )
    return count


MOST_NAMED = 20
"""Shares that an error names one by one."""


def _unfinished(target: Path, count: int, missing: Sequence[Share], busy: Sequence[Share]) -> str:
    done = count - len(missing) - len(busy)
    text = f'{done} of {count} parts of {target} are computed'
    for shares, what in ((busy, 'being computed'), (missing, 'missing')):
        if shares:
            rest = f' and {len(shares) - MOST_NAMED} more' if len(shares) > MOST_NAMED else ''
            text += f'; {what}: {", ".join(str(share.number) for share in shares[:MOST_NAMED])}{rest}'
    if missing:
        text += f'. Compute these, such as with part=({missing[0].number}, {count}), and merge again'
    return text + ('' if missing else '. Wait for them, and merge again')
