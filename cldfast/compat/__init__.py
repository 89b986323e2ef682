"""Drop-in replacements for the samplers and losses of public CLD codebases, a file for each.

Nothing here is imported with `cldfast`; written from the public interfaces. `docs/codebases.md` has
the conventions of each codebase beside ours, and every difference in behaviour.
"""
