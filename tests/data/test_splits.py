"""Splits: what is held out, that it is a function of its arguments, and what cannot be split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from waymark.data import splits
from waymark.errors import BadInput

KEYS = st.tuples(st.integers(0, 2**63 - 1), st.sampled_from((splits.TEST, splits.VALIDATION)))


@pytest.mark.parametrize(("size", "count"), [(0.1, 10), (10, 10), (0.005, 0), (0.999, 100), (1, 1)])
def test_a_fraction_and_a_number_count_examples(size: float, count: int) -> None:
    if 1 <= count < 100:
        assert splits.held_out_count(size, 100, "data.validation") == count
        return
    with pytest.raises(BadInput, match=rf"^data.validation={size}: holds out {count} of 100 "):
        splits.held_out_count(size, 100, "data.validation")


@given(st.lists(st.integers(2, 40), min_size=2, max_size=9), KEYS, st.data())
def test_each_class_has_its_share_on_both_sides(sizes: list[int], key, data) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(0).shuffle(labels)
    count = data.draw(st.integers(len(sizes), len(labels) - len(sizes)))
    rows = splits.stratified(labels, count, key)
    assert len(rows) == count and (np.diff(rows) > 0).all()
    held = np.bincount(labels[rows], minlength=len(sizes))
    assert (held >= 1).all() and (held < sizes).all()
    share = np.array(sizes) * count / len(labels)
    free = (share >= 1) & (share <= np.array(sizes) - 1)
    if free.all():
        assert (np.abs(held - share) < 1).all()


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), KEYS, st.data())
def test_a_group_stays_on_one_side(values: list[int], key, data) -> None:
    groups = np.array(values)
    count = data.draw(st.integers(1, len(values) - 1))
    if len(set(values)) == 1:
        with pytest.raises(BadInput, match="has the one value"):
            splits.grouped(groups, count, key)
        return
    rows = splits.grouped(groups, count, key)
    rest = np.setdiff1d(np.arange(len(values)), rows)
    assert rows.size and rest.size
    assert not set(groups[rows]) & set(groups[rest])


def test_the_split_of_a_key_never_changes() -> None:
    """Recorded runs are repeated with it, on whatever NumPy."""
    labels = np.array([0, 1, 1] * 5)
    assert splits.stratified(labels, 5, (7, splits.TEST)).tolist() == [1, 3, 11, 12, 13]


def test_other_keys_split_otherwise() -> None:
    labels = np.arange(1000) % 3
    keys = [(seed, purpose) for seed in range(9) for purpose in (splits.TEST, splits.VALIDATION)]
    assert len({tuple(splits.stratified(labels, 100, key)) for key in keys}) == len(keys)


def test_each_row_is_held_out_as_often_as_another() -> None:
    counts, labels = np.zeros(50), np.arange(50) % 2
    for seed in range(2000):
        counts[splits.stratified(labels, 10, (seed, splits.TEST))] += 1
    assert abs(counts / 2000 - 0.2).max() < 0.05  # 5.6 standard deviations


def test_what_cannot_be_split_is_named() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    with pytest.raises(BadInput, match=r"^class dog has 1 example left to split; "):
        splits.stratified(labels, 3, (0, 1), ["cat", "dog", "owl"])
    with pytest.raises(BadInput, match="no room for each of 2 classes"):
        splits.stratified(np.array([0, 0, 1, 1]), 1, (0, 1))
    with pytest.raises(BadInput, match="group b stands on both sides of row 2"):
        splits.last_rows(4, 2, np.array(["a", "b", "b", "c"]))
    assert splits.last_rows(4, 1, np.array(["a", "b", "b", "c"])).tolist() == [3]
