"""The `naru` command: a client of the same gRPC APIs as everybody, and the supervisor of `make up`."""
