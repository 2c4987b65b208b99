"""Where networks run: onnxruntime's execution providers with their options, and sessions that run there or not at all.

A GPU that was asked for is used, or the start fails: onnxruntime would otherwise print a warning and use the CPU.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime

from cascade.errors import BundleError, DeviceUnavailable

ERRORS_ONLY, ALMOST_NOTHING = 3, 4
NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}

# Where a graph's weights may lie outside its file; by default that is the current folder, which no digest covers.
EXTERNAL_WEIGHTS = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Place:
    """Where networks are to run.

    Attributes:
        kind: `cpu`, `cuda` or `tensorrt`.
        number: of the GPU.
        threads: for one network on the CPU.
        cuda_graphs: capture each network at each batch size once, and repeat that.
        tensorrt_cache: folder for TensorRT's engines, which take minutes to build; None builds them at every start.
    """

    kind: str
    number: int = 0
    threads: int = 1
    cuda_graphs: bool = False
    tensorrt_cache: str | None = None

    @classmethod
    def of(cls, device: str, **given: Any) -> Place:
        """What `cpu`, `cuda:1` or `tensorrt:0` means."""
        kind, _, number = device.partition(":")
        return cls(kind, int(number or 0), **given)

    @property
    def is_gpu(self) -> bool:
        """Whether batches are padded to sizes that were warmed, and memory is bound."""
        return self.kind != "cpu"

    def providers(self) -> list[Any]:
        """The execution providers, best first, with their options.

        Raises:
            DeviceUnavailable: this onnxruntime has none for the device.
        """
        if not self.is_gpu:
            return [NAMES["cpu"]]
        if NAMES[self.kind] not in onnxruntime.get_available_providers():
            missing = {"cuda": "CUDA", "tensorrt": "TensorRT"}[self.kind]
            raise DeviceUnavailable(
                f"the GPU cannot be used: this onnxruntime has no {missing}; install onnxruntime-gpu"
            )
        cuda = (NAMES["cuda"], self._cuda_options())
        return [cuda] if self.kind == "cuda" else [(NAMES["tensorrt"], self._tensorrt_options()), cuda]

    def _cuda_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "device_id": self.number,
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": 0,  # ten bits of mantissa would move energies across the threshold
        }
        return {**options, "enable_cuda_graph": 1} if self.cuda_graphs and self.kind == "cuda" else options

    def _tensorrt_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"device_id": self.number, "trt_cuda_graph_enable": self.cuda_graphs}
        if self.tensorrt_cache is not None:
            options |= {
                "trt_engine_cache_enable": True,
                "trt_engine_cache_path": self.tensorrt_cache,
                "trt_timing_cache_enable": True,
                "trt_timing_cache_path": self.tensorrt_cache,
            }
        return options


def open_sessions(models: Sequence[bytes], place: Place) -> list[Any]:
    """One session a stage.

    Args:
        models: verified bytes of the graphs.
        place: where they are to run.

    Raises:
        BundleError: a graph cannot be loaded.
        DeviceUnavailable: the device is not there.
    """
    onnxruntime.disable_telemetry_events()  # a server tells nobody what it serves
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = place.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(EXTERNAL_WEIGHTS, os.devnull)
    providers = place.providers()
    return [_open(number, model, options, providers, place) for number, model in enumerate(models)]


def _open(number: int, model: bytes, options: Any, providers: list[Any], place: Place) -> Any:
    wanted, said = NAMES[place.kind], io.StringIO()
    onnxruntime.set_default_logger_severity(ALMOST_NOTHING)  # what goes wrong here is told once, as an error of ours
    try:
        with contextlib.redirect_stdout(said):
            if place.is_gpu:
                onnxruntime.preload_dlls()
            session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as error:
        if place.is_gpu:
            raise DeviceUnavailable(f"the GPU cannot be used: {_line(error)} {_line(said.getvalue())}") from error
        raise BundleError(f"stages[{number}].file", f"onnxruntime cannot load it: {_line(error)}") from error
    finally:
        onnxruntime.set_default_logger_severity(ERRORS_ONLY)
    if wanted not in session.get_providers():
        raise DeviceUnavailable(
            f"the GPU cannot be used: onnxruntime fell back to {session.get_providers()}, so the driver or the "
            f"libraries are missing (pip install 'rescade[gpu]'). {_line(said.getvalue())}"
        )
    return session


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]
