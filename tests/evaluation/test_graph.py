"""Graphs in files: a model's are scored, everything else is refused and nothing is executed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waymark.checkpoints.ckpt import Ckpt
from waymark.config.compose import compose_config
from waymark.data.sources import Dataset, ImageSpec
from waymark.errors import BadInput
from waymark.evaluation import graph
from waymark.training.runtime import start_tensorflow
from waymark.training.score import make_scorer

THREADS = 2
Tamper = Callable[[Any], None]


@pytest.fixture(scope="module", autouse=True)
def tf() -> Any:
    return start_tensorflow(THREADS)


def small_data(count: int = 30) -> Dataset:
    """Return images [4, 4, 1] of three classes; the test set is what counts here."""
    draw = np.random.default_rng(7)
    images = draw.integers(0, 256, (count, 4, 4, 1)).astype(np.uint8)
    labels = draw.integers(0, 3, count).astype(np.int32)
    labels[:3] = [0, 1, 2]
    return Dataset("small", "here", images, labels, images[::-1].copy(), labels)


DATA = small_data()
WEIGHTS = np.random.default_rng(8).normal(size=(16, 3)).astype(np.float32)


def hits_by_hand() -> int:
    pixels = DATA.x_test.reshape(-1, 16).astype(np.float32) / np.float32(255)
    return int(((pixels @ WEIGHTS).argmax(1) == DATA.y_test).sum())


@dataclass(frozen=True)
class Files:
    """A small graph, as a TF1 program exports it, with a checkpoint beside it."""

    folder: Path
    body: Any  # MetaGraphDef

    @property
    def meta(self) -> Path:
        return self.folder / "model_ckpt.meta"

    @property
    def prefix(self) -> Path:
        return self.folder / "model_ckpt-1"

    def write(self, *tampers: Tamper) -> None:
        body = type(self.body)()
        body.CopyFrom(self.body)
        for tamper in tampers:
            tamper(body)
        self.meta.write_bytes(body.SerializeToString())

    def score(self) -> int:
        return graph.score(self.meta, self.prefix, DATA, THREADS)


def built(folder: Path, more: Callable[[Any, Any], None] = lambda v1, parts: None) -> Files:
    """Build, save and export a small softmax program; `more` adds to its graph."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        inputs = v1.placeholder(tf.float32, [None, 16], name="inputs")
        labels = v1.placeholder(tf.float32, [None, 3], name="labels")
        weights = v1.get_variable("weights", initializer=WEIGHTS)
        right = tf.equal(tf.argmax(inputs @ weights, 1), tf.argmax(labels, 1))
        accuracy = tf.reduce_mean(tf.cast(right, tf.float32), name="accuracy")
        parts = {"inputs": inputs, "labels": labels, "accuracy": accuracy}
        more(v1, parts)
        for name in ("inputs", "labels", "accuracy"):
            v1.add_to_collection("train_var", parts[name])
        session.run(weights.initializer)
        saver = v1.train.Saver([weights])
        saver.save(session, str(folder / "model_ckpt"), 1, write_meta_graph=False)
        body = saver.export_meta_graph()
    files = Files(folder, body)
    files.write()
    return files


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return built(tmp_path_factory.mktemp("graph"))


@pytest.fixture
def files(shared: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """Yield a copy of the small program; afterwards nothing else may lie in its folder."""
    for path in shared.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()} | {"secret": b"s"}
    (tmp_path / "secret").write_bytes(b"s")
    yield Files(tmp_path, shared.body)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name != "model_ckpt.meta")


def refused(files: Files, *said: str) -> None:
    """Assert that the graph is refused in one sentence that begins with its file's path."""
    with pytest.raises(BadInput) as caught:
        files.score()
    text = str(caught.value)
    assert text.startswith(f"{files.meta}: ")
    assert "\n" not in text
    for part in said:
        assert part in text


def node(body: Any, name: str) -> Any:
    (found,) = [each for each in body.graph_def.node if each.name == name]
    return found


def add(body: Any, op: str, name: str, *inputs: str, **types: str) -> Any:
    """Add a node; `types` are its attributes that hold a type."""
    import tensorflow as tf

    new = body.graph_def.node.add(op=op, name=name, input=inputs)
    for key, kind in types.items():
        new.attr[key].type = tf.dtypes.as_dtype(kind).as_datatype_enum
    return new


def add_text(body: Any, name: str, text: str) -> None:
    import tensorflow as tf

    const = add(body, "Const", name, dtype="string")
    const.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(text))


# What a model needs is allowed


def test_a_tf1_programs_graph_is_scored(files: Files) -> None:
    assert files.score() == hits_by_hand()


@pytest.mark.parametrize("model", ["softmax", "cnn"])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_what_waymark_exports_is_scored(model: str, precision: str, tmp_path: Path) -> None:
    from waymark.evaluation.restore import parameter_shapes

    resolved = compose_config([f"model={model}", f"precision={precision}"])
    spec = ImageSpec((4, 4, 1), 3)
    shapes = parameter_shapes(resolved.config, spec)
    draw = np.random.default_rng(1)
    state = {name: draw.normal(0, 0.3, shape).astype("f4") for name, shape in shapes.items()}
    save = resolved.config.save
    assert isinstance(save, Ckpt)
    save.write(tmp_path / "model_ckpt-1", state)
    (tmp_path / "model_ckpt.meta").write_bytes(graph.export(resolved.config, spec, shapes))
    found = graph.score(tmp_path / "model_ckpt.meta", tmp_path / "model_ckpt-1", DATA, THREADS)
    scorer = make_scorer(resolved.config, DATA)
    assert found / len(DATA.x_test) == scorer(state).judged


@pytest.mark.parametrize("optimizer", ["Adam", "GradientDescent", "Momentum"])
@pytest.mark.parametrize("resource", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_training_operations_may_stand_in_it(
    optimizer: str, resource: bool, sharded: bool, tmp_path: Path
) -> None:
    """The TF1 tutorial exports its whole graph: dropout, gradients, optimizer, Saver."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        inputs = v1.placeholder(tf.float32, [None, 16], name="inputs")
        labels = v1.placeholder(tf.float32, [None, 3], name="labels")
        keep = v1.placeholder_with_default(1.0, [], name="keep_prob")

        def variable(shape: list[int]) -> Any:
            first = v1.truncated_normal(shape, stddev=0.1)
            return v1.Variable(first, name="weights", use_resource=resource)

        images = tf.reshape(inputs, [-1, 4, 4, 1])
        x = tf.nn.conv2d(images, variable([3, 3, 1, 2]), [1, 1, 1, 1], "SAME")
        x = tf.nn.max_pool(tf.nn.relu(x + variable([2])), 2, 2, "SAME")
        x = v1.nn.dropout(tf.reshape(x, [-1, 8]), keep_prob=keep)
        logits = tf.nn.bias_add(tf.matmul(x, variable([8, 3])), variable([3]))
        losses = tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        loss = tf.reduce_mean(losses)
        makers = {
            "Adam": v1.train.AdamOptimizer,
            "GradientDescent": v1.train.GradientDescentOptimizer,
            "Momentum": lambda rate: v1.train.MomentumOptimizer(rate, 0.9),
        }
        count = v1.train.get_or_create_global_step()
        train = makers[optimizer](0.01).minimize(loss, count)
        right = tf.equal(tf.argmax(logits, 1), tf.argmax(labels, 1))
        accuracy = tf.reduce_mean(tf.cast(right, tf.float32))
        for tensor in (inputs, labels, accuracy):
            v1.add_to_collection("train_var", tensor)
        session.run(v1.global_variables_initializer())
        pixels = DATA.x_test.reshape(-1, 16).astype(np.float32) / np.float32(255)
        feed = {inputs: pixels, labels: np.eye(3, dtype=np.float32)[DATA.y_test]}
        for _ in range(3):
            session.run(train, feed)
        saver = v1.train.Saver(sharded=sharded)
        saver.save(session, str(tmp_path / "model_ckpt"), count, write_meta_graph=False)
        meta = tmp_path / "model_ckpt.meta"
        saver.export_meta_graph(str(meta))
        expected = round(float(session.run(accuracy, feed)) * len(pixels))
    assert graph.score(meta, tmp_path / "model_ckpt-3", DATA, THREADS) == expected


def test_what_old_graphs_hold_is_scored(tmp_path: Path) -> None:
    """Summaries, conditions and normalisation, as programs of TensorFlow 1.0 have them."""

    def more(v1: Any, parts: dict[str, Any]) -> None:
        import tensorflow as tf

        raw = tf.raw_ops
        images = tf.reshape(parts["inputs"], [-1, 4, 4, 1])
        v1.summary.scalar("accuracy", parts["accuracy"])
        v1.summary.histogram("inputs", raw.LRN(input=images))
        v1.summary.image("images", images)
        v1.summary.merge_all()
        no, yes = raw.Switch(data=tf.floor(parts["accuracy"] + 2), pred=tf.constant(True))
        merged = raw.Merge(inputs=[no, yes])[0]
        parts["accuracy"] = parts["accuracy"] + merged - tf.math.ceil(merged)

    assert built(tmp_path, more).score() == hits_by_hand()


# What could do harm is refused, and is not executed


CALLED: list[str] = []


def hostile_read(v1: Any, parts: dict[str, Any]) -> None:
    import tensorflow as tf

    text = tf.io.read_file("secret", name="hostile")
    length = tf.cast(tf.strings.length(text), tf.float32)
    parts["accuracy"] = tf.identity(parts["accuracy"] + length)


def hostile_write(v1: Any, parts: dict[str, Any]) -> None:
    import tensorflow as tf

    with tf.control_dependencies([tf.io.write_file("written", "x", name="hostile")]):
        parts["accuracy"] = tf.identity(parts["accuracy"])


def hostile_python(v1: Any, parts: dict[str, Any]) -> None:
    import tensorflow as tf

    def call(value: np.ndarray) -> np.ndarray:
        CALLED.append("python")
        return value

    parts["accuracy"] = v1.py_func(call, [parts["accuracy"]], tf.float32, name="hostile")
    parts["accuracy"].set_shape([])


def hostile_function(v1: Any, parts: dict[str, Any]) -> None:
    import tensorflow as tf

    @tf.function(autograph=False)
    def inside(value: Any) -> Any:
        tf.io.write_file("written", "x")
        return value + 1

    parts["accuracy"] = tf.identity(inside(parts["accuracy"]))


def hostile_loop(v1: Any, parts: dict[str, Any]) -> None:
    """Hide a write in the body of a loop: a function in the library."""
    import tensorflow as tf

    def body(count: Any) -> Any:
        tf.io.write_file("written", "x")
        return count + 1

    def condition(count: Any) -> Any:
        return count < 2

    (count,) = tf.while_loop(condition, body, [tf.constant(0)])
    parts["accuracy"] = parts["accuracy"] + tf.cast(count, tf.float32)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (hostile_read, "ReadFile"),
        (hostile_write, "WriteFile"),
        (hostile_python, "PyFunc"),
        (hostile_function, "PartitionedCall"),
        (hostile_loop, "While"),
    ],
)
def test_programs_with_foreign_operations_are_refused(
    more: Callable[[Any, Any], None],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "run").mkdir()
    files = built(tmp_path / "run", more)
    CALLED.clear()
    refused(files, said, "not allowed")
    assert CALLED == []
    assert {path.name for path in tmp_path.iterdir()} == {"run", "secret"}


HOSTILE = ["PyFunc", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "Restore"]
HOSTILE += ["RestoreSlice", "Save", "TFRecordDataset", "Print", "LoadLibrary", "StatefulPartit"]
HOSTILE += ["InitializeTableFromTextFileV2", "ImmutableConst", "XlaLaunch", "accuracy"]


@pytest.mark.parametrize("op", HOSTILE)
@pytest.mark.parametrize("where", ["graph", "function"])
def test_an_operation_outside_the_list_is_refused_wherever_it_stands(
    op: str, where: str, files: Files
) -> None:
    def tamper(body: Any) -> None:
        if where == "graph":
            add(body, op, "hostile")  # nothing depends on it
        else:
            function = body.graph_def.library.function.add()
            function.signature.name = "Relu"
            function.node_def.add(op=op, name="hostile")

    files.write(tamper)
    refused(files, f"holds the operation {op} (hostile), not allowed")


@pytest.mark.parametrize("op", sorted(graph.FILE_OPS))
def test_a_function_holds_no_file_operation(op: str, files: Files) -> None:
    def tamper(body: Any) -> None:
        function = body.graph_def.library.function.add()
        function.signature.name = "helper"
        function.node_def.add(op=op, name="inside")

    files.write(tamper)
    refused(files, f"a function in it holds the file operation {op}")


@pytest.mark.parametrize("control", ["", "^"])
@pytest.mark.parametrize("name", ["save/SaveV2", "save/RestoreV2"])
@pytest.mark.parametrize("target", ["accuracy", "inputs", "labels", "ArgMax"])
def test_the_accuracy_depends_on_no_file_operation(
    name: str, control: str, target: str, files: Files
) -> None:
    def tamper(body: Any) -> None:
        node(body, target).input.append(f"{control}{name}")

    files.write(tamper)
    refused(files, "depends on the file operation", name)


def test_a_merge_of_checkpoints_is_not_run(files: Files) -> None:
    """MergeV2Checkpoints deletes the files that it merges."""

    def tamper(body: Any) -> None:
        add_text(body, "old", "model_ckpt-1")
        add(body, "Pack", "olds", "old", T="string").attr["N"].i = 1
        add_text(body, "new", "merged")
        add(body, "MergeV2Checkpoints", "merge", "olds", "new")
        node(body, "accuracy").input.append("^merge")

    files.write(tamper)
    refused(files, "accuracy:0 depends on the file operation merge")


@pytest.mark.parametrize("name", ["save/SaveV2", "merge", "shard"])
def test_restoring_saves_nothing(name: str, files: Files) -> None:
    def tamper(body: Any) -> None:
        add(body, "MergeV2Checkpoints", "merge", "save/Const", "save/Const")
        add(body, "ShardedFilename", "shard", "save/Const")
        node(body, "save/restore_all").input.append(f"^{name}")

    files.write(tamper)
    refused(files, f"restoring depends on the file operation {name}")


def other_file(body: Any) -> str:
    add_text(body, "other", "elsewhere/model_ckpt-1")
    return "other"


def through_identity(body: Any) -> str:
    add(body, "Identity", "same", other_file(body), T="string")
    return "same"


def joined(body: Any) -> str:
    add(body, "StringJoin", "joined", "save/Const", other_file(body)).attr["N"].i = 2
    return "joined"


def another_output(body: Any) -> str:
    """Read the first output of a node whose second is the one that our path replaces."""
    names = add(body, "Pack", "names", other_file(body), "save/Const", T="string")
    names.attr["N"].i = 2
    add(body, "Unpack", "both", "names", T="string").attr["num"].i = 2
    body.saver_def.filename_tensor_name = "both:1"
    return "both"


def in_circles(body: Any) -> str:
    add(body, "Identity", "one", "two", T="string")
    add(body, "Identity", "two", "one", T="string")
    return "one"


def missing(body: Any) -> str:
    return "nowhere"


def after_a_gap(body: Any) -> str:
    add(body, "Identity", "same", T="string")
    return "same"


@pytest.mark.parametrize(
    "source",
    [other_file, through_identity, joined, another_output, in_circles, missing, after_a_gap],
)
def test_restoring_reads_only_the_path_that_we_give(
    source: Callable[[Any], str], files: Files
) -> None:
    def tamper(body: Any) -> None:
        node(body, "save/RestoreV2").input[0] = source(body)

    files.write(tamper)
    refused(files, "save/RestoreV2 reads another file than the checkpoint")


def test_a_second_restore_is_seen(files: Files) -> None:
    def tamper(body: Any) -> None:
        again = body.graph_def.node.add()
        again.CopyFrom(node(body, "save/RestoreV2"))
        again.name = "again"
        again.input[0] = other_file(body)
        node(body, "save/restore_all").input.append("^again")

    files.write(tamper)
    refused(files, "again reads another file than the checkpoint")


def test_the_path_may_come_through_identity(files: Files) -> None:
    def tamper(body: Any) -> None:
        add(body, "Identity", "same", "save/Const:0", T="string")
        node(body, "save/RestoreV2").input[0] = "same:0"

    files.write(tamper)
    assert files.score() == hits_by_hand()


# What is no such graph is refused in one sentence


def without_collection(body: Any) -> None:
    del body.collection_def["train_var"]


def without_saver(body: Any) -> None:
    body.ClearField("saver_def")


def with_collection(*names: str) -> Tamper:
    def tamper(body: Any) -> None:
        body.collection_def["train_var"].node_list.value[:] = names

    return tamper


def with_bytes(body: Any) -> None:
    body.collection_def["train_var"].bytes_list.value[:] = [b"inputs"]


def with_saver(**fields: str) -> Tamper:
    def tamper(body: Any) -> None:
        for key, value in fields.items():
            setattr(body.saver_def, key, value)

    return tamper


def with_op(name: str, op: str) -> Tamper:
    def tamper(body: Any) -> None:
        node(body, name).op = op

    return tamper


def with_broken_variable(body: Any) -> None:
    body.collection_def["trainable_variables"].bytes_list.value[:] = [b"\xff\xff\xff"]


def with_constant(value: Any) -> Tamper:
    """Make the accuracy a constant."""

    def tamper(body: Any) -> None:
        import tensorflow as tf

        const = add(body, "Const", "fixed", dtype="float32")
        const.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, tf.float32))
        body.collection_def["train_var"].node_list.value[2] = "fixed:0"

    return tamper


def without_restore_inputs(body: Any) -> None:
    del node(body, "save/RestoreV2").input[:]


def twice(body: Any) -> None:
    body.graph_def.node.add().CopyFrom(node(body, "accuracy"))


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (without_collection, "has no collection 'train_var' or no saver"),
        (without_saver, "has no collection 'train_var' or no saver"),
        (with_collection("inputs:0", "accuracy:0"), "must hold inputs, labels, accuracy"),
        (with_bytes, "must hold inputs, labels, accuracy"),
        (with_collection("inputs:0", "labels:0", "nothing:0"), "cannot score this data"),
        (with_collection("inputs:0", "labels:0", "accuracy:7"), "cannot score this data"),
        (with_collection("inputs:0", "labels:0", ""), "cannot score this data"),
        (with_collection("inputs", "labels", "accuracy"), "cannot score this data"),
        (with_collection("labels:0", "inputs:0", "accuracy:0"), "cannot score this data"),
        (with_collection("inputs:0", "labels:0", "ArgMax:0"), "cannot score this data"),
        (with_collection("inputs:0", "labels:0", "weights/read:0"), "cannot score this data"),
        (with_saver(restore_op_name="nothing"), "cannot score this data"),
        (with_saver(restore_op_name=""), "cannot score this data"),
        (with_saver(filename_tensor_name="nothing:0"), "reads another file"),
        (with_saver(filename_tensor_name=""), "reads another file"),
        (without_restore_inputs, "reads another file"),
        (with_op("ArgMax", "MatMul"), "cannot score this data"),
        (with_broken_variable, "cannot score this data"),
        (with_constant(np.nan), "cannot score this data"),
        (with_constant(np.inf), "cannot score this data"),
        (with_constant(1.5), "cannot score this data"),
        (with_constant(-0.5), "cannot score this data"),
        (with_constant([1.0]), "cannot score this data"),
        (with_constant([[1.0, 0.0]]), "cannot score this data"),
        (twice, "cannot score this data"),
    ],
)
def test_what_does_not_fit_together_is_refused(tamper: Tamper, said: str, files: Files) -> None:
    files.write(tamper)
    refused(files, said)


def test_a_missing_graph_is_refused(files: Files) -> None:
    files.meta.write_bytes(b"")
    refused(files, "has no collection")
    files.meta.write_bytes(b"\x0b\x16\x21")
    refused(files, "is not a graph that TensorFlow wrote")
    with pytest.raises(BadInput, match="is not a graph that TensorFlow wrote"):
        graph.score(files.folder / "nothing.meta", files.prefix, DATA, THREADS)
    with pytest.raises(BadInput, match="is not a graph that TensorFlow wrote"):
        graph.score(files.folder, files.prefix, DATA, THREADS)


def test_a_missing_or_foreign_checkpoint_is_refused(files: Files) -> None:
    files.write()
    with pytest.raises(BadInput, match="cannot score this data"):
        graph.score(files.meta, files.folder / "model_ckpt-2", DATA, THREADS)
    Ckpt.write(None, files.folder / "other", {"w": WEIGHTS})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="cannot score this data"):
        graph.score(files.meta, files.folder / "other", DATA, THREADS)
    for path in files.folder.glob("other.*"):
        path.unlink()


def test_a_damaged_checkpoint_is_refused(files: Files) -> None:
    files.write()
    (data,) = files.folder.glob("*.data-*")
    whole = data.read_bytes()
    for damaged in (b"", whole[:20], bytes([whole[0] ^ 1]) + whole[1:]):
        data.write_bytes(damaged)
        refused(files, "cannot score this data")
    data.write_bytes(whole)


def test_other_data_is_refused(files: Files) -> None:
    files.write()
    larger = Dataset("large", "here", *(np.zeros((3, 5, 5, 1), np.uint8), np.arange(3)) * 2)
    with pytest.raises(BadInput, match="cannot score this data"):
        graph.score(files.meta, files.prefix, larger, THREADS)


# Whatever bytes


def harmless(files: Files, body: bytes) -> None:
    """Assert that a file is refused in one sentence, or gives a possible number."""
    files.meta.write_bytes(body)
    try:
        found = files.score()
    except BadInput as error:
        text = str(error)
    else:
        text = f"{files.meta}: {found}" if 0 <= found <= len(DATA.x_test) else "impossible"
    assert text.startswith(f"{files.meta}: ")
    assert "\n" not in text
    names = {"model_ckpt.meta", "checkpoint", "secret"}
    names |= {"model_ckpt-1.index", "model_ckpt-1.data-00000-of-00001"}
    assert {path.name for path in files.folder.iterdir()} == names


fuzz = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzz
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(files: Files, body: bytes) -> None:
    harmless(files, body)


@st.composite
def changes(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Draw some changes to the bytes of a file."""
    one = st.tuples(st.sampled_from("cfix"), st.floats(0, 1, exclude_max=True), st.integers(0, 255))
    drawn = draw(st.lists(one, min_size=1, max_size=4))

    def change(body: bytes) -> bytes:
        for what, place, value in drawn:
            at = int(place * len(body))
            if what == "c":
                body = body[:at]
            elif what == "f":
                body = body[:at] + bytes([body[at] ^ (1 << value % 8)]) + body[at + 1 :]
            elif what == "i":
                body = body[:at] + bytes([value]) + body[at:]
            else:
                body = body[:at] + body[at + value :]
            body = body or b"\0"
        return body

    return change


@fuzz
@given(changes())
def test_a_real_graph_with_other_bytes_is_harmless(
    files: Files, change: Callable[[bytes], bytes]
) -> None:
    harmless(files, change(files.body.SerializeToString()))


NAMES = ["inputs", "inputs:1", "labels", "accuracy", "weights", "ArgMax", "ArgMax:0", "nothing"]
NAMES += [
    "save/Const",
    "save/RestoreV2",
    "save/SaveV2",
    "^save/restore_all",
    "save/Assign",
    "",
    ":",
]
names = st.sampled_from(NAMES)
ops = st.sampled_from(sorted(graph.ALLOWED_OPS) + HOSTILE)


@fuzz
@given(st.data())
def test_a_real_graph_with_other_nodes_is_harmless(files: Files, data: st.DataObject) -> None:
    body = type(files.body)()
    body.CopyFrom(files.body)
    for _ in range(data.draw(st.integers(1, 3))):
        nodes = body.graph_def.node
        chosen = nodes[data.draw(st.integers(0, len(nodes) - 1))]
        what = data.draw(st.sampled_from(["op", "input", "less", "more", "name", "attr", "gone"]))
        if what == "op":
            chosen.op = data.draw(ops)
        elif what == "input" and chosen.input:
            chosen.input[data.draw(st.integers(0, len(chosen.input) - 1))] = data.draw(names)
        elif what == "less" and chosen.input:
            del chosen.input[-1]
        elif what == "more":
            chosen.input.append(data.draw(names))
        elif what == "name":
            chosen.name = data.draw(names)
        elif what == "attr" and chosen.attr:
            del chosen.attr[data.draw(st.sampled_from(sorted(chosen.attr)))]
        elif what == "gone":
            nodes.remove(chosen)
    harmless(files, body.SerializeToString())
