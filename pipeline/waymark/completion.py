"""What the shell is answered when it completes a command line."""

import os
import sys

from waymark.cli.group import cli


def complete(arguments: list[str]) -> int:
    """Answer the shell: Hydra completes `run`'s overrides, the commands are ours."""
    words = os.environ.get("COMP_LINE", "").split(" ", 2)
    if arguments[1:2] == ["query=bash"] and (len(words) < 3 or words[1] != "run"):
        print(" ".join(cli.commands) if len(words) < 3 else "")
        return 0
    os.environ["COMP_LINE"] = " ".join(["waymark", *words[2:]])
    import hydra

    from waymark.config.compose import CONF

    sys.argv = ["waymark", *arguments]
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(print)()
    return 0
