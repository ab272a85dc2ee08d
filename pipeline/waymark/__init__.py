"""Waymark: train TensorFlow models that can be trusted, compared and repeated.

    from waymark import compare, evaluate, rerun, resume, run

    result = run("model=cnn", "steps=200", "progress=false")
    print(result.run_id, result.restored_accuracy)

The commands as functions; their names are looked up in `waymark.api` when they are used, so
that importing the package costs nothing.
"""

from typing import TYPE_CHECKING, Any

from waymark.package import __version__ as __version__

__all__ = ["BadInput", "Failed", "clear_cache", "compare", "configure", "describe_data", "evaluate"]
__all__ += ["export", "gate", "predict", "register", "rerun", "resume", "run", "runs", "serve"]
__all__ += ["sweep", "sync", "ui"]

if TYPE_CHECKING:
    from waymark.api import (
        clear_cache,
        compare,
        configure,
        describe_data,
        evaluate,
        export,
        gate,
        predict,
        register,
        rerun,
        resume,
        run,
        runs,
        serve,
        sweep,
        sync,
        ui,
    )
    from waymark.errors import BadInput, Failed
else:  # so that a type checker takes no other name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from waymark import api

        return getattr(api, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
