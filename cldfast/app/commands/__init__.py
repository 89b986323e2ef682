"""The commands of the command line, a file for each, named like its command.

The docstring is the help, its first line that in the list of commands, and `USAGE` what follows the
name. `add_options(parser)` adds the options, `run(args)` does the work. An option that is not given
is None or False, so that the command can tell.
"""
