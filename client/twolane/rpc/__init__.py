"""Messages and stubs of the gRPC service: `twolane_pb2`, `twolane_pb2_grpc`. They need the extra `grpc`."""
