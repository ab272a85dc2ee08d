"""The names that stand in records made before the package was called `waymark`, and only there."""

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
