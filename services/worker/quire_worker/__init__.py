"""The worker service: one process, started with `python -m quire_worker`."""
