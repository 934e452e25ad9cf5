"""python -m tests.bench [--quick]: four node processes and a load generator on this machine.

Everything is durable and every signature verified. Figures are written to build/bench.json and
shown as a table; the limit that they are compared with is measured in the same run. Nothing here is
asserted but correctness: no transaction lost or doubled, all nodes alike.
"""

import argparse
import contextlib
import json
import os
import platform
import pstats
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from node.testnet.processes import ProcessTestnet
from tests.bench import growth, ingest, sharing, store, transfer
from tests.bench.audit import check
from tests.bench.limit import verifications_per_second
from tests.bench.load import Load, registration
from tests.bench.usage import cpu_seconds, folder_bytes, resident_mib

VALIDATORS = 4
OPERATIONS = 64  # in one multi-operation transaction
PROFILE_ROWS = 10
REPORT = Path("build/bench.json")
console = Console()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the main figures in under a minute")
    options = parser.parse_args()
    report = uvloop.run(_run(quick=options.quick))
    sizes = [1_000, 10_000] if options.quick else [1_000, 100_000, 1_000_000]
    _say(f"cost of one more transaction at {', '.join(f'{s:,}' for s in sizes)} studies")
    report["growth"] = growth.measure(sizes)
    if not options.quick:
        _say("the encrypted store, and transfer between two nodes")
        report["store"] = store.measure(quick=True)
        report["transfer"] = transfer.measure(512, 3)
        _say("a gateway takes in studies beside a validator")
        report["ingest"] = ingest.measure(quick=False)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _show(report)
    return 0


async def _run(*, quick: bool) -> dict[str, Any]:
    _say("the machine's limit: Ed25519 verifications with all cores")
    limit_before = verifications_per_second(1.0 if quick else 3.0)
    report: dict[str, Any] = {
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "validators": VALIDATORS,
        "is_quick": quick,
    }
    with tempfile.TemporaryDirectory(prefix="radledger-bench-") as folder:
        net = ProcessTestnet(Path(folder), VALIDATORS, observers=1)
        voters = list(range(VALIDATORS))
        try:
            await net.start(voters)
            async with Load(net) as load:
                await _measure(report, net, load, quick=quick)
                report["sync"] = await _sync(net, load)
                _say("profile of one node")
                report["profile"] = await _profile(net, load)
        finally:
            await net.stop()
    _say("the machine's limit once more")
    limit = (limit_before + verifications_per_second(1.0 if quick else 3.0)) / 2
    report["verifications_per_s"] = round(limit)
    report["signature_limit_tx_per_s"] = round(limit / VALIDATORS, 1)
    report["share_of_limit"] = round(report["sustained"]["tx_per_s"] * VALIDATORS / limit, 3)
    return report


async def _measure(report: dict[str, Any], net: ProcessTestnet, load: Load, *, quick: bool) -> None:
    nodes = net.nodes[:VALIDATORS]
    acknowledged: list[bytes] = []
    _say("idle latency: one client")
    await load.closed_loop(4, 1.0)
    idle = await load.closed_loop(1, 2.0 if quick else 10.0)
    report["idle"] = idle.summary()
    acknowledged += idle.ids
    report["closed_loop"] = []
    best = None
    for clients in (4, 16, 64, 256):
        _say(f"closed loop: {clients} clients")
        disk = [folder_bytes(node.config.data_dir) for node in nodes]
        cpu, began = cpu_seconds(nodes), time.process_time()
        phase = await load.closed_loop(clients, 3.5 if quick else 20.0, warm_up_s=0.5)
        acknowledged += phase.ids
        count = len(phase.ids)
        summary = phase.summary() | {
            "cpu_s_per_1000_tx_per_node": [
                round((after - before) / count * 1000, 3)
                for before, after in zip(cpu, cpu_seconds(nodes), strict=True)
            ],
            "cpu_s_per_1000_tx_load_generator": round(
                (time.process_time() - began) / count * 1000, 3
            ),
            "bytes_on_disk_per_tx": round(
                sum(folder_bytes(n.config.data_dir) - d for n, d in zip(nodes, disk, strict=True))
                / count
                / len(nodes)
            ),
            "transaction_bytes": round(phase.bytes / max(1, len(phase.latencies_s))),
        }
        report["closed_loop"].append(summary)
        if best is None or summary["tx_per_s"] > best["tx_per_s"]:
            best = summary
    report["sustained"] = best
    _say(f"multi-operation transactions: {OPERATIONS} registrations each")
    many = await load.closed_loop(
        8, 2.0 if quick else 10.0, lambda: [registration() for _ in range(OPERATIONS)]
    )
    acknowledged += many.ids
    report["multi_operation"] = many.summary() | {
        "operations_per_transaction": OPERATIONS,
        "operations_per_s": round(many.rate * OPERATIONS, 1),
    }
    _say("access requests with policy evaluation, beside registrations")
    report["sharing"] = await sharing.measure(
        load, [node.name for node in nodes], 3.0 if quick else 20.0
    )
    report["memory_mib_per_node"] = [round(mib, 1) for mib in resident_mib(nodes)]
    _say("audit: nothing lost, nothing doubled")
    report["audit"] = await check(load.clients, acknowledged)


async def _sync(net: ProcessTestnet, load: Load) -> dict[str, float]:
    """Start a node that has nothing and wait until it has everything."""
    _say("sync of a fresh node")
    goal = (await load.clients[0].head()).height
    executed = 0
    for height in range(1, goal + 1):
        block = await load.clients[0].block(height)
        executed += len(block.receipts) if block is not None else 0
    fresh = net.nodes[VALIDATORS]
    began = time.perf_counter()
    await fresh.start()
    started = time.perf_counter()
    async with fresh.client() as client:
        async for block in client.events(from_height=1):
            if block.height >= goal:
                break
    seconds = time.perf_counter() - started
    await fresh.stop()
    return {
        "blocks": goal,
        "transactions": executed,
        "start_s": round(started - began, 2),
        "seconds": round(seconds, 2),
        "blocks_per_s": round(goal / seconds, 1),
        "tx_per_s": round(executed / seconds, 1),
    }


async def _profile(net: ProcessTestnet, load: Load) -> list[dict[str, Any]]:
    """Run one backup under the standard profiler for a while; return what took its loop's time."""
    node = net.nodes[VALIDATORS - 1]
    stats = node.folder / "profile.pstats"
    await load.clients[VALIDATORS - 1].__aexit__(None, None, None)
    await node.stop()
    environment = os.environ | {"RADLEDGER_PROFILE": str(stats)}
    await node.start(environment=environment)
    client = load.clients[VALIDATORS - 1] = node.client()
    await client.__aenter__()
    await load.closed_loop(64, 2.5)
    await node.stop()
    with stats.open("rb"), contextlib.redirect_stdout(None):
        profile = pstats.Stats(str(stats))
    shutil.copy(stats, REPORT.parent) if REPORT.parent.is_dir() else None
    total = profile.total_tt  # type: ignore[attr-defined]
    rows = sorted(profile.stats.items(), key=lambda row: -row[1][2])  # type: ignore[attr-defined]
    return [
        {
            "function": f"{Path(path).name}:{name}" if path != "~" else name,
            "share": round(own / total, 3),
            "calls": calls,
        }
        for (path, _, name), (_, calls, own, _, _) in rows[:PROFILE_ROWS]
    ]


def _show(report: dict[str, Any]) -> None:
    table = Table(title=f"RadLedger, {VALIDATORS} validators", title_justify="left", box=None)
    for heading in ("", "tx/s", "p50 ms", "p99 ms", "CPU s per 1,000 tx and node", "disk B/tx"):
        table.add_column(heading, justify="right")
    for row in report["closed_loop"]:
        cpu = row["cpu_s_per_1000_tx_per_node"]
        table.add_row(
            f"{row['clients']} clients",
            f"{row['tx_per_s']:,.0f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{sum(cpu) / len(cpu):.2f}",
            f"{row['bytes_on_disk_per_tx']:,}",
        )
    console.print(table)
    idle, many, sync = report["idle"], report["multi_operation"], report["sync"]
    sharing_ = report["sharing"]
    lines = [
        ("share_of_limit", f"{report['share_of_limit']} of {report['signature_limit_tx_per_s']:,}"),
        ("idle latency to finality", f"p50 {idle['p50_ms']} ms, p99 {idle['p99_ms']} ms"),
        ("multi-operation", f"{many['operations_per_s']:,.0f} operations/s"),
        (
            "access requests",
            f"{sharing_['requests_per_s']:,.0f}/s, {sharing_['share_of_registrations']} of "
            f"registrations; p50 {sharing_['p50_ms']} ms, p99 {sharing_['p99_ms']} ms",
        ),
        ("memory per node", ", ".join(f"{m:.0f} MiB" for m in report["memory_mib_per_node"])),
        (
            "sync of a fresh node",
            f"{sync['tx_per_s']:,.0f} tx/s, {sync['blocks_per_s']:,.0f} blocks/s",
        ),
        ("audit", f"{report['audit']['executed']:,} executed, none lost, none doubled"),
    ]
    lines += [
        (
            f"at {row['studies']:,} studies",
            f"{row['cpu_us_per_tx']} us CPU, {row['wall_us_per_tx']} us wall per tx",
        )
        for row in report["growth"]
    ]
    lines += [
        (
            f"search at {row['studies']:,} studies",
            f"p50 {row['search_p50_ms']} ms, p99 {row['search_p99_ms']} ms",
        )
        for row in report["growth"]
    ]
    if "store" in report:
        lines += [
            ("store, compression off", f"{report['store']['off']['ratio']} of the reference"),
            ("transfer", f"{report['transfer']['transfer_share']} of a plain download"),
            ("transfer, durable", f"{report['transfer']['durable_share']} of a plain download"),
        ]
        taken = report["ingest"]
        lines += [
            (
                f"{taken['slices']} slices",
                f"received in {taken['received_s']} s, final and stored "
                f"{taken['final_and_stored_s']} s later, at most {taken['peak_mib']} MiB",
            ),
            (
                "p99 beside ingest",
                f"{taken['beside']['p99_ratio']} of that without; with all on the same "
                f"processors {taken['crowded']['p99_ratio']}",
            ),
        ]
    for name, value in lines:
        console.print(f"[bold]{name:>26}[/bold]  {value}", highlight=False)
    console.print("[bold]the loop's time, profiled[/bold]")
    for row in report["profile"]:
        console.print(f"  {row['share']:6.1%}  {row['function']}", highlight=False)
    console.print(f"written to {REPORT}", highlight=False)


def _say(line: str) -> None:
    console.print(f"[dim]{line}[/dim]", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
