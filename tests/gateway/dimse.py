"""A gateway's DICOM side for tests, and a sender that runs pynetdicom in a thread."""

import asyncio
import socket
from contextlib import asynccontextmanager
from dataclasses import asdict

import pynetdicom
from pynetdicom import AE, build_context, evt

from node.gateway.closing import Rules
from node.gateway.dialing import Peer
from node.gateway.front import Front, FrontRules
from node.gateway.receiver import Receiving
from node.gateway.scp import Settings
from node.gateway.spool import Quota

TITLE, SENDER = "RADLEDGER", "MODALITY"
VERIFICATION = "1.2.840.10008.1.1"
PUSH_MODEL = "1.2.840.10008.1.20.1"
QUOTA = Quota(disk_reserve_bytes=1, instance_bytes_max=64 << 20)


PEERS = (Peer(SENDER),)


class Door:
    """A front and a receiving process that fill one spool."""

    def __init__(self, front, receiving, events):
        self.front, self.receiving, self.events = front, receiving, events

    @property
    def port(self):
        return self.front.port

    def codes(self):
        return [code for kind, _, code in self.events if kind == "association_refused"]


@asynccontextmanager
async def opened_door(
    folder,
    *,
    peers=PEERS,
    tls=None,
    pins=None,
    quota=QUOTA,
    port=0,
    lender=None,
    files=(None, None),
    **limits,
):
    """Yield a `Door` on loopback; `files` are certificate and key for what it calls itself."""
    settings = Settings(
        str(folder),
        asdict(quota),
        asdict(Rules()),
        TITLE,
        [asdict(peer) for peer in peers],
        pdu_bytes_max=limits.get("pdu_bytes_max", 2**17),
        associations_max=limits.get("associations_max", 16),
        idle_seconds=limits.get("idle_seconds", 20.0),
        memory_bytes_max=512 << 20,
        certificate_file=files[0] and str(files[0]),
        key_file=files[1] and str(files[1]),
    )
    events = []

    def report(*event):
        events.append(event)

    receiving = Receiving(settings, report, lender)
    known = {peer.ae_title: (pins or {}).get(peer.ae_title) for peer in peers}
    front = Front(FrontRules(TITLE, known, **limits), receiving.hand, report, tls)
    await receiving.start()
    try:
        await front.start("127.0.0.1", port)
        yield Door(front, receiving, events)
    finally:
        await front.stop()
        await receiving.stop()


def at_once(event):
    """Send small messages at once: a handler, without which every request waits for 40 ms."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


AT_ONCE = (evt.EVT_CONN_OPEN, at_once)


def associate(port, contexts, *, title=SENDER, called=TITLE, handlers=(), tls=None):
    """Return an association, established or not."""
    pynetdicom._config.STORE_SEND_CHUNKED_DATASET = True
    ae = AE(ae_title=title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    return ae.associate(
        "127.0.0.1",
        port,
        contexts,
        ae_title=called,
        evt_handlers=[AT_ONCE, *handlers],
        tls_args=(tls, "127.0.0.1") if tls else None,
    )


def contexts_of(paths):
    """Return presentation contexts for files: one for each class and transfer syntax."""
    pairs = {}
    for path in paths:
        found = pynetdicom.dsutils.split_dataset(path)[0]
        pairs[found.MediaStorageSOPClassUID, found.TransferSyntaxUID] = None
    return [build_context(*pair) for pair in pairs]


def send(port, paths, **options):
    """Send files, unchanged, and return the statuses' numbers in order."""
    association = associate(port, contexts_of(paths), **options)
    assert association.is_established
    try:
        return [association.send_c_store(str(path)).get("Status") for path in paths]
    finally:
        association.release()


async def in_thread(function, *arguments, **options):
    return await asyncio.to_thread(function, *arguments, **options)
