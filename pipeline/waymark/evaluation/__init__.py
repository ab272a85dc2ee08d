"""Evaluation: what a checkpoint is worth, by Waymark's model or by the graph in its files."""
