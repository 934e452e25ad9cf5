"""The registry: one per node, labels bounded."""

from prometheus_client.parser import text_string_to_metric_families

from node.rpc.metrics import LABEL_VALUES_MAX, Metrics


def samples(metrics):
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_two_nodes_in_one_process_share_nothing():
    first, second = Metrics(), Metrics()
    first.view.set(7)
    first.transactions_executed.inc("ok", 300)
    assert samples(first)[("radledger_view",)] == 7
    assert samples(first)[("radledger_transactions_executed_total", "ok")] == 300
    assert samples(second)[("radledger_view",)] == 0
    assert ("radledger_transactions_executed_total", "ok") not in samples(second)


def test_label_values_are_bounded():
    metrics = Metrics()
    for number in range(10 * LABEL_VALUES_MAX):
        metrics.transactions_refused.inc(f"code_{number}")
    rows = [key for key in samples(metrics) if key[0] == "radledger_transactions_refused_total"]
    assert len(rows) == LABEL_VALUES_MAX + 1
    other = samples(metrics)[("radledger_transactions_refused_total", "other")]
    assert other == 9 * LABEL_VALUES_MAX


def test_the_version_is_shown():
    assert samples(Metrics("1.2.3"))[("radledger_build_info", "1.2.3")] == 1
