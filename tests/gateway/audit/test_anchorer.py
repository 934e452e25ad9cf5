"""The gateway anchors its trail by itself: when it is due, once, and it says when it cannot."""

import json
import time
from contextlib import asynccontextmanager, closing

from node.config import ConsensusConfig, GatewayConfig
from node.config.model import AuditConfig
from node.gateway.acting import Acting
from node.gateway.audit.acts import Act
from node.gateway.audit.anchorer import AGAIN_FIRST_S, HOUR_MS, Anchorer
from node.gateway.audit.anchoring import is_anchored, problem_of
from node.gateway.audit.auditor import folder_of
from node.gateway.audit.segments import anchoring, segments
from node.gateway.audit.trail import Trail, TrailLimits
from node.gateway.condition import Condition, findings_of
from node.gateway.metrics import GatewayMetrics
from node.gateway.monitor import Monitor, Watched
from node.rpc.errors import ConnectionLost
from node.studies import Signer
from node.testnet.testnet import Testnet
from tests.gateway.test_gateway import running, store

__all__ = ["store"]  # a fixture

QUICK = ConsensusConfig(view_timeout_ms=1_500, resend_interval_ms=300)
LIMITS = TrailLimits(segment_bytes_max=1_000)
AGE_MS = 20 * HOUR_MS  # of the records


class Turned:
    """The time of the files, as far ahead as a test turns it."""

    def __init__(self):
        self.ahead_ms = 0

    def __call__(self):
        return time.time_ns() // 1_000_000 + self.ahead_ms


class World:
    """A hospital with a trail of some files, and a ledger."""

    def __init__(self, net, client, config):
        signer = Signer(net.member_key(0), net.layout.configs[0].institution, net.genesis.chain_id)
        self.acting, self.config = Acting(client, signer), config
        self.folder, self.start_ms = folder_of(config), net.genesis.time_ms
        self.net, self.now_ms = net, Turned()
        self.anchorer = self.restart()

    def restart(self):
        self.anchorer = Anchorer(self.config, self.acting, self.start_ms, self.now_ms)
        return self.anchorer

    def fill(self, count):
        with closing(Trail(self.folder, LIMITS, lambda: self.now_ms() - AGE_MS)) as trail:
            for number in range(count):
                trail.append(Act("refused", who=f"PEER{number}"))

    async def count(self):
        """Return how many anchors the ledger has."""
        page = await self.acting.client.anchors(self.acting.institution)
        return len(page.anchors)

    def anchored(self):
        return [each.path for each in segments(self.folder) if is_anchored(each.path)]


@asynccontextmanager
async def world(tmp_path, hours=24):
    config = GatewayConfig(spool_dir=tmp_path / "spool", audit=AuditConfig(anchor_hours=hours))
    async with Testnet(validators=1, consensus=QUICK) as net:
        (tmp_path / "spool").mkdir()
        made = World(net, await net.client(0), config)
        made.fill(19)
        yield made


async def test_the_trail_is_anchored_when_it_is_due_and_the_anchors_verify(tmp_path):
    async with world(tmp_path) as here:
        here.now_ms.ahead_ms = 3 * HOUR_MS
        await here.anchorer.look()
        assert await here.count() == 0
        here.now_ms.ahead_ms = 5 * HOUR_MS
        await here.anchorer.look()
        files = here.anchored()
        assert len(files) == await here.count() > 1
        assert [await problem_of(here.acting.client, each) for each in files] == [""] * len(files)
        assert sum(len(each.read_bytes().splitlines()) for each in files) == 20
        assert here.anchorer.problem == ""
        # Not again before the next is due, nor after a restart.
        here.fill(3)
        await here.anchorer.look()
        here.now_ms.ahead_ms = 23 * HOUR_MS
        await here.restart().look()
        assert here.anchored() == files
        here.now_ms.ahead_ms = 25 * HOUR_MS
        await here.anchorer.look()
        (last,) = set(here.anchored()) - set(files)
        assert len(last.read_bytes().splitlines()) == 3
        # A record that was changed is found, whoever wrote the links anew.
        data = last.read_bytes().replace(b"PEER1", b"PEER2")
        last.chmod(0o600)
        last.write_bytes(data)
        assert "line 2 is the first that differs" in await problem_of(here.acting.client, last)


async def test_what_fails_is_tried_again_later_and_said_in_health(tmp_path, monkeypatch):
    async with world(tmp_path, hours=1) as here:
        here.now_ms.ahead_ms = 2 * HOUR_MS
        submit, tried = Acting.submit, []

        async def away(self, name, arguments):
            tried.append(name)
            done = await submit(self, name, arguments)
            raise ConnectionLost("the node went away") if len(tried) == 1 else AssertionError(done)

        monkeypatch.setattr(Acting, "submit", away)
        await here.anchorer.look()
        assert here.anchorer.problem == "the node went away"
        (finding,) = findings_of(Condition(anchoring_problem=here.anchorer.problem))
        assert (finding.code, finding.is_stopping) == ("audit_not_anchored", False)
        await here.anchorer.look()
        assert len(tried) == 1  # too early
        monkeypatch.setattr(Acting, "submit", submit)
        here.now_ms.ahead_ms += int(AGAIN_FIRST_S * 1_000)
        await here.anchorer.look()
        assert here.anchorer.problem == ""
        # What came on the ledger though its answer was lost is not anchored twice.
        assert len(here.anchored()) == await here.count()


async def test_a_trail_that_is_not_whole_is_not_anchored_as_if_it_were(tmp_path):
    async with world(tmp_path, hours=1) as here:
        first = segments(here.folder)[0].path
        lines = first.read_bytes().splitlines(keepends=True)
        first.chmod(0o600)
        first.write_bytes(b"".join(lines[:1] + lines[2:]))
        here.now_ms.ahead_ms = 2 * HOUR_MS
        await here.anchorer.look()
        assert "gateway audit verify" in here.anchorer.problem
        assert await here.count() == 0


async def test_two_do_not_anchor_at_a_time(tmp_path):
    async with world(tmp_path, hours=1) as here:
        with anchoring(here.folder):
            await here.anchorer.look()
        assert "another process" in here.anchorer.problem
        assert await here.count() == 0
        await here.restart().look()
        assert await here.count() == len(here.anchored()) > 0


async def test_the_monitor_tells_what_the_anchorer_met(tmp_path, store):
    async with world(tmp_path, hours=1) as here:
        here.anchorer.problem = "the ledger refuses the anchor: role_missing"
        config = GatewayConfig(spool_dir=tmp_path / "other", listen_port=0)
        client = here.acting.client
        async with running(here.net, config, store, tmp_path) as (gateway, _):
            watched = Watched(gateway, client, None, here.anchorer)
            health = await Monitor(watched, GatewayMetrics("1")).look()
        assert "audit_not_anchored" in [each.code for each in health.findings]
        assert json.dumps([each.sentence for each in health.findings]).count("role_missing") == 1
