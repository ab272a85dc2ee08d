"""A description in MLflow: Waymark's own is told from what a person typed, which stays."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from waymark import api
from waymark.tracking.description import code, escaped, is_signed, signed, without_typed_over

NOTE = "mlflow.note.content"
TEXTS = st.text(st.characters(exclude_characters="\r"), max_size=60)


@settings(max_examples=50)
@given(TEXTS, TEXTS, st.integers(0, 300), st.sampled_from(["", "x", "\n", "\0", "\ud800"]))
@example("", "", 0, "")
def test_every_change_by_a_person_is_seen(one: str, other: str, at: int, typed: str) -> None:
    ours = signed(one, other)
    assert is_signed(ours) and is_signed(ours.replace("\n", "\r\n"))
    changed = ours[:at] + typed + ours[at + 1 :]
    same = changed.replace("\r\n", "\n") == ours
    assert is_signed(changed) is same
    new = {NOTE: signed("new"), "other": "tag"}
    assert without_typed_over(new, {NOTE: ours}) == without_typed_over(new, {}) == new
    assert without_typed_over(new, {NOTE: "" if same else changed}) == {"other": "tag"}


@given(st.text())
@example("`" * 3 + "a|b<b>\n# x [y](z)")
def test_no_text_acts_in_markdown_or_html(text: str) -> None:
    bare = re.sub(r"\\[\\`*_{}\[\]|~#$>]|&amp;|&lt;|^\d*\\.", "", escaped(text))
    assert not set("\\`*_{}[]|~#$<>&\n\0") & set(bare)
    assert not re.match(r"\d*[-+.)]", escaped(text))
    assert len(signed("x" * 9000, text)) <= 5000
    line = text.replace("\n", " ")
    fence = re.match("`+", code(line))
    assert fence and fence[0] not in re.findall("`+", line) and line in code(line)
    first, *shown, last = code(f"{text}\n\nend").split("\n")
    assert first == last == fence[0].ljust(3, "`") and "\n".join(shown) == f"{text}\n\nend"


def test_it_is_kept_current_unless_somebody_typed_into_it(
    place: Path, client: Callable[[Path], Any]
) -> None:
    words = ["save=npz", "save.every=10", "eval_every=5", "progress=false", "data.validation=0.2"]
    first = api.run("steps=10", *words)
    store = client(place)

    def said() -> str:
        return str(store.get_run(first.run_id).data.tags[NOTE])

    told = said().splitlines()
    assert (
        told[0] == f"- test accuracy **{first.restored_accuracy:.4f}**, of the restored checkpoint"
    )
    step, value = first.best or (0, 0)
    assert told[1] == f"- best validation accuracy so far {value:.4f}, at step {step}"
    assert f"`waymark rerun {first.run_id}`" in told
    again = api.rerun(first.run_id)
    note = store.get_run(again.run_id).data.tags[NOTE]
    assert f"- rerun: **identical to** run {first.run_id}\n" in note and is_signed(note)
    longer = api.resume(first.run_id, "steps=20")
    assert longer and f"**{longer.restored_accuracy:.4f}**" in said() and is_signed(said())
    store.set_tag(first.run_id, NOTE, typed := said() + "\n\nthe one for the paper")
    assert api.resume(first.run_id, "steps=30")
    assert said() == typed
