"""The commands: parse, compose, call one function per command.

A module adds its commands to `cli` when it is imported.

    from waymark.cli.records import cli
    cli.main(["runs", "--limit", "3"], standalone_mode=False)
"""
