"""The files of a whole consortium in one folder: a genesis, and keys and config for every node."""

import os
import random
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from node.config import ConsensusConfig, KeyConfig, NodeConfig, PeerAddress, load_config
from node.ledger import genesis_file
from node.provision import (
    CONFIG,
    GENESIS,
    NODE_KEY,
    PASSPHRASE,
    Card,
    create_identity,
    make_genesis,
    node_config,
    write_node,
)

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_000)
_SHARES = 64
NAMES = ("north", "south", "east", "west", "hill", "lake", "river", "coast", "forest", "valley")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is."""

    folder: Path
    configs: tuple[NodeConfig, ...]  # validators, observers, then nodes that came later

    @property
    def genesis_file(self) -> Path:
        """The genesis that all nodes share."""
        return self.folder / GENESIS

    def node_folder(self, index: int) -> Path:
        """Return the folder with the keys, config and data of one node."""
        return self.folder / self.configs[index].institution


def institution_name(index: int) -> str:
    """Return the name of the node with this index: north, south, ..., north-2, ..."""
    lap, position = divmod(index, len(NAMES))
    return NAMES[position] if lap == 0 else f"{NAMES[position]}-{lap + 1}"


def create_layout(
    folder: Path,
    *,
    validators: int = 4,
    observers: int = 0,
    consensus: ConsensusConfig | None = None,
) -> Layout:
    """Write keys, genesis and configs for a new consortium on loopback into `folder`.

    Every file is what an operator would make by hand with `keygen`, `genesis` and `init`.
    """
    if validators < 1 or observers < 0:
        raise ValueError(
            "a testnet has at least one validator, and no negative number of observers"
        )
    names = [institution_name(index) for index in range(validators + observers)]
    cards = [
        create_identity(
            folder / name, name, f"{name.title()} Hospital", observer=index >= validators
        )
        for index, name in enumerate(names)
    ]
    ports = list(free_ports(2 * len(names)))
    listens, rpcs = ports[: len(names)], ports[len(names) :]
    configs = []
    for index, name in enumerate(names):
        peers = [
            PeerAddress(institution=other, host=LOOPBACK, port=listens[number])
            for number, other in enumerate(names)
            if number != index
        ]
        config = node_config(
            name,
            listen=(LOOPBACK, listens[index]),
            peers=peers,
            rpc_port=rpcs[index],
            genesis_file=Path("..", GENESIS),
        )
        if consensus is not None:
            config = replace(config, consensus=consensus)
        configs.append(write_node(folder / name, config))
    # Last: a folder without it was left half made.
    genesis = make_genesis("testnet", cards, time.time_ns() // 1_000_000)
    genesis_file.save(genesis, folder / GENESIS)
    return Layout(folder, tuple(configs))


def extend_layout(layout: Layout, name: str) -> Layout:
    """Write keys and config of a node that the genesis does not know, and return all configs.

    It knows where the others are, and they do not know where it is: who dials is its affair.
    """
    create_identity(layout.folder / name, name, f"{name.title()} Hospital")
    listen, rpc = free_ports(2)
    peers = [
        PeerAddress(institution=other.institution, host=LOOPBACK, port=other.network.listen_port)
        for other in layout.configs
    ]
    config = node_config(
        name,
        listen=(LOOPBACK, listen),
        peers=peers,
        rpc_port=rpc,
        genesis_file=Path("..", GENESIS),
    )
    config = replace(config, consensus=layout.configs[0].consensus)
    written = write_node(layout.folder / name, config)
    return replace(layout, configs=(*layout.configs, written))


def rotate_key(layout: Layout, index: int) -> tuple[Layout, Card]:
    """Make another key for a node, and let its config name it from the next start on."""
    config = layout.configs[index]
    folder = layout.node_folder(index) / f"key-{secrets.token_hex(4)}"
    card = create_identity(folder, config.institution, f"{config.institution.title()} Hospital")
    key = KeyConfig(file=folder / NODE_KEY, passphrase_file=folder / PASSPHRASE)
    written = write_node(layout.node_folder(index), replace(config, key=key))
    configs = [written if i == index else other for i, other in enumerate(layout.configs)]
    return replace(layout, configs=tuple(configs)), card


def load_layout(folder: Path) -> Layout:
    """Return the layout that `create_layout` wrote, with what was added since.

    Raises `FileNotFoundError` when there is none, `ConfigError`, `InvalidGenesis`.
    """
    if not (folder / GENESIS).exists():
        raise FileNotFoundError(f"{folder} holds no testnet")
    genesis = genesis_file.load(folder / GENESIS)
    names = [node.institution for node in (*genesis.validators, *genesis.observers)]
    names += sorted({path.parent.name for path in folder.glob(f"*/{CONFIG}")} - set(names))
    return Layout(folder, tuple(load_config(folder / name / CONFIG) for name in names))


def free_ports(count: int) -> Iterator[int]:
    """Yield ports that were free on loopback a moment ago; all held until the last was found.

    They lie below the range from which systems take the near ends of outgoing connections: from
    that, a port would be lost to any connection while its node is down.
    """
    with ExitStack() as held:
        found: list[int] = []
        # A network starts some time after its ports were found: programs that make networks at the
        # same time, as tests do, each look among their own first.
        own = PORTS[os.getpid() % _SHARES :: _SHARES]
        others = sorted(set(PORTS) - set(own))
        for port in (*random.sample(own, len(own)), *random.sample(others, len(others))):
            candidate = held.enter_context(socket.socket())
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                candidate.bind((LOOPBACK, port))
                found.append(port)
            if len(found) == count:
                break
        else:
            raise OSError(f"fewer than {count} ports are free on {LOOPBACK}")
        yield from found
