"""Where networks run: on the device that was asked for, or nowhere."""

from __future__ import annotations

import onnxruntime
import pytest

from cascade.errors import DeviceUnavailable
from server.providers import Place
from server.runtime import OnnxRuntime
from tests.builders import tiny_bundle


def test_a_gpu_that_is_not_there_is_refused_and_the_cpu_is_not_used_instead() -> None:
    with pytest.raises(DeviceUnavailable, match="the GPU cannot be used"):
        OnnxRuntime(tiny_bundle(1), "cuda:99")


class Session:
    """An onnxruntime session that found no GPU."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def broken_session(*_: object, **__: object) -> None:
    raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")


@pytest.mark.parametrize(
    ("session", "reason"),
    [(Session, "fell back to .*CPUExecutionProvider"), (broken_session, "no CUDA-capable device")],
)
def test_the_reason_why_there_is_no_gpu_is_told(session: object, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(DeviceUnavailable, match=reason):
        OnnxRuntime(tiny_bundle(1), "cuda:0")


def test_an_onnxruntime_without_cuda_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceUnavailable, match="install onnxruntime-gpu"):
        OnnxRuntime(tiny_bundle(1), "cuda:0")


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that was built with every provider."""
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)


@pytest.mark.parametrize(("device", "missing"), [("cuda:0", "no CUDA"), ("tensorrt:0", "no TensorRT")])
def test_what_is_missing_is_named(device: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceUnavailable, match=missing):
        Place.of(device).providers()


def test_a_cpu_needs_no_options() -> None:
    assert Place.of("cpu").providers() == ["CPUExecutionProvider"]


@pytest.mark.usefixtures("everything")
def test_a_gpu_gets_its_number_and_nothing_that_would_move_an_exit() -> None:
    [(name, options)] = Place.of("cuda:3").providers()
    assert (name, options["device_id"], options["use_tf32"]) == ("CUDAExecutionProvider", 3, 0)
    assert "enable_cuda_graph" not in options


@pytest.mark.usefixtures("everything")
def test_graphs_are_captured_where_that_is_asked_for() -> None:
    [(_, cuda)] = Place.of("cuda:0", cuda_graphs=True).providers()
    [(_, tensorrt), (_, below)] = Place.of("tensorrt:0", cuda_graphs=True).providers()
    assert (cuda["enable_cuda_graph"], tensorrt["trt_cuda_graph_enable"]) == (1, True)
    assert "enable_cuda_graph" not in below


@pytest.mark.usefixtures("everything")
def test_tensorrt_stands_before_cuda_and_keeps_its_engines_where_it_is_told() -> None:
    first, second = Place.of("tensorrt:1", tensorrt_cache="/engines").providers()
    assert (first[0], second[0]) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert (first[1]["device_id"], first[1]["trt_engine_cache_path"]) == (1, "/engines")
    assert "trt_engine_cache_path" not in Place.of("tensorrt:1").providers()[0][1]
