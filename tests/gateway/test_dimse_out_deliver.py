"""Delivery to a PACS: sent exactly, read back, compared, and taken up again after restarts."""

import asyncio
import sqlite3
from contextlib import closing
from io import BytesIO

import pydicom
import pynetdicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.dimse_primitives import C_GET

from node.gateway.dataset_bytes import skip_meta
from node.gateway.deliver import ATTEMPTS_MAX, Deliverer, UnknownStudy, same_image
from node.gateway.deliveries import Deliveries, DeliveriesUnusable, State
from node.gateway.dialing import Dialer
from node.gateway.holdings import Withheld
from node.gateway.pacs import DimsePacs
from node.gateway.ways import Unreachable
from node.imaging.errors import NOT_NOW, UnreadableInstance
from node.imaging.reader import read_instance
from node.imaging.verify import Verdict
from tests.gateway.pacs import Pacs, Scrambling
from tests.gateway.web.folder import FolderHoldings
from tests.imaging import dicom

STUDY = "1.2.7"
NATIVE = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]


def data_set(path):
    stream = BytesIO(path.read_bytes())
    skip_meta(stream)
    return stream.read()


@pytest.fixture(autouse=True)
def buffered(monkeypatch):
    monkeypatch.setattr(pynetdicom._config, "STORE_RECV_CHUNKED_DATASET", False)


class Site:
    """A hospital that delivers; `reopen` is a restart of its gateway."""

    as_of = None

    def __init__(self, folder, clock, paths, ways):
        self.folder, self.clock, self.ways = folder, clock, ways
        self.holdings, self.given = FolderHoldings(paths), []
        self._deliveries = None
        self.reopen()

    def reopen(self):
        if self._deliveries is not None:
            self._deliveries.close()
        self._deliveries = Deliveries(self.folder / "deliveries", Scrambling())
        self.deliverer = Deliverer(
            self._deliveries,
            self.holdings,
            {"main": self.ways},
            self.folder / "work",
            audit=self.given.append,
            as_of=self.as_of,
            now_ms=self.clock,
        )

    def deliver(self):
        number = self.deliverer.submit(STUDY, "main")
        self.deliverer.run_once()
        return self.deliverer.progress(number)

    def again(self):
        self.clock.pass_ms(3_600_000)
        self.deliverer.run_once()
        return self.deliverer.progress(1)


@pytest.fixture
def paths(tmp_path):
    return [
        dicom.minimal(tmp_path / f"{n}.dcm", f"1.2.7.1.{n}", STUDY, syntax=NATIVE[n % 2])
        for n in range(8)
    ]


@pytest.fixture
def make_pacs():
    started = []

    def make(**options):
        pacs = Pacs(options.pop("syntaxes", NATIVE), **options)
        pacs.start()
        started.append(pacs)
        return pacs

    yield make
    for pacs in started:
        if pacs._server is not None:
            pacs.stop()


@pytest.fixture
def site(tmp_path, clock, paths):
    sites = []

    def make(*ways):
        sites.append(Site(tmp_path, clock, paths, ways))
        return sites[-1]

    yield make
    for one in sites:
        one._deliveries.close()


def ending_with(status):
    """Return a handler of C-FIND or C-GET that answers only so."""

    def handle(event):
        if isinstance(event.request, C_GET):
            yield 1
        yield status, None

    return handle


def dimse(pacs):
    return DimsePacs(pacs.peer, "RADLEDGER")


def test_a_study_lands_with_its_very_bytes_and_is_verified(site, make_pacs, paths):
    pacs = make_pacs()
    here = site(dimse(pacs))
    progress = here.deliver()
    assert (progress.state, progress.verified, progress.reason) == (State.DONE, 8, "")
    assert {data for _, data in pacs.kept.values()} == {data_set(path) for path in paths}
    assert [(g.target, g.study_uid, g.instances, g.code) for g in here.given] == [
        ("main", STUDY, 8, "")
    ]
    assert list((here.folder / "work").iterdir()) == []


def test_after_the_pacs_restarts_only_what_is_missing_is_sent(site, make_pacs):
    pacs = make_pacs()
    pacs.stop_after = 3
    here = site(dimse(pacs))
    progress = here.deliver()
    assert (progress.state, len(pacs.received)) == (State.WAITING, 3)
    first = list(pacs.received)
    pacs.stop()
    assert here.again().state is State.WAITING  # nobody is there
    pacs.stop_after = None
    pacs.start()
    here.reopen()
    progress = here.again()
    assert (progress.state, progress.verified) == (State.DONE, 8)
    assert len(pacs.received) == 8
    assert set(pacs.received[3:]).isdisjoint(first)


def test_it_waits_longer_and_longer_and_gives_up_in_the_end(site, make_pacs, clock):
    pacs = make_pacs()
    here = site(dimse(pacs))
    pacs.stop()
    here.deliver()
    delays = []
    for _ in range(6):
        due = here._deliveries.waiting()[0].due_ms
        delays.append(due - clock())
        clock.pass_ms(due - clock() - 1)
        here.deliverer.run_once()
        assert here._deliveries.waiting()[0].due_ms == due  # not before its time
        clock.pass_ms(1)
        here.deliverer.run_once()
    assert delays == sorted(delays)
    assert delays[-1] > 10 * delays[0]
    here._deliveries._query("UPDATE delivery SET attempts = ?", (ATTEMPTS_MAX - 1,))
    assert here.again().state is State.FAILED


def test_another_copy_under_the_same_uid_is_found_out(site, make_pacs, paths):
    pacs = make_pacs()
    other = pydicom.dcmread(paths[3])
    other.PixelData = bytes(len(other.PixelData))
    pacs.kept["1.2.7.1.3"] = (other, b"")
    progress = site(dimse(pacs)).deliver()
    assert (progress.state, progress.altered, progress.verified) == (State.FAILED, 1, 7)
    assert progress.reason.startswith("altered: altered: pixels")


def test_changed_patient_data_is_no_alteration(site, make_pacs, paths):
    pacs = make_pacs()
    here = site(dimse(pacs))
    coerced = pydicom.dcmread(paths[0])
    coerced.PatientID = "L123"
    pacs.kept["1.2.7.1.0"] = (coerced, b"")
    assert here.deliver().state is State.DONE


def test_what_the_pacs_lost_after_success_is_sent_again(site, make_pacs):
    pacs = make_pacs()
    forgets = {"1.2.7.1.5"}
    keep = pacs._store

    def store(event):
        status = keep(event)
        for uid in list(forgets):
            if pacs.kept.pop(uid, None):
                forgets.discard(uid)
        return status

    pacs._store = store
    pacs.stop()
    pacs.start()
    here = site(dimse(pacs))
    progress = here.deliver()
    assert (progress.state, progress.verified) == (State.WAITING, 7)
    assert here.again().state is State.DONE
    assert pacs.received.count("1.2.7.1.5") == 2
    assert len(pacs.received) == 9


def test_a_pacs_that_gives_nothing_back_is_asked_what_it_lists(site, make_pacs):
    here = site(dimse(make_pacs(gives_back=False)))
    progress = here.deliver()
    assert (progress.state, progress.found, progress.verified) == (State.DONE, 8, 0)


@pytest.mark.parametrize("status", [0xA702, 0xB000, 0xC000, 0xFE00])
def test_a_pacs_that_cannot_give_back_is_asked_what_it_lists(site, make_pacs, status):
    pacs = make_pacs()
    pacs._get = ending_with(status)
    pacs.stop()
    pacs.start()
    progress = site(dimse(pacs)).deliver()
    assert (progress.state, progress.found, progress.verified) == (State.DONE, 8, 0)
    assert len(pacs.received) == 8


def test_a_failure_on_the_way_of_reading_back_sends_nothing_again(site, make_pacs):
    pacs = make_pacs()
    give, given = pacs._get, []

    def get(event):
        given.append(event.identifier.SOPInstanceUID)
        yield from ending_with(0xC000)(event) if len(given) == 3 else give(event)

    pacs._get = get
    pacs.stop()
    pacs.start()
    here = site(dimse(pacs))
    progress = here.deliver()
    assert (progress.state, progress.reason) == (State.WAITING, "C-GET ends with status_c000")
    assert (progress.verified, progress.sent) == (2, 6)
    assert here.again().verified == len(pacs.received) == 8


def test_a_search_that_fails_does_not_say_that_there_is_nothing(site, make_pacs):
    pacs = make_pacs(gives_back=False)
    pacs._find = ending_with(0xA700)
    pacs.stop()
    pacs.start()
    here = site(dimse(pacs))
    here.deliver()
    progress = here.again()
    assert (progress.state, progress.reason) == (State.WAITING, "C-FIND ends with status_a700")
    assert len(pacs.received) == progress.sent == 8


def test_what_cannot_be_written_here_is_no_failure_of_the_pacs(site, make_pacs):
    here = site(way := dimse(make_pacs()))
    fetch = way.fetch
    way.fetch = lambda instances, folder, *more: fetch(instances, folder / "missing", *more)
    progress = here.deliver()
    reason = "the store or the disk fails: FileNotFoundError"
    assert (progress.state, progress.sent, progress.reason) == (State.WAITING, 8, reason)


def test_a_full_pacs_is_asked_again_later(site, make_pacs):
    full = [0xA700]
    pacs = make_pacs(refuses=lambda uid: full[0])
    here = site(dimse(pacs))
    progress = here.deliver()
    assert (progress.state, progress.reason) == (State.WAITING, "the PACS has no room now")
    full[0] = 0
    assert here.again().state is State.DONE


class Web:
    """A second way that takes everything, and gives back from the first PACS's memory."""

    def __init__(self, pacs):
        self.pacs, self.taken = pacs, []

    def send(self, instances, read, on_sent):
        for instance in instances:
            ds = pydicom.dcmread(BytesIO(b"".join(read(instance))))
            self.pacs.kept[instance.sop_uid] = (ds, b"")
            self.taken.append(instance.sop_uid)
            on_sent(instance, "")

    def fetch(self, instances, folder, on_fetched):
        raise Unreachable("not now")

    def lists(self, instances):
        raise Unreachable("not now")


def test_what_dimse_refuses_goes_by_the_next_way(site, make_pacs):
    pacs = make_pacs(refuses=lambda uid: 0xC000 if uid.endswith(("2", "4")) else 0)
    web = Web(pacs)
    progress = site(dimse(pacs), web).deliver()
    assert progress.state is State.DONE
    assert sorted(web.taken) == ["1.2.7.1.2", "1.2.7.1.4"]


def test_what_was_withdrawn_is_not_delivered(site, make_pacs):
    pacs = make_pacs()
    here = site(dimse(pacs))
    here.holdings.withheld.add(STUDY)
    progress = here.deliver()
    assert (progress.state, progress.reason, pacs.received) == (State.FAILED, "withheld", [])
    assert [given.code for given in here.given] == ["withheld"]


def test_what_is_not_known_yet_to_be_granted_is_waited_for(site, make_pacs):
    """After a start, and while the node cannot be asked, no grant is known at all."""
    looks = iter([None, 7, 7])
    pacs = make_pacs()
    here = site(dimse(pacs))
    here.as_of = lambda: next(looks)
    here.reopen()
    number = here.deliverer.submit(STUDY, "main")
    here.holdings.withheld.add(STUDY)
    for _ in range(3):  # nothing is known; then by one look, twice
        assert here.again().reason == "withheld"
    assert here.deliverer.progress(number).state is State.WAITING
    here.holdings.withheld.clear()
    assert here.again().state is State.DONE


def test_what_is_withheld_by_two_looks_is_given_up(site, make_pacs):
    looks = iter([7, 8])
    pacs = make_pacs()
    here = site(dimse(pacs))
    here.as_of = lambda: next(looks)
    here.reopen()
    here.deliverer.submit(STUDY, "main")
    here.holdings.withheld.add(STUDY)
    assert here.again().state is State.WAITING
    assert (here.again().state, pacs.received) == (State.FAILED, [])


def test_an_instance_that_the_pacs_falls_over_does_not_hold_up_the_others(site, make_pacs):
    pacs = make_pacs()
    take = pacs._store

    def store(event):
        if event.request.AffectedSOPInstanceUID == "1.2.7.1.2":
            event.assoc.abort()
            return 0x0110
        return take(event)

    pacs._store = store
    pacs.stop()
    pacs.start()
    here = site(dimse(pacs))
    assert here.deliver().state is State.WAITING
    progress = here.again()
    assert (progress.state, progress.sent + progress.verified) == (State.WAITING, 7)


class Dialing(Dialer):
    """Keeps the associations that it opened."""

    def __init__(self):
        super().__init__()
        self.opened = []

    def dial(self, *arguments, **options):
        self.opened.append(super().dial(*arguments, **options))
        return self.opened[-1]


def test_an_association_lost_between_two_instances_is_opened_anew(site, make_pacs):
    """By a PACS that starts again, or that takes us to be idle while we compare."""
    pacs, dialer = make_pacs(), Dialing()
    here = site(DimsePacs(pacs.peer, "RADLEDGER", dialer=dialer))
    compared = []

    def read(path, limits):
        compared.append(path)
        if len(compared) == 6:
            for association in pacs._server.active_associations:
                association.abort()
            dialer.opened[-1].join()
        return read_instance(path, limits)

    here.deliverer._read = read
    progress = here.deliver()
    assert (progress.state, progress.verified, progress.reason) == (State.DONE, 8, "")
    assert len(dialer.opened) == 3  # to send, and two to read back
    assert len(pacs.received) == 8


class Losing(Dialing):
    """Loses each association before anything is asked on it."""

    def dial(self, *arguments, **options):
        association = super().dial(*arguments, **options)
        association.abort()
        return association


@pytest.mark.parametrize("ask", ["fetch", "lists"])
def test_an_association_lost_before_it_is_asked_is_nobody_reached(site, make_pacs, ask):
    here = site(way := DimsePacs(make_pacs().peer, "RADLEDGER", dialer=Losing()))
    instances = here.holdings.study(STUDY).instances
    more = (here.folder, lambda *_: None) if ask == "fetch" else ()
    with pytest.raises(Unreachable, match="ended before"):
        getattr(way, ask)(instances, *more)


def failing(error):
    def fail(*_):
        raise error

    return fail


def test_what_is_withheld_when_it_is_looked_up_is_not_delivered(site, make_pacs):
    here = site(dimse(make_pacs()))
    number = here.deliverer.submit(STUDY, "main")
    here.holdings.study = failing(Withheld())
    here.deliverer.run_once()
    assert here.deliverer.progress(number).reason == "withheld"


@pytest.mark.parametrize("where", ["holdings", "way"])
def test_a_bug_makes_one_delivery_wait_and_not_the_others(site, make_pacs, caplog, where):
    pacs = make_pacs()
    here = site(way := dimse(pacs))
    number = here.deliverer.submit(STUDY, "main")
    bug = failing(RuntimeError("of patient Doe"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*((here.holdings, "study") if where == "holdings" else (way, "fetch")), bug)
        here.deliverer.run_once()
    progress = here.deliverer.progress(number)
    assert (progress.state, progress.reason) == (State.WAITING, "internal: RuntimeError")
    assert [given.instances for given in here.given] == ([] if where == "holdings" else [8])
    assert "Doe" not in caplog.text
    assert here.again().state is State.DONE


async def test_work_goes_on_after_the_file_of_deliveries_was_unusable(
    site, make_pacs, monkeypatch, caplog
):
    monkeypatch.setattr("node.gateway.deliver.UNUSABLE_SECONDS", 0)
    here = site(dimse(make_pacs()))
    is_done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def run_once():
        here.deliverer.run_once = lambda: loop.call_soon_threadsafe(is_done.set)
        raise DeliveriesUnusable("the disk is full")

    here.deliverer.run_once = run_once
    running = asyncio.create_task(here.deliverer.run(poll_seconds=0))
    waiting = asyncio.create_task(is_done.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    assert not running.done()
    running.cancel()
    assert "the disk is full" in caplog.text


def test_what_was_sent_is_told_though_nothing_can_be_put_down(site, make_pacs):
    here = site(way := dimse(make_pacs()))
    here.deliverer.submit(STUDY, "main")
    way.fetch = failing(DeliveriesUnusable("the disk is full"))
    with pytest.raises(DeliveriesUnusable):
        here.deliverer.run_once()
    assert [(given.instances, given.code) for given in here.given] == [(8, "waits")]


def test_unknown_studies_and_targets_are_refused_and_equal_deliveries_are_one(site, make_pacs):
    here = site(dimse(make_pacs()))
    with pytest.raises(UnknownStudy):
        here.deliverer.submit("1.2.999", "main")
    with pytest.raises(UnknownStudy):
        here.deliverer.submit(STUDY, "other")
    assert here.deliverer.submit(STUDY, "main") == here.deliverer.submit(STUDY, "main")


def test_the_state_on_disk_names_nobody(site, make_pacs, tmp_path):
    here = site(dimse(make_pacs()))
    here.deliver()
    here._deliveries.close()
    with closing(sqlite3.connect(tmp_path / "deliveries")) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = b"".join(path.read_bytes() for path in tmp_path.glob("deliveries*"))
    assert b"1.2.7" not in content
    assert (tmp_path / "deliveries").stat().st_mode & 0o077 == 0
    here.reopen()


@pytest.mark.parametrize(
    ("code", "verdict"), [("malformed", Verdict.ALTERED), (NOT_NOW, Verdict.UNDECIDED)]
)
def test_trouble_of_this_machine_is_not_called_an_alteration(tmp_path, code, verdict):
    own = dicom.minimal(tmp_path / "own")
    unreadable = UnreadableInstance("theirs", code, "cannot be read")

    def read(path, limits):
        return read_instance(path, limits) if path == own else unreadable

    assert same_image(own, tmp_path / "theirs", read)[0] is verdict
