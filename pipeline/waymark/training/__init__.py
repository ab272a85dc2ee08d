"""Training: the loop, the compiled step, the test set's score, progress.

from waymark.config.compose import compose_config
from waymark.evaluation.restore import load_data
from waymark.training.loop import reuse_or_compile
from waymark.training.runtime import start_tensorflow

config = compose_config(["model=softmax"]).config
start_tensorflow(config.runtime.intra_op_threads)
with reuse_or_compile(config, load_data(config)) as trainer:
    print(trainer.run_steps(20))  # the losses, float32 [20]
"""
