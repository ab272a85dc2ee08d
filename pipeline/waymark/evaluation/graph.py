"""The graph in a file: `model_ckpt.meta`, scored without any model code.

The collection `train_var` holds inputs float32 [None, pixels], labels float32 [None, classes]
and accuracy, in this order, as the TF1 tutorial's programs expect.
"""

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from waymark.checkpoints.tf_bundle import check_bundle, readable
from waymark.config.schema import Config
from waymark.data.dataset import Dataset, ImageSpec
from waymark.data.rows import Inputs
from waymark.errors import BadInput, first_line, listed
from waymark.models import NO_STATISTICS, forward, scale
from waymark.training.hidden_state import refuse_variables
from waymark.training.loop import averages
from waymark.training.runtime import quiet
from waymark.training.score import IMAGES_PER_BATCH

COLLECTION = "train_var"

FILE_OPS = {"SaveV2", "RestoreV2", "ShardedFilename", "MergeV2Checkpoints"}

# What a model, its gradients, the TF1 tutorial's optimizers, summaries and a Saver are made of,
# in old graphs too. Nothing here reads or writes files (but FILE_OPS), runs foreign code, or
# opens connections.
OPS = """
    Abs Add AddN AddV2 All Any ApplyAdagrad ApplyAdam ApplyGradientDescent ApplyMomentum
    ApplyRMSProp ArgMax ArgMin Assign AssignAdd AssignAddVariableOp AssignSub AssignSubVariableOp
    AssignVariableOp AudioSummary AudioSummaryV2 AvgPool AvgPoolGrad BatchMatMulV2
    BatchNormWithGlobalNormalization BiasAdd BiasAddGrad BiasAddV1 BroadcastGradientArgs BroadcastTo
    Cast Ceil CheckNumerics Concat ConcatOffset ConcatV2 Const Conv2D Conv2DBackpropFilter
    Conv2DBackpropInput Cumsum DepthwiseConv2dNative DepthwiseConv2dNativeBackpropFilter
    DepthwiseConv2dNativeBackpropInput DisableCopyOnRead Div DivNoNan DynamicStitch Elu EluGrad
    Equal Erf Exp ExpandDims Fill Floor FloorDiv FloorMod FusedBatchNorm FusedBatchNormGrad
    FusedBatchNormGradV2 FusedBatchNormGradV3 FusedBatchNormV2 FusedBatchNormV3 Gather GatherV2
    Greater GreaterEqual HistogramSummary Identity IdentityN ImageSummary InTopK InTopKV2 Inv
    InvGrad InvertPermutation IsFinite IsVariableInitialized L2Loss LRN LRNGrad LeakyRelu
    LeakyReluGrad Less LessEqual Log LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul Max MaxPool
    MaxPoolGrad Maximum Mean Merge MergeSummary Min Minimum MirrorPad Mul Neg NoOp NotEqual OneHot
    OnesLike Pack Pad Placeholder PlaceholderWithDefault Pow PreventGradient Prod
    RandomStandardNormal RandomUniform RandomUniformInt Range Rank ReadVariableOp RealDiv Reciprocal
    ReciprocalGrad RefMerge RefSwitch Relu Relu6 Relu6Grad ReluGrad Reshape ResourceApplyAdagrad
    ResourceApplyAdam ResourceApplyGradientDescent ResourceApplyKerasMomentum ResourceApplyMomentum
    ResourceApplyRMSProp ReverseV2 Round Rsqrt RsqrtGrad ScalarSummary Select SelectV2 Selu SeluGrad
    Shape ShapeN Sigmoid SigmoidGrad Sign Size Slice Softmax SoftmaxCrossEntropyWithLogits Softplus
    SoftplusGrad Softsign SparseSoftmaxCrossEntropyWithLogits Split SplitV Sqrt SqrtGrad Square
    SquaredDifference Squeeze StaticRegexFullMatch StopGradient StridedSlice StridedSliceGrad
    StringJoin Sub Sum Switch Tanh TanhGrad TensorSummary TensorSummaryV2 Tile TopK TopKV2 Transpose
    TruncatedNormal Unpack VarHandleOp VarIsInitializedOp Variable VariableV2 Where ZerosLike
"""
ALLOWED_OPS = FILE_OPS | set(OPS.split())


def file_name(config: Config, spec: ImageSpec) -> str | None:
    """Return the name of the graph's file, None where format, task, model or data have none."""
    classes = getattr(config.task, "kind", "") == "classification"
    keras = hasattr(config.model, "buffers")  # whose layers are of operations of all kinds
    several = isinstance(spec.shape, dict)
    return config.save.graph if classes and not keras and not several else None


def export(
    config: Config,
    spec: ImageSpec,
    shapes: Mapping[str, tuple[int, ...]],
    statistics: Mapping[str, np.ndarray] = NO_STATISTICS,
) -> bytes:
    """Return the serialized MetaGraphDef that scores a model of these float32 parameters.

    With `statistics`, which it restores as it does the parameters, it standardises its inputs.
    Where the optimizer, once its slots were asked for, keeps a mean of the parameters, it restores
    that, as all else scores it.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    shapes = {**shapes, **{name: value.shape for name, value in statistics.items()}}
    with tf.Graph().as_default():
        variables = {
            name: v1.Variable(
                lambda shape=shape: tf.zeros(shape), shape=shape, name=name, use_resource=True
            )
            for name, shape in shapes.items()
        }
        assert not isinstance(spec.shape, dict)  # or `file_name` is None
        inputs = v1.placeholder(tf.float32, [None, prod(spec.shape)], name="inputs")
        labels = v1.placeholder(tf.float32, [None, spec.outputs], name="labels")
        values = {name: variable.read_value() for name, variable in variables.items()}
        images = tf.reshape(inputs, [-1, *spec.shape])
        images = scale(images, False, {name: values.pop(name) for name in statistics})
        with refuse_variables([config.model]):
            logits = forward(config.model, config.precision, values, images)
        right = tf.equal(tf.argmax(logits, 1), tf.argmax(labels, 1))
        hits = tf.reduce_sum(tf.cast(right, tf.int64))
        accuracy = tf.cast(
            tf.cast(hits, tf.float64) / tf.cast(tf.size(right), tf.float64), tf.float32
        )
        for tensor in (inputs, labels, tf.identity(accuracy, name="accuracy")):
            v1.add_to_collection(COLLECTION, tensor)
        means = averages(config)
        saver = v1.train.Saver({means.get(name, name): v for name, v in variables.items()})
        body = saver.export_meta_graph(clear_devices=True)
        return body.SerializeToString(deterministic=True)  # manifests of older steps know it


def refuse_inputs(data: Dataset) -> None:
    """Raise BadInput for data of several inputs, which a graph does not take."""
    if isinstance(data.x_test, Inputs):
        names = listed(list(data.x_test.named))
        raise BadInput(f"--from meta: a graph takes one input, and this data has {names}.")


def score(meta: Path, prefix: Path, data: Dataset, threads: int) -> int:
    """Score the test set by a graph and weights in files; return the hits; raise BadInput."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    v1 = tf.compat.v1
    body = v1.MetaGraphDef()
    try:
        body.ParseFromString(meta.read_bytes())
    except (OSError, DecodeError) as error:
        raise BadInput(f"{meta}: is not a graph that TensorFlow wrote ({error}).") from None
    if COLLECTION not in body.collection_def or not body.HasField("saver_def"):
        raise BadInput(f"{meta}: has no collection {COLLECTION!r} or no saver.")
    if body.saver_def.version == body.saver_def.V1:
        raise BadInput(f"{meta}: its saver reads TensorFlow's first format (V1) alone.")
    names = list(body.collection_def[COLLECTION].node_list.value)
    if len(names) != 3:
        raise BadInput(f"{meta}: {COLLECTION!r} must hold inputs, labels, accuracy.")
    _check_operations(meta, body, names)
    classes = np.arange(data.spec.outputs)
    options = v1.ConfigProto(intra_op_parallelism_threads=threads)
    with quiet(), tf.Graph().as_default(), v1.Session(config=options) as session:
        try:
            check_bundle(prefix)
            saver = v1.train.import_meta_graph(body, clear_devices=True)
            with readable(prefix) as path:
                saver.restore(session, path)
            inputs, labels, accuracy = v1.get_collection(COLLECTION)
            hits = 0
            for start in range(0, len(data.x_test), IMAGES_PER_BATCH):
                images = data.x_test[start : start + IMAGES_PER_BATCH]
                batch = images.reshape(len(images), -1).astype(np.float32)
                batch = batch / np.float32(255) if data.divide else batch
                truth = data.y_test[start : start + IMAGES_PER_BATCH, None] == classes  # one-hot
                feed = {inputs: batch, labels: truth.astype(np.float32)}
                share = session.run(accuracy, feed)
                if np.ndim(share) or not 0 <= share <= 1:
                    raise ValueError(f"its accuracy is {share}")
                hits += round(float(share) * len(batch))
            return hits
        except Exception as error:  # TensorFlow raises nearly anything for a foreign graph
            raise BadInput(f"{meta}: cannot score this data ({first_line(error)}).") from None


def _check_operations(meta: Path, body: Any, tensors: Iterable[str]) -> None:
    """Refuse operations outside the list, and file operations but the saver's own restore."""
    functions = [node for f in body.graph_def.library.function for node in f.node_def]
    for node in (*body.graph_def.node, *functions):
        if node.op not in ALLOWED_OPS:
            raise BadInput(f"{meta}: holds the operation {node.op} ({node.name}), not allowed.")
    for node in functions:
        if node.op in FILE_OPS:
            raise BadInput(f"{meta}: a function in it holds the file operation {node.op}.")
    nodes = {node.name: node for node in body.graph_def.node}
    for tensor in tensors:
        for name in _ancestors(tensor, nodes):
            if nodes[name].op in FILE_OPS:
                raise BadInput(f"{meta}: {tensor} depends on the file operation {name}.")
    for name in _ancestors(body.saver_def.restore_op_name, nodes):
        if nodes[name].op == "RestoreV2":
            if not _reads(name, body.saver_def.filename_tensor_name, nodes):
                raise BadInput(f"{meta}: {name} reads another file than the checkpoint.")
        elif nodes[name].op in FILE_OPS:
            raise BadInput(f"{meta}: restoring depends on the file operation {name}.")


def _reads(name: str, given: str, nodes: Mapping[str, Any]) -> bool:
    """Tell whether a node's first input is the tensor `given`, at most through identities."""
    for _ in nodes:  # a longer way goes in a circle
        source = next(iter(nodes[name].input), "")
        name, _, output = source.partition(":")
        if f"{name}:{output or 0}" == given:
            return True
        if name not in nodes or nodes[name].op != "Identity":
            return False
    return False


def _ancestors(tensor: str, nodes: Mapping[str, Any]) -> set[str]:
    """Return the names of the nodes that a tensor is computed from, its own among them."""
    found: set[str] = set()
    todo = [tensor]
    while todo:
        name = todo.pop().removeprefix("^").partition(":")[0]
        if name not in found and name in nodes:
            found.add(name)
            todo += nodes[name].input
    return found
