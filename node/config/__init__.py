"""The node's one TOML file: `load_config` gives frozen dataclasses or every problem at once."""

from node.config.errors import ConfigError, Problem
from node.config.load import load_config, parse_config
from node.config.model import (
    ConsensusConfig,
    DicomPeer,
    ExchangeConfig,
    ExchangePeer,
    GatewayConfig,
    GatewayLimits,
    KeyConfig,
    LogConfig,
    MempoolConfig,
    NetworkConfig,
    NodeConfig,
    PeerAddress,
    RpcConfig,
    RpcLimits,
    StoreConfig,
    WebConfig,
    WebLimits,
)
from node.config.render import render_config

__all__ = [
    "ConfigError",
    "ConsensusConfig",
    "DicomPeer",
    "ExchangeConfig",
    "ExchangePeer",
    "GatewayConfig",
    "GatewayLimits",
    "KeyConfig",
    "LogConfig",
    "MempoolConfig",
    "NetworkConfig",
    "NodeConfig",
    "PeerAddress",
    "Problem",
    "RpcConfig",
    "RpcLimits",
    "StoreConfig",
    "WebConfig",
    "WebLimits",
    "load_config",
    "parse_config",
    "render_config",
]
