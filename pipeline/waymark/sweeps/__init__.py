"""Many runs: a sweep and its trials.

from waymark.sweeps.multirun import sweep

print(sweep(["--multirun", "seed=0,1", "steps=4", "progress=false"]).best)
"""
