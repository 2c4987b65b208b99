"""What a run computes on, alone and in company."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cascade.errors import DeviceUnavailable
from training.device import Device, choose
from training.models import build
from training.run import open_run
from training.settings import Runtime

pytestmark = pytest.mark.train

ROOT = Path(__file__).parents[2]
ALONE = Device(torch.device("cpu"), torch.float32, channels_last=True, compile=False)

TOGETHER = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from tests.tiny_run import train_tiny
from training.device import choose
from training.methods.crd import from_everywhere
from training.settings import Runtime

device = choose(Runtime(device="cpu", threads=1))
parameter, unused = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(1))
parameter.grad = torch.full((2, 3), 10.0 ** device.rank)
device.average([parameter, unused])
net = device.place(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
nn.init.constant_(net[0].weight, device.rank + 5)
net[1].running_mean.fill_(device.rank + 7)
device.share(net)
run = train_tiny(
    Path(sys.argv[1]),
    schedule={"epochs": 1, "batch_size": 256, "policy": "cosine"},
    teacher={"model": "resnet8_0.125_a", "method": {"name": "vanilla"}},
    student={"model": "resnet8_0.125_a", "method": {"name": "crd", "negatives": 64}},
    residual={"models": ["resnet8_0.125_a"], "stop": {"count": 1}},
)
print(json.dumps({
    "gradient": parameter.grad.unique().tolist(),
    "unused": unused.grad,
    "weight": net[0].weight.unique().tolist(),
    "running mean": net[1].running_mean.unique().tolist(),
    "slice": device.slice(torch.arange(6)).tolist(),
    "everywhere": from_everywhere(torch.tensor([device.rank])).tolist(),
    "first": device.first,
    "stages": run.stages(),
}))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def together(folder: Path) -> list[dict[str, Any]]:
    """What two processes say that share a run."""
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(folder)],
            cwd=ROOT,
            env={**common, "RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.slow
def test_two_processes_average_gradients_share_weights_and_finish_one_run(tmp_path: Path) -> None:
    first, second = together(tmp_path / "run")
    for said in (first, second):
        assert said["gradient"] == [5.5]
        assert said["unused"] is None
        assert said["weight"] == [5.0]
        assert said["running mean"] == [7.0]
    assert (first["slice"], second["slice"]) == ([0, 2, 4], [1, 3, 5])
    assert (first["first"], second["first"]) == (True, False)
    assert first["stages"] == second["stages"] == open_run(tmp_path / "run").stages()


def test_a_lone_process_averages_and_shares_with_nobody() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    ALONE.average([parameter])
    ALONE.share(nn.Linear(1, 1))
    ALONE.wait()
    assert parameter.grad.tolist() == [1.0, 1.0]
    assert ALONE.slice(torch.arange(3)).tolist() == [0, 1, 2]
    assert ALONE.first


def test_a_runtime_sets_torch_up() -> None:
    device = choose(Runtime(device="cpu", precision="bf16", threads=1, compile=True, channels_last=False))
    assert (device.where, device.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert (device.compile, device.channels_last) == (True, False)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("deterministic", [True, False])
def test_algorithms_are_deterministic_unless_a_recipe_says_otherwise(deterministic: bool) -> None:
    torch.use_deterministic_algorithms(not deterministic)
    choose(Runtime(device="cpu", deterministic=deterministic))
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert torch.backends.cudnn.benchmark != deterministic


def test_auto_is_a_gpu_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose(Runtime()).where.type == expected


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match=r"'cuda:99' and torch sees .* GPUs"):
        choose(Runtime(device="cuda:99"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_run_falls_back_to_the_cpu_in_silence() -> None:
    with pytest.raises(DeviceUnavailable, match="torch sees 0 GPUs"):
        choose(Runtime(device="cuda"))


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_network_is_placed_in_the_memory_order_that_was_asked_for(channels_last: bool) -> None:
    device = choose(Runtime(device="cpu", channels_last=channels_last))
    weight = next(device.place(build("resnet8_a", 10)).parameters())
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert weight.is_contiguous() != channels_last


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_forward_pass_has_the_precision_that_was_asked_for(precision: str, dtype: torch.dtype) -> None:
    device = choose(Runtime.model_validate({"device": "cpu", "precision": precision}))
    with device.autocast():
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_on_a_gpu_learns_and_repeats_to_the_bit(tmp_path: Path, precision: str) -> None:
    from tests.tiny_run import train_tiny

    runtime = {"device": "cuda", "precision": precision}
    for name in ("one", "other"):
        train_tiny(tmp_path / name, runtime=runtime)
    files = [sorted((tmp_path / name).rglob("*.safetensors")) for name in ("one", "other")]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert open_run(tmp_path / "one").figures("residual2")["dv"]["accuracy"] > 0.3
