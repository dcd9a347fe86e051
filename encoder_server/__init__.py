"""The document encoder: the refresh pipeline, and the gRPC service in front of it."""
