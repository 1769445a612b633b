"""Naru's kit: what every service is built with. It imports no service."""

__version__ = "0.1.0"
