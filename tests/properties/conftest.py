"""Hypothesis for all property tests: no test fails for the time that an example takes on a busy machine."""

from hypothesis import settings

settings.register_profile("twolane", deadline=None)
settings.load_profile("twolane")
