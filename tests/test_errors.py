"""What went wrong in a user's own code: its reason, its place, and the whole traceback."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waymark import errors
from waymark.comparison.environment import has_bfloat16
from waymark.config.compose import compose_config
from waymark.errors import BadInput, first_line

GRAPH = """Graph execution error:

Detected at node while/MatrixInverse defined at (most recent call last):
  File "{user}/main.py", line 12, in <module>
    main()

  File "{waymark}/train.py", line 116, in one_step

  File "{user}/mine.py", line 25, in logits

Input is not invertible.
\t [[{{{{node while/MatrixInverse}}}}]] [Op:__inference_advance_1249]"""
ROOTS = """Graph execution error:

2 root error(s) found.
  (0) INVALID_ARGUMENT:  Input is not invertible.
\t [[{{node MatrixInverse}}]]
  (1) INVALID_ARGUMENT:  Another.
0 successful operations."""
AUTOGRAPH = """in user code:

    File "{user}/mine.py", line 5, in logits  *
        return parameters["nope"]

    KeyError: 'nope'
"""
KERAS = """Exception encountered when calling Dense.call().

\x1b[1mInput 0 of layer "dense" has the wrong shape\x1b[0m

Arguments received by Dense.call():
  • inputs=tf.Tensor(shape=(10, 784), dtype=float32)"""
PLACES = {"user": "/home/me", "waymark": Path(errors.__file__).parent}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GRAPH, "Input is not invertible. (/home/me/mine.py, line 25)"),
        (ROOTS, "Input is not invertible."),
        (AUTOGRAPH, "KeyError: 'nope' (/home/me/mine.py, line 5)"),
        (KERAS, 'Input 0 of layer "dense" has the wrong shape'),
        ("one\ntwo", "one"),
        ("  \n", "ValueError"),
        ("Graph execution error:", "Graph execution error:"),
    ],
)
def test_the_reason_is_told_not_the_heading(text: str, reason: str) -> None:
    error = ValueError(text.format(**PLACES) if "{user}" in text else text)
    assert errors.explain(error).removeprefix("ValueError: ") == reason
    assert reason.startswith(first_line(error))


MODULE = """
from dataclasses import dataclass

from waymark.models.softmax import Softmax


@dataclass
class Nope(Softmax):
    def logits(self, parameters, images, dropout):
        key = "ghp_abcdefghijklmnopqrstuvwxyz"; return parameters["nope"]


@dataclass
class Three(Softmax):
    def initial(self, spec, key):
        import tensorflow as tf

        return {"weights": tf.zeros([784, 3])}


@dataclass
class Late(Softmax):
    def logits(self, parameters, images, dropout):
        import tensorflow as tf

        wrong = tf.linalg.inv(tf.zeros([3, 3]) * images[0, 0, 0, 0])
        return super().logits(parameters, images, dropout) + wrong[0, 0]
"""
SHORT = ["steps=20", "save.every=10", "eval_every=10", "runtime.intra_op_threads=2"]


@pytest.fixture
def own(place: Path) -> Iterator[Path]:
    (place / "failing.py").write_text(MODULE)
    yield place
    sys.modules.pop("failing", None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Nope", "KeyError: 'nope' (failing.py, line 10)"),
        (
            "Three",
            "the data have labels up to 9, but the model has 3 outputs (failing.py, line 15)",
        ),
        ("Late", "InvalidArgumentError: Input is not invertible. (failing.py, line 26)"),
    ],
)
def test_what_goes_wrong_in_a_users_model_is_told(
    name: str, reason: str, own: Path, main: Callable[..., Any], client: Callable[[Path], Any]
) -> None:
    done = main("run", f"model._target_=failing.{name}", *SHORT)
    (run,) = client(own).search_runs(["1"])
    assert done.returncode == 1
    assert f"run {run.info.run_id} failed: {reason}; resume with: " in done.stderr
    assert (run.info.status, run.data.tags["waymark.reason"]) == ("FAILED", reason)
    text = Path(run.info.artifact_uri, "traceback.txt").read_text()
    assert text.startswith("Traceback (most recent call last):\n")
    assert "failing.py" in text
    assert "ghp_" not in text


@pytest.mark.parametrize(
    ("instructions", "gpus", "known"),
    [
        (["avx2", "avx512f", "avx512_bf16"], [], True),
        (["amx_bf16", "amx_tile"], [], True),
        (["asimd", "bf16"], [], True),
        (["avx2", "fma"], [], False),
        (["avx2", "fma"], ["GPU:0"], None),
        (None, [], None),
    ],
)
def test_whether_there_are_instructions_for_bfloat16(
    instructions: Any, gpus: list[str], known: bool | None
) -> None:
    cpu = {} if instructions is None else {"instructions": instructions}
    assert has_bfloat16({"cpu": cpu, "gpus": gpus}) is known


@pytest.mark.parametrize("known", [True, False, None])
def test_a_slow_bfloat16_is_said_before_training(
    known: bool | None, place: Path, main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("waymark.comparison.environment.has_bfloat16", lambda facts: known)
    done = main("run", "precision=mixed_bfloat16", *SHORT)
    lines = [line for line in done.stderr.splitlines() if "mixed_bfloat16" in line]
    assert (done.returncode, len(lines)) == (0, int(known is False))


def test_a_module_that_fails_when_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_at_once.py").write_text("x = 1\n\ny = {}['nope']\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match=r"KeyError: 'nope' \(.*failing_at_once\.py, line 3\)$"):
        compose_config(["model._target_=failing_at_once.Model"])
