"""What a run ran on and which code it ran: environment.json and changes.patch."""

import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from waymark.checkpoints.store import file_facts
from waymark.comparison.repository import git_commit, program_output
from waymark.config.masking import without_password
from waymark.config.old_names import PACKAGE as OLD_PACKAGE
from waymark.config.schema import FORMAT
from waymark.config.values import flatten
from waymark.keras_import import SETTINGS, import_keras
from waymark.package import FOLDER, __version__

# The environment's variables that steer TensorFlow's and oneDNN's arithmetic. (Others that begin
# with TF_ are Terraform's, and may be secret.)
NUMERICS_ENV_VARS = (
    "TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE", "TF_DETERMINISTIC_OPS", "TF_XLA_FLAGS", "XLA_FLAGS",
    "TF_ENABLE_AUTO_MIXED_PRECISION", "TF_CUDNN_DETERMINISTIC", "TF_CUDNN_USE_AUTOTUNE",
    "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip
# Of a CPU's flags, those that name instructions for arithmetic (x86; ARM).
DIGEST = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")  # SHA-256, shown by its beginning
ARITHMETIC = re.compile(r"(s?sse|pni$|avx|fma|f16c|amx|asimd|sve|sme|fp|neon|bf16|i8mm)")
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # of them, those that compute in bfloat16
METADATA = re.compile(r"^(Name|Version):(.*)$", re.MULTILINE | re.IGNORECASE)  # of a package
# What of environment.json decides the bits of the next step; the rest explains, at most.
NUMERICS_KEYS = ("tensorflow", "cpu", "keras", "gpus", "intra_op_threads", "settings")
Difference = tuple[str, Any, Any]  # what, as it was recorded, as it is now


def describe_environment(
    intra_op_threads: int, own: Iterable[str] = (), keras: bool = False
) -> dict[str, Any]:
    """Describe all beside configuration and data that can change bits.

    `own` are the users' modules; Keras is described if it takes part.
    """
    import tensorflow as tf
    from tensorflow.python.framework.config import is_op_determinism_enabled
    from tensorflow.python.util._pywrap_util_port import IsMklEnabled

    build = tf.sysconfig.get_build_info()
    return {
        "format": FORMAT,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "waymark": __version__,
        "packages": _packages(_installed()),
        "tensorflow": {
            "version": tf.version.VERSION,
            "git": tf.version.GIT_VERSION,
            "cuda": build.get("cuda_version") if build["is_cuda_build"] else None,
            "onednn": IsMklEnabled(),
            "deterministic_ops": is_op_determinism_enabled(),
        },
        **({"keras": _keras()} if keras else {}),
        "settings": _settings(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpus": _gpus(tf, build),
        "intra_op_threads": intra_op_threads,
        "git_commit": git_commit(),
        "code": code(own),
        "command": [Path(sys.argv[0]).name, *map(without_password, sys.argv[1:])],
    }


def _keras() -> dict[str, Any]:
    """Return Keras's version, and what of its configuration a model is built by."""
    keras = import_keras()
    return {"version": keras.__version__, **{n: getattr(keras.config, n)() for n in SETTINGS}}


def _installed() -> tuple[tuple[str, int], ...]:
    """Return what changes when a package comes or goes: importlib, too, looks at these times."""
    folders = [path or "." for path in sys.path]
    return tuple((path, os.stat(path).st_mtime_ns) for path in folders if os.path.exists(path))


@lru_cache(1)
def _packages(installed: object) -> dict[str, str | None]:
    """Return the packages installed and their versions; of two of one name, the one imported."""
    found: dict[str, str | None] = {}
    for each in [*distributions()][::-1]:
        # The last one is a file alone, as an old setuptools made it.
        texts = (each.read_text(name) for name in ("METADATA", "PKG-INFO", ""))
        text = next(filter(None, texts), "")
        head, _, _ = text.partition("\n\n")  # to parse the rest takes most of the time
        facts = {field.lower(): value.lstrip() for field, value in METADATA.findall(head)}
        if "name" in facts:  # an interrupted pip leaves folders without metadata
            found[facts["name"]] = facts.get("version")
    return dict(sorted(found.items()))


def _cpu() -> dict[str, Any]:
    """Return the CPU's model, instructions for arithmetic, and caches (Eigen's blocks fit them)."""
    machine = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:  # not Linux
        names = ("machdep.cpu.brand_string", "hw.l1dcachesize", "hw.l2cachesize")
        lines = (program_output("sysctl", "-n", *names) or "").splitlines()
        values = dict(zip(names, lines, strict=False))
        model = values.pop(names[0], platform.processor())
        return {"machine": machine, "model": model, "caches": values}
    info = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = info.get("flags") or info.get("Features") or ""  # on x86, on ARM
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        with suppress(OSError):  # a container may hide it
            level, kind, size = ((index / n).read_text().strip() for n in ("level", "type", "size"))
            caches[f"L{level} {kind}"] = size
    return {
        "machine": machine,
        "model": info.get("model name"),
        "instructions": sorted(filter(ARITHMETIC.match, flags.split())),
        "caches": caches,
    }


def has_bfloat16(facts: Mapping[str, Any]) -> bool | None:
    """Tell whether what an environment computes on has instructions for bfloat16; None: unknown."""
    instructions = facts["cpu"].get("instructions")
    known = instructions and not facts["gpus"]
    return not BFLOAT16.isdisjoint(instructions) if known else None


def _gpus(tf: Any, build: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """Return what decides the bits of each GPU; None what nothing tells."""
    found = []
    for device in tf.config.list_physical_devices("GPU"):
        details: dict[str, Any] = {}
        with suppress(Exception):  # of a driver
            details = tf.config.experimental.get_device_details(device)
        facts = {
            "name": details.get("device_name"),
            "compute_capability": ".".join(map(str, details.get("compute_capability") or ())),
            "driver": _driver(),
            "cuda": build.get("cuda_version"),
            "cudnn": build.get("cudnn_version"),
        }
        found.append({key: str(value) if value else None for key, value in facts.items()})
    return found


@lru_cache(1)
def _driver() -> str | None:
    """Return the version of NVIDIA's driver, None if nothing tells."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
        match = re.search(r"Kernel Module\D.*?\s(\d+\.[\d.]+)\s", text)
    except OSError:
        query = "--query-gpu=driver_version", "--format=csv,noheader"
        match = re.match(r"\s*(\d+\.[\d.]+)", program_output("nvidia-smi", *query) or "")
    return match[1] if match else None


def fingerprint() -> dict[str, Any]:
    """Return what decides the bits beside configuration, data and code, without TensorFlow."""
    return {"tensorflow": version("tensorflow"), "cpu": _cpu(), "settings": _settings()}


def _settings() -> dict[str, str]:
    return {name: os.environ[name] for name in NUMERICS_ENV_VARS if name in os.environ}


def code(own: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each source file of Waymark and of the user's own modules.

    What a user's module imports from beside it counts as well, if it lies in the same package.
    """
    sources = FOLDER.rglob("*.py")
    files = {".".join(p.relative_to(FOLDER.parent).with_suffix("").parts): p for p in sources}
    roots = {name.partition(".")[0] for name in own}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in roots and getattr(module, "__file__", None):
            files[name] = Path(str(module.__file__))
    return {name: file_facts(p)["sha256"] for name, p in sorted(files.items()) if p.is_file()}


def read_environment(path: Path) -> dict[str, Any]:
    """Return what environment.json holds; nothing for one that is missing or damaged."""
    with suppress(OSError):
        return parse_environment(path.read_bytes())
    return {}


def parse_environment(body: bytes | None) -> dict[str, Any]:
    """Return what the bytes of environment.json hold, as far as it is what Waymark writes."""
    try:
        facts = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(facts, dict):
        return {}
    earlier = facts.get("earlier")
    facts["earlier"] = [e for e in earlier if isinstance(e, dict)] if type(earlier) is list else []
    for each in (facts, *facts["earlier"]):
        if not isinstance(each.get("code", {}), dict):
            del each["code"]
    return facts


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Return what differs between two environments, what decides the bits first.

    Lists yield only their differing items. What one side lacks is ignored: another version of
    Waymark wrote it.
    """
    found: list[Difference] = []
    for topic in (*NUMERICS_KEYS, "packages", "python", "platform", "waymark", "git_commit"):
        if topic in old and topic in new:
            compare = _gpu_differences if topic == "gpus" else _topic_differences
            found += compare(topic, old[topic], new[topic])
    was, now = ({**each.get("code", {})} for each in (old, new))
    main = f"{OLD_PACKAGE}.__main__"
    if (main in was) != (main in now):  # all of Waymark's modules were renamed: one line for them
        for each in (was, now):
            package = OLD_PACKAGE if main in each else "waymark"
            own = [name for name in each if name.partition(".")[0] == package]
            each |= {package: str([each.pop(name) for name in own])} if own else {}
    changed = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
    if was and now and changed:
        found.append(("code", [x for x in changed if x in was], [x for x in changed if x in now]))
    return found


def _topic_differences(topic: str, old: Any, new: Any) -> list[Difference]:
    found = []
    was, now = flatten({topic: old}), flatten({topic: new})
    optional = topic in ("settings", "packages")  # where a key may be missing for good reason
    for key in sorted({*was, *now} if optional else was.keys() & now.keys()):
        a, b = was.get(key), now.get(key)
        if isinstance(a, list) and isinstance(b, list):
            a, b = _without(a, b), _without(b, a)
        if a != b:
            found.append((key, a, b))
    return found


def _without(items: list[Any], others: list[Any]) -> list[str]:
    return [str(item) for item in items if item not in others]


def _gpu_differences(topic: str, old: Any, new: Any) -> list[Difference]:
    """Return what differs between two lists of GPUs; what is unknown of one is no difference.

    Of those that an older Waymark recorded nothing is known but that they were there.
    """
    if not (isinstance(old, list) and isinstance(new, list)):
        return []
    if len(old) != len(new):
        return [(topic, _gpu_names(old), _gpu_names(new))]
    was, now = ([x if isinstance(x, dict) else {} for x in each] for each in (old, new))
    return [
        (f"{topic}.{number}.{key}", a[key], b[key])
        for number, (a, b) in enumerate(zip(was, now, strict=True))
        for key in ("name", "compute_capability", "driver", "cuda", "cudnn")
        if None not in (a.get(key), b.get(key)) and a[key] != b[key]
    ]


def _gpu_names(gpus: list[Any]) -> str:
    named = [each.get("name") or "unknown" if isinstance(each, dict) else each for each in gpus]
    return ", ".join(map(str, named)) or "none"


def numerical(found: Iterable[Difference]) -> list[Difference]:
    """Return those differences that decide the bits of the next step on the same code."""
    return [each for each in found if each[0].partition(".")[0] in NUMERICS_KEYS]


def format_difference(difference: Difference, sides: tuple[str, str] = ("recorded", "now")) -> str:
    """Say in one line what differs; `sides` are the words for its two sides."""
    what, recorded, now = difference
    if isinstance(recorded, list) and isinstance(now, list):
        words = [
            (f"only {sides[0]}", _without(recorded, now)),
            (f"only {sides[1]}", _without(now, recorded)),
            ("changed", [item for item in recorded if item in now]),
        ]
        return f"{what}: " + "; ".join(f"{w} {', '.join(items)}" for w, items in words if items)
    texts = ["not set" if value is None else DIGEST.sub(r"\1", str(value))
             for value in (recorded, now)]  # fmt: skip
    return f"{what}: {texts[0]} {sides[0]}, {texts[1]} {sides[1]}"
