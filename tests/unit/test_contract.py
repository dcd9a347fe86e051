"""The stubs in twinbert/v1 say what protos/ says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

from twinbert.v1 import encoder_pb2, scorer_pb2

ROOT = Path(__file__).resolve().parents[2]


def without_json_names(message: Any) -> Any:
    """A file's descriptor; buf fills in the JSON names of fields, protoc's Python does not."""
    for one in (*message.message_type, *(nested for outer in message.message_type for nested in outer.nested_type)):
        for field in one.field:
            field.ClearField("json_name")
    return message


def test_stubs_are_those_of_the_contract(tmp_path: Path) -> None:
    """Every message, field, enum and method, compiled from protos/ again, equals what the stubs hold."""
    image = tmp_path / "image.binpb"
    buf = Path(sys.executable).with_name("buf")
    subprocess.run([buf, "build", "--exclude-source-info", "-o", image], cwd=ROOT, check=True, timeout=60)
    compiled = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    stubs = {module.DESCRIPTOR.name: module.DESCRIPTOR for module in (scorer_pb2, encoder_pb2)}
    assert {file.name for file in compiled.file} == set(stubs)
    for file in compiled.file:
        stub = descriptor_pb2.FileDescriptorProto()
        stubs[file.name].CopyToProto(stub)
        file.DiscardUnknownFields()
        assert without_json_names(file) == without_json_names(stub)
