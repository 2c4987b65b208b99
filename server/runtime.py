"""The seam to onnxruntime: sessions over verified bytes, warm-up, and `run(stage, images)`.

On a CPU every image is run alone. A larger batch takes as long an image there, and an image's logits are then a
function of that image and of nothing else, whichever kernel the runtime picks for whichever batch size. On a GPU a
batch is padded to one of a few sizes that were all tried at warm-up, because the first run of a new shape can stall.

A GPU that was asked for is used, or the start fails: onnxruntime would otherwise print a warning and use the CPU.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any, Protocol

import numpy as np
import onnxruntime

from cascade.bundle import Bundle
from cascade.errors import BundleError, DeviceUnavailable
from cascade.exits import Floats
from cascade.manifest import Manifest, Tensor

ERRORS_ONLY, ALMOST_NOTHING = 3, 4

# Where a graph's weights may lie outside its file; by default that is the current folder, which no digest covers.
EXTERNAL_WEIGHTS = "session.model_external_initializers_file_folder_path"


class Runtime(Protocol):
    """What the engine asks of whatever runs the networks."""

    manifest: Manifest

    def warm_up(self) -> None:
        """Run every stage at every batch size that will be used."""
        ...

    def run(self, stage: int, images: Floats) -> Floats:
        """Give the stage's own logits.

        Args:
            stage: 0 for the first student.
            images: (B, 3, H, W) float32, preprocessed.

        Returns:
            (B, K) float32.
        """
        ...


class OnnxRuntime:
    """A cascade on onnxruntime.

    Args:
        bundle: verified; the sessions are made from its bytes.
        device: `cpu` or `cuda:N`.
        threads: threads for one network on the CPU.
        max_batch: largest batch that will be asked for.

    Raises:
        BundleError: a graph cannot be loaded or does not fit the manifest.
        DeviceUnavailable: the device is not there.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu", threads: int = 1, max_batch: int = 32) -> None:
        onnxruntime.disable_telemetry_events()  # a server tells nobody what it serves
        self.manifest = bundle.manifest
        self._sizes = batch_sizes(max_batch) if device.startswith("cuda") else (1,)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry(EXTERNAL_WEIGHTS, os.devnull)
        providers = [providers_for(device)]
        self._sessions = [
            _open_session(number, model, options, providers) for number, model in enumerate(bundle.models)
        ]
        for number, session in enumerate(self._sessions):
            _check_graph(number, session, bundle.manifest)

    def warm_up(self) -> None:
        """Run every stage at every batch size that will be used."""
        side = self.manifest.preprocess.size
        for stage in range(len(self._sessions)):
            for size in self._sizes:
                self.run(stage, np.zeros((size, 3, side, side), np.float32))

    def run(self, stage: int, images: Floats) -> Floats:
        """Give the stage's own logits, (B, K) float32, for (B, 3, H, W) float32."""
        tensors = self.manifest.stages[stage]
        step = self._sizes[-1]
        parts = []
        for start in range(0, len(images), step):
            rows = images[start : start + step]
            padded = _padded(rows, next(size for size in self._sizes if size >= len(rows)))
            parts.append(self._sessions[stage].run([tensors.output.name], {tensors.input.name: padded})[0][: len(rows)])
        return np.concatenate(parts)


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """The powers of two below `max_batch`, and itself."""
    return (*(2**power for power in range((max_batch - 1).bit_length())), max_batch)


def providers_for(device: str) -> str | tuple[str, dict[str, Any]]:
    """The execution provider for a device, with its options.

    Raises:
        DeviceUnavailable: this onnxruntime has no GPU provider.
    """
    if device == "cpu":
        return "CPUExecutionProvider"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise DeviceUnavailable("the GPU cannot be used: this onnxruntime has no CUDA; install onnxruntime-gpu")
    return "CUDAExecutionProvider", {
        "device_id": int(device.removeprefix("cuda:")),
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": 0,  # ten bits of mantissa would move energies across the threshold
    }


def _open_session(number: int, model: bytes, options: Any, providers: list[Any]) -> Any:
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    said = io.StringIO()
    onnxruntime.set_default_logger_severity(ALMOST_NOTHING)  # what goes wrong here is told once, as an error of ours
    try:
        with contextlib.redirect_stdout(said):
            if wanted == "CUDAExecutionProvider":
                onnxruntime.preload_dlls()
            session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as error:
        if wanted == "CUDAExecutionProvider":
            raise DeviceUnavailable(f"the GPU cannot be used: {_line(error)} {_line(said.getvalue())}") from error
        raise BundleError(f"stages[{number}].file", f"onnxruntime cannot load it: {_line(error)}") from error
    finally:
        onnxruntime.set_default_logger_severity(ERRORS_ONLY)
    if wanted not in session.get_providers():
        raise DeviceUnavailable(
            f"the GPU cannot be used: onnxruntime fell back to {session.get_providers()}, so the driver or the CUDA "
            f"libraries are missing (pip install 'rescade[gpu]'). {_line(said.getvalue())}"
        )
    return session


def _check_graph(number: int, session: Any, manifest: Manifest) -> None:
    stage = manifest.stages[number]
    for kind, wanted, found in (
        ("input", stage.input, session.get_inputs()),
        ("output", stage.output, session.get_outputs()),
    ):
        if len(found) != 1 or not _fits(wanted, found[0]):
            graph = ", ".join(f"{tensor.name} {tensor.type} {tensor.shape}" for tensor in found)
            raise BundleError(
                f"stages[{number}].{kind}", f"the manifest says {wanted.name} {wanted.shape}, the graph has {graph}"
            )


def _fits(wanted: Tensor, found: Any) -> bool:
    same_type = found.name == wanted.name and found.type == "tensor(float)" and len(found.shape) == len(wanted.shape)
    return same_type and all(
        isinstance(there, str | None) if here is None else there == here or not isinstance(there, int)
        for here, there in zip(wanted.shape, found.shape, strict=True)
    )


def _padded(rows: Floats, size: int) -> Floats:
    if len(rows) == size:
        return rows
    result = np.zeros((size, *rows.shape[1:]), np.float32)
    result[: len(rows)] = rows
    return result


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]
