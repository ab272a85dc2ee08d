"""Evaluation: what a checkpoint is worth, by Waymark's model or by the graph in its files.

from waymark.evaluation.restore import evaluate_run

found = evaluate_run("latest", step="latest", from_meta=False, overrides={})
print(found.accuracy, found.hits, found.total)
"""
