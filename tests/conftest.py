"""What holds for the tests of all folders."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# The same examples in every run, however slow the machine: a failure is the change's, and comes again.
settings.register_profile(
    "naru", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("naru")
