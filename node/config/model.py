"""The settings of one node, as plain frozen dataclasses; names carry their units.

These classes are the only list of keys, types, bounds and defaults. Protocol parameters that all
nodes must share (window, limits on transactions and blocks) are in the genesis file, not here.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, StringConstraints, ValidationInfo

_INSTITUTION = "^[a-z0-9][a-z0-9-]{0,31}$"  # as in transactions
_HOST = r"^[A-Za-z0-9._:%-]{1,253}$"
_ENVIRONMENT = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"


def _resolve(value: object, info: ValidationInfo) -> Path:
    """Read a path as relative to the config file, whatever the working directory is."""
    if not isinstance(value, str):
        raise ValueError("needs text: a path")
    if not value.strip() or "\0" in value:
        raise ValueError("is no path")
    path = Path(value)
    if value.startswith("~/"):
        path = Path.home() / value[2:]
    base = (info.context or {}).get("base", Path())
    return Path(base) / path


ResolvedPath: TypeAlias = Annotated[Path, BeforeValidator(_resolve)]
Institution: TypeAlias = Annotated[str, StringConstraints(strict=True, pattern=_INSTITUTION)]
Host: TypeAlias = Annotated[str, StringConstraints(strict=True, pattern=_HOST)]
EnvironmentName: TypeAlias = Annotated[str, StringConstraints(strict=True, pattern=_ENVIRONMENT)]
Flag: TypeAlias = Annotated[bool, Field(strict=True)]
Port: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=65_535)]
AnyPort: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=65_535)]  # 0: the system chooses
Count: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=10_000_000)]
Milliseconds: TypeAlias = Annotated[int, Field(strict=True, ge=1, le=86_400_000)]
MessageBytes: TypeAlias = Annotated[int, Field(strict=True, ge=1_024, le=64 * 2**20)]
BufferBytes: TypeAlias = Annotated[int, Field(strict=True, ge=64 * 2**10, le=4 * 2**30)]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyConfig:
    """The identity key; with neither passphrase source given, `start` asks at the terminal."""

    file: ResolvedPath
    passphrase_file: ResolvedPath | None = None
    passphrase_environment: EnvironmentName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAddress:
    institution: Institution
    host: Host
    port: Port


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Connections to the other institutions' nodes, over mutual TLS 1.3."""

    listen_host: Host = "0.0.0.0"  # noqa: S104 - peers are elsewhere; TLS pins their keys
    listen_port: AnyPort = 7610
    peers: Annotated[tuple[PeerAddress, ...], Field(max_length=256)] = ()
    connect_timeout_ms: Milliseconds = 5_000
    reconnect_delay_ms_max: Milliseconds = 10_000
    idle_timeout_ms: Milliseconds = 10_000  # nothing heard although it was asked
    inbound_connections_max: Count = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcLimits:
    """What one client may cost the node."""

    message_bytes_max: MessageBytes = 2 * 2**20  # one HTTP body or one WebSocket message
    batch_calls_max: Count = 100
    depth_max: Count = 16  # of nested JSON arrays and objects
    connections_max: Count = 256
    in_flight_max: Count = 8_192  # calls not yet answered, all clients together
    in_flight_per_connection_max: Count = 4_096
    reads_per_connection_max: Count = 16  # lookups that run at once, the others wait
    calls_per_second_max: Count = 50_000  # per connection
    subscriptions_per_connection_max: Count = 16
    send_buffer_bytes_max: BufferBytes = 32 * 2**20  # per connection; beyond it is cut
    request_timeout_ms: Milliseconds = 60_000  # also the longest wait for finality
    slow_subscriber_timeout_ms: Milliseconds = 10_000
    idle_timeout_ms: Milliseconds = 15_000  # HTTP only: without a complete request head


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcConfig:
    """The local interface for clients; loopback unless `allow_remote` and TLS are set."""

    token_file: ResolvedPath
    host: Host = "127.0.0.1"
    port: AnyPort = 7620
    allow_remote: Flag = False
    tls_certificate_file: ResolvedPath | None = None
    tls_key_file: ResolvedPath | None = None
    allowed_hosts: Annotated[tuple[Host, ...], Field(max_length=64)] = ()  # in Host headers
    limits: RpcLimits = field(default_factory=RpcLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsensusConfig:
    """Times of this node's replica; they decide how fast it acts, never what is agreed."""

    view_timeout_ms: Milliseconds = 2_000
    view_timeout_ms_max: Milliseconds = 60_000
    resend_interval_ms: Milliseconds = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class MempoolConfig:
    transactions_max: Count = 20_000
    bytes_max: BufferBytes = 64 * 2**20
    transactions_per_institution_max: Count = 8_000
    age_ms_max: Milliseconds = 600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Everything one node is told. Paths are resolved against the folder of the file."""

    institution: Institution
    data_dir: ResolvedPath
    genesis_file: ResolvedPath
    key: KeyConfig
    rpc: RpcConfig
    network: NetworkConfig = field(default_factory=NetworkConfig)
    consensus: ConsensusConfig = field(default_factory=ConsensusConfig)
    mempool: MempoolConfig = field(default_factory=MempoolConfig)
    log: LogConfig = field(default_factory=LogConfig)
