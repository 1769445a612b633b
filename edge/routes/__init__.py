"""The HTTP routes: each reads a request, asks the gateway, and answers."""
