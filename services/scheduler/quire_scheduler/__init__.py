"""The scheduler service: one process, started with `python -m quire_scheduler`."""
