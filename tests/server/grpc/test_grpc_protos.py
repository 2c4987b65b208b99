"""What is compiled is what the sources say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("grpc_tools", reason="needs the extra `clients`")

from google.protobuf import descriptor_pb2

from server.rpc import messages

SCRIPT = Path(__file__).parents[3] / "scripts" / "protos"


def test_the_compiled_messages_are_those_of_the_sources(tmp_path: Path) -> None:
    if not SCRIPT.exists():
        pytest.skip("the sources are compiled in a checkout")
    subprocess.run([SCRIPT, tmp_path], env={**os.environ, "PYTHON": sys.executable}, check=True)
    committed = Path(messages.__file__).with_name("messages.binpb")
    found, wanted = (
        descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
        for path in (committed, tmp_path / "messages.binpb")
    )
    assert found == wanted
