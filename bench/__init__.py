"""Measurements. They print figures and never fail for being slow."""
