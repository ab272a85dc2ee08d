"""Checkpoints as TensorFlow V2 bundles keyed by variable name, as `Saver` reads and writes."""

import os
from pathlib import Path
from typing import ClassVar

from waymark.checkpoints import SaveFormat, State
from waymark.checkpoints.tf_bundle import read_bundle
from waymark.config.schema import settings
from waymark.files import TEMPORARY


@settings
class Ckpt(SaveFormat):
    """`model_ckpt-<step>.index` and `.data-00000-of-00001`, with a `checkpoint` state file."""

    stem: ClassVar[str] = "model_ckpt"
    endings: ClassVar[tuple[str, ...]] = (".data-00000-of-00001", ".index")

    meta_graph: bool
    """whether the TF1 graph is written beside the checkpoints, for `import_meta_graph`"""

    @property
    def graph(self) -> str | None:
        """Return the name of the graph's file, None without `meta_graph`."""
        return f"{self.stem}.meta" if self.meta_graph else None

    def write(self, path: Path, state: State) -> list[Path]:
        """Write arrays of any dtype and shape, each under its name; return both files."""
        import tensorflow as tf

        names = sorted(state)
        with tf.device("CPU"):
            tf.raw_ops.SaveV2(
                prefix=os.fsencode(path),
                tensor_names=names,
                shape_and_slices=[""] * len(names),
                tensors=[state[name] for name in names],  # tf.constant would copy them
            )
        return [path.with_name(path.name + end) for end in Ckpt.endings]

    def read(self, path: Path) -> State:
        """Read arrays as they were written; raise as `read_bundle` does."""
        return read_bundle(path)

    def update_state_file(self, folder: Path, newest: int, recent: list[int]) -> None:
        """Write the state file that `tf.train.latest_checkpoint` reads, with relative names."""
        lines = [f'model_checkpoint_path: "{self.stem}-{newest}"\n']
        lines += [f'all_model_checkpoint_paths: "{self.stem}-{step}"\n' for step in recent]
        temporary = folder / f"{TEMPORARY}checkpoint"
        temporary.write_text("".join(lines))
        os.replace(temporary, folder / "checkpoint")
