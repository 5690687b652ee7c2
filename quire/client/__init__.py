"""Clients of a running server, over HTTP and gRPC, for the commands of this package. They know no service's insides."""
