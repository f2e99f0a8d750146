"""Messages of the gRPC service, written by `scripts/protobuf.sh` from `twolane.proto`."""
