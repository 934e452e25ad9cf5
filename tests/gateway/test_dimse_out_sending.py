"""The pure parts of sending, what is written anew, and the link to the parent."""

import contextlib
import socket
from io import BytesIO

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from node.gateway.dataset_bytes import PLAIN, CannotRecode, recoded, skip_meta
from node.gateway.link import Borrower, Lender, Refusal, _receive
from node.gateway.query import InvalidIdentifier, Level, Model, read_identifier, select
from node.gateway.sending import CONTEXTS_MAX, Kind, _fragments, plan
from tests.gateway.web.folder import FolderHoldings
from tests.imaging import dicom

DEFLATED = "1.2.840.10008.1.2.1.99"


@given(st.lists(st.binary(max_size=40)), st.integers(1, 16).map(lambda n: 2 * n), st.booleans())
def test_fragments_are_the_data_set_and_only_the_last_is_marked_so(pieces, length, is_deflated):
    fragments = list(_fragments(pieces, length, is_deflated))
    whole = b"".join(pieces)
    sent = b"".join(data for _, data in fragments)
    assert sent == whole + (b"\0" if is_deflated and len(whole) % 2 else b"")
    assert [flag for flag, _ in fragments] == [b"\x00"] * (len(fragments) - 1) + [b"\x02"]
    assert all(len(data) == length for _, data in fragments[:-1])
    assert len(fragments[-1][1]) <= length


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 12)), max_size=200))
def test_every_kind_is_proposed_within_the_contexts_of_an_association(pairs):
    kinds = [Kind(f"1.2.3.{a}", f"1.2.840.10008.1.2.4.{b}") for a, b in pairs]
    plans = plan(kinds)
    assert all(len(contexts) <= CONTEXTS_MAX for contexts in plans)
    proposed = {
        (str(c.abstract_syntax), str(c.transfer_syntax[0]))
        for contexts in plans
        for c in contexts
        if len(c.transfer_syntax) == 1
    }
    assert proposed == {(kind.sop_class, kind.syntax) for kind in kinds}


@given(st.binary(max_size=300))
def test_skipping_the_meta_information_ends_well_or_says_so(content):
    for head in (b"", bytes(128) + b"DICM", bytes(128) + b"DICM\x02\x00\x10\x00"):
        try:
            skip_meta(BytesIO(head + content))
        except ValueError:
            continue


@given(st.binary(max_size=300), st.sampled_from([*PLAIN, DEFLATED, "1.2.840.10008.1.2.5", "1.2"]))
def test_what_cannot_be_written_anew_is_told(content, syntax):
    with contextlib.suppress(CannotRecode):
        assert isinstance(recoded(content, syntax, PLAIN[0]), bytes)


@given(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(st.none() | st.integers(0, 9) | st.binary(max_size=9), st.lists, max_leaves=9)
        .map(msgpack.packb)
        .map(lambda data: len(data).to_bytes(4, "big") + data),
    )
)
def test_a_frame_is_a_list_or_an_error(content):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(content)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(EOFError, ValueError):
            assert isinstance(_receive(ours, 1_000), list)


@pytest.fixture
def lent(tmp_path):
    """Return a function that lends files, and the list of its records."""
    records, sockets = [], []

    def lend(*paths):
        parents, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sockets.append(childs)
        Lender(FolderHoldings(paths), records.append).attach(parents)
        return Borrower(childs), childs

    yield lend, records
    for each in sockets:
        each.close()


@pytest.mark.parametrize(
    "request_",
    [
        ["read", 0],
        ["find", "A", "GALAXY", []],
        ["find", "A", "STUDY", [["x", "y"]]],
        ["select", "A", "", "STUDY", [[0x00100010, "*"]]],
        ["select", "A", "", "STUDY", "all"],
    ],
)
def test_a_child_gone_bad_gets_nothing_but_a_refusal(lent, tmp_path, request_):
    lend, records = lent
    _, control = lend(dicom.minimal(tmp_path / "a"))
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            socket.send_fds(control, [b"new"], [theirs.fileno()])
        data = msgpack.packb(request_)
        ours.sendall(len(data).to_bytes(4, "big") + data)
        assert _receive(ours, 10_000)[:2] == ["no", "invalid"]
        with pytest.raises(EOFError):
            _receive(ours, 10_000)
    assert [(r.instances, r.code) for r in records] == [(0, "invalid")]


def test_an_instance_left_unread_does_not_mix_with_the_next(lent, tmp_path):
    lend, _ = lent
    paths = [dicom.minimal(tmp_path / f"{n}", f"1.2.3.1.{n}", "1.2.3") for n in range(2)]
    borrower, _ = lend(*paths)
    loan = borrower.select("A", "", Level.STUDY, [(0x0020000D, "1.2.3")])
    one, other = loan.instances
    next(loan.read(one))
    whole = b"".join(loan.read(other))
    loan.close("")
    stream = BytesIO(paths[1].read_bytes())
    skip_meta(stream)
    assert whole == stream.read()


def test_a_parent_that_is_gone_is_a_refusal():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with ours, pytest.raises(Refusal):
        Borrower(ours).select("A", "", Level.STUDY, [(0x0020000D, "1.2.3")])


def test_a_wildcard_selects_nothing(tmp_path):
    holdings = FolderHoldings([dicom.minimal(tmp_path / "a")])
    for keys in (
        [(0x0020000D, "*")],
        [(0x00100020, "*")],
        [(0x0020000D, "1.2.3"), (0x00100010, "A")],
    ):
        with pytest.raises(InvalidIdentifier):
            select(Level.STUDY, keys, holdings)


@given(st.binary(max_size=200), st.sampled_from(list(Model)))
def test_an_identifier_is_read_or_refused(content, model):
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    identifier.PatientName = content.decode("latin-1")
    with contextlib.suppress(InvalidIdentifier):
        assert read_identifier(identifier, model).level is Level.STUDY
