"""Drop-in replacements for the samplers and losses of public CLD codebases, and foreign networks.

`denoisers.py` makes a denoiser of any pretrained isotropic network, see `docs/denoisers.md`.

There is a package for each codebase, `cld_sgm`, `gddim`, `psld`, `strasman`, and a scheduler for
`diffusers`; `import cldfast` imports none of these. They are written from the public interfaces.

Each package has two modes, see `published.py`. The published modes share one implementation of the
published formulas: `laws.py` (means and covariances), `steps.py` (steps as stages), `losses.py`,
`draws.py`. `docs/codebases.md` has the conventions of each codebase beside ours, and
every difference.
"""
