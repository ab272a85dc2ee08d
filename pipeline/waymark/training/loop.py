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
from waymark.config.functions import takes_learning_rate
from waymark.config.schema import Config
from waymark.data.dataset import PARTS, Dataset, ImageSpec
from waymark.data.randomness import INITIAL, Tensor, random_key
from waymark.data.rows import is_read
from waymark.data.sources import MAX_CACHED_BYTES
from waymark.errors import BadInput, UserMessage
from waymark.models import NO_STATISTICS, Tensors, first_values, functions_of
from waymark.names import LEARNING_RATE, STEPS_PER_SECOND, TRAIN_LOSS
from waymark.training import streaming
from waymark.training.hidden_state import refuse_variables
from waymark.training.score import Score, Scorer, make_scorer
from waymark.training.steps import compile_steps

T = TypeVar("T")
Record = Callable[[list[int], Mapping[str, list[float]]], None]  # as many values as steps
CHUNK_SECONDS = 0.25  # of one call into TensorFlow: how long a signal and the bar wait


class Diverged(Exception):
    """Say at which step the loss was no longer finite."""


class DoesNotFit(UserMessage):
    """Say which entry of a state does not fit the model and the optimizer."""


def due(step: int, every: int, last: int) -> bool:
    """Tell whether something done every so many steps (0: only at the end) is due now."""
    return step == last or (every > 0 and step % every == 0)


def initial_state(
    config: Config, spec: ImageSpec, statistics: Mapping[str, np.ndarray] = NO_STATISTICS
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return a new run's state, which names in it are the parameters, and which the buffers.

    Those are what the model keeps beside its parameters. Raises HiddenState.

    The `statistics` of the training set are entries of the state, under names of their own, or
    BadInput is raised.
    """
    import tensorflow as tf

    state: dict[str, tf.Tensor] = {}
    known: list[Any] = []
    with refuse_variables((config.model, config.optimizer), known):
        key = partial(random_key, config.seed, INITIAL)
        parameters, buffers = first_values(config.model, spec, key, config.seed, config.precision)
        state |= parameters
        state |= buffers
        state |= config.optimizer.slots(parameters)
        known += [*state.values(), *getattr(config.optimizer, "variables", dict)().values()]
    if taken := state.keys() & statistics.keys():
        raise BadInput(
            f"{type(config.model).__name__} has a parameter {min(taken)!r}, which is the name of "
            f"a statistic of the training set; data.standardise=false does without them."
        )
    state |= {name: tf.constant(value) for name, value in statistics.items()}
    return {"step": tf.constant(0, tf.int64), **state}, list(parameters), list(buffers)


def averages(config: Config) -> Mapping[str, str]:
    """Return by a parameter's name the entry that is scored in its place, where a mean is kept.

    To be asked for after `initial_state`.
    """
    return getattr(config.optimizer, "averages", dict)()


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


class Trainer:
    """A run's state on the device, and the compiled functions that train and score it."""

    def __init__(self, config: Config, data: Dataset) -> None:
        import tensorflow as tf

        initial, names, kept = initial_state(config, data.spec, data.statistics)
        getattr(config.model, "check_data", lambda _: None)(data)
        self._spec, self._statistics = data.spec, data.statistics
        self._batches = _batches(config, data)
        made: Tensors = getattr(config.optimizer, "variables", dict)()  # those that it works on
        self._variables = {
            name: made[name] if name in made else tf.Variable(value, trainable=False)
            for name, value in initial.items()
        }
        self.parameters, self._buffers = (
            {name: self._variables[name] for name in each} for each in (names, kept)
        )
        parts = self._variables, self.parameters, self._buffers
        self._run_steps = compile_steps(config, data, *parts)
        self.evaluated = data.evaluated  # the set that evaluations in training are on
        self.scorer = make_scorer(config, data, data.evaluated)
        self.averages = averages(config)
        scored = [*names, *kept, *data.statistics]
        self._scored = {n: self._variables[self.averages.get(n, n)] for n in scored}
        self.scorer.compile(self._scored)
        self.restored_scorer: Scorer | None = None  # of what was restored, compiled anew
        self.learning_rate: float | None = None  # of the last step, if the optimizer takes one
        self._inputs = _inputs(config)
        self._takes_rate = takes_learning_rate(config.optimizer)

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
            return self._call(tf.constant(steps, tf.int32))
        losses, step = [], self.step
        end = step + steps
        while step < end:
            chunk = self._batches.at(step)
            count = tf.constant(min(end, chunk.end) - step, tf.int32)
            losses.append(self._call(count, *chunk.tensors))
            step += len(losses[-1])
        return np.concatenate(losses)

    def _call(self, steps: Tensor, *chunk: Any) -> np.ndarray:
        losses, rate = self._run_steps(steps, *self._inputs, *chunk)
        self.learning_rate = float(rate) if self._takes_rate else None
        return losses.numpy()

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
        """Return names and shapes, in the model's order, of what it computes with.

        These are the parameters, and those of the buffers that are floating point.
        """
        buffers = {name: v for name, v in self._buffers.items() if v.dtype.is_floating}
        return {name: tuple(v.shape) for name, v in {**self.parameters, **buffers}.items()}

    def score(self) -> Score:
        """Score the parameters as they are on the whole validation set, else the test set."""
        return self.scorer(self._scored)


def _batches(config: Config, data: Dataset) -> streaming.Batches | None:
    """Return what reads the batches of a run whose data are larger than memory."""
    return streaming.Batches(config, data) if is_read(data.x_train) else None


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
    if not all(name.startswith("waymark.") for name in functions_of(model)):
        return None
    # The learning rate each call is given, or it is an entry of the state.
    compiled = {key: value for key, value in vars(optimizer).items() if not key.startswith("_")}
    compiled["learning_rate"] = None
    read = {**getattr(config.data, "__dict__", {}), "path": None}  # the digest tells what is there
    return (
        *(type(model), repr(model), type(optimizer), repr(compiled)),
        *(type(task), repr(task), tuple(config.metrics)),
        *(data.digest, *(is_read(data.examples(part)[0]) for part in PARTS)),
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
    key = compilation_key(config, data) if data.nbytes < MAX_CACHED_BYTES else None
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
            extra = {STEPS_PER_SECOND: rated_steps / rated_seconds}
            if trainer.learning_rate is not None:
                extra[LEARNING_RATE] = trainer.learning_rate
            rated_steps, rated_seconds = 0, 0.0
            record([step], {k: [v] for k, v in (metrics | extra).items()})
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
