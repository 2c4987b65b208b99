"""The documents have every member that clients look for, and agree with each other."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cascade.errors import RequestError
from server.oip.documents import (
    BatchSpent,
    Counters,
    IndexRow,
    ModelCounters,
    Spent,
    index,
    model_config,
    model_list,
    model_metadata,
    server_metadata,
    statistics,
)
from server.oip.repository import check_load, check_unload, read_index_filter
from tests.server.oip.makers import MANIFEST


def plain(document: Any) -> Any:
    """As a client sees it."""
    return orjson.loads(orjson.dumps(document))


def test_the_server_lists_the_extensions_that_work() -> None:
    found = plain(server_metadata("1.2.3"))
    assert (found["name"], found["version"]) == ("rescade", "1.2.3")
    assert {"binary_tensor_data", "statistics", "model_configuration"} <= set(found["extensions"])


def test_a_model_is_described() -> None:
    found = plain(model_metadata("cascade", ["2", "1"], MANIFEST))
    assert (found["name"], found["versions"], found["platform"]) == ("cascade", ["2", "1"], "onnx_onnxv1")
    assert found["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert found["outputs"][0] == {"name": "logits", "datatype": "FP32", "shape": [-1, 4]}
    assert {entry["name"]: entry["datatype"] for entry in found["outputs"]}["label"] == "BYTES"


def test_properties_are_strings_and_name_every_form_of_the_input() -> None:
    found = plain(model_metadata("cascade", ["1"], MANIFEST))["properties"]
    assert all(isinstance(value, str) for value in found.values())
    assert "FP32 [N, 3, 8, 8]; UINT8 [N, 3, 8, 8] or [N, 8, 8, 3]; BYTES [N] or [N, 1]" in found["image"]
    assert found["stages"] == "2"


def test_the_configuration_leaves_the_batch_out() -> None:
    found = plain(model_config("cascade", MANIFEST, 64, 2000))
    assert found["max_batch_size"] == 64
    assert found["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [3, 8, 8]}]
    assert found["dynamic_batching"] == {"max_queue_delay_microseconds": 2000}
    outputs = {entry["name"]: (entry["data_type"], entry["dims"]) for entry in found["output"]}
    assert (outputs["label"], outputs["energy"]) == (("TYPE_STRING", [1]), ("TYPE_FP64", [1]))


def test_configuration_and_metadata_name_the_same_tensors() -> None:
    config, metadata = model_config("c", MANIFEST, 1, 0), model_metadata("c", ["1"], MANIFEST)
    for one, other in (("input", "inputs"), ("output", "outputs")):
        assert [entry["name"] for entry in config[one]] == [entry["name"] for entry in metadata[other]]


def test_the_configuration_has_no_member_that_switches_a_client_over() -> None:
    found = model_config("c", MANIFEST, 1, 0)
    assert not {"sequence_batching", "model_transaction_policy", "response_cache", "ensemble_scheduling"} & set(found)


def test_statistics_have_every_field_even_where_nothing_happened() -> None:
    (found,) = plain(statistics([ModelCounters("cascade", "1", Counters())]))["model_stats"]
    zero = {"count": 0, "ns": 0}
    durations = ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit"]
    assert found == {
        "name": "cascade",
        "version": "1",
        "last_inference": 0,
        "inference_count": 0,
        "execution_count": 0,
        "inference_stats": dict.fromkeys([*durations, "cache_miss"], zero),
        "response_stats": {},
        "batch_stats": [],
        "memory_usage": [],
    }


def test_counts_stand_where_their_names_say() -> None:
    sizes = {8: BatchSpent(), 2: BatchSpent(Spent(1, 10), Spent(1, 20), Spent(1, 30))}
    counters = Counters(1_700_000_000_000, 18, 3, success=Spent(4, 99), fail=Spent(1, 5), batches=sizes)
    (found,) = plain(statistics([ModelCounters("cascade", "1", counters)]))["model_stats"]
    assert (found["last_inference"], found["inference_count"], found["execution_count"]) == (1_700_000_000_000, 18, 3)
    assert (found["inference_stats"]["success"], found["inference_stats"]["fail"]["ns"]) == ({"count": 4, "ns": 99}, 5)
    assert [entry["batch_size"] for entry in found["batch_stats"]] == [2, 8]
    assert found["batch_stats"][0]["compute_output"] == {"count": 1, "ns": 30}


def test_stages_are_counted_on_their_own_where_asked_for() -> None:
    models = [ModelCounters("cascade", "1", Counters(), [Counters(inferences=5), Counters(inferences=2)])]
    found = statistics(models, stages=True)["model_stats"]
    names = [(entry["name"], entry["inference_count"]) for entry in found]
    assert names == [("cascade", 0), ("cascade/stage0", 5), ("cascade/stage1", 2)]
    assert [entry["name"] for entry in statistics(models)["model_stats"]] == ["cascade"]


def test_a_model_of_several_versions_is_listed_once() -> None:
    assert model_list(["b", "a", "b"]) == {"models": ["b", "a"]}


def test_the_index_may_leave_out_what_does_not_serve() -> None:
    rows = [IndexRow("a", "1", "READY"), IndexRow("a", "0", "UNAVAILABLE", "unloaded")]
    assert index(rows)[1] == {"name": "a", "version": "0", "state": "UNAVAILABLE", "reason": "unloaded"}
    assert [row["version"] for row in index(rows, only_ready=True)] == ["1"]


@pytest.mark.parametrize("body", [b"", b" \n", b"{}", b'{"parameters": {}}', b'{"parameters": null}', b'{"x": 1}'])
def test_a_body_that_says_nothing_is_fine_for_all_three(body: bytes) -> None:
    assert read_index_filter(body) is False
    check_load(body)
    check_unload(body)


def test_what_the_three_bodies_may_say() -> None:
    assert read_index_filter(b'{"ready": true}') is True
    check_unload(b'{"parameters": {"unload_dependents": true}}')


BAD = {
    "no JSON": b"{",
    "a list": b"[]",
    "parameters of a list": b'{"parameters": []}',
    "a number": b'{"ready": 1}',
    "a configuration": b'{"parameters": {"config": "{}"}}',
    "a file": b'{"parameters": {"file:1/model.onnx": "AAAA"}}',
    "a wrong flag": b'{"parameters": {"unload_dependents": 1}}',
}


@pytest.mark.parametrize("case", ["no JSON", "a list", "a number"])
def test_a_filter_is_true_or_false(case: str) -> None:
    with pytest.raises(RequestError):
        read_index_filter(BAD[case])


@pytest.mark.parametrize("case", ["no JSON", "a list", "parameters of a list", "a configuration", "a file"])
def test_a_load_brings_nothing_of_its_own(case: str) -> None:
    with pytest.raises(RequestError, match=r"JSON|object|files and configuration come from the bundle's folder"):
        check_load(BAD[case])


@pytest.mark.parametrize("case", ["no JSON", "parameters of a list", "a configuration", "a wrong flag"])
def test_an_unload_takes_one_flag(case: str) -> None:
    with pytest.raises(RequestError):
        check_unload(BAD[case])
