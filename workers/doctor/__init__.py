"""Examines one model: does it give here what its reference library gives? `python -m workers.doctor MODEL`."""
