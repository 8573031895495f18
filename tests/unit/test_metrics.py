import threading
from datetime import UTC, datetime
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loradash.domain.kinds import KINDS
from loradash.domain.process import AttemptNote, Status
from loradash.errors import OutOfMemory, RegistryUnavailable
from loradash.telemetry import metrics as our_metrics
from loradash.telemetry.metrics import Metrics, RequestFigures


@pytest.fixture
def metrics():
    return Metrics({"train", "health"}, KINDS)


def samples(metrics):
    text = metrics.render()[0].decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_are_counted_by_type_and_outcome(metrics):
    metrics.observe_request("train", "ok", 0.2)
    metrics.observe_request("train", "ok", 0.4)
    metrics.observe_request("train", "invalid", 0.1, "no dataset")
    metrics.observe_request("health", "error", 3.0, "broken")
    found = samples(metrics)
    assert found["loradash_requests_total", "ok", "train"] == 2
    assert found["loradash_requests_total", "invalid", "train"] == 1
    assert found["loradash_requests_total", "error", "health"] == 1
    assert found["loradash_request_seconds_count", "train"] == 3
    assert found["loradash_request_seconds_sum", "train"] == pytest.approx(0.7)
    assert found["loradash_request_seconds_bucket", "0.25", "train"] == 2


def test_the_snapshot_has_the_figures_of_each_type(metrics):
    metrics.observe_request("train", "ok", 0.2)
    metrics.observe_request("train", "error", 0.6, "out of memory")
    metrics.observe_request("train", "invalid", 0.1, "no dataset")
    metrics.observe_request("health", "ok", 0.5)
    snapshot = metrics.snapshot()
    assert list(snapshot) == ["health", "train"]
    assert snapshot["health"] == RequestFigures(count=1, total_s=0.5, avg_s=0.5, max_s=0.5)
    train = snapshot["train"]
    assert (train.count, train.invalid, train.errors, train.max_s) == (3, 1, 1, 0.6)
    assert train.total_s == pytest.approx(0.9)
    assert train.avg_s == pytest.approx(0.3)
    assert train.last_error == "no dataset"
    assert abs((datetime.now(UTC) - train.last_error_at).total_seconds()) < 60


def test_the_last_error_is_short_and_without_secrets(metrics):
    metrics.observe_request("train", "error", 0.1, "https://x?token=abc123 " + "x" * 1_000)
    last = metrics.snapshot()["train"].last_error
    assert len(last) == 300
    assert "abc123" not in last


def test_a_request_that_goes_well_keeps_the_last_error(metrics):
    metrics.observe_request("train", "error", 0.1, "broken")
    metrics.observe_request("train", "ok", 0.1)
    assert metrics.snapshot()["train"].last_error == "broken"


@pytest.mark.parametrize("hostile", ["nonsense", "", "Train", 'a"} 1\nb', ["train"], {}, None, 7])
def test_an_unknown_request_type_is_counted_as_unknown(metrics, hostile):
    metrics.observe_request(hostile, "invalid", 0.1, "type: unknown")
    assert samples(metrics)["loradash_requests_total", "invalid", "unknown"] == 1
    assert list(metrics.snapshot()) == ["unknown"]


def test_a_thousand_unknown_types_make_one_series(metrics):
    for number in range(1_000):
        metrics.observe_request(f"type{number}", "invalid", 0.1)
        metrics.count_process_end(f"kind{number}", f"status{number}", f"code{number}")
        metrics.count_attempt(f"kind{number}", f"ending{number}")
    assert len([key for key in samples(metrics) if key[0].endswith("_total")]) == 3
    assert len(metrics.snapshot()) == 1


def test_ended_processes_and_attempts_are_counted(metrics):
    metrics.count_process_end("training", "completed")
    metrics.count_process_end("training", "failed", OutOfMemory.code)
    metrics.count_attempt("generation", "lost")
    found = samples(metrics)
    assert found["loradash_processes_ended_total", "", "completed", "training"] == 1
    assert found["loradash_processes_ended_total", "failed", "out_of_memory", "training"] == 1
    assert found["loradash_attempts_total", "generation", "lost"] == 1


def test_the_labels_are_those_that_processes_have():
    assert set(our_metrics.END_STATUSES) == {status for status in Status if status.is_end}
    endings = get_args(AttemptNote.model_fields["ending"].annotation)
    assert set(our_metrics.ATTEMPT_ENDINGS) == set(endings) - {""}


def test_queue_and_running_are_asked_for_when_they_are_wanted(metrics):
    counts = {"training": 2}
    asked = []

    def queue_length():
        asked.append(1)
        return counts

    metrics.watch(queue_length, lambda: {"generation": 1, "nonsense": 9})
    assert asked == []
    found = samples(metrics)
    assert found["loradash_queue_length", "training"] == 2
    assert found["loradash_queue_length", "generation"] == 0
    assert found["loradash_running", "generation"] == 1
    assert ("loradash_running", "nonsense") not in found
    counts["training"] = 5
    assert samples(metrics)["loradash_queue_length", "training"] == 5


def test_a_registry_that_is_down_costs_only_its_own_numbers(metrics):
    def fail():
        raise RegistryUnavailable("down")

    metrics.watch(fail, lambda: {"training": 1})
    metrics.observe_request("train", "ok", 0.1)
    found = samples(metrics)
    assert found["loradash_requests_total", "ok", "train"] == 1
    assert found["loradash_running", "training"] == 1
    assert not [key for key in found if key[0] == "loradash_queue_length"]


def test_two_instances_count_apart(metrics):
    other = Metrics({"train"}, KINDS)
    metrics.observe_request("train", "ok", 0.1)
    assert other.snapshot() == {}
    assert ("loradash_requests_total", "ok", "train") not in samples(other)


def test_the_content_type_is_prometheus_text(metrics):
    text, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=")
    assert b"# TYPE loradash_requests_total counter" in text


def test_nothing_is_lost_when_many_threads_count(metrics):
    def work():
        for _ in range(500):
            metrics.observe_request("train", "error", 1, "broken")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    train = metrics.snapshot()["train"]
    assert (train.count, train.errors, train.total_s) == (4_000, 4_000, 4_000)
    assert samples(metrics)["loradash_requests_total", "error", "train"] == 4_000
