"""Two or more recorded runs: what differs, and whether a rerun came to the same bits.

from waymark.comparison.runs import compare_runs

print(compare_runs(["seed=0", "seed=1"]).text())
"""
