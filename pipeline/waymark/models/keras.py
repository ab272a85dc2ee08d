"""A user's Keras model: built once, and computed with the values that it is given.

from waymark.config.compose import compose_config
from waymark.evaluation.restore import load_data, parameter_shapes

config = compose_config(["model=mlp"]).config
print(*parameter_shapes(config, load_data(config).spec))  # under Keras's paths
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from waymark.config.functions import GIVEN, arguments_of
from waymark.config.schema import settings
from waymark.data.dataset import Dataset, ImageSpec
from waymark.data.randomness import Tensor
from waymark.digest import file_digest
from waymark.errors import BadInput, first_line
from waymark.keras_file import OwnObject, check_config, parse_config, read_config
from waymark.keras_import import import_keras
from waymark.keras_weights import load_file
from waymark.models import Tensors, scale
from waymark.models.keras_build import (
    PATHS,
    architecture_of,
    build_model,
    check_policy,
    made_from,
    with_paths,
)
from waymark.models.keras_graph import computing_with, integers, refuse_changing
from waymark.users_code import place

ENDS = {"classification": "Softmax", "multilabel": "Sigmoid"}  # what may end a model of a task
LOOKED_AT = 32  # examples by which outputs are told to be probabilities
SMALLEST = 1e-7  # Keras's epsilon: a probability is at least so much


@settings
class Keras:
    """A model that a function of the user's own builds, or that Keras has saved, unchanged.

    Its trained variables are the parameters; all others, as the moving statistics of batch
    normalisation, frozen weights and the seeds of random layers, are its buffers. Both are entries
    of a run's state under their Keras paths.
    """

    functions: ClassVar[Mapping[str, str]] = {"build": "settings"}

    build: Annotated[str, Field(min_length=1)] | None
    """the dotted name of a function `(input_shape, outputs, **settings) -> keras.Model`, or of one
    that takes less"""
    file: Annotated[str, Field(min_length=1)] | None
    """in place of `model.build`: a `.keras` file, whose model and weights (not its optimizer) are
    the start"""
    settings: dict[str, Any]
    """what `model.build` is called with besides"""
    from_logits: bool | None
    """whether the outputs are logits; null: a softmax, or a sigmoid with task=multilabel, that ends
    the model is recognised, and the loss computed from what it is given"""

    def __post_init__(self) -> None:
        """Begin without a model: `check_settings` and `use_architecture` tell more."""
        self._trusted: Sequence[str] = ()  # modules
        self._own: Sequence[OwnObject] = ()  # what the file or the architecture names of them
        self._architecture: dict[str, Any] | None = None  # as it was recorded
        self._read: dict[str, Any] | None = None  # the architecture that is in the file
        self._model: Any = None
        self._wanted: Any = None  # what it was built for

    def check_settings(self, trusted: Sequence[str], recorded: bool) -> None:
        """Refuse settings that name no model, or a file that is none; remember what is trusted.

        A file that a record names is looked at only when its model is made. Raises BadInput.
        """
        if (self.build is None) == (self.file is None):
            raise BadInput(
                f"model.build={self.build!r}, model.file={self.file!r}: give one of them, a "
                f"function that builds the model, or a .keras file."
            )
        if self.file is not None and self.settings:
            raise BadInput(f"model.settings={self.settings}: a model.file takes none.")
        self._trusted = list(trusted)
        if self.file is not None and not recorded:
            self._read_file()

    def use_architecture(self, text: bytes, said: str) -> None:
        """Make the model from here on as it was recorded, without its function or file.

        Raises BadInput for what may not be made.
        """
        config = parse_config(text, said)
        self._own = check_config(config, self._trusted if self.file else (), said)
        self._architecture, self._wanted = config, None

    @property
    def is_recorded(self) -> bool:
        """Tell whether the model is made as a run recorded it, whatever the data are."""
        return self._architecture is not None

    def architecture(self) -> bytes | None:
        """Return as JSON how the model that `initial` built is made, None if only its function can.

        `keras.models.model_from_json` takes it as well.
        """
        config = self._architecture or self._read or architecture_of(self._model, self.said)
        if config is None:
            return None
        return json.dumps({**config, PATHS: [v.path for v in self._model.variables]}).encode()

    def digest(self) -> str | None:
        """Return the SHA-256 of the file, None without one; raise BadInput."""
        if self.file is None:
            return None
        try:
            return file_digest([self._path])
        except OSError as error:
            raise BadInput(f"{self.said}: cannot be read ({error.strerror}).") from None

    @property
    def modules(self) -> list[str]:
        """Return the modules whose classes the file names."""
        return sorted({each.module for each in self._own})

    def initial(
        self,
        spec: ImageSpec,
        key: Callable[[int], Tensor],
        *,
        seed: int = 0,
        precision: str = "float32",
    ) -> dict[str, Tensor]:
        """Build the model; return the first values of what is trained, by Keras's paths.

        They are those after `keras.utils.set_random_seed(seed)`, for seeds below 2**32, or those of
        the file. Raises BadInput.
        """
        wanted = (spec, seed, precision)
        if getattr(self, "_wanted", None) != wanted:
            self._model = self.keras_model(spec, seed, precision)
            self._wanted = wanted
        return {v.path: v.value.read_value() for v in self._model.trainable_variables}

    def keras_model(self, spec: ImageSpec | None, seed: int = 0, precision: str = "float32") -> Any:
        """Return a new keras.Model, with its first values; raise BadInput."""
        model = build_model(self._made, spec, _seed_for_keras(seed), precision, self.said)
        if self.file is not None:
            check_policy(model, precision, self.said)
        if self.file is not None and self._architecture is None:
            seeds = [v for v in model.variables if v.path.endswith("seed_generator_state")]
            own = [variable.numpy() for variable in seeds]
            load_file(model, self._path, self.said)
            for variable, value in zip(seeds, own, strict=True):  # those of `seed`, not the file's
                variable.assign(value)
        return model

    def read_weights(
        self, names: Iterable[str], load: Callable[[Any], Any]
    ) -> dict[str, np.ndarray] | None:
        """Return what `load` gives the variables of these names; None where it returns False."""
        variables = {variable.path: variable for variable in self._model.variables}
        before = {name: variable.numpy() for name, variable in variables.items()}
        try:
            given = load(self._model)
            return None if given is False else {name: variables[name].numpy() for name in names}
        finally:
            for name, value in before.items():
                variables[name].assign(value)

    def buffers(self, spec: ImageSpec) -> dict[str, Tensor]:
        """Return the first values of what the model that `initial` built keeps besides."""
        return {v.path: v.value.read_value() for v in self._model.non_trainable_variables}

    def logits(self, parameters: Tensors, images: Tensor, dropout: Tensor | None) -> Tensor:
        """Return the outputs [B, ...] for images [B, ...], not in training.

        `parameters` are those and the buffers; of a random layer's seeds there is no need.
        """
        return self._call(parameters, images, training=False)[0]

    def train(
        self, parameters: Tensors, buffers: Tensors, images: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the outputs in training, what the layers have assigned, the model's own losses.

        Those are the sum of its regularizers and of what it adds by `add_loss`, float32 [].
        """
        values = {**parameters, **buffers}
        outputs, scope, losses = self._call(values, images, training=True)
        import tensorflow as tf

        changed = {}
        for variable in self._model.variables:
            value = scope.get_current_value(variable)
            if value is not values[variable.path]:
                changed[variable.path] = value
        total = tf.add_n([tf.zeros([]), *(tf.reduce_sum(tf.cast(x, tf.float32)) for x in losses)])
        return outputs, changed, total

    def constrain(self, parameters: Mapping[str, Any]) -> None:
        """Put the parameters, tf.Variables, back to where the layers' constraints want them."""
        for variable in self._model.trainable_variables:
            if variable.constraint is not None:
                parameter = parameters[variable.path]
                parameter.assign(variable.constraint(parameter.read_value()))

    def as_logits(self, task: Any, outputs: Tensor) -> Tensor:
        """Return outputs [B, ...] as a task takes them: logits, where the model ends in a softmax.

        Raises BadInput for the end of a model of another task.
        """
        import tensorflow as tf

        kind = getattr(task, "kind", "")
        if self.from_logits or kind not in ENDS:
            return outputs
        last = outputs.op
        while last.type in ("Cast", "Identity"):
            last = last.inputs[0].op
        if last.type == ENDS[kind]:
            return tf.cast(last.inputs[0], outputs.dtype)
        if last.type in ENDS.values() and self.from_logits is None:
            raise BadInput(
                f"{self.said}: the model ends in a {last.type.lower()}, and task={kind} in a "
                f"{ENDS[kind].lower()}; let it end in logits, without an activation "
                f"(model.from_logits=true takes its outputs as they are)."
            )
        if self.from_logits is None:
            return outputs
        probabilities = tf.clip_by_value(tf.cast(outputs, tf.float32), SMALLEST, 1 - SMALLEST)
        logits = tf.math.log(probabilities)
        return logits if kind == "classification" else logits - tf.math.log1p(-probabilities)

    def check_logits(self, task: Any, data: Dataset, seed: int, precision: str) -> None:
        """Refuse outputs that are probabilities, though no softmax is seen at the model's end.

        It is asked for: as logits they would be trained, to worse numbers. Raises BadInput.
        """
        import tensorflow as tf

        if self.from_logits is not None or getattr(task, "kind", "") != "classification":
            return
        self.initial(data.spec, lambda _: None, seed=seed, precision=precision)
        values = {v.path: v.value.read_value() for v in self._model.variables}

        @tf.function(autograph=False)
        def outputs() -> Tensor:
            features = scale(data.x_train[:LOOKED_AT], data.divide, data.statistics)
            return tf.cast(self.as_logits(task, self.logits(values, features, None)), tf.float32)

        found = outputs().numpy()
        near = 1e-3 if precision == "float32" else 2e-2
        if found.shape[-1] > 1 and found.min() >= 0 and abs(found.sum(-1) - 1).max() < near:
            raise BadInput(
                f"{self.said}: the outputs of its model sum to 1, as probabilities do, though it "
                f"does not end in a softmax; model.from_logits=false if that is what they are, "
                f"else true."
            )

    def check_data(self, data: Dataset) -> None:
        """Refuse a model that a resume would not compute alike, and pixels scaled twice."""
        keras, model = import_keras(), self._model
        graph = refuse_changing(self._call, model, data.spec, self.said)
        whole = integers(graph)
        for name, kind in whole.items():
            if kind == "bfloat16":
                what = f"features of {name}" if name else "features"
                raise BadInput(
                    f"{self.said}: its model rounds {what} to bfloat16, exact up to 256, before it "
                    f"takes them as integers; with autocast=False a layer or model does not."
                )
        if data.scale != "auto" or not data.divide:
            return
        scaling = [x.name for x in model._flatten_layers() if isinstance(x, keras.layers.Rescaling)]
        taken = whole if data.divide is True else data.divide & whole.keys()
        if scaling or taken:
            found = f"holds the layer {scaling[0]}" if scaling else "takes integers"
            raise BadInput(
                f"data.scale=auto: would divide {data.name}'s pixels by 255, but the model {found} "
                f"({self.said}); data.scale=none leaves them to the model, data.scale=255 divides."
            )

    @property
    def said(self) -> str:
        """Return the setting that names the model, as messages do."""
        return f"model.file={self.file!r}" if self.build is None else f"model.build={self.build!r}"

    @property
    def _path(self) -> Path:
        return Path(str(self.file)).expanduser()

    def _read_file(self) -> dict[str, Any]:
        config = read_config(self._path, self.said)
        self._own = check_config(config, self._trusted, self.said)
        return config

    def _made(self, spec: ImageSpec) -> Any:
        """Make the model as it was recorded, or of its file, or call the user's function."""
        if self._architecture is not None:
            model = made_from(self._architecture, self._trusted, self.said)
            return with_paths(model, self._architecture.get(PATHS), self.said)
        if self.build is None:
            self._read = self._read_file()
            return made_from(self._read, self._trusted, self.said)
        try:
            function = resolve_name(self.build)
            given = dict(zip(GIVEN, (spec.shape, spec.outputs), strict=True))
            places, named = arguments_of(inspect.signature(function), given, self.settings)
            return function(*places, **named)
        except BadInput:
            raise
        except (Exception, SystemExit) as error:  # what calls exit() is no model either
            cause = error.__cause__ or error
            said = f"{type(cause).__name__}: {first_line(cause)}{place(cause)}"
            raise BadInput(f"{self.said}: {said}") from None

    def _call(self, values: Tensors, images: Tensor, training: bool) -> tuple[Tensor, Any, Any]:
        """Call the model with these values in place of its variables', as Keras's fit does.

        A model whose call() takes no `training` is not told: its layers do as in inference.
        """
        model = self._model
        told = {"training": training} if "training" in model.call_signature_parameters else {}
        with computing_with(model, values, training) as scope:
            try:
                outputs = model(images, **told)
            except BadInput:
                raise
            except Exception as error:
                said = f"{type(error).__name__}: {first_line(error)}{place(error)}"
                raise BadInput(f"{self.said}: its model cannot be compiled: {said}") from None
            return outputs, scope, model.losses if training else []

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process makes it from: all but the model."""
        return {k: value for k, value in vars(self).items() if k not in ("_model", "_wanted")}


def _seed_for_keras(seed: int) -> int:
    """Return a seed below 2**32, as Python's and NumPy's generators take them."""
    if seed < 2**32:
        return seed
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")
