"""What commands do by themselves beside the gateway, recorded in its audit trail."""

from contextlib import closing

from node.cli.failures import UNABLE, Failure
from node.config.model import NodeConfig
from node.gateway.audit.acts import Act
from node.gateway.audit.auditor import open_trail
from node.gateway.audit.errors import TrailUnusable


def record(config: NodeConfig, *acts: Act) -> None:
    """Record acts, durably, where this hospital has a gateway. Raises `Failure`."""
    if config.gateway is None:
        return
    try:
        with closing(open_trail(config.gateway)) as trail:
            for act in acts:
                trail.append(act)
    except TrailUnusable as error:
        raise Failure(UNABLE, f"not done, since it cannot be audited: {error}") from error
