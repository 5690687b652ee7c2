"""Does the device compute what it should: the served code path against `transformers`, against itself and against references.

    python -m benchmarks.gpu.agreement [CHECK...]

Without a GPU the same checks run on the CPU with smaller shapes; what needs a GPU is then named as not run.
"""
