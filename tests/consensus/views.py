"""Helpers for tests of view changes and liveness."""

from consensus.effects import Broadcast
from consensus.inputs import MessageReceived
from consensus.options import Options
from tests.consensus.cluster import Cluster, signed_by


def broadcasts(effects, kind):
    return [e.message for e in effects if isinstance(e, Broadcast) and isinstance(e.message, kind)]


def only(effects, kind):
    return [e for e in effects if isinstance(e, kind)]


def lone(index=1, n=4, **options):
    cluster = Cluster(n, Options(**options))
    return cluster, cluster[index].replica


def receive(cluster, replica, message):
    return replica.step(MessageReceived(signed_by(cluster.validators, message)))


def cluster_is_together(cluster):
    states = [m.replica._state for m in cluster.members]
    return len({s.view for s in states}) == 1 and all(s.active for s in states)
