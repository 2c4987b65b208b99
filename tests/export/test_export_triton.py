"""A model repository that Triton's own description of a model can be read from."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tritonclient.grpc", reason="needs the extra `clients`")

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from cascade.bundle import Bundle
from cascade.errors import BundleError
from export.onefile import fused_bundle
from export.triton import write_repository
from tests.builders import tiny_bundle

pytestmark = pytest.mark.train


def read_config(folder: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_the_layout_is_that_of_a_model_repository(tmp_path: Path) -> None:
    made = fused_bundle(tiny_bundle())
    assert write_repository(made, tmp_path / "models") == tmp_path / "models" / "tiny"
    files = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(files) == ["models/tiny/1/model.onnx", "models/tiny/config.pbtxt", "models/tiny/labels.txt"]
    assert files["models/tiny/1/model.onnx"].read_bytes() == made.fused
    assert files["models/tiny/labels.txt"].read_text().splitlines() == list(made.manifest.labels)


@pytest.mark.parametrize(
    ("pixels", "kind", "row"), [(False, "TYPE_FP32", [3, 8, 8]), (True, "TYPE_UINT8", [-1, -1, 3])]
)
def test_the_configuration_says_types_and_rows(tmp_path: Path, kind: str, row: list[int], *, pixels: bool) -> None:
    config = read_config(write_repository(fused_bundle(tiny_bundle(), pixels=pixels), tmp_path))
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 64)
    assert config.HasField("dynamic_batching")
    name_of = model_config_pb2.DataType.Name
    assert {value.name: (name_of(value.data_type), list(value.dims)) for value in (*config.input, *config.output)} == {
        "images": (kind, row),
        "threshold": ("TYPE_FP64", [-1]),
        "logits": ("TYPE_FP32", [4]),
        "label": ("TYPE_INT64", [1]),
        "exit_stage": ("TYPE_INT32", [1]),
        "energy": ("TYPE_FP64", [1]),
    }


def test_a_row_that_is_one_number_is_reshaped_to_it_and_logits_have_labels(tmp_path: Path) -> None:
    config = read_config(write_repository(fused_bundle(tiny_bundle()), tmp_path))
    numbers = [value.name for value in config.output if value.HasField("reshape") and not value.reshape.shape]
    assert numbers == ["label", "exit_stage", "energy"]
    assert {value.name: value.label_filename for value in config.output if value.label_filename} == {
        "logits": "labels.txt"
    }


def test_a_bundle_without_a_fused_file_makes_no_repository(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="export it with --fused"):
        write_repository(tiny_bundle(), tmp_path)


@pytest.mark.parametrize("label", ["two\nlines", ""])
def test_a_label_that_is_not_one_line_is_named(tmp_path: Path, label: str) -> None:
    made = fused_bundle(tiny_bundle())
    manifest = made.manifest.model_copy(update={"labels": ("a", label, "c", "d")})
    with pytest.raises(BundleError, match="is not one line") as caught:
        write_repository(Bundle(manifest, made.models, made.golden, made.fused), tmp_path)
    assert caught.value.field == "labels[1]"


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot write the model repository"):
        write_repository(fused_bundle(tiny_bundle()), tmp_path / "file")
