"""The edge: speaks OpenAI's HTTP API to clients and gRPC to Naru's services."""
