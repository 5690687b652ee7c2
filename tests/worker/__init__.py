"""Tests of the worker: models, slots, steps and the loop around them."""
