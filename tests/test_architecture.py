"""The rooms import one way, and consensus has no IO: read from the tree itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lower rooms first; a room may import itself and any room of an earlier rank. Rooms of one rank
# are siblings and do not import each other.
RANKS = [
    {"consensus", "storage"},
    {"node.ledger"},
    {"node.config", "node.keys"},
    {"node.network", "node.imaging"},
    {"node.replication"},
    {"node.exchange"},
    {"node.rpc"},
    {"node.explorer"},
    {"node.provision", "node.service", "node.studies"},
    {"node.gateway"},
    {"node.assembly"},
    {"node.daemon"},
    {"node.testnet"},
    {"node.cli"},
]
# The wire encoding and `require` serve every room.
LEAVES = {"consensus.wire", "consensus.errors", "node.worker"}
PURE = {
    "asyncio", "socket", "ssl", "threading", "time", "random", "secrets", "os", "io", "pathlib",
    "logging", "subprocess", "concurrent", "multiprocessing", "datetime", "tempfile", "uuid",
    "aiohttp", "plyvel", "cryptography", "uvloop",
}  # fmt: skip
ONLY_IN = {
    "plyvel": ("storage/leveldb.py",),
    "pydicom": ("node/imaging/", "node/gateway/", "node/cli/"),
    "aiohttp": ("node/rpc/", "node/exchange/", "node/gateway/"),
    "pynetdicom": ("node/gateway/", "node/cli/demo/"),
    "obstore": ("node/exchange/store/",),
    "zstandard": ("node/exchange/store/",),
    "PIL": ("node/gateway/",),
    "typer": ("node/cli/",),
}


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for package in ("consensus", "storage", "node"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, path, ast.parse(path.read_text(), str(path))


def imports_of(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield node.module or "", node.lineno


def room_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] in ("consensus", "storage"):
        return parts[0]
    return ".".join(parts[:2]) if parts[0] == "node" and len(parts) > 1 else None


def is_leaf(module: str) -> bool:
    return any(module == leaf or module.startswith(leaf + ".") for leaf in LEAVES)


def rank_of(room: str) -> int:
    for rank, rooms in enumerate(RANKS):
        if room in rooms:
            return rank
    raise AssertionError(f"{room} has no place in the order of rooms")


def offences(name: str, tree: ast.Module) -> list[str]:
    found = []
    room = room_of(name)
    for target, line in imports_of(tree):
        other = room_of(target)
        if room is None or other is None or other == room or is_leaf(target):
            continue
        if is_leaf(name) or rank_of(other) >= rank_of(room):
            found.append(f"{name}:{line} imports {target}")
    return found


def test_rooms_import_one_way():
    assert [offence for name, _, tree in modules() for offence in offences(name, tree)] == []


def test_a_planted_upward_import_is_caught():
    assert offences("node.ledger.block", ast.parse("from node.rpc.server import Server"))
    assert offences("consensus.replica", ast.parse("import storage.kv"))
    assert offences("node.network.gossip", ast.parse("from node.imaging.vault import Vault"))
    assert not offences("node.rpc.server", ast.parse("from node.ledger.block import Header"))


def test_consensus_has_no_io():
    found = [
        f"{name}:{line} imports {target}"
        for name, _, tree in modules()
        if name.split(".")[0] == "consensus"
        for target, line in imports_of(tree)
        if target.split(".")[0] in PURE
    ]
    assert found == []


@pytest.mark.parametrize(("library", "places"), ONLY_IN.items())
def test_a_library_stays_in_its_room(library, places):
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for _, path, tree in modules()
        for target, line in imports_of(tree)
        if target.split(".")[0] == library
        and not path.relative_to(ROOT).as_posix().startswith(places)
    ]
    assert found == []


def test_no_import_hides_in_a_function_or_behind_type_checking():
    found = []
    for name, _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found += [
                    f"{name}:{inner.lineno}"
                    for inner in ast.walk(node)
                    if isinstance(inner, ast.Import | ast.ImportFrom)
                ]
            if isinstance(node, ast.Name) and node.id == "TYPE_CHECKING":
                found.append(f"{name}:{node.lineno} TYPE_CHECKING")
    assert found == []


def test_nobody_swallows_what_they_do_not_know():
    # Decoders panic past Exception; the fence runs them in a process of their own.
    allowed = {"node.imaging.pixels", "node.gateway.web.fence"}
    found = []
    for name, _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and name not in allowed:
                caught = ast.unparse(node.type) if node.type else "everything"
                passes_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
                if caught in ("everything", "BaseException") and not passes_on:
                    found.append(f"{name}:{node.lineno} catches {caught}")
    assert found == []
