"""Randomness: keys that never collide, and batches that are a function of seed and step."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waymark.data.randomness import DROPOUT, INITIAL, SAMPLING, random_key
from waymark.data.sources import batch_indices
from waymark.training.runtime import start_tensorflow

tf: Any = start_tensorflow(2)

SEEDS = st.integers(0, 2**63 - 1)
STEPS = st.integers(1, 2**40)
LARGE = [0, 1, 5, 2**8, 2**31, 2**32, 2**32 + 1, 2**32 + 5, 2**33, 2**48, 2**62, 2**63 - 1]
few = settings(max_examples=25, deadline=None)


def indices(sampling: str, seed: int, step: int, batch: int, examples: int) -> np.ndarray:
    at = tf.constant(step, tf.int64)
    result: np.ndarray = batch_indices(sampling, seed, at, batch, examples).numpy()
    return result


def epochs(seed: int, examples: int, batch: int, count: int) -> np.ndarray:
    """Return the first `count` epochs' orders, [count, examples], from batches run on end."""
    steps = -(-count * examples // batch)
    if steps < 40:
        drawn = [indices("epoch", seed, step, batch, examples) for step in range(1, steps + 1)]
    else:  # many small calls take longer than compiling them into one
        numbers = tf.range(1, steps + 1, dtype=tf.int64)
        drawn = tf.function(
            lambda: tf.map_fn(lambda s: batch_indices("epoch", seed, s, batch, examples), numbers),
            autograph=False,
        )().numpy()
    return np.concatenate(drawn)[: count * examples].reshape(count, examples)


# Keys


@few
@given(seed=SEEDS, purpose=st.sampled_from([INITIAL, SAMPLING, DROPOUT]), number=STEPS)
def test_a_key_says_seed_purpose_and_number(seed: int, purpose: int, number: int) -> None:
    key = random_key(seed, purpose, number)
    assert (key.dtype, key.shape) == (tf.int64, [2])
    assert key.numpy().tolist() == [seed, (purpose << 48) + number]
    same = random_key(tf.constant(seed, tf.int64), purpose, tf.constant(number, tf.int64))
    assert np.array_equal(key, same)


def test_purposes_differ() -> None:
    assert len({INITIAL, SAMPLING, DROPOUT}) == 3


# Batches with replacement


@few
@given(seed=SEEDS, step=STEPS, batch=st.integers(1, 64), examples=st.integers(1, 10**6))
def test_replacement_is_a_function_of_seed_and_step(
    seed: int, step: int, batch: int, examples: int
) -> None:
    drawn = indices("replacement", seed, step, batch, examples)
    assert (drawn.dtype, drawn.shape) == (np.int64, (batch,))
    assert 0 <= drawn.min() <= drawn.max() < examples
    assert np.array_equal(drawn, indices("replacement", seed, step, batch, examples))


@pytest.mark.parametrize("sampling", ["replacement", "epoch"])
def test_every_bit_of_the_seed_counts(sampling: str) -> None:
    drawn = {indices(sampling, seed, 1, 50, 60_000).tobytes() for seed in LARGE}
    assert len(drawn) == len(LARGE)


@pytest.mark.parametrize("sampling", ["replacement", "epoch"])
def test_a_compiled_function_draws_the_same(sampling: str) -> None:
    compiled = tf.function(
        lambda step: batch_indices(sampling, 2**40 + 3, step, 32, 100), autograph=False
    )
    for step in range(1, 20):
        drawn = compiled(tf.constant(step, tf.int64)).numpy()
        assert np.array_equal(drawn, indices(sampling, 2**40 + 3, step, 32, 100))


def test_replacement_is_uniform() -> None:
    drawn = np.stack([indices("replacement", 3, step, 500, 50) for step in range(1, 201)])
    counts = np.bincount(drawn.ravel(), minlength=50)
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert chi2 < 95  # 49 degrees of freedom: one in ten thousand is above
    assert len({row.tobytes() for row in drawn}) == 200
    for shift in (1, 2):  # neither within a batch nor from batch to batch
        assert abs(np.corrcoef(drawn[:, shift:].ravel(), drawn[:, :-shift].ravel())[0, 1]) < 0.015
        assert abs(np.corrcoef(drawn[shift:].ravel(), drawn[:-shift].ravel())[0, 1]) < 0.015


# Epochs


@few
@given(
    seed=SEEDS,
    examples=st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 100, 127, 128, 129])),
    data=st.data(),
)
def test_each_epoch_holds_every_example_once(seed: int, examples: int, data: Any) -> None:
    batch = data.draw(st.integers(max(1, examples // 8), examples))
    for order in epochs(seed, examples, batch, 3):
        assert np.array_equal(np.sort(order), np.arange(examples))


@few
@given(seed=SEEDS, step=STEPS, examples=st.integers(1, 70_000), data=st.data())
def test_epoch_batches_are_a_function_of_seed_and_step(
    seed: int, step: int, examples: int, data: Any
) -> None:
    batch = data.draw(st.integers(1, min(64, examples)))
    drawn = indices("epoch", seed, step, batch, examples)
    assert (drawn.dtype, drawn.shape) == (np.int64, (batch,))
    assert 0 <= drawn.min() <= drawn.max() < examples
    assert np.array_equal(drawn, indices("epoch", seed, step, batch, examples))


def test_the_batch_size_does_not_change_the_order() -> None:
    orders = [epochs(9, 60, batch, 4) for batch in (1, 7, 25, 60)]
    assert all(np.array_equal(order, orders[0]) for order in orders)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_epochs_differ_and_are_disordered(seed: int) -> None:
    examples, count = 1000, 20
    orders = epochs(seed, examples, 500, count)
    assert len({order.tobytes() for order in orders}) == count
    for order, following in pairwise(orders):
        # 0.14 is 4.4 standard deviations of what a random order shows
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.14
        assert abs(np.corrcoef(order, following)[0, 1]) < 0.14
        assert abs(np.corrcoef(order, np.arange(examples))[0, 1]) < 0.14
        assert np.count_nonzero(order == following) < 10
    # Over all epochs each place sees examples from everywhere.
    assert abs(orders.mean(0) - 499.5).max() < 5 * 288.7 / np.sqrt(count)


@pytest.mark.parametrize("examples", [4000, 60_000])
def test_neighbours_in_an_epoch_are_strangers(examples: int) -> None:
    """Look where a cipher of few rounds shows: the index fills its block (60,000 of 65,536)."""
    for order in epochs(2, examples, examples, 4):
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4.5 / np.sqrt(examples)
        assert np.bincount((order[1:] - order[:-1]) % examples).max() < 16


@pytest.mark.parametrize("examples", [300, 70_000])
def test_no_epoch_comes_again(examples: int) -> None:
    """Look at the first 20 of each epoch; words of 8 bits would come again after 256 epochs."""
    firsts = tf.range(1, 700 * (examples // 20), examples // 20, dtype=tf.int64)
    drawn = tf.function(
        lambda: tf.map_fn(lambda step: batch_indices("epoch", 5, step, 20, examples), firsts),
        autograph=False,
    )().numpy()
    assert len({order.tobytes() for order in drawn}) == len(firsts) == 700


def test_neighbouring_seeds_are_not_alike() -> None:
    orders = [epochs(seed, 500, 500, 1)[0] for seed in LARGE]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.2
            assert np.count_nonzero(one == other) < 10


def test_small_sets_see_all_their_orders() -> None:
    counts: dict[bytes, int] = {}
    for seed in range(2):
        for order in epochs(seed, 4, 4, 180):
            counts[order.tobytes()] = counts.get(order.tobytes(), 0) + 1
    assert len(counts) == 24
    chi2 = sum((n - 15) ** 2 / 15 for n in counts.values())
    assert chi2 < 54  # 23 degrees of freedom: about one in four thousand is above
