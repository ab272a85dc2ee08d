"""Archives of CIFAR's layout: pickles as Python 2 wrote them, of pictures that tests make up."""

import io
import pickle
import struct
import tarfile
from hashlib import md5
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from waymark.data import cifar

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Write texts as the bytes that they were in Python 2, and NumPy's names of that time."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_text(self, text: str | bytes) -> None:
        content = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_text


def pickled(content: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(content)
    return file.getvalue().replace(b"numpy._core.", b"numpy.core.")


def batch(name: str, count: int, seed: int, **labels: list[int]) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        "batch_label": f"{name}, made by a test",
        **labels,
        "data": draw.integers(0, 256, (count, 3072), np.uint8),
        "filenames": [f"{name}_{number}.png" for number in range(count)],
    }


def cifar10(count: int = 20) -> dict[str, Any]:
    """Return what the files of a small CIFAR-10 hold, by their names."""
    files = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    labels = [number % 10 for number in range(count)]
    found = {name: batch(name, count, seed, labels=labels) for seed, name in enumerate(files)}
    for name in files:  # something to learn
        found[name]["data"][np.arange(count), np.array(labels) * 100] //= 64
    meta = {"num_cases_per_batch": count, "label_names": NAMES, "num_vis": 3072}
    return {**found, "batches.meta": meta}


def cifar100(count: int = 200) -> dict[str, Any]:
    """Return what the files of a small CIFAR-100 hold, by their names."""
    fine = [number % 100 for number in range(count)]
    coarse = [label // 5 for label in fine]
    found: dict[str, Any] = {
        name: batch(name, count, seed, fine_labels=fine, coarse_labels=coarse)
        for seed, name in enumerate(("train", "test"))
    }
    names = {
        "fine_label_names": [f"thing_{number}" for number in range(100)],
        "coarse_label_names": [f"kind_{number}" for number in range(20)],
    }
    return {**found, "meta": names}


def write(folder: Path, files: dict[str, Any]) -> Path:
    """Write what files hold, pickled, but bytes as they are, and readme.html, which is none."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else pickled(content))
    (folder / "readme.html").write_text("<html>")
    return folder


def archive(path: Path, folder: Path) -> Path:
    """Pack a folder as it is published."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as packed:
        packed.add(folder, folder.name)
    return path


def published(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the files in a folder pass for those that are published."""
    name = "CIFAR10" if folder.name == cifar.CIFAR10.folder else "CIFAR100"
    layout = getattr(cifar, name)
    digests = {file: md5((folder / file).read_bytes()).hexdigest() for file in layout.md5}
    patch.setattr(cifar, name, layout._replace(md5=digests))
