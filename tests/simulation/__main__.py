"""Command line: simulate many seeds, replay one, or look for the planted bugs."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing import get_context

from tests.simulation import canaries
from tests.simulation.plan import draw
from tests.simulation.trace import Tracer
from tests.simulation.world import Result, run, simulate

_COMMAND = "python -m tests.simulation"


def main() -> int:
    """Return the exit status: 0 when all was well, 1 when not, 2 for a misuse."""
    arguments = _parse()
    if arguments.canary is not None:
        return _canaries(arguments)
    if arguments.seed is not None:
        return _replay(arguments.seed, arguments.trace)
    return _many(range(arguments.first, arguments.first + arguments.seeds), arguments.jobs)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=_COMMAND, description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many seeds (500)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed (0)")
    parser.add_argument("--seed", type=int, help="run only this seed")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every event")
    parser.add_argument(
        "--canary",
        choices=[*canaries.CANARIES, "all"],
        help="plant this bug and find it; with --seed, run that seed with the bug",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    arguments = parser.parse_args()
    if arguments.trace and arguments.seed is None:
        parser.error("--trace needs --seed")
    if arguments.seeds < 1 or arguments.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    return arguments


def _many(seeds: range, jobs: int) -> int:
    began, total, failed = time.monotonic(), Counter[str](), 0
    for done, result in enumerate(_results(seeds, jobs), 1):
        total = _add(total, result.counters)
        if result.violation is not None:
            failed += 1
            _report(result)
        if sys.stderr.isatty():
            print(f"\r{done}/{len(seeds)} seeds", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    print(_summary(total, len(seeds), failed, time.monotonic() - began))
    return 1 if failed else 0


def _results(seeds: Iterable[int], jobs: int) -> Iterator[Result]:
    if jobs == 1:
        yield from map(simulate, seeds)
        return
    with get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(simulate, seeds, chunksize=4)


def _add(total: Counter[str], one: Counter[str]) -> Counter[str]:
    largest = {name: max(total[name], one[name]) for name in ("footprint", "recovery_ms")}
    total = total + one
    total.update({name: value - total[name] for name, value in largest.items()})
    return total


def _report(result: Result, canary: str = "") -> None:
    print(f"seed {result.seed}: VIOLATION: {result.violation}", flush=True)
    print(f"  replay: {_COMMAND} --seed {result.seed} --trace{canary}", flush=True)


def _summary(total: Counter[str], seeds: int, failed: int, seconds: float) -> str:
    lines = [
        f"{seeds} seeds, {failed} violations, {seconds:.0f} s",
        f"{total['steps']:,} steps, {total['messages']:,} messages, {total['crashes']:,} crashes, "
        f"{total['views']:,} views entered, {total['heights']:,} heights, "
        f"{total['reigns']:,} changes of validators, "
        f"{total['evidence']:,} accusations",
        f"{total['virtual_ms'] / 1000:,.0f} s of virtual time; slowest recovery "
        f"{total['recovery_ms'] / 1000:.1f} s; most values in one replica {total['footprint']:,}",
    ]
    return "\n".join(lines)


def _replay(seed: int, trace: bool) -> int:
    plan = draw(seed)
    print(plan)
    began = time.monotonic()
    result = run(plan, Tracer(print) if trace else None)
    if result.violation is not None:
        print(result.details)
        _report(result)
    print(_summary(result.counters, 1, int(result.violation is not None), time.monotonic() - began))
    return 0 if result.violation is None else 1


def _canaries(arguments: argparse.Namespace) -> int:
    names = list(canaries.CANARIES) if arguments.canary == "all" else [arguments.canary]
    if arguments.seed is not None:
        tracer = Tracer(print) if arguments.trace else None
        result = canaries.run_with(names[0], arguments.seed, tracer)
        print(result.violation or "not found with this seed")
        return 0 if result.violation else 1
    with get_context("spawn").Pool(arguments.jobs) as pool:
        hunts = pool.map(canaries.hunt, names, chunksize=1)
    for hunt in hunts:
        print(hunt)
    return 0 if all(hunt.found for hunt in hunts) else 1


if __name__ == "__main__":
    sys.exit(main())
