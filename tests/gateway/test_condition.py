"""What is wrong is said once, the cause first, and lasts as long as it lasts."""

from dataclasses import replace

import pytest

from node.gateway import health
from node.gateway.condition import CODES, Condition, Finding, findings_of
from node.gateway.health import Health
from node.gateway.spool import DISK_FULL

EACH = [
    ("node_unreachable", Condition(node_problem="refused"), True),
    ("node_not_ready", Condition(node_reason="2 of 4 validators are connected"), True),
    ("receiver_down", Condition(is_receiving=False), True),
    ("spool_disk_full", Condition(room=DISK_FULL), True),
    ("spool_full", Condition(room="5 instances wait"), True),
    ("store_quota", Condition(quota_left=0), True),
    ("store_quota", Condition(waiting=["QuotaExceeded: the quota"]), True),
    ("store_disk_full", Condition(waiting=["StoreFull: the disk"]), True),
    ("store_unreachable", Condition(store_problem="no answer"), True),
    ("store_unreachable", Condition(waiting=["BlobsUnavailable: no answer"]), True),
    ("store_key", Condition(waiting=["WrongMasterKey: it was rotated"]), True),
    ("node_unreachable", Condition(waiting=["ConnectionLost: gone"]), True),
    ("study_waits", Condition(waiting=["the member lacks the role"]), True),
    ("pacs_unreachable", Condition(pacs={"PACS": "refused"}), True),
    ("exchange_unreachable", Condition(exchange={"south": "refused"}), True),
    ("chunks_missing", Condition(missing_chunks=1), False),
    ("deliveries_failed", Condition(deliveries_failed=1), False),
    ("quarantine", Condition(quarantine=1), False),
    ("audit_not_anchored", Condition(anchoring_problem="refused"), False),
]


@pytest.mark.parametrize(("code", "condition", "is_stopping"), EACH)
def test_each_cause_has_its_code(code, condition, is_stopping):
    (finding,) = findings_of(condition)
    assert (finding.code, finding.is_stopping) == (code, is_stopping)
    assert code in CODES


def test_all_codes_can_be_told():
    assert {code for code, *_ in EACH} | {"gateway_down", "gateway_silent"} == set(CODES)


def test_a_well_gateway_has_no_findings():
    assert findings_of(Condition()) == []


def test_a_cause_is_told_once_and_each_peer_by_name():
    condition = Condition(
        node_problem="refused",
        waiting=["ConnectionLost: gone", "ConnectionLost: gone", "QuotaExceeded: the quota"],
        pacs={"ONE": "refused", "TWO": "refused"},
    )
    found = findings_of(condition)
    assert [each.code for each in found] == [
        "node_unreachable", "store_quota", "pacs_unreachable", "pacs_unreachable",
    ]  # fmt: skip
    assert "the node cannot be asked" in found[0].sentence
    assert "ONE" in found[2].sentence
    assert "TWO" in found[3].sentence


def test_a_finding_keeps_the_time_at_which_it_was_first_seen():
    first = health.with_times(findings_of(Condition(pacs={"A": "x"})), [], 1_000)
    both = health.with_times(findings_of(Condition(pacs={"A": "y", "B": "x"})), first, 2_000)
    assert [each.since_ms for each in both] == [1_000, 2_000]


def test_what_was_kept_is_told_until_nothing_was_heard_for_long(tmp_path):
    assert health.load(tmp_path, 0).findings[0].code == "gateway_down"
    finding = Finding("quarantine", "1 file", False, 5)
    told = Health(10_000, 1, 7, 9_000, (finding,))
    health.save(tmp_path, told)
    assert health.load(tmp_path, 10_000 + health.SILENT_MS) == told
    silent = health.load(tmp_path, 10_001 + health.SILENT_MS)
    assert [each.code for each in silent.findings] == ["gateway_silent"]
    assert not silent.is_well
    health.remove(tmp_path)
    assert health.load(tmp_path, 10_000).findings[0].code == "gateway_down"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"findings": 5}', '{"is_well": 1, "x": 2}'])
def test_a_damaged_file_is_said(tmp_path, text):
    (tmp_path / health.FILE).write_text(text)
    assert [each.code for each in health.load(tmp_path, 0).findings] == ["gateway_silent"]


def test_only_what_stops_something_makes_it_unwell():
    told = Health(0, 0, None, None, tuple(findings_of(Condition(quarantine=1))))
    assert told.is_well
    assert not replace(told, findings=tuple(findings_of(Condition(room="full")))).is_well
