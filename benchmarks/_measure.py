"""What every benchmark shares: interleaved rounds, medians, peak memory of a child process, the closing JSON line."""

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Check:
    """A measured value against its bar.

    Args:
        value: What was measured; None where the peer is not installed.
        bar: What it is held against, or None for a figure that is only reported.
        at_least: Whether larger is better.
    """

    value: float | None
    bar: float | None = None
    at_least: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the value, the bar and whether it holds."""
        if self.value is None or self.bar is None:
            return {'value': None if self.value is None else round(self.value, 4), 'bar': self.bar, 'ok': True}
        ok = self.value >= self.bar if self.at_least else self.value <= self.bar
        return {'value': round(self.value, 4), 'bar': self.bar, 'ok': bool(ok)}


def interleave(
    jobs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
    rest: float = 0.0,
) -> dict[str, list[float]]:
    """Time jobs in turn, so that whatever else the machine does hits all of them alike; one warm-up round first.

    Every second round goes backwards: what a job leaves behind, such as threads, hits its two neighbors alike.
    `rest` seconds lie between two jobs: the threads of some libraries, such as OpenVINO, spin for a while.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    # half a second for each job goes into looking through what the imports left
    gc.collect()
    gc.freeze()
    for index in range(rounds + warm_up):
        for name, job in list(jobs.items())[:: -1 if index % 2 else 1]:
            gc.collect()
            time.sleep(rest)
            started = clock()
            job()
            if index or not warm_up:
                seconds[name].append(clock() - started)
    gc.unfreeze()
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], above: str, below: str) -> float:
    """Return the median over rounds of one job's time over another's; both ran side by side in each round."""
    return statistics.median(a / b for a, b in zip(seconds[above], seconds[below]))


def child_peak_mb(script: str, *arguments: str) -> float:
    """Run this benchmark's file in a fresh process that prints its own peak memory in MB on the last line."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def peaks_side_by_side(jobs: Sequence[Callable[[], float]]) -> list[float]:
    """Return the peaks that jobs measure in child processes, two at a time: memory does not depend on speed."""
    with ThreadPoolExecutor(2) as pool:
        return [running.result() for running in [pool.submit(job) for job in jobs]]


def peak_mb() -> float:
    """Return the peak memory of this process in MB; not that of the one it was forked from, as getrusage would."""
    status = Path('/proc/self/status')
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (line,) = (line for line in status.read_text().splitlines() if line.startswith('VmHWM:'))
    return int(line.split()[1]) / 1024


def parse_quick(description: str | None) -> bool:
    """Read --quick."""
    return _quick_parser(description).parse_args().quick


def parse_quick_and_rates(description: str | None) -> tuple[bool, Path | None]:
    """Read --quick, and the file of --rates, None where it is not given."""
    parser = _quick_parser(description)
    parser.add_argument('--rates', type=Path, help='write the speed of each case into this file, see write_rates.py')
    given = parser.parse_args()
    return given.quick, given.rates


def _quick_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--quick', action='store_true', help='smaller sizes, same checks, under 2 minutes')
    return parser


def describe_machine() -> str:
    """Return the processor and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.exists():
        models = [
            line.partition(':')[2].strip() for line in info.read_text().splitlines() if line.startswith('model name')
        ]
        name = models[0] if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return f'{name}, {cores} cores'


@dataclass(frozen=True)
class Rate:
    """How fast a case is, from file to file unless its name says otherwise.

    Args:
        megapixels: That were mapped.
        seconds: Of each round.
    """

    megapixels: float
    seconds: Sequence[float]

    @property
    def per_second(self) -> float:
        """Mpx/s in the median round."""
        return self.megapixels / statistics.median(self.seconds)


def show_rates(rates: Mapping[str, Rate], path: Path | None, *, benchmark: str, threads: int) -> None:
    """Print the speed of each case, and replace those of this benchmark in a file of JSON lines.

    Args:
        rates: By case.
        path: The file, or None.
        benchmark: Name of the script.
        threads: Of each process that computed.
    """
    for name, rate in rates.items():
        print(f'{name:<20} ' + ' '.join(f'{value:7.2f}' for value in rate.seconds) + f' s {rate.per_second:7.2f} Mpx/s')
    if path is None:
        return
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if row['benchmark'] != benchmark]
    rows += [
        {
            'benchmark': benchmark,
            'machine': describe_machine(),
            'threads': threads,
            'case': name,
            'megapixels': round(rate.megapixels, 3),
            'seconds': [round(value, 3) for value in rate.seconds],
        }
        for name, rate in rates.items()
    ]
    path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))


def parse_only(description: str | None, names: Sequence[str]) -> tuple[bool, str | None]:
    """Read --quick and --only, the name of one check to run alone."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--quick', action='store_true', help='smaller sizes, same checks, under 2 minutes')
    parser.add_argument('--only', choices=list(names), help='one check alone')
    given = parser.parse_args()
    return given.quick, given.only


def _busy_and_own() -> tuple[float, float] | None:
    """Return the processor seconds of the machine since it started, and those of this process and its children."""
    stat = Path('/proc/stat')
    if not stat.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split('\n', 1)[0].split()[1:9])
    spent = os.times()
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf('SC_CLK_TCK')
    return busy, spent.user + spent.system + spent.children_user + spent.children_system


_BEGUN = time.perf_counter(), _busy_and_own()

QUIET = 0.05
"""Share of the cores that other work may take; with one of two gone, what runs in two threads takes twice as long."""


def describe_other_work() -> str | None:
    """Say how many cores other work took since the benchmark began; None where that is little, or not known."""
    started, before = _BEGUN
    now = _busy_and_own()
    if before is None or now is None:
        return None
    cores = ((now[0] - before[0]) - (now[1] - before[1])) / (time.perf_counter() - started)
    if cores < QUIET * (os.cpu_count() or 1):
        return None
    return f'other work took {cores:.1f} of {os.cpu_count()} cores; wall-clock figures need a quiet machine: run again'


def report(checks: Mapping[str, Check]) -> None:
    """Print the closing line, and before it whether other work disturbed the measurement."""
    if (disturbed := describe_other_work()) is not None:
        print(disturbed)
    print(json.dumps({name: check.to_json() for name, check in checks.items()}))
