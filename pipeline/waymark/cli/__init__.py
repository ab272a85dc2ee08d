"""The commands: parse, compose, call one function per command.

from waymark.cli import cli
cli.main(["--version"], standalone_mode=False)
"""

from waymark.cli import models as models
from waymark.cli import records as records
from waymark.cli import training as training
from waymark.cli.group import cli as cli
from waymark.cli.group import complain as complain
from waymark.cli.group import exit_status_of as exit_status_of
