"""The commands: parse, compose, call one function per command.

    from waymark.cli.records import cli
    cli.main(["runs", "--limit", "3"], standalone_mode=False)

A module adds its commands to `cli` when it is imported.
"""
