"""The scorer: encodes queries, looks up stored document embeddings, crosses them, over gRPC."""
