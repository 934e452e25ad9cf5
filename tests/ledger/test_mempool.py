"""The mempool against a slow model of it, its bounds, and its fairness."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.ledger.errors import Refused
from node.ledger.mempool import Mempool, MempoolBounds
from node.ledger.transaction import Transaction

BOUNDS = MempoolBounds(
    count_max=12,
    bytes_max=1_200,
    institution_count_max=6,
    institution_bytes_max=500,
    ttl_ms=100,
    executed_max=8,
)


def transaction(label, institution="a", *, valid_until=1_000, size=50, identity=None):
    """A transaction that only the mempool would take: names and sizes, no content."""
    digest = hashlib.sha256(repr(label).encode()).digest()
    return Transaction(
        chain_id=b"",
        institution=institution,
        member_key=b"",
        valid_until=valid_until,
        salt=b"",
        operations=(),
        signature=b"",
        raw=bytes(size),
        id=identity or hashlib.sha256(digest).digest(),
        digest=digest,
    )


def filled(*transactions, bounds=BOUNDS):
    pool = Mempool(bounds)
    for each in transactions:
        pool.add(each, 0)
    return pool


def refused(pool, each):
    with pytest.raises(Refused) as error:
        pool.add(each, 0)
    return error.value.code


def test_what_is_added_is_found_by_digest_and_id():
    first, second = transaction(1), transaction(2, size=70)
    pool = filled(first, second)
    assert pool.get(first.digest) is first
    assert pool.contains_id(second.id)
    assert pool.is_known(first.digest)
    assert pool.missing([bytes(32), first.digest, b"x"]) == [bytes(32), b"x"]
    assert (len(pool), pool.size_bytes, pool.unreserved_count) == (2, 120, 2)
    assert (pool.usage()["a"].count, pool.usage()["a"].size_bytes) == (2, 120)


def test_an_id_waits_once_whatever_its_signature():
    first = transaction(1)
    twin = transaction(2, identity=first.id)
    pool = filled(first)
    assert refused(pool, first) == refused(pool, twin) == "duplicate"


def test_what_was_executed_does_not_come_back():
    first, stranger = transaction(1), transaction(2)
    pool = filled(first)
    pool.remove([first.digest, stranger.digest])
    assert len(pool) == pool.size_bytes == 0
    for late in (first, transaction(3, identity=first.id), stranger):
        assert refused(pool, late) == "duplicate"
    assert pool.is_known(stranger.digest)
    pool.remove([transaction(i).digest for i in range(10, 18)])  # the memory is bounded
    pool.add(first, 0)


def test_an_institution_has_a_quota_of_count_and_of_bytes():
    pool = filled(*(transaction(i) for i in range(6)))
    assert refused(pool, transaction(6)) == "quota_exceeded"
    pool.add(transaction(7, "b"), 0)
    pool = filled(transaction(1, size=450))
    assert refused(pool, transaction(2, size=51)) == "quota_exceeded"
    pool.add(transaction(3, size=50), 0)
    pool.remove([transaction(3).digest])
    pool.add(transaction(4, size=50), 0)


def test_the_whole_has_a_bound_of_count_and_of_bytes():
    pool = filled(*(transaction((i, name), name) for name in "abc" for i in range(4)))
    assert refused(pool, transaction("x", "d")) == "mempool_full"
    pool = filled(*(transaction(name, name, size=400) for name in "abc"))
    assert refused(pool, transaction("x", "d", size=1)) == "mempool_full"


def test_refusals_leave_no_trace():
    pool = filled(transaction(1))
    before = (len(pool), pool.size_bytes, pool.usage(), pool.unreserved_count)
    for each in (transaction(1), transaction(2, "b", size=501)):
        refused(pool, each)
    assert (len(pool), pool.size_bytes, pool.usage(), pool.unreserved_count) == before


def test_a_flooding_institution_delays_only_itself():
    bounds = MempoolBounds()
    pool = Mempool(bounds)
    for i in range(bounds.institution_count_max):
        pool.add(transaction(i, "flood"), 0)
    assert refused(pool, transaction("more", "flood")) == "quota_exceeded"
    quiet = [transaction(("quiet", i), "quiet") for i in range(50)]
    for each in quiet:
        pool.add(each, 0)
    chosen = pool.select(100, 10**6, 1)
    assert [each for each in chosen if each.institution == "quiet"] == quiet
    assert len(chosen) == 100


def test_turns_go_on_where_the_last_batch_ended():
    names = "abcde"
    pool = Mempool(MempoolBounds())
    for i in range(10):
        for name in names:
            pool.add(transaction((name, i), name), 0)
    served = []
    for height in range(1, 11):
        chosen = pool.select(2, 10**6, height)
        pool.reserve(height, [each.digest for each in chosen])
        served += [each.institution for each in chosen]
    assert "".join(served) == names * 4


def test_what_does_not_fit_waits_for_the_next_batch_and_comes_first():
    large, small = transaction("large", "a", size=90), transaction("small", "b", size=20)
    behind = transaction("behind", "a", size=20)
    pool = filled(large, behind, small)
    pool.add(transaction("b2", "b", size=20), 0)
    chosen = pool.select(10, 80, 1)
    assert [each.institution for each in chosen] == ["b", "b"]  # nothing of "a" overtakes `large`
    pool.reserve(1, [each.digest for each in chosen])
    assert pool.select(10, 100, 2)[0] is large


def test_what_is_reserved_is_not_selected_until_released():
    first, second, third = (transaction(i) for i in range(3))
    pool = filled(first, second, third)
    pool.reserve(5, [second.digest, first.digest])
    assert pool.select(9, 999, 1) == [third]
    assert pool.unreserved_count == 1
    pool.release(5)
    assert pool.select(9, 999, 1) == [first, second, third]
    pool.release(5)


def test_releases_in_any_order_restore_the_order_of_arrival():
    all_of_them = [transaction(i) for i in range(6)]
    pool = filled(*all_of_them)
    digests = [each.digest for each in all_of_them]
    pool.reserve(1, digests[0:2])
    pool.reserve(2, digests[2:3])
    pool.reserve(3, [digests[4], digests[3]])
    for height in (3, 1, 2):
        pool.release(height)
    assert pool.select(9, 999, 1) == all_of_them


def test_a_new_proposal_at_a_height_replaces_the_old_one():
    first, second = transaction(1), transaction(2)
    pool = filled(first, second)
    pool.reserve(5, [first.digest])
    pool.reserve(5, [second.digest])
    assert pool.select(9, 999, 1) == [first]


def test_two_heights_may_hold_one_transaction():
    first = transaction(1)
    pool = filled(first)
    pool.reserve(5, [first.digest])
    pool.reserve(6, [first.digest])
    pool.release(5)
    assert pool.select(9, 999, 1) == []
    pool.release(6)
    assert pool.select(9, 999, 1) == [first]


def test_a_body_that_comes_after_its_proposal_is_reserved_at_once():
    late = transaction(1)
    pool = Mempool(BOUNDS)
    pool.reserve(5, [late.digest])
    pool.add(late, 0)
    assert pool.select(9, 999, 1) == []
    pool.release(5)
    assert pool.select(9, 999, 1) == [late]


def test_valid_until_is_the_last_height_at_which_it_may_execute():
    short, long = transaction(1, valid_until=5), transaction(2, valid_until=6)
    pool = filled(short, long)
    assert pool.select(9, 999, 5) == [short, long]
    assert pool.select(9, 999, 6) == [long]
    assert pool.expire(4, 0) == []
    assert pool.expire(5, 0) == [short]
    assert pool.expire(1_000_000, 0) == [long]
    pool.add(transaction(3, valid_until=7), 0)  # late, and past its height already
    assert [each.valid_until for each in pool.expire(1_000_000, 0)] == [7]
    assert len(pool) == 0


def test_what_waits_too_long_expires():
    pool = Mempool(BOUNDS)
    pool.add(transaction(1), 0)
    pool.add(transaction(2), 60)
    assert pool.expire(0, 99) == []
    assert pool.expire(0, 100) == [transaction(1)]
    assert pool.expire(0, 160) == [transaction(2)]


def test_what_is_reserved_expires_only_after_its_release():
    old, short = transaction(1), transaction(2, valid_until=3)
    pool = filled(old, short)
    pool.reserve(4, [old.digest, short.digest])
    assert pool.expire(9, 1_000) == []
    assert pool.get(short.digest) is short
    pool.release(4)
    assert pool.expire(9, 1_000) == [old, short]


def test_the_oldest_age_is_that_of_the_oldest_in_no_proposal():
    pool = Mempool(BOUNDS)
    assert pool.oldest_unreserved_age(50) is None
    first = transaction(1)
    pool.add(first, 10)
    pool.add(transaction(2, "b"), 30)
    assert pool.oldest_unreserved_age(50) == 40
    pool.reserve(1, [first.digest])
    assert pool.oldest_unreserved_age(50) == 20
    pool.release(1)
    assert pool.oldest_unreserved_age(50) == 40


class Model:
    """The mempool as one list, with everything looked up by scanning."""

    def __init__(self):
        self.waiting = []  # (transaction, arrived)
        self.executed = []
        self.reservations = {}

    def held(self, each):
        return any(each.digest in digests for digests in self.reservations.values())

    def add(self, each, now):
        own = [t for t, _ in self.waiting if t.institution == each.institution]
        if each.id in [t.id for t, _ in self.waiting]:
            return "duplicate"
        if each.digest in self.executed or each.id in self.executed:
            return "duplicate"
        if len(self.waiting) >= BOUNDS.count_max:
            return "mempool_full"
        if sum(len(t.raw) for t, _ in self.waiting) + len(each.raw) > BOUNDS.bytes_max:
            return "mempool_full"
        if len(own) >= BOUNDS.institution_count_max:
            return "quota_exceeded"
        if sum(len(t.raw) for t in own) + len(each.raw) > BOUNDS.institution_bytes_max:
            return "quota_exceeded"
        self.waiting.append((each, now))
        return None

    def remove(self, digests):
        for digest in digests:
            self._remember(digest)
            for each in [t for t, _ in self.waiting if t.digest == digest]:
                self._remember(each.id)
                self.waiting = [row for row in self.waiting if row[0] != each]
        self.executed = self.executed[-BOUNDS.executed_max :]

    def _remember(self, name):
        if name not in self.executed:
            self.executed.append(name)

    def expire(self, height, now):
        gone = [
            (t, at)
            for t, at in self.waiting
            if not self.held(t) and (t.valid_until <= height or at + BOUNDS.ttl_ms <= now)
        ]
        self.waiting = [row for row in self.waiting if row not in gone]
        return [t for t, _ in gone]

    def eligible(self, height):
        return [t for t, _ in self.waiting if not self.held(t) and t.valid_until >= height]


TRANSACTIONS = [
    transaction(i, "abc"[i % 3], valid_until=3 + i % 7, size=20 + 40 * (i % 4)) for i in range(24)
]
TRANSACTIONS.append(transaction("twin", "a", identity=TRANSACTIONS[0].id))
some = st.lists(st.sampled_from(TRANSACTIONS), max_size=6, unique=True)
steps = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(TRANSACTIONS)),
    st.tuples(st.just("add"), st.sampled_from(TRANSACTIONS)),
    st.tuples(st.just("add"), st.sampled_from(TRANSACTIONS)),
    st.tuples(st.just("reserve"), st.integers(1, 4), some),
    st.tuples(st.just("release"), st.integers(1, 4)),
    st.tuples(st.just("remove"), some),
    st.tuples(st.just("expire"), st.integers(0, 3)),
    st.tuples(st.just("select"), st.integers(0, 9), st.integers(0, 600)),
    st.tuples(st.just("later"), st.integers(0, 60)),
)


def check_selection(chosen, eligible, max_count, max_bytes):
    size = sum(len(each.raw) for each in chosen)
    assert len(chosen) <= max_count
    assert size <= max_bytes
    lacking = set()
    for name in "abc":
        queue = [each for each in eligible if each.institution == name]
        own = [each for each in chosen if each.institution == name]
        assert own == queue[: len(own)]  # first come, first served
        if len(own) < len(queue):
            lacking.add(name)
            if len(chosen) < max_count:  # its next one did not fit, when its turn came
                assert len(queue[len(own)].raw) > max_bytes - size
    if (
        len(chosen) == max_count
        and size + max([len(t.raw) for t in eligible], default=0) <= max_bytes
    ):
        counts = [sum(each.institution == name for each in chosen) for name in "abc"]
        for name, count in zip("abc", counts, strict=True):
            assert name not in lacking or count >= max(counts) - 1  # one each, in turn


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=60))
def test_it_behaves_as_the_slow_model(steps):
    pool, model, now, height = Mempool(BOUNDS), Model(), 0, 0
    for kind, *arguments in steps:
        match kind, arguments:
            case "add", [each]:
                try:
                    pool.add(each, now)
                    code = None
                except Refused as error:
                    code = error.code
                assert code == model.add(each, now)
            case "reserve", [at, chosen]:
                pool.reserve(at, [each.digest for each in chosen])
                model.reservations[at] = [each.digest for each in chosen]
            case "release", [at]:
                pool.release(at)
                model.reservations.pop(at, None)
            case "remove", [chosen]:
                pool.remove([each.digest for each in chosen])
                model.remove([each.digest for each in chosen])
            case "expire", [heights]:
                height += heights
                assert pool.expire(height, now) == model.expire(height, now)
            case "select", [max_count, max_bytes]:
                chosen = pool.select(max_count, max_bytes, height + 1)
                check_selection(chosen, model.eligible(height + 1), max_count, max_bytes)
            case "later", [ms]:
                now += ms
        check_same(pool, model, now)


def check_same(pool, model, now):
    waiting = [each for each, _ in model.waiting]
    assert len(pool) == len(waiting)
    assert pool.size_bytes == sum(len(each.raw) for each in waiting)
    for each in TRANSACTIONS:
        assert (pool.get(each.digest) is None) == (each not in waiting)
        assert pool.contains_id(each.id) == (each.id in [t.id for t in waiting])
    free = [(each, at) for each, at in model.waiting if not model.held(each)]
    assert pool.unreserved_count == len(free)
    assert pool.oldest_unreserved_age(now) == (now - free[0][1] if free else None)
    assert {name: usage.count for name, usage in pool.usage().items()} == {
        name: sum(each.institution == name for each in waiting)
        for name in {each.institution for each in waiting}
    }
    for name in "abc":
        order = [each for each, _ in free if each.institution == name]
        assert [t for t in pool.select(99, 10**6, 0) if t.institution == name] == order


def test_memory_returns_to_nothing_when_everything_is_gone():
    pool = filled(*(transaction(i, "abc"[i % 3]) for i in range(12)))
    pool.reserve(1, [transaction(i).digest for i in range(6)])
    pool.remove([transaction(i).digest for i in range(12)])
    pool.release(1)
    left = {name: len(value) for name, value in vars(pool).items() if hasattr(value, "__len__")}
    assert left.pop("_executed") == BOUNDS.executed_max
    assert set(left.values()) == {0}
