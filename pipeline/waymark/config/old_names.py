"""The names that stand in records made before the package was called `waymark`, and only there."""

from collections.abc import Mapping

PACKAGE = "pipeline"  # what the package was called
CLASSES = {
    "pipeline.models.softmax.Softmax": "waymark.models.softmax.Softmax",
    "pipeline.models.cnn.Cnn": "waymark.models.cnn.Cnn",
    "pipeline.data.Mnist5k": "waymark.data.sources.Mnist5k",
    "pipeline.data.Mnist": "waymark.data.sources.Mnist",
    "pipeline.data.FashionMnist": "waymark.data.sources.FashionMnist",
    "pipeline.data.Arrays": "waymark.data.sources.Arrays",
    "pipeline.optimizers.Adam": "waymark.optimizers.Adam",
    "pipeline.optimizers.Sgd": "waymark.optimizers.Sgd",
    "pipeline.checkpoints.ckpt.Ckpt": "waymark.checkpoints.ckpt.Ckpt",
    "pipeline.checkpoints.npz.Npz": "waymark.checkpoints.npz.Npz",
}


def with_classes(params: Mapping[str, str]) -> dict[str, str]:
    """Return params with `GROUP.class` in place of `GROUP._target_`, none for Waymark's own.

    Of those the chosen member tells the class.
    """
    found = {}
    for key, text in params.items():
        group, _, last = key.rpartition(".")
        if last != "_target_":
            found[key] = text
        elif not CLASSES.get(text, text).startswith("waymark."):
            found[f"{group}.class"] = text
    return found
