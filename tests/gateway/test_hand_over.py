"""What came from another hospital goes on to the PACS: by itself or by `study deliver`, one use of
the grant for each, and once whoever dies."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pynetdicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from node.config.model import (
    DicomPeer,
    ExchangeConfig,
    ExchangePeer,
    GatewayConfig,
    GatewayLimits,
)
from node.gateway import site
from node.gateway.deliver import Deliverer
from node.gateway.deliveries import Deliveries, DeliveriesUnusable, State
from node.gateway.hand_over import HandOver
from node.gateway.holdings import StoreHoldings, Withheld
from node.gateway.pacs import DimsePacs
from node.gateway.site import Opened
from node.gateway.uses import Uses
from node.rpc.client import Client
from tests.cli.test_documents import documented
from tests.gateway.audit.conftest import records
from tests.gateway.flow_world import HOST, confirmed, until, until_async, world
from tests.gateway.pacs import Pacs, Scrambling
from tests.gateway.test_flow_command import configure, told
from tests.gateway.test_flow_kills import Killed, dies_after, dies_before, granted

NATIVE = [ExplicitVRLittleEndian]
MAIN, SECOND = "MAIN", "SECOND"


@pytest.fixture(autouse=True)
def whole_data_sets(monkeypatch):
    monkeypatch.setattr(pynetdicom._config, "STORE_RECV_CHUNKED_DATASET", False)


@pytest.fixture
def two_pacs():
    started = {MAIN: Pacs(NATIVE, title=MAIN), SECOND: Pacs(NATIVE, title=SECOND)}
    for pacs in started.values():
        pacs.start()
    yield started
    for pacs in started.values():
        pacs.stop()


class Side:
    """What hands over at beta; made anew it is the process after a restart."""

    def __init__(self, hospital, acting, two_pacs, targets=(MAIN, SECOND), since=0):
        holdings = StoreHoldings(hospital.store)
        holdings.refresh()
        self.deliveries = Deliveries(hospital.folder / "deliveries.db", Scrambling())
        ways = {title: [DimsePacs(pacs.peer, "RADLEDGER")] for title, pacs in two_pacs.items()}
        self.deliverer = Deliverer(
            self.deliveries, holdings, ways, hospital.folder / "work", audit=lambda _: None
        )
        for target in targets if since is not None else ():
            self.deliveries.taken_since(target, acting.chain_id, since)
        self.told, self.listed = [], []
        self.hand_over = HandOver(
            acting,
            hospital.make(acting).requester,
            self.deliverer,
            self.deliveries,
            targets,
            self.list_study(holdings.add),
            self.told.append,
        )

    def list_study(self, add):
        def listed(study_id):
            self.listed.append(study_id)
            return add(study_id)

        return listed

    async def work(self, request_id):
        try:
            await self.hand_over.open()
            return await self.hand_over._work(request_id)
        finally:
            self.waiting = [each.target for each in self.deliveries.waiting()]
            self.deliveries.close()


KILLS = {
    "counted, not sent": lambda m: dies_before(m, Client, "submit"),
    "counted, nobody heard": lambda m: dies_after(m, Client, "submit"),
    "counted, not begun": lambda m: dies_after(m, Uses, "count"),
    "begun": lambda m: dies_after(m, Deliverer, "submit"),
}


@pytest.mark.parametrize("kill", KILLS)
async def test_whoever_dies_each_pacs_gets_it_once_for_one_use(
    tmp_path, monkeypatch, two_pacs, kill
):
    async with granted(tmp_path) as (all_, study, request_id):  # for two uses, one for each
        alpha, beta = all_.alpha, all_.beta
        async with alpha.serving(), beta.serving() as exchange:
            await exchange.requester.fetch(request_id, wait_s=30)
            await confirmed(alpha)  # from here on nobody else sends anything
        for targets in ([MAIN], [MAIN, SECOND]):  # then it is the last use that is cut off
            with monkeypatch.context() as patch:
                KILLS[kill](patch)
                async with beta.acting() as acting:
                    with pytest.raises(Killed):
                        await Side(beta, acting, two_pacs, targets).work(request_id)
            for _ in range(2):
                async with beta.acting() as acting:
                    assert await Side(beta, acting, two_pacs, targets).work(request_id)
        async with beta.acting() as acting:
            side = Side(beta, acting, two_pacs)
            numbers = [delivery.number for delivery in side.deliveries.waiting()]
            assert await asyncio.to_thread(side.deliverer.run_once) == len(numbers) == 2
            assert all(side.deliverer.progress(n).state is State.DONE for n in numbers)
            side.deliveries.close()
        assert (await beta.request(request_id)).uses == 2
    for pacs in two_pacs.values():
        assert sorted(pacs.received) == sorted(study.files)


async def test_a_grant_for_fewer_uses_than_pacs_serves_the_first_ones(tmp_path, two_pacs):
    async with world(tmp_path) as all_:
        alpha, beta = all_.alpha, all_.beta
        async with alpha.serving(), beta.serving() as exchange:
            await confirmed(beta)
            study = await alpha.keep()
            request_id = await beta.ask(study, uses=1)
            await exchange.requester.fetch(request_id, wait_s=30)
        for told in ([(SECOND, "uses_spent")], []):  # once, whatever is restarted
            async with beta.acting() as acting:
                side = Side(beta, acting, two_pacs)
                assert await side.work(request_id)
            assert side.waiting == [MAIN]
            assert [(given.target, given.code) for given in side.told] == told
        assert (await beta.request(request_id)).uses == 1


async def test_a_pacs_gets_what_is_received_since_it_first_takes(tmp_path, two_pacs):
    async with world(tmp_path) as all_:
        alpha, beta = all_.alpha, all_.beta

        async def received():
            request_id = await beta.ask(await alpha.keep())
            await exchange.requester.fetch(request_id, wait_s=30)
            return request_id

        async def handed(request_id, *targets):
            async with beta.acting() as acting:
                side = Side(beta, acting, two_pacs, targets, since=None)
                before = [each.target for each in side.deliveries.waiting()]
                assert await side.work(request_id)
            assert len(side.listed) == 1  # also what nobody takes is found, and delivered by hand
            return side.waiting[len(before) :]

        async with alpha.serving(), beta.serving() as exchange:
            await confirmed(beta)
            old = await received()
            assert await handed(old, MAIN) == []  # from here on, and for MAIN only
            middle = await received()
            assert await handed(middle, SECOND) == []
            new = await received()
            assert await handed(new) == []
            assert await handed(old, MAIN, SECOND) == []
            assert await handed(middle, MAIN, SECOND) == [MAIN]
            assert await handed(new, MAIN, SECOND) == [MAIN, SECOND]
        uses = [(await beta.request(each)).uses for each in (old, middle, new)]
        assert uses == [0, 1, 2]


@pytest.mark.parametrize("error", [Withheld(), DeliveriesUnusable("the disk is full")])
async def test_what_cannot_be_begun_now_is_begun_later(tmp_path, monkeypatch, two_pacs, error):
    def fail(*_):
        raise error

    async with granted(tmp_path) as (all_, _, request_id):
        alpha, beta = all_.alpha, all_.beta
        async with alpha.serving(), beta.serving() as exchange:
            await exchange.requester.fetch(request_id, wait_s=30)
        with monkeypatch.context() as patch:
            patch.setattr(Deliverer, "submit", fail)
            async with beta.acting() as acting:
                assert not await Side(beta, acting, two_pacs, [MAIN]).work(request_id)
        async with beta.acting() as acting:
            side = Side(beta, acting, two_pacs, [MAIN])
            assert await side.work(request_id)
            assert side.waiting == [MAIN]


@asynccontextmanager
async def gateway_of(hospital, two_pacs, takers):
    """Run the whole gateway of a hospital, its config file told the same."""
    peers = tuple(
        DicomPeer(ae_title=title, host="127.0.0.1", port=pacs.port, takes_fetched=title in takers)
        for title, pacs in two_pacs.items()
    )
    config = replace(
        hospital.config,
        gateway=GatewayConfig(
            spool_dir=hospital.folder / "spool",
            listen_port=0,
            peers=peers,
            limits=GatewayLimits(disk_reserve_bytes=2**20),
        ),
        exchange=ExchangeConfig(
            folder=hospital.folder / "exchange",
            listen_host=HOST,
            listen_port=hospital.port,
            fetch_at_once=True,
            peers=tuple(
                ExchangePeer(institution=p.institution, host=p.host, port=p.port)
                for p in hospital.places
            ),
        ),
    )
    client = await hospital.net.client(hospital.index)
    opened = Opened(client, hospital.vault, hospital.signer, hospital.store, hospital.net.genesis)
    async with site.running(config, opened) as gateway:
        yield gateway


def told_of_gateway(hospital, two_pacs):
    """Write the hospital's config file with the gateway in it; return it."""
    file = configure(hospital)
    lines = ["[gateway]", f'spool_dir = "{hospital.folder}/spool"']
    for title, pacs in two_pacs.items():
        lines += ["[[gateway.peers]]", f'ae_title = "{title}"', 'host = "127.0.0.1"']
        lines += [f"port = {pacs.port}"]
    lines += ["[[gateway.peers]]", 'ae_title = "SENDER"']
    file.write_text(file.read_text() + "\n".join(lines) + "\n")
    return file


async def test_what_was_granted_comes_and_goes_to_the_pacs_by_itself_and_by_hand(
    tmp_path, two_pacs
):
    async with world(tmp_path) as all_:
        alpha, beta = all_.alpha, all_.beta
        main, second = two_pacs[MAIN], two_pacs[SECOND]
        file = told_of_gateway(beta, two_pacs)
        early = await told("deliver", "ab" * 16, "--to", MAIN, "-c", file, status=1)
        assert "no study with this id" in early["error"]["lines"][0]
        async with alpha.serving():
            study = await alpha.keep()
            refused = ("deliver", study.id.hex(), "-c", file, "--to")
            assert "start the gateway" in (await failed(*refused, MAIN, status=3))
            async with gateway_of(beta, two_pacs, [MAIN]) as gateway:
                await confirmed(beta)
                assert "fetch it first" in (await failed(*refused, MAIN, status=1))
                assert "there are: MAIN, SECOND" in (await failed(*refused, "SENDER", status=2))
                # The last of these two uses is the delivery by hand.
                request_id = await beta.ask(study, uses=2)
                await until(lambda: len(main.received) == len(study.files))
                await until(lambda: _events(gateway) == [(MAIN, "delivered 4")])
                done = await told(*refused, SECOND)
                again = await told(*refused, SECOND)
                assert (await beta.request(request_id)).uses == 2
                assert sorted(second.received) == sorted([*study.files, *study.files])
                assert set(done) == documented("study deliver")
                assert done["progress"]["state"] == again["progress"]["state"] == "done"
                assert done["progress"]["verified"] == 4

                async def hidden():
                    return gateway.holdings.studies() == []

                await until_async(hidden)  # all uses are made: it is shown to nobody any more
                await alpha.submit("access.revoke", request_id, "other")
                view = await beta.request(request_id)
                assert not view.in_force
                answer = await told(*refused, MAIN, status=1)
                assert answer["error"]["code"]
        assert sorted(main.received) == sorted(study.files)


async def test_a_pacs_for_which_no_use_is_left_is_an_event_and_a_record(tmp_path, two_pacs):
    async with world(tmp_path) as all_:
        alpha, beta = all_.alpha, all_.beta
        async with alpha.serving():
            study = await alpha.keep()
            async with gateway_of(beta, two_pacs, [MAIN, SECOND]) as gateway:
                await confirmed(beta)
                await beta.ask(study, uses=1)
                expected = [(MAIN, "delivered 4"), (SECOND, "uses_spent")]
                await until(lambda: sorted(_events(gateway)) == expected)
        acts = records(beta.folder / "spool" / "audit")
        found = [act for act in acts if act.text("to") == SECOND]
        told = [(act.kind, act.text("code"), act.names("studies")) for act in found]
        assert told == [("delivered", "uses_spent", [study.id.hex()])]
        assert two_pacs[SECOND].received == []


async def failed(*words, status):
    return " ".join((await told(*words, status=status))["error"]["lines"])


def _events(gateway):
    events = [event for _, event in gateway.spool.index.last_events(20)]
    return [(event.source, event.code) for event in events if event.kind == "delivered"]
