"""The training loop: on the device between events, one visible function around it.

The order at one step: record, evaluate, hand a copy of the state to the saver.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np

from waymark.checkpoints import State
from waymark.config.schema import Config
from waymark.data.dataset import PARTS, Dataset, ImageSpec
from waymark.data.randomness import DROPOUT, INITIAL, Tensor, random_key
from waymark.data.rows import Rows
from waymark.data.sources import SMALL, batch_indices
from waymark.errors import BadInput, Sentence
from waymark.models import NO_STATISTICS, Tensors, check_outputs, forward, scale
from waymark.names import STEPS_PER_SECOND, TRAIN_LOSS
from waymark.optimizers import takes_learning_rate
from waymark.tasks import example_losses, training_truth
from waymark.training import streaming
from waymark.training.hidden_state import refuse_variables, trace
from waymark.training.score import Score, Scorer, make_scorer

T = TypeVar("T")
Record = Callable[[list[int], Mapping[str, list[float]]], None]  # as many values as steps
CHUNK_SECONDS = 0.25  # of one call into TensorFlow: how long a signal and the bar wait


class Diverged(Exception):
    """Say at which step the loss was no longer finite."""


class DoesNotFit(Sentence):
    """Say which entry of a state does not fit the model and the optimizer."""


def due(step: int, every: int, last: int) -> bool:
    """Tell whether something done every so many steps (0: only at the end) is due now."""
    return step == last or (every > 0 and step % every == 0)


def initial_state(
    config: Config, spec: ImageSpec, statistics: Mapping[str, np.ndarray] = NO_STATISTICS
) -> tuple[dict[str, Tensor], list[str]]:
    """Return a new run's state and which names in it are the parameters; raise HiddenState.

    The `statistics` of the training set are entries of the state, under names of their own, or
    BadInput is raised.
    """
    import tensorflow as tf

    state: dict[str, tf.Tensor] = {}
    with refuse_variables((config.model, config.optimizer), state.values()):
        parameters = dict(config.model.initial(spec, partial(random_key, config.seed, INITIAL)))
        state |= parameters
        state |= config.optimizer.slots(parameters)
    if taken := state.keys() & statistics.keys():
        raise BadInput(
            f"{type(config.model).__name__} has a parameter {min(taken)!r}, which is the name of "
            f"a statistic of the training set; data.standardise=false does without them."
        )
    state |= {name: tf.constant(value) for name, value in statistics.items()}
    return {"step": tf.constant(0, tf.int64), **state}, list(parameters)


def check_state(state: State, expected: Tensors) -> None:
    """Raise DoesNotFit for the first entry that is missing, unknown, or of another kind."""
    for name, value in expected.items():
        if name not in state:
            raise DoesNotFit(f"it has no entry {name!r}")
        want, got = f"{value.dtype.name}{list(value.shape)}", state[name]
        found = f"{got.dtype.name}{list(got.shape)}"
        if want != found:
            raise DoesNotFit(f"its entry {name!r} is {found}, not {want}")
    unknown = state.keys() - expected.keys()
    if unknown:
        raise DoesNotFit(f"it has an unknown entry {min(unknown)!r}")


def train_step(
    config: Config,
    data: Dataset,
    parameters: Tensors,
    slots: Tensors,
    images: Tensor,
    truth: tuple[Tensor, ...],
    dropout: Tensor,
    learning_rate: Tensor,
) -> Tensor:
    """Take one gradient step, in place; return its loss, float32 [].

    `images` are float32 [batch, H, W, C] or [batch, ...], scaled, `truth` the labels [batch, ...]
    and, if there are any, the weights, float32 [batch], by which the loss is a weighted mean;
    `dropout` is the int64 [2] key of this step's stateless dropout. Raises WrongOutputs.
    """
    import tensorflow as tf

    values = {name: variable.read_value() for name, variable in parameters.items()}
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        outputs = forward(config.model, config.precision, values, images, dropout)
        check_outputs(config.model, outputs, data)
        labels, *weights = truth
        losses = example_losses(config.task, labels, outputs, training=True)
        loss = _weighted_mean(losses, *weights) if weights else tf.reduce_mean(losses)
    gradients = tape.gradient(loss, values, unconnected_gradients="zero")
    rate = {"learning_rate": learning_rate} if takes_learning_rate(config.optimizer) else {}
    config.optimizer.apply(parameters, slots, gradients, **rate)
    return loss


def _weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of losses [batch]; 0 where all weights are."""
    import tensorflow as tf

    return tf.math.divide_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))


def compile_steps(config: Config, data: Dataset, variables: Tensors, parameters: Tensors) -> Any:
    """Compile a function of how many steps (int32 []), seed (int64 []), learning rate (float32 []).

    Where features are larger than memory, also of a chunk of batches (see `streaming`). One call
    returns the losses of all steps, float32 [steps]. Raises HiddenState, WrongOutputs.
    """
    import tensorflow as tf

    chunked = isinstance(data.x_train, Rows)
    arrays = () if chunked else (data.x_train, *training_truth(config.task, data))
    resident = [tf.constant(each) for each in arrays]
    statistics = {name: variables[name] for name in data.statistics}
    others = {"step", *parameters, *statistics}
    slots = {name: v for name, v in variables.items() if name not in others}

    def batch(
        seed: tf.Tensor, step: tf.Tensor, *chunk: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        if chunk:
            pixels, *known = streaming.batch_of(step, *chunk)
            return scale(pixels, data.divide, statistics), tuple(known)
        sampling, size = config.data.sampling, config.batch_size
        picked = batch_indices(sampling, seed, step, size, len(data.x_train))
        pixels, *known = (tf.gather(each, picked) for each in resident)
        return scale(pixels, data.divide, statistics), tuple(known)

    scalars = [tf.TensorSpec([], kind) for kind in (tf.int32, tf.int64, tf.float32)]
    given = [*scalars, *(streaming.signature(config, data) if chunked else [])]

    @tf.function(autograph=False, input_signature=given)
    def run_steps(
        steps: tf.Tensor, seed: tf.Tensor, learning_rate: tf.Tensor, *chunk: tf.Tensor
    ) -> tf.Tensor:
        reached = variables["step"].read_value()

        def body(
            i: tf.Tensor, losses: tf.TensorArray, pixels: tf.Tensor, known: tuple[tf.Tensor, ...]
        ) -> tuple[tf.Tensor, tf.TensorArray, tf.Tensor, tuple[tf.Tensor, ...]]:
            step = reached + tf.cast(i, tf.int64) + 1
            # The next batch depends on no result, so TensorFlow makes it meanwhile.
            following = batch(seed, step + 1, *chunk)
            dropout = random_key(seed, DROPOUT, step)
            given = (pixels, known, dropout, learning_rate)
            loss = train_step(config, data, parameters, slots, *given)
            return i + 1, losses.write(i, loss), *following

        losses = tf.TensorArray(tf.float32, size=steps, element_shape=[])
        loop = tf.while_loop(
            lambda i, *_: i < steps,
            body,
            (tf.constant(0), losses, *batch(seed, reached + 1, *chunk)),
            parallel_iterations=1,
        )
        variables["step"].assign_add(tf.cast(steps, tf.int64))
        return loop[1].stack()

    parts = (config.model, config.optimizer, config.task)
    return trace(run_steps, parts, variables.values())


class Trainer:
    """A run's state on the device, and the compiled functions that train and score it."""

    def __init__(self, config: Config, data: Dataset) -> None:
        import tensorflow as tf

        initial, names = initial_state(config, data.spec, data.statistics)
        self._spec, self._statistics = data.spec, data.statistics
        self._batches = _batches(config, data)
        self._variables = {k: tf.Variable(value, trainable=False) for k, value in initial.items()}
        self.parameters = {name: self._variables[name] for name in names}
        self._run_steps = compile_steps(config, data, self._variables, self.parameters)
        self.evaluated = data.evaluated  # the set that evaluations in training are on
        self.scorer = make_scorer(config, data, data.evaluated)
        self._scored = {name: self._variables[name] for name in [*names, *data.statistics]}
        self.scorer.compile(self._scored)
        self.restored_scorer: Scorer | None = None  # of what was restored, compiled anew
        self._inputs = _inputs(config)

    def reset(self, config: Config, data: Dataset) -> None:
        """Set the state to a new run's initial one; its `compilation_key` must be the same."""
        self.assign(initial_state(config, self._spec, self._statistics)[0])
        self._inputs = _inputs(config)
        self._batches = _batches(config, data)
        for scorer in (self.scorer, self.restored_scorer):
            if scorer:
                scorer.read_from(data)

    def close(self) -> None:
        """Wait until no thread reads batches any more."""
        if self._batches:
            self._batches.close()

    @property
    def step(self) -> int:
        """Return how many steps the run has trained."""
        return int(self._variables["step"].numpy())

    def run_steps(self, steps: int) -> np.ndarray:
        """Run `steps` steps; return their losses, float32 [steps].

        They are one call where the data are in memory, else one for each chunk of them.
        """
        import tensorflow as tf

        if self._batches is None:
            return self._run_steps(tf.constant(steps, tf.int32), *self._inputs).numpy()
        losses, step = [], self.step
        end = step + steps
        while step < end:
            chunk = self._batches.at(step)
            count = tf.constant(min(end, chunk.end) - step, tf.int32)
            losses.append(self._run_steps(count, *self._inputs, *chunk.tensors).numpy())
            step += len(losses[-1])
        return np.concatenate(losses)

    def state(self) -> State:
        """Return a copy of everything that decides the next step."""
        return {name: np.asarray(variable.numpy()) for name, variable in self._variables.items()}

    def load(self, state: State) -> None:
        """Put a saved state in place, all or nothing; raise DoesNotFit."""
        check_state(state, self._variables)
        self.assign(state)

    def assign(self, values: Tensors) -> None:
        """Assign some of the state's values, by name; all else stays."""
        for name, value in values.items():
            self._variables[name].assign(value)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the parameters' names and shapes, in the model's order."""
        return {name: tuple(v.shape) for name, v in self.parameters.items()}

    def score(self) -> Score:
        """Score the parameters as they are on the whole validation set, else the test set."""
        return self.scorer(self._scored)


def _batches(config: Config, data: Dataset) -> streaming.Batches | None:
    """Return what reads the batches of a run whose data are larger than memory."""
    return streaming.Batches(config, data) if isinstance(data.x_train, Rows) else None


def _inputs(config: Config) -> tuple[Tensor, Tensor]:
    """Return the seed, int64 [], and the learning rate, float32 [], for the compiled function."""
    import tensorflow as tf

    optimizer = config.optimizer
    rate = optimizer.learning_rate if takes_learning_rate(optimizer) else 0.0
    return tf.constant(config.seed, tf.int64), tf.constant(rate, tf.float32)


def compilation_key(config: Config, data: Dataset) -> tuple[Any, ...] | None:
    """Return a trainer's cache key; None for a user's class, which may depend on anything."""
    import tensorflow as tf
    from tensorflow.python.framework.config import is_op_determinism_enabled

    model, optimizer, task = config.model, config.optimizer, config.task
    if not all(type(part).__module__.startswith("waymark.") for part in (model, optimizer, task)):
        return None
    compiled = {**vars(optimizer), "learning_rate": None}  # which each call is given
    read = {**getattr(config.data, "__dict__", {}), "path": None}  # the digest tells what is there
    return (
        *(type(model), repr(model), type(optimizer), repr(compiled)),
        *(type(task), repr(task), tuple(config.metrics)),
        *(data.digest, *(isinstance(data.examples(part)[0], Rows) for part in PARTS)),
        *(repr(read), config.data.sampling, config.batch_size, config.precision),
        *(is_op_determinism_enabled(), tf.config.optimizer.get_jit()),
        repr(tf.config.optimizer.get_experimental_options()),
    )


_cached_trainer: dict[Any, Trainer] = {}  # at most one
_cache_lock = threading.Lock()


@contextmanager
def reuse_or_compile(
    config: Config, data: Dataset, new: Trainer | None = None
) -> Iterator[Trainer]:
    """Yield a trainer in a new run's initial state, for one run alone.

    It is the last one, if its key is the same, else `new`, else one that is compiled now, when the
    last one has been dropped. It is kept unless the body raises.
    """
    key = compilation_key(config, data) if data.nbytes < SMALL else None
    with _cache_lock:
        trainer = _cached_trainer.pop(key, None) or new
        _cached_trainer.clear()
    if trainer is None:
        trainer = Trainer(config, data)
    else:
        trainer.reset(config, data)
    with closing(trainer):
        yield trainer
    if key is not None:
        with _cache_lock:
            _cached_trainer.clear()
            _cached_trainer[key] = trainer


class NoProgress:
    """What a training of `steps` steps tells of how it goes, from the step `done` on: nothing."""

    def __init__(
        self, steps: int, done: int, evaluated: str = "test", metric: str = "accuracy"
    ) -> None:
        self.steps, self.done, self.evaluated, self.metric = steps, done, evaluated, metric

    def on_steps(self, step: int, loss: float) -> None:
        """Show that training has reached `step`, whose mean loss of the batch is `loss`."""

    def on_evaluation(self, step: int, loss: float, value: float) -> None:
        """Show the batch's mean loss, and the evaluation's `metric`, at `step`."""

    def close(self) -> None:
        """Leave the terminal as it should be."""


def train(
    config: Config,
    trainer: Trainer,
    record: Record,
    save: Callable[[int, State, dict[str, float], bool], None],
    progress: NoProgress,
    decide: Callable[[int], T | None],
) -> tuple[Score | None, T | None]:
    """Train from where the trainer is up to `config.steps`, or until a decision to stop.

    `save(step, state, metrics, on_schedule)` takes checkpoints every `save.every` steps and at the
    last and, where the best is kept, at the other evaluations (not `on_schedule`);
    `decide(step)` is asked after every chunk whether to stop; None is to go on.

    Return the last evaluation and the decision, None where there was none. Raises Diverged if
    `on_nan` is stop and a loss is not finite.
    """
    step, last, eval_every = trainer.step, config.steps, int(config.eval_every)
    chunk, score, decision, rated_steps, rated_seconds = 1, None, None, 0, 0.0
    while step < last and decision is None:
        steps = min(chunk, *(_steps_until(step, n, last) for n in (config.save.every, eval_every)))
        began = time.perf_counter()
        losses = trainer.run_steps(steps)
        seconds = time.perf_counter() - began
        chunk = max(1, min(int(steps * CHUNK_SECONDS / seconds), 8 * chunk))
        rated_steps, rated_seconds = rated_steps + steps, rated_seconds + seconds
        first, step = step + 1, step + steps
        _record_losses(config, record, first, losses)
        progress.on_steps(step, float(losses[-1]))
        metrics = {}
        if due(step, eval_every, last):
            score = trainer.score()
            metrics = {f"{trainer.evaluated}/{k}": value for k, value in score.metrics.items()}
            rate = {STEPS_PER_SECOND: rated_steps / rated_seconds}
            rated_steps, rated_seconds = 0, 0.0
            record([step], {k: [v] for k, v in (metrics | rate).items()})
            progress.on_evaluation(step, float(losses[-1]), score.judged)
        on_schedule = due(step, config.save.every, last)
        if on_schedule or (metrics and config.save.keep_best):
            save(step, trainer.state(), metrics, on_schedule)
        decision = decide(step) if step < last else None
    return score, decision


def _steps_until(step: int, every: int, last: int) -> int:
    """Return the steps from `step` to the next multiple of `every`, at most to `last`."""
    return min(last - step, every - step % every if every else last)


def _record_losses(config: Config, record: Record, first: int, losses: np.ndarray) -> None:
    """Record the losses of steps from `first`; none behind a non-finite one that stops."""
    broken = np.flatnonzero(~np.isfinite(losses))
    stop = config.on_nan == "stop" and broken.size > 0
    known = losses[: broken[0] + 1] if stop else losses
    every, last = config.log_every, config.steps
    picked = [i for i in range(len(known)) if due(first + i, every, last)]
    record([first + i for i in picked], {TRAIN_LOSS: [float(known[i]) for i in picked]})
    if stop:
        raise Diverged(f"the loss at step {first + int(broken[0])} is {losses[broken[0]]}")
