"""The protocol's documents: metadata, configuration, statistics and the list of models. Values in, plain JSON out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cascade.manifest import Manifest
from server.oip.model import INPUT, forms_in_words, input_of, outputs_of
from server.oip.request import TensorSpec

PLATFORM = "onnx_onnxv1"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
"""What really works."""


@dataclass(frozen=True)
class Spent:
    """How often something was done, and how long it took.

    Attributes:
        count: times.
        ns: nanoseconds, together.
    """

    count: int = 0
    ns: int = 0


@dataclass(frozen=True)
class BatchSpent:
    """Runs of one batch size: making the batch, running it, taking its answers apart."""

    compute_input: Spent = Spent()
    compute_infer: Spent = Spent()
    compute_output: Spent = Spent()


@dataclass(frozen=True)
class Counters:
    """Counts since the start, over all workers; they only grow.

    Attributes:
        last_inference_ms: milliseconds since the epoch; 0 for never.
        inferences: images answered.
        executions: runs of the network; of a cascade, of its stage 0.
        success: requests answered.
        fail: requests that failed.
        queue: images' waits for a batch.
        compute_input: making requests or batches ready.
        compute_infer: running networks.
        compute_output: making answers ready.
        batches: by batch size.
    """

    last_inference_ms: int = 0
    inferences: int = 0
    executions: int = 0
    success: Spent = Spent()
    fail: Spent = Spent()
    queue: Spent = Spent()
    compute_input: Spent = Spent()
    compute_infer: Spent = Spent()
    compute_output: Spent = Spent()
    batches: Mapping[int, BatchSpent] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelCounters:
    """Counts of one version of a model.

    Attributes:
        name: of the model.
        version: of the model.
        total: of the cascade.
        stages: of each stage.
    """

    name: str
    version: str
    total: Counters
    stages: Sequence[Counters] = ()


@dataclass(frozen=True)
class IndexRow:
    """One version of a model in the repository.

    Attributes:
        name: of the model.
        version: of the model.
        state: READY, UNAVAILABLE, LOADING or UNLOADING.
        reason: why it is in that state, if there is something to say.
    """

    name: str
    version: str
    state: str
    reason: str = ""


def server_metadata(version: str) -> dict[str, Any]:
    """What the server is.

    Args:
        version: of rescade.
    """
    return {"name": "rescade", "version": version, "extensions": EXTENSIONS}


def model_metadata(name: str, versions: Sequence[str], manifest: Manifest) -> dict[str, Any]:
    """What a model takes and gives.

    Args:
        name: of the model.
        versions: all that are served, the current one first.
        manifest: of the version that is described.
    """
    return {
        "name": name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [_described(input_of(manifest))],
        "outputs": [_described(spec) for spec in outputs_of(manifest)],
        "properties": _properties(manifest),
    }


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _properties(manifest: Manifest) -> dict[str, str]:
    rule = manifest.preprocess
    return {
        INPUT: f"the datatype of a request decides: {forms_in_words(rule.size)}",
        f"{INPUT}.FP32": f"{rule.channels}, (value / 255 - mean) / std with mean {rule.mean} and std {rule.std}",
        f"{INPUT}.UINT8": f"raw {rule.channels} values of the network's own size",
        f"{INPUT}.BYTES": "encoded images, such as JPEG or PNG, of any size; as JSON strings, in base64",
        "stages": str(len(manifest.stages)),
        "exit_rule": f"a sample leaves where its {manifest.exit.definition} energy exceeds the threshold",
    }


def model_config(name: str, manifest: Manifest, max_batch: int, max_wait_us: int) -> dict[str, Any]:
    """A model's configuration, in the shape that load generators read.

    Args:
        name: of the model.
        manifest: of the version that is described.
        max_batch: images one request may hold.
        max_wait_us: longest wait for a batch to fill, microseconds.
    """
    return {
        "name": name,
        "platform": PLATFORM,
        "max_batch_size": max_batch,
        "input": [_configured(input_of(manifest))],
        "output": [_configured(spec) for spec in outputs_of(manifest)],
        "dynamic_batching": {"max_queue_delay_microseconds": max_wait_us},
    }


def _configured(spec: TensorSpec) -> dict[str, Any]:
    """A tensor without its batch dimension; one number an image is `[1]`."""
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": spec.shape[1:] or (1,)}


def statistics(models: Iterable[ModelCounters], stages: bool = False) -> dict[str, Any]:
    """Counts, in the shape that load generators read: every field is there, zeros included.

    Args:
        models: one entry a version.
        stages: whether to add an entry `NAME/stageI` for each stage.
    """
    entries = []
    for model in models:
        entries.append(_counted(model.name, model.version, model.total))
        if stages:
            entries += [
                _counted(f"{model.name}/stage{number}", model.version, counters)
                for number, counters in enumerate(model.stages)
            ]
    return {"model_stats": entries}


def _counted(name: str, version: str, counters: Counters) -> dict[str, Any]:
    durations = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    return {
        "name": name,
        "version": version,
        "last_inference": counters.last_inference_ms,
        "inference_count": counters.inferences,
        "execution_count": counters.executions,
        "inference_stats": {
            **{duration: getattr(counters, duration) for duration in durations},
            "cache_hit": Spent(),
            "cache_miss": Spent(),
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": spent.compute_input,
                "compute_infer": spent.compute_infer,
                "compute_output": spent.compute_output,
            }
            for size, spent in sorted(counters.batches.items())
        ],
        "memory_usage": [],
    }


def model_list(names: Iterable[str]) -> dict[str, Any]:
    """Names of all models, each once, in order.

    Args:
        names: of models, one a version.
    """
    return {"models": list(dict.fromkeys(names))}


def index(rows: Iterable[IndexRow], only_ready: bool = False) -> list[dict[str, str]]:
    """The repository's list.

    Args:
        rows: one a version.
        only_ready: leave out the rest.
    """
    return [
        {"name": row.name, "version": row.version, "state": row.state, "reason": row.reason}
        for row in rows
        if row.state == "READY" or not only_ready
    ]
