#!/usr/bin/env bash
# Write the modules of the gRPC service again from its .proto file: messages for the server, messages and stubs for the client.
set -euo pipefail
cd "$(dirname "$0")/.."
source_folder=app/protocols/rpc
python="${VENV:-.venv}/bin/python"
"$python" -m grpc_tools.protoc -I "$source_folder" --python_out="$source_folder" --pyi_out="$source_folder" twolane.proto
"$python" -m grpc_tools.protoc -I "$source_folder" --python_out=client/twolane/rpc --pyi_out=client/twolane/rpc \
    --grpc_python_out=client/twolane/rpc twolane.proto
# The generator imports a module of the top level; ours is beside its stubs.
sed -i 's/^import twolane_pb2 as/from . import twolane_pb2 as/' client/twolane/rpc/twolane_pb2_grpc.py
