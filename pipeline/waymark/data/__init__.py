"""Data sets: arrays of images and labels, and the batches drawn from them."""
