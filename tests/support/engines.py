"""Clients of exported models, each a program of its own that knows nothing of Waymark.

python -I engines.py ENGINE MODEL GIVEN.npz FOUND.npz [THREADS]
"""

import sys

import numpy as np

Arrays = dict[str, np.ndarray]


def savedmodel(path: str, given: Arrays, threads: int) -> Arrays:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    serve = tf.saved_model.load(path).signatures["serving_default"]
    found = serve(**{name: tf.constant(array) for name, array in given.items()})
    return {name: tensor.numpy() for name, tensor in found.items()}


def keras(path: str, given: Arrays, threads: int) -> Arrays:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    from keras import models

    inputs = given.get("inputs", given)
    model, size = models.load_model(path), len(next(iter(given.values())))
    return {"logits": model.predict(inputs, batch_size=size, verbose=0)}


def onnx(path: str, given: Arrays, threads: int) -> Arrays:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


def tflite(path: str, given: Arrays, threads: int) -> Arrays:
    from ai_edge_litert.interpreter import Interpreter

    serve = Interpreter(path, num_threads=threads).get_signature_runner("serving_default")
    return dict(serve(**given))


if __name__ == "__main__":
    engine, path, source, target, threads = sys.argv[1:]
    with np.load(source) as archive:
        arrays = dict(archive)
    compute = globals()[engine]
    found = compute(path, arrays, int(threads))
    fewer = compute(path, {name: array[:3] for name, array in arrays.items()}, int(threads))
    np.savez(target, **found, **{f"fewer {name}": array for name, array in fewer.items()})
    assert not [name for name in sys.modules if name.partition(".")[0] == "waymark"]
