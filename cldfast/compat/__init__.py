"""Drop-in replacements for the samplers and losses of public CLD codebases, and foreign networks.

`denoisers.py` makes a denoiser of any pretrained isotropic network, see `docs/denoisers.md`.

There is a package for each codebase, `cld_sgm`, `gddim`, `psld`, `strasman`, and a scheduler for
`diffusers`; `import cldfast` imports none of these. They are written from the public interfaces.

Each package has two modes, see `published.py`. The published modes share one implementation of the
published formulas: `laws.py` (means and covariances), `steps.py` (steps as stages), `losses.py`,
`flow.py`, `draws.py`. What each codebase does differently from the process that it samples:

                        cld_sgm           psld            strasman            gddim
    added to variances  numerical_eps,    numerical_eps   numerical_eps       1e-6 at t = 0
                        sscs_num_stab
    covariance          laws.naive        laws.naive      own order, dtype    table of R_t
    time of samplers    up from 0         up from 0       down from 1         down from 1
    last step of EM     eps to 0          eps to 0,       from epsilon_s      eps to 0
                                          in float32      one spacing down
    SSCS, second half   beta of the       beta of the     (has none)          its own beta
                        first half        first half
    SSCS, kick          score and beta    score and beta  (has none)          score at start,
                        at start          at start                            beta(1 - t)
    leapfrog            (has none)        (has none)      second half at      (has none)
                                                          t + h/2
    score               float32 product,  float32         no position score   R_t of the table
                        before the step   factors         under is_cld
    dsm networks        own kernel        hybrid kernel   (has none)          (has none)

`docs/codebases.md` has the conventions of each codebase beside ours, and every difference.
"""
