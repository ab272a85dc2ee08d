"""Prediction: what a checkpoint says of new examples, in files of the kind it was trained on.

import numpy as np

from waymark.prediction.predicting import Request, predict_run

np.savez("new.npz", x=np.zeros((3, 28, 28), np.uint8))
found = predict_run("latest", ["new.npz"], "latest", {}, Request(top=3))
print(found.to_frame())
"""
