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
StorageBytes: TypeAlias = Annotated[int, Field(strict=True, ge=2**20, le=2**50)]
Delay: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=7 * 86_400_000)]  # milliseconds
# PS3.5 §6.2: 1 to 16 characters of the default repertoire, no backslash, spaces inside only.
AeTitle: TypeAlias = Annotated[
    str, StringConstraints(strict=True, pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")
]


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
class DicomPeer:
    """A DICOM application at this hospital: a PACS, a modality, a viewer."""

    ae_title: AeTitle
    host: Host | None = None  # to deliver to it, or to answer its storage commitment requests
    port: Port | None = None
    certificate_file: ResolvedPath | None = None  # PEM; with TLS, the one that it must present
    web_url: str | None = None  # of its DICOMweb, as "https://pacs.hospital.example/dicom-web"
    web_authorization_file: ResolvedPath | None = None  # the header's value, as "Basic dXNlcjo..."
    takes_fetched: Flag = False  # what comes from other hospitals from now on is delivered to it


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """What the senders of images may cost. The receiving process is held to the first four."""

    memory_bytes_max: BufferBytes = 2**30  # private memory of each process that parses
    instance_bytes_max: StorageBytes = 8 * 2**30
    associations_max: Annotated[int, Field(strict=True, ge=1, le=64)] = 16
    pdu_bytes_max: Annotated[int, Field(strict=True, ge=16_384, le=2**24)] = 2**17
    connections_max: Annotated[int, Field(strict=True, ge=1, le=4_096)] = 64
    idle_timeout_ms: Milliseconds = 60_000  # of a peer from which nothing comes
    spool_bytes_max: StorageBytes = 100 * 2**30  # received, not yet registered and stored
    spool_instances_max: Count = 500_000
    quarantine_bytes_max: StorageBytes = 10 * 2**30
    disk_reserve_bytes: StorageBytes = 2 * 2**30  # free space that is never used


@dataclass(frozen=True, slots=True, kw_only=True)
class WebLimits:
    """What DICOMweb clients may cost the gateway."""

    connections_max: Count = 128
    uploads_max: Count = 8  # requests that store at once; each has a thread
    upload_bytes_max: StorageBytes = 64 * 2**30  # one request
    upload_parts_max: Count = 10_000  # one request
    part_header_bytes_max: Count = 8_192
    idle_timeout_ms: Milliseconds = 30_000  # no byte from a sender, or none taken by a receiver
    upload_bytes_per_second_min: Count = 1_024  # on average, after the first idle_timeout_ms
    results_max: Count = 1_000  # one page of a search
    studies_examined_max: Count = 5_000  # opened by one search for series or instances
    transcode_bytes_max: BufferBytes = 256 * 2**20  # an instance, both as it is and decoded
    frame_bytes_max: BufferBytes = 64 * 2**20  # a frame, both as it is and decoded
    decode_timeout_ms: Milliseconds = 30_000
    decoder_memory_bytes: BufferBytes = 1 * 2**30  # of the process that decodes
    readers_max: Count = 4  # threads that read the store


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """The DICOMweb server; loopback unless `allow_remote` and TLS are set."""

    token_file: ResolvedPath
    host: Host = "127.0.0.1"
    port: AnyPort = 7640
    allow_remote: Flag = False
    outside_token_file: ResolvedPath | None = None  # may only search, sees nothing of the patient
    tls_certificate_file: ResolvedPath | None = None
    tls_key_file: ResolvedPath | None = None
    tls_client_ca_file: ResolvedPath | None = None  # clients must show a certificate of it
    public_url: str | None = None  # behind a proxy: "https://images.hospital.example", no path
    allowed_hosts: Annotated[tuple[Host, ...], Field(max_length=64)] = ()  # in Host headers
    # Of web viewers, as "https://viewer.hospital.example".
    allowed_origins: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    limits: WebLimits = field(default_factory=WebLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """The gateway's audit trail, and the audit repository that it is sent to by syslog over TLS."""

    folder: ResolvedPath | None = None  # the spool's "audit" if not given
    bytes_max: StorageBytes = 10 * 2**30  # beyond it the oldest that the repository has goes
    segment_bytes_max: StorageBytes = 8 * 2**20  # one file; the unit of anchoring
    study_uids: Flag = False  # name studies by their UIDs, too, in records and messages
    # The gateway anchors the trail on the ledger by itself; 0: only `gateway audit anchor` does.
    anchor_hours: Annotated[int, Field(strict=True, ge=0, le=8_760)] = 24
    host: Host | None = None  # of the repository; nothing is sent without
    port: Port = 6_514  # RFC 5425
    certificate_file: ResolvedPath | None = None  # ours, PEM: the repository demands one
    key_file: ResolvedPath | None = None
    trust_file: ResolvedPath | None = None  # PEM; who signs the repository's certificate
    server_certificate_file: ResolvedPath | None = None  # or the very one, whatever its name


@dataclass(frozen=True, slots=True, kw_only=True)
class ApartSeries:
    """Series that become studies of the ledger by themselves: all that is given must hold."""

    modality: Annotated[str, Field(pattern=r"^[A-Z0-9]{2,16}$")] | None = None
    # Contained in the Series Description, whatever its case.
    description: Annotated[str, Field(min_length=2, max_length=64)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Receiving images: `radledger gateway start`, a process of its own beside the node."""

    spool_dir: ResolvedPath
    ae_title: AeTitle = "RADLEDGER"
    listen_host: Host = "127.0.0.1"
    listen_port: AnyPort = 11_112
    allow_clear: Flag = False  # other machines may send without TLS
    tls_certificate_file: ResolvedPath | None = None
    tls_key_file: ResolvedPath | None = None
    tls_trust_file: ResolvedPath | None = None  # PEM; who signs the peers' certificates
    peers: Annotated[tuple[DicomPeer, ...], Field(max_length=256)] = ()
    apart: Annotated[tuple[ApartSeries, ...], Field(max_length=64)] = ()
    watch_dir: ResolvedPath | None = None
    metrics_port: AnyPort | None = None  # of /health and /metrics, on 127.0.0.1; None: neither
    quiet_ms: Delay = 60_000  # a study is complete when nothing has come for so long
    age_ms_max: Delay = 6 * 3_600_000  # and at the latest so long after its first instance
    delay_ms_max: Delay = 0  # random addition, so that block times do not tell examination times
    # How far its processes give way to others on the processor, as nice(1): the ledger comes first.
    niceness: Annotated[int, Field(strict=True, ge=0, le=19)] = 10
    limits: GatewayLimits = field(default_factory=GatewayLimits)
    web: WebConfig | None = None
    audit: AuditConfig = field(default_factory=AuditConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """The encrypted store of studies: a folder, or a bucket of an S3-compatible service."""

    key_file: ResolvedPath  # sealed study keys and the catalogue
    folder: ResolvedPath | None = None
    url: str | None = None  # s3://bucket/prefix; credentials come from the AWS_ variables
    endpoint: str | None = None  # of another S3-compatible service
    region: str = "us-east-1"
    master_key_file: ResolvedPath | None = None
    master_passphrase_file: ResolvedPath | None = None
    master_key_environment: EnvironmentName | None = None
    master_passphrase_environment: EnvironmentName | None = None
    quota_bytes: StorageBytes | None = None
    compression: Literal["off", "fast", "better"] = "fast"
    # The gateway reads all of it again in so many days and mends what it can; 0: by command only.
    scrub_days: Annotated[int, Field(strict=True, ge=0, le=366)] = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangePeer:
    """Where another institution's gateway gives out studies."""

    institution: Institution
    host: Host
    port: Port
    card_file: ResolvedPath | None = None  # its institution.json, if it joined after the genesis


# Letters only: what has digits or spaces in it is never read out of a description.
SearchWord: TypeAlias = Annotated[str, StringConstraints(strict=True, pattern=r"^[^\W\d_]{2,32}$")]
SearchField: TypeAlias = Literal[
    "modality",
    "region",
    "year",
    "month",
    "age",
    "sex",
    "body_part",
    "word",
    "manufacturer",
    "model",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """What other institutions may find and count here, of studies that policy would grant them."""

    answers: Flag = True
    # All that may be asked about and told; the first two are on the chain anyway.
    fields: Annotated[tuple[SearchField, ...], Field(max_length=10)] = (
        "modality",
        "region",
        "year",
    )
    words: Annotated[tuple[SearchWord, ...], Field(max_length=1_000)] = ()  # besides the built-in
    include_askable: Flag = False  # tell of studies, too, about which a person would decide
    counts: Flag = True  # answer how many there are
    count_min: Annotated[int, Field(strict=True, ge=2, le=1_000)] = 5  # patients; fewer are hidden
    results_max: Annotated[int, Field(strict=True, ge=1, le=1_000)] = 200  # in one answer
    examined_max: Count = 5_000  # studies tried against policy for one question
    answer_timeout_ms: Milliseconds = 8_000
    questions_per_minute: Annotated[int, Field(strict=True, ge=1, le=6_000)] = 60  # each


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeConfig:
    """Giving granted studies to other institutions, and fetching theirs, over mutual TLS 1.3."""

    folder: ResolvedPath  # keys, deliveries, transfers
    listen_host: Host = "0.0.0.0"  # noqa: S104 - peers are elsewhere; TLS pins their keys
    listen_port: AnyPort = 7650
    peers: Annotated[tuple[ExchangePeer, ...], Field(max_length=256)] = ()
    parallel: Annotated[int, Field(strict=True, ge=1, le=32)] = 4
    rate_bytes_per_second: BufferBytes | None = None  # to all peers together
    fetch_at_once: Flag = False  # fetch by itself what was granted and delivered to us
    search: SearchConfig = field(default_factory=SearchConfig)


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
    gateway: GatewayConfig | None = None
    store: StoreConfig | None = None
    exchange: ExchangeConfig | None = None
    log: LogConfig = field(default_factory=LogConfig)
