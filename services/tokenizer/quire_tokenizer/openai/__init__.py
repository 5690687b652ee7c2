"""The OpenAI-compatible HTTP face of the front door. It calls the engine in its own process, as the gRPC face does."""
