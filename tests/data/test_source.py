"""Sources of the user's own: what an example may be, what is refused, what is read how often."""

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from waymark.config.compose import compose_config
from waymark.config.record import from_record
from waymark.data import digests, source, splits
from waymark.data.dataset import Dataset
from waymark.data.rows import Rows
from waymark.errors import BadInput

from tests.support.data import pictures

ARRAYS = pictures(200, 60)
Change = Callable[[int, Any, int], Any]  # index, features, label -> an example


class Examples:
    """Examples as `change` makes them; counts how often one is asked for."""

    def __init__(self, part: str, change: Change, **attributes: Any) -> None:
        self.x, self.y = ARRAYS[f"x_{part}"], ARRAYS[f"y_{part}"].tolist()
        self.change, self.asked = change, 0
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        return self.change(index, self.x[index], self.y[index])


def pair(index: int, x: Any, y: int) -> Any:
    return x, y


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., ModuleType]]:
    """Return what makes the module `own_data`, whose `train` and `test` make sources; as in a
    new process, with a cache that is empty."""
    monkeypatch.setattr(digests, "folder", lambda: tmp_path / "cache")

    def make(change: Change = pair, **attributes: Any) -> ModuleType:
        module: Any = ModuleType("own_data")
        module.made = []

        def train(part: str = "train") -> Examples:
            module.made.append(Examples(part, change, **attributes))
            return module.made[-1]

        def test(**settings: Any) -> Examples:
            return train("test")

        for function in (train, test):
            function.__module__ = "own_data"
            setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, "own_data", module)
        monkeypatch.setattr(source, "_last", {})
        return module

    yield make


def data_of(*overrides: str) -> Dataset:
    words = ["data=source", "data.train=own_data.train", "data.test=own_data.test"]
    config = compose_config([*words, *overrides]).config
    return splits.load(config.data, config.task)


EXAMPLES: dict[str, tuple[Change, list[str]]] = {
    "tuple": (pair, []),
    "list": (lambda i, x, y: [x, y], []),
    "lists of numbers": (lambda i, x, y: (x.tolist(), y), []),
    "Pillow": (lambda i, x, y: {"image": Image.fromarray(x), "label": y}, []),
    "x and y": (lambda i, x, y: {"y": np.int64(y), "x": x}, []),
    "named label": (lambda i, x, y: {"digit": y, "img": x}, ["data.label=digit"]),
    "named": (
        lambda i, x, y: {"id": i, "img": x, "label": "no", "digit": y},
        ["data.label=digit", "data.features=img"],
    ),
    "named features": (
        lambda i, x, y: {"id": i, "img": x, "label": y}, ["data.features=img"],
    ),
    "one-hot": (lambda i, x, y: (x, np.eye(10)[y]), []),
    "text": (lambda i, x, y: (x, f"{y}{'-' * y}"), []),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXAMPLES)
def test_examples_as_people_have_them(module: Any, kind: str) -> None:
    change, words = EXAMPLES[kind]
    module(change)
    data = data_of(*words, "data.validation=0.2")
    assert isinstance(data.x_train, Rows) and isinstance(data.x_test, Rows)
    kept = splits.hold_out(Dataset("npz", "memory", **ARRAYS), compose_config(
        ["data=arrays", "data.path=x", "data.validation=0.2"]
    ).config.data)  # fmt: skip
    for part in ("train", "val", "test"):
        x, y = data.examples(part)
        known, labels = kept.examples(part)
        assert np.array_equal(x[:], known[..., np.newaxis]) and np.array_equal(y, labels)
    assert data.class_names[1:2] == (("1-",) if kind == "text" else ())


def test_floats_are_float32_as_those_of_arrays(module: Any) -> None:
    module(lambda i, x, y: (x.ravel() / 255, y))
    data = data_of()
    assert data.x_train.dtype == np.float32 and data.x_train.shape == (200, 64)
    expected = (ARRAYS["x_train"].reshape(200, -1) / 255).astype(np.float32)
    assert np.array_equal(data.x_train[:], expected)


def test_settings_are_handed_over_and_a_test_set_held_out(module: Any) -> None:
    own = module()
    data = data_of("data.settings={part: test}", "data.test=20")
    assert (len(data.x_train), len(data.x_test), len(own.made)) == (40, 20, 1)


def test_they_are_read_through_once_a_process(module: Any) -> None:
    own = module()
    first = data_of()
    assert [each.asked for each in own.made] == [201, 61]  # the first one twice
    assert data_of().digest == data_of("data.validation=0.1").digest == first.digest
    assert [each.asked for each in own.made[:2]] == [201, 61]
    own = module()  # as in another process
    assert data_of().digest == first.digest and own.made[0].asked == 201


@pytest.mark.parametrize(
    "other",
    [
        lambda i, x, y: (x ^ (i == 199), y),
        lambda i, x, y: (x, (y + (i == 199)) % 10),
        lambda i, x, y: (x.astype(np.uint16), y),
        lambda i, x, y: (x.reshape(4, 16), y),
    ],
)
def test_other_examples_are_other_data(module: Any, other: Change) -> None:
    module()
    first = data_of().digest
    module(other)
    assert data_of().digest != first


@pytest.mark.parametrize("name", ["fingerprint", "_fingerprint"])
def test_a_fingerprint_spares_reading(module: Any, name: str) -> None:
    module(**{name: "abc"})
    first = data_of()
    own = module(**{name: "abc"})
    second = data_of()
    assert [each.asked for each in own.made] == [0, 0]
    assert second.digest == first.digest and np.array_equal(second.y_train, first.y_train)
    assert np.array_equal(second.x_train[:3], first.x_train[:3]) and own.made[0].asked == 3
    own = module(**{name: "abd"})
    assert data_of().digest != first.digest and own.made[0].asked == 201
    own = module(lambda i, x, y: {"image": x, "y": y}, **{name: "abc"})  # another entry
    assert data_of("data.label=y").digest != first.digest and own.made[0].asked == 201


def test_damage_in_the_cache_is_read_over(module: Any, tmp_path: Path) -> None:
    module(fingerprint="abc")
    first = data_of().digest
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:99])
    own = module(fingerprint="abc")
    assert data_of().digest == first and own.made[0].asked == 201


def at(place: int, then: Any) -> Change:
    """Return a change that makes of one example what `then` does, or is."""
    return lambda i, x, y: (then(x, y) if callable(then) else then) if i == place else (x, y)


def failing(x: Any, y: Any) -> Any:
    raise OSError("the disk is gone")


ENTRIES = "has the entries a, b, label; name two with data.features and data.label"
WRONG: dict[str, tuple[Change, str]] = {
    "an exception": (at(7, failing), "is not read: OSError: the disk is gone"),
    "nothing": (at(7, None), "is a NoneType; allowed are (features, label) and a mapping of both"),
    "an array": (at(7, lambda x, y: x), "is a ndarray; allowed are (features, label) and"),
    "three": (at(7, lambda x, y: (x, y, y)), "is a tuple of 3; allowed are"),
    "three entries": (at(7, lambda x, y: {"a": x, "b": x, "label": y}), ENTRIES),
    "no label": (at(7, lambda x, y: {"a": x}), "has the entries a; name two with data.features"),
    "another shape": (
        at(7, lambda x, y: (x[:4], y)), "has features uint8[4, 8], but example 0 uint8[8, 8]",
    ),
    "another dtype": (
        at(7, lambda x, y: (x / 255, y)), "has features float32[8, 8], but example 0 uint8[8, 8]",
    ),
    "a text": (at(7, ("a", 1)), "has features of dtype <U1; allowed are integers, float16, "),
    "ragged": (at(7, ([[1], [1, 2]], 1)), "is not read: ValueError: setting an array element"),
    "no dimension": (at(0, (1, 1)), "has features of shape []; allowed are [D], [H, W]"),
    "empty": (at(0, ([], 1)), "has features of shape [0]; allowed"),
    "nothing in it": (at(0, (np.zeros((0, 3), "u1"), 1)), "has features of shape [0, 3]; "),
    "no number as label": (at(7, lambda x, y: (x, None)), "has a label of dtype object; allowed"),
    "a text among numbers": (
        at(7, lambda x, y: (x, "a")), "has a label of texts [], but example 0 of numbers []",
    ),
    "a longer label": (
        at(7, lambda x, y: (x, [y, y])), "has a label of numbers [2], but example 0 of numbers []",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_example_is_named(module: Any, case: str) -> None:
    change, said = WRONG[case]
    module(change)
    with pytest.raises(BadInput) as error:
        data_of()
    start, _, found = str(error.value).partition(": example ")
    assert start == "data.train=own_data.train"
    index, _, found = found.partition(" ")
    assert index == ("0" if case in FIRST else "7")
    assert found.startswith(said) and found.endswith("."), found


def test_a_float_that_is_not_finite_is_named(module: Any) -> None:
    module(lambda i, x, y: (np.where(i == 7, np.inf, x / 255), y))
    with pytest.raises(BadInput, match=r"example 7 has a value that is not finite as a float32\.$"):
        data_of()


def test_an_example_that_is_another_one_later_is_named(module: Any) -> None:
    own = module(fingerprint="abc")
    data = data_of()
    own.made[0].change = at(7, lambda x, y: (x[:4], y))
    with pytest.raises(BadInput, match=r"^data.train=own_data.train: example 7 has features "):
        data.x_train[5:9]
    own.made[0].change = at(7, failing)
    with pytest.raises(BadInput, match="example 7 is not read: OSError: the disk is gone"):
        data.x_train[[3, 7]]


class Bare:
    def __len__(self) -> int:
        return 3


OBJECTS: dict[str, tuple[Any, str]] = {
    "no object": (None, "TypeError: object of type 'NoneType' has no len()"),
    "a generator": (iter([]), "TypeError: object of type 'list_iterator' has no len()"),
    "nothing in it": ([], "holds no example."),
    "no index": (Bare(), "example 0 is not read: TypeError: 'Bare' object is not subscriptable"),
    "by name": ({"a": 1}, "example 0 is not read: KeyError: 0"),
    "a number as fingerprint": (
        Examples("train", pair, fingerprint=5), "its fingerprint is a int, where a text is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OBJECTS)
def test_what_is_no_source_is_refused(module: Any, case: str) -> None:
    own, (found, said) = module(), OBJECTS[case]
    own.train = lambda: found
    with pytest.raises(BadInput) as error:
        data_of("data.test=0.2")
    assert str(error.value).startswith(f"data.train=own_data.train: {said}"), error.value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["data.train=own_data.nothing"],
            "data.train='own_data.nothing' (the command line): cannot",
        ),
        (
            ["data.train=own_data.__name__"],
            "data.train='own_data.__name__' (the command line): is not a function.",
        ),
        (["data.test=no_such.test"], "data.test='no_such.test' (the command line): cannot be "),
        (
            ["data.train=waymark.api.run"],
            "data.train='waymark.api.run' (the command line): is part",
        ),
        (["data.test=waymark.files.replace_file"], "data.test='waymark.files.replace_file' (the "),
        (["data.settings={part: tost}"], "data.train=own_data.train: KeyError: 'x_tost' ("),
        (["data.settings={size: 3}"], "data.train=own_data.train: TypeError: "),
        (["data.settings=3"], "data.settings=3 (the command line): "),
        (["data.test=1.5"], "data.test=1.5 (the command line): "),
        (["data.validation=200"], "data.validation=200: holds out 200 of 200 examples; "),
        (["data.group=patient"], "data.group='patient': source has no groups."),
        (["data.label=label"], "data.train=own_data.train: example 0 is a tuple, which has no"),
    ],
)
def test_settings_that_do_not_fit_are_refused(module: Any, words: list[str], said: str) -> None:
    module()
    with pytest.raises(BadInput) as error:
        data_of(*words)
    assert str(error.value).startswith(said), error.value


def test_one_example_is_asked_for_at_a_time(module: Any) -> None:
    """Though training reads ahead while an evaluation reads: few objects are made for threads."""
    inside, most = [0], [0]
    wait = threading.Event()

    def slow(i: int, x: Any, y: int) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        wait.wait(0.001)
        inside[0] -= 1
        return x, y

    module(slow)
    data = data_of()
    readers = [threading.Thread(target=lambda: data.x_train[:30]) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert most == [1]


FORGED = "own_forged"


@pytest.fixture
def forged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that a module leaves when it is imported, or its function is called."""
    trace = tmp_path / "trace"
    text = f"open({str(trace)!r}, 'w').close()\ndef train(): open({str(trace)!r}, 'w').close()\n"
    (tmp_path / f"{FORGED}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return trace


@pytest.mark.parametrize("key", ["train", "test"])
@pytest.mark.parametrize(
    ("name", "trusted"),
    [
        (f"{FORGED}.train", []),
        (f"{FORGED}.train", ["own"]),
        ("os.system", []),
        ("waymark.users_code.Path", []),
        ("waymark.config.record.yaml.unsafe_load", []),
        ("waymark.files.replace_file", []),
        ("waymark.files.replace_file", ["waymark"]),
        ("pipeline.data.my_data", []),
    ],
)
def test_a_name_in_a_record_is_not_imported_unless_trusted(
    forged: Path, tmp_path: Path, key: str, name: str, trusted: list[str]
) -> None:
    own = sys.modules.setdefault("own_data", ModuleType("own_data"))
    own.train = pair  # type: ignore[attr-defined]
    record = compose_config(["data=source", "data.train=own_data.train", "data.test=0.2"]).record()
    body = yaml.safe_load(record)
    body["data"] |= {key: name, "settings": {"path": str(tmp_path / "precious"), "content": ""}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(body))
    (tmp_path / "precious").write_text("kept")
    with pytest.raises(
        BadInput, match=rf"^data\.({key}|train)='.*' \(recorded in .*is (not )?part of "
    ):
        from_record(tmp_path / "config.yaml", {}, trusted, ())
    assert not forged.exists() and (tmp_path / "precious").read_text() == "kept"
    assert FORGED not in sys.modules
    del sys.modules["own_data"]


FIRST = ("no dimension", "empty", "nothing in it")  # cases of example 0
