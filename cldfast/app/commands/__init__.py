"""The commands of the command line, a file for each.

A module is named like its command. Its docstring is the help: the first line in the list of
commands, all of it under `--help`, below `USAGE`. `add_options(parser)` adds its options, `run(args)` does it; an
option that is not given is None or False, so that the command can tell.
"""
