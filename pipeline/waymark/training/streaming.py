"""Examples that are larger than memory: a thread reads the next ones while TensorFlow computes.

They come in chunks: the batches of k steps as one tensor [k, batch, ...], or some of a set's
examples, in order. How long a chunk is decides nothing: a batch is a function of seed and step.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar

import numpy as np

from waymark.config.schema import Config
from waymark.data.dataset import Dataset
from waymark.data.randomness import Tensor
from waymark.data.rows import Features, each, entries, is_read
from waymark.data.sources import batch_indices
from waymark.tasks import training_truth

T = TypeVar("T")
CHUNK_BYTES = 2**25  # of features; of a chunk there are up to four copies, of the next one three
THREAD = "read ahead"  # the name of the threads
GATHER_SECONDS = (
    1.0  # that reading a chunk takes, where it is slow: how long the end of a run waits
)


class ReadAhead(Generic[T]):
    """Iterate over `items`; a thread makes the next one as soon as one has been taken."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._next, self._thread = self._begin()

    def _begin(self) -> tuple[Future[T], threading.Thread]:
        item: Future[T] = Future()
        thread = threading.Thread(target=self._make, args=[item], name=THREAD, daemon=True)
        thread.start()
        return item, thread

    def _make(self, item: Future[T]) -> None:
        try:
            item.set_result(next(self._items))
        except BaseException as error:  # the end among them: whoever takes the item has it
            item.set_exception(error)

    def __iter__(self) -> "ReadAhead[T]":
        return self

    def __next__(self) -> T:
        item = self._next.result()
        self._next, self._thread = self._begin()
        return item

    def close(self) -> None:
        """Wait until the thread has ended; what it made is not needed."""
        self._thread.join()


class _Pace:
    """How many steps or batches the next chunk has: as many as its bounds allow."""

    def __init__(self, bytes_each: int, bound: int) -> None:
        self._most = max(1, bound // max(1, bytes_each))
        self._count, self._began = 1, 0.0

    def begin(self, left: int) -> int:
        """Return how many a chunk that is read now has, of those that are left."""
        self._began = time.perf_counter()
        self._count = min(self._count, left)
        return self._count

    def end(self) -> None:
        """Note that the chunk has been read."""
        seconds = max(time.perf_counter() - self._began, 1e-6)
        within = int(self._count * GATHER_SECONDS / seconds)
        self._count = max(1, min(within, 8 * self._count, self._most))


@dataclass(frozen=True)
class Chunk:
    """The batches of the steps from `first` to before `end`, counted from 0."""

    first: int
    end: int
    tensors: Sequence[Any]  # `first`, features [k, batch, ...], labels, and weights if any


class Batches:
    """The batches of a run, of which those that training has come to are in memory."""

    def __init__(self, config: Config, data: Dataset) -> None:
        self._images, self._truth = data.x_train, training_truth(config.task, data)
        self._config, self._size = config, config.batch_size
        self._ahead: ReadAhead[Chunk] | None = None
        self._chunk = Chunk(0, 0, ())
        self._indices = _compile_indices(config.data.sampling, self._size, len(self._images))

    def at(self, step: int) -> Chunk:
        """Return a chunk in which the step after `step` is; raise what reading raises."""
        if not self._chunk.first <= step < self._chunk.end:
            if self._ahead is None or step != self._chunk.end or step >= self._config.steps:
                self.close()
                self._ahead = ReadAhead(self._chunks(step))
            self._chunk = next(self._ahead)
        return self._chunk

    def close(self) -> None:
        """Wait until no thread reads any more."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead, self._chunk = None, Chunk(0, 0, ())

    def _chunks(self, first: int) -> Iterator[Chunk]:
        import tensorflow as tf

        pace = _Pace(self._size * row_bytes(self._images), CHUNK_BYTES)
        last = max(self._config.steps, first + 1)
        while first < last:
            end = first + pace.begin(last - first)
            numbers = (self._config.seed, first, end)
            picked = self._indices(*(tf.constant(each, tf.int64) for each in numbers)).numpy()
            to_batches = partial(_to_batches, end - first, self._size)
            images = tf.nest.map_structure(to_batches, self._images[picked.reshape(-1)])
            tensors = (
                tf.constant(first, tf.int64),
                tf.nest.map_structure(tf.constant, images),
                *(tf.constant(array[picked]) for array in self._truth),
            )
            del images
            pace.end()
            yield Chunk(first, end, tensors)
            first = end


def _to_batches(steps: int, size: int, array: np.ndarray) -> np.ndarray:
    return array.reshape(steps, size, *array.shape[1:])


@lru_cache(4)
def _compile_indices(sampling: str, size: int, examples: int) -> Any:
    """Compile a function of seed, first and end, int64 []: which examples the batches have.

    One call returns those of the steps first + 1 to end, int64 [steps, size].
    """
    import tensorflow as tf

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([], tf.int64)] * 3)
    def indices(seed: tf.Tensor, first: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda step: batch_indices(sampling, seed, step, size, examples),
            tf.range(first + 1, end + 1),
            fn_output_signature=tf.TensorSpec([size], tf.int64),
        )

    return indices.get_concrete_function()  # asked for by name: no retracing is counted


def signature(config: Config, data: Dataset) -> list[Any]:
    """Return the specs of a chunk's tensors, for the function that trains on it."""
    import tensorflow as tf

    arrays, size = (data.x_train, *training_truth(config.task, data)), config.batch_size
    # With a batch's size: TensorFlow multiplies by 1 / size where it knows it, else it divides.
    specs = [each(lambda x: tf.TensorSpec([None, size, *x.shape[1:]], x.dtype), a) for a in arrays]
    return [tf.TensorSpec([], tf.int64), *specs]


def batch_of(step: Tensor, first: Tensor, *arrays: Any) -> list[Any]:
    """Return what a chunk holds of the batch of `step` (from 1), at most of the chunk's last."""
    import tensorflow as tf

    place = tf.minimum(step - first, tf.shape(arrays[1], tf.int64)[0]) - 1
    return list(tf.nest.map_structure(lambda array: array[place], arrays))


def row_bytes(features: Features) -> int:
    """Return how many bytes one example takes."""
    arrays = entries("", features).values()
    return sum(int(np.prod(x.shape[1:], dtype=np.int64)) * x.dtype.itemsize for x in arrays)


def is_large(features: Features) -> bool:
    """Tell whether a set of examples that is scored again and again is read again and again."""
    return is_read(features) and len(features) * row_bytes(features) > CHUNK_BYTES


def in_order(
    images: Features, labels: np.ndarray, size: int
) -> "closing[ReadAhead[tuple[Tensor, Tensor]]]":
    """Return a context of what iterates over a set, in chunks of whole batches of `size`."""
    import tensorflow as tf

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        # Training has its chunks in memory meanwhile; shorter ones take no longer here.
        pace, start = _Pace(size * row_bytes(images), CHUNK_BYTES // 4), 0
        while start < len(labels):
            rows = slice(start, start + size * pace.begin(-(-(len(labels) - start) // size)))
            features = tf.nest.map_structure(tf.constant, images[rows])
            chunk = features, tf.constant(labels[rows])
            pace.end()
            yield chunk
            start = rows.stop

    return closing(ReadAhead(chunks()))
