"""Training: the loop, the compiled step, the test set's score, progress."""
