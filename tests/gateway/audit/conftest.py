"""A trail in the test's folder, and a repository that listens on loopback."""

import pytest

from node.gateway.audit.connection import Repository as Place
from node.gateway.audit.message import Site
from node.gateway.audit.reader import Reader
from node.gateway.audit.sender import Sender
from node.gateway.audit.trail import Trail, TrailLimits
from tests.gateway.audit.receiver import Repository
from tests.gateway.test_front import Identity
from tests.gateway.test_gateway import store

__all__ = ["store"]  # a fixture

SITE = Site("north", "RADLEDGER")
SMALL = TrailLimits(segment_bytes_max=1_000)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "audit"


@pytest.fixture
def open_trail(folder, clock):
    """Return a function that opens the trail, as often as a test wants."""
    trails = []

    def make(limits=SMALL):
        trail = Trail(folder, limits, clock)
        trails.append(trail)
        return trail

    yield make
    for trail in trails:
        trail.close()


@pytest.fixture
def trail(open_trail):
    return open_trail()


@pytest.fixture(scope="session")
def identities(tmp_path_factory):
    """The repository's certificate and ours; each is its own authority."""
    folder = tmp_path_factory.mktemp("identities")
    return {name: Identity(folder, name) for name in ("repository", "gateway", "stranger")}


@pytest.fixture
def repository(identities):
    made = Repository(identities["repository"], identities["gateway"])
    made.start()
    yield made
    made.stop()


class Ticks:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def ticks():
    return Ticks()


@pytest.fixture
def make_sender(folder, repository, identities, ticks):
    """Return a function that makes a sender to the repository; the same again is a restart."""
    senders = []

    def make(name="gateway", server="repository", **options):
        own = identities[name]
        place = Place(
            "127.0.0.1",
            repository.port,
            own.certificate,
            own.key,
            server_certificate_file=identities[server].certificate,
        )
        sender = Sender(folder, place, SITE, clock=ticks, **options)
        senders.append(sender)
        return sender

    yield make
    for sender in senders:
        sender._break_off()


def records(folder):
    """Return all records."""
    with Reader(folder, 1) as reader:
        return [line.record for line in reader.read(100_000)]


def kinds(folder):
    return [record.kind for record in records(folder)]
