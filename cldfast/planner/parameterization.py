"""What a network returns, as linear maps to the score, to x0 and to unit noise.

At time t a network output o (r planes per coordinate) and the state u give a quantity of q planes,

    quantity = from_output @ o + from_state @ u        from_output (q, r), from_state (q, 2)

so a solver folds any parameterisation into its coefficients. There are three families. The forms of
`cldfast.planner.data_forms` predict the data. The others return rows of the score: the velocity row
alone (one plane) or both (two planes). Under hybrid score matching the exact score is
`-Sigma^-1 (u - m E[x0 | u])`, so that each follows from the others,

    E[x0 | u] = (s_v + (Sigma^-1 u)_v) / w_v                                 w = Sigma^-1 m
    s_x = w_x/w_v s_v + (m_x v - m_v x) / (Sigma_xx m_v - Sigma_xv m_x)
    s = -n n^T u / (n^T Sigma n) - w (y - E[x0 | u])                         n = (-m_v, m_x)

and solvers that interpolate x0 need one history plane per evaluation, whatever the network returns
and whether or not the position carries noise. A loss needs only the rows that the output gives.

The rows are functions on numpy (planning) and torch (training times) alike, the maps on numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from cldfast.planner.data_forms import DATA_FORMS, DataForm, Preconditioned
from cldfast.planner.reverse import Bridge
from cldfast.process.linear_flow import stack_matrix
from cldfast.process.path import Path, Process
from cldfast.process.sde import LinearPhaseSDE, Marginal

Array = Any
# A name of `PARAMETERIZATIONS`, or a form with settings of its own.
Parameterization = str | DataForm


@dataclass(frozen=True)
class LinearMap:
    """A quantity `from_output @ o + from_state @ u` at n times: (n, q, r) and (n, q, 2)."""

    from_output: Array
    from_state: Array

    @property
    def planes(self) -> int:
        """Network output planes per coordinate, r."""
        return int(self.from_output.shape[-1])

    def then(self, matrix: np.ndarray) -> LinearMap:
        """The map of `matrix @ quantity`, matrix (n, p, q) or (p, q)."""
        return LinearMap(matrix @ self.from_output, matrix @ self.from_state)

    def left_inverse(self) -> np.ndarray:
        """K (n, r, 2) with `o = K (quantity - from_state @ u)`, for a quantity of two planes.

        A single output plane is read off the velocity row, or off the position row where the
        velocity row does not hold it.
        """
        if self.planes == 2:
            return np.linalg.inv(self.from_output)
        column = self.from_output[..., 0]
        held = column != 0.0
        held[..., 0] &= ~held[..., 1]
        inverse: np.ndarray = np.where(held, 1.0 / np.where(held, column, 1.0), 0.0)
        return inverse[..., None, :]


Rows = Callable[[LinearPhaseSDE, Marginal], LinearMap]


def _constant(marginal: Marginal, entries: Sequence[float] = (0.0, 0.0, 0.0, 0.0)) -> Array:
    """The same 2x2 matrix at all times of a marginal, (n, 2, 2); by default zero."""
    return stack_matrix(*(marginal.det * 0.0 + entry for entry in entries))


def _full_score(sde: LinearPhaseSDE, marginal: Marginal) -> LinearMap:
    return LinearMap(_constant(marginal, (1.0, 0.0, 0.0, 1.0)), _constant(marginal))


def _full_noise(sde: LinearPhaseSDE, marginal: Marginal) -> LinearMap:
    """`score = -L^-T o`."""
    inverse = marginal.covariance.inverse_factor
    back = array_namespace(inverse).matrix_transpose(inverse)
    return LinearMap(-back, _constant(marginal))


@lru_cache(maxsize=8)
def _bridge(sde: LinearPhaseSDE) -> Bridge:
    return Bridge(sde)


def _full_noise_r(sde: LinearPhaseSDE, marginal: Marginal) -> LinearMap:
    """`score = -R^-T o` with `R = L O(theta)`, so `R^-T = L^-T O(theta)`."""
    lower = _full_noise(sde, marginal)
    return LinearMap(lower.from_output @ _bridge(sde).rotation(marginal.tau), lower.from_state)


def _full_renormalised(sde: LinearPhaseSDE, marginal: Marginal) -> LinearMap:
    shift = _constant(marginal, [-entry for entry in sde.prior_precision])
    return LinearMap(_full_score(sde, marginal).from_output, shift)


def _velocity_row(full: Rows) -> Rows:
    """The velocity row of both, for a network that returns what that row needs."""

    def rows(sde: LinearPhaseSDE, marginal: Marginal) -> LinearMap:
        both = full(sde, marginal)
        return LinearMap(both.from_output[..., 1:, -1:], both.from_state[..., 1:, :])

    return rows


def _mixed(sde: LinearPhaseSDE, marginal: Marginal) -> LinearMap:
    noise, zero = VELOCITY_MAPS["noise"](sde, marginal), marginal.det * 0.0
    shift = stack_matrix(zero, zero, zero, -1.0 / marginal.covariance.vv)
    return LinearMap(noise.from_output, shift[..., 1:, :])


# One plane: the output is d (or C) wide, and the rows are the velocity's.
VELOCITY_MAPS: dict[str, Rows] = {
    "score": _velocity_row(_full_score),
    "noise": _velocity_row(_full_noise),
    "mixed": _mixed,
    "renormalised": _velocity_row(_full_renormalised),
}
# Two planes: 2d (or 2C) wide, x half then v half.
FULL_MAPS: dict[str, Rows] = {
    "full_score": _full_score,
    "full_noise": _full_noise,
    "full_noise_r": _full_noise_r,
    "full_renormalised": _full_renormalised,
}
ROWS = {**VELOCITY_MAPS, **FULL_MAPS}
PARAMETERIZATIONS = (*VELOCITY_MAPS, *DATA_FORMS, *FULL_MAPS)


def check_parameterization(parameterization: object) -> None:
    """ValueError for a name that is not one of `PARAMETERIZATIONS`, TypeError for no such thing."""
    if isinstance(parameterization, DataForm):
        return
    if not isinstance(parameterization, str):
        raise TypeError(
            "parameterization must be a name or a form such as cldfast.Preconditioned, "
            f"got {type(parameterization).__name__}"
        )
    if parameterization not in PARAMETERIZATIONS:
        known = ", ".join(PARAMETERIZATIONS)
        raise ValueError(f"unknown parameterization {parameterization!r}; expected one of {known}")


def default_parameterization(sde: Process) -> str:
    """What a network is taken to return where nothing is said.

    "score", the velocity score; with noise on the position "data_noise", for there the velocity
    score says almost nothing about the data at small t, see `velocity_share`. A path has its own.
    """
    if isinstance(sde, Path):
        return sde.parameterization
    return "data_noise" if sde.diffusion[0] > 0.0 else "score"


def data_form(parameterization: Parameterization) -> DataForm | None:
    """The form of a parameterisation that predicts the data; None for one of the score."""
    if isinstance(parameterization, DataForm):
        return parameterization
    return DATA_FORMS.get(parameterization)


def named_form(name: str, sigma_data: float = 1.0) -> Parameterization:
    """The parameterisation of a name and, for "edm", the standard deviation of the data."""
    check_parameterization(name)
    return Preconditioned(sigma_data) if name == Preconditioned.name else name


def form_name(parameterization: Parameterization) -> tuple[str, float]:
    """The inverse of `named_form`; ValueError for a form that no name says."""
    name, sigma_data = str(parameterization), 1.0
    if isinstance(parameterization, Preconditioned):
        name, sigma_data = Preconditioned.name, parameterization.sigma_data
    if name not in PARAMETERIZATIONS or not same_parameterization(
        named_form(name, sigma_data), parameterization
    ):
        raise ValueError(f"{parameterization!r} cannot be written: no name says it")
    return name, sigma_data


def output_planes(parameterization: Parameterization) -> int:
    """Planes per coordinate of a network's output, 1 or 2."""
    return 2 if parameterization in FULL_MAPS else 1


def velocity_share(sde: LinearPhaseSDE, t: np.ndarray) -> np.ndarray:
    """The share of u's information about x0 that the velocity row of the score carries, (n,).

    `(w_v/ell)^2 / snr` with `w = Sigma^-1 m`: the signal-to-noise ratio of x0 in eps_v over that in
    u. The loss on a velocity score sees an error of E[x0 | u] with this weight.
    """
    marginal = sde.marginal(np.asarray(t, dtype=np.float64))
    _, along_v = marginal.covariance.adjugate_times(marginal.mean[..., 0], marginal.mean[..., 1])
    share: np.ndarray = along_v**2 / (marginal.covariance.xx * marginal.signal)
    return share


def data_score(form: DataForm, marginal: Marginal) -> LinearMap:
    """Both rows of the score from a form's output: `-n n^T u / signal - w (drop y - gain o)`.

    `n^T Sigma n` is the marginal's `signal`. Both parts on the state are positive semi-definite.
    """
    xp = array_namespace(marginal.det)
    made = form.coefficients(marginal.sigma_y)
    m_x, m_v = marginal.mean[..., 0], marginal.mean[..., 1]
    pull = marginal.covariance.adjugate_times(m_x, m_v)
    along = xp.stack(pull, axis=-1)[..., None]
    across = xp.stack([-m_v, m_x], axis=-1)[..., None]
    signal, det = marginal.signal[..., None, None], marginal.det[..., None, None]
    seen = xp.matmul(along, xp.matrix_transpose(along)) / det
    rest = xp.matmul(across, xp.matrix_transpose(across))
    return LinearMap(
        along * (made.gain / marginal.det)[..., None, None],
        -(rest + made.drop[..., None, None] * seen) / signal,
    )


def score_map(
    sde: Process, t: np.ndarray, parameterization: Parameterization = "score"
) -> LinearMap:
    """The map from network output to full score (two planes) at times t (n,), all > 0.

    "score": the velocity score s_v. "noise": eps_v with `s_v = -ell eps_v`. "mixed": `s_v =
    -v/Sigma_vv - ell o` (Dockhorn, Vahdat, Kreis 2022, eq. 10). "renormalised": `grad_v log
    p_t/p_inf`. "x0", "data_noise", "denoiser", "epsilon", "v_prediction", "edm": see
    `cldfast.planner.data_forms`. "full_*": both rows; "full_noise" is `score = -L^-T o`, L lower;
    "full_noise_r" is `-R^-T o` with R the factor that the probability flow carries along, R_t of
    Zhang, Tao, Chen (2022), see `cldfast.planner.reverse`; its angle starts at 0 at t = 0 for
    v0_var > 0.

    Raises ValueError for an unknown name, a time where the marginal is singular (t = 0), or a
    velocity row from which the position row does not follow.
    """
    if isinstance(sde, Path):
        result: LinearMap = sde.score_map(t, parameterization)
        return result
    marginal = _marginal(sde, t, parameterization)
    form = data_form(parameterization)
    with np.errstate(all="ignore"):  # what overflows is refused below, in words
        if form is not None:
            result = data_score(form, marginal)
        elif parameterization in FULL_MAPS:
            result = ROWS[str(parameterization)](sde, marginal)
        else:
            _sign_of_velocity_row(sde)
            m_x, m_v = marginal.mean[..., 0], marginal.mean[..., 1]
            along_x, along_v = marginal.covariance.adjugate_times(m_x, m_v)
            zero = np.zeros_like(m_x)
            lift = np.stack([along_x / along_v, zero + 1.0], axis=-1)[..., None]
            result = ROWS[str(parameterization)](sde, marginal).then(lift)
            rest = stack_matrix(-m_v / along_v, m_x / along_v, zero, zero)
            result = LinearMap(result.from_output, result.from_state + rest)
    return _finite("score", result, t)


def x0_map(
    sde: LinearPhaseSDE, t: np.ndarray, parameterization: Parameterization = "score"
) -> LinearMap:
    """`E[x0 | u_t]` (one plane) from the network output at times t (n,), all > 0.

    Any row k gives `x0 = k (s + Sigma^-1 u) / (k Sigma^-1 m)`. The velocity row, multiplied through
    by det(Sigma), divides by `Sigma_xx m_v - Sigma_xv m_x`: a sum of two terms of one sign, nothing
    cancels or overflows as t goes to 0. For an underdamped process that has swung back the sum can
    be 0. A full score has two rows for one unknown; `k = m^T` is least squares in the unit noise
    `-L^T s` that such networks are trained on.

    Raises ValueError for an unknown parameterisation, t <= 0, or a velocity row that does not fix
    x0.
    """
    marginal = _marginal(sde, t, parameterization)
    form = data_form(parameterization)
    if form is not None:
        with np.errstate(all="ignore"):
            made = form.coefficients(marginal.sigma_y)
            kept = made.keep[..., None] * marginal.statistic
        return _finite("x0", LinearMap(made.gain[..., None, None], kept[..., None, :]), t)
    rows = ROWS[str(parameterization)](sde, marginal)
    if parameterization in FULL_MAPS:
        pick, sign = marginal.mean[..., None, :], 1.0
    else:
        pick, sign = np.ones((*marginal.det.shape, 1, 1)), _sign_of_velocity_row(sde)
    along = pick @ marginal.covariance.adjugate[..., -pick.shape[-1] :, :]
    size = along @ marginal.mean[..., None]
    back = sign * size[..., 0, 0] < 0.0
    if np.any(back):
        raise ValueError(
            f"an underdamped process has swung back at t = {np.max(np.asarray(t)[back])}: its "
            "velocity score does not fix x0; use a parameterization 'x0', another one of the data, "
            "or 'full_...'"
        )
    known = rows.then(marginal.det[..., None, None] * pick)
    result = LinearMap(known.from_output / size, (known.from_state + along) / size)
    return _finite("x0", result, t)


def input_map(
    sde: Process, t: np.ndarray, parameterization: Parameterization
) -> tuple[np.ndarray, np.ndarray] | None:
    """What the network sees of the state at times t (n,): rows (n, 1, 2), and its argument (n,).

    None for a network that sees the state itself and t.

    Raises ValueError as `score_map` does.
    """
    if isinstance(sde, Path):
        return sde.input_map(t, parameterization)
    form = data_form(parameterization)
    if form is None or not form.sees_y:
        return None
    return seen_by(form, _marginal(sde, t, parameterization))


def seen_by(form: DataForm, marginal: Marginal) -> tuple[Array, Array]:
    """The rows (n, 1, 2) and the argument (n,) of `input_map`, for a form that sees y."""
    made = form.coefficients(marginal.sigma_y)
    assert made.scale is not None and made.argument is not None
    return (made.scale[..., None] * marginal.statistic)[..., None, :], made.argument


def same_parameterization(a: Parameterization, b: Parameterization) -> bool:
    """Whether two parameterisations are the same, by name or as forms with equal settings."""
    return (data_form(a) or a) == (data_form(b) or b)


def noise_map(
    sde: LinearPhaseSDE, t: np.ndarray, parameterization: Parameterization, factor: np.ndarray
) -> LinearMap:
    """Unit noise `-factor^T s` (two planes) from the network output, `factor factor^T = Sigma_t`.

    factor: (n, 2, 2), at times t (n,), all > 0; any square root of the marginal's covariance.

    Raises ValueError as `score_map` does.
    """
    return score_map(sde, t, parameterization).then(-np.swapaxes(factor, -1, -2))


def denoiser_map(sde: Process, t: np.ndarray, score: LinearMap) -> LinearMap:
    """`E[u_0 | u_t] = Phi^-1 (u + Q score)` as a map of (output, state): Tweedie in phase space.

    The initial velocity is part of u_0, hence the marginal given (x0, v0) is the one that enters.
    Source: Efron (2011), "Tweedie's formula and selection bias", for a linear Gaussian channel.
    """
    step = sde.marginal(t, objective="dsm")
    back = np.linalg.inv(step.mean)
    moved = score.then(back @ step.cov)
    return LinearMap(moved.from_output, back + moved.from_state)


def _marginal(sde: LinearPhaseSDE, t: np.ndarray, parameterization: Parameterization) -> Marginal:
    """The marginal at times at which a network of this parameterisation may be asked."""
    check_parameterization(parameterization)
    t = np.asarray(t, dtype=np.float64)
    if not np.all(t > 0.0):
        raise ValueError(
            f"the score at t = {np.min(t)} does not exist: networks are asked at t > 0"
        )
    return sde.marginal(t)


def _sign_of_velocity_row(sde: LinearPhaseSDE) -> float:
    """The sign of `Sigma_xx m_v - Sigma_xv m_x` as t goes to 0; ValueError where it is 0."""
    (_, to_x), (to_v, _) = sde.A.tolist()
    if to_x == 0.0 and to_v == 0.0:
        raise ValueError(
            f"x and v do not interact under A = {sde.A.tolist()}, so a velocity score says nothing "
            "of x; use a parameterization 'x0', another one of the data, or 'full_...'"
        )
    return math.copysign(1.0, -to_x if to_x != 0.0 else to_v)


def _finite(name: str, result: LinearMap, t: np.ndarray) -> LinearMap:
    """The map itself, or ValueError for one that overflows."""
    if not (np.all(np.isfinite(result.from_output)) and np.all(np.isfinite(result.from_state))):
        raise ValueError(f"the {name} map overflows at t = {np.min(t)}; choose a larger t_min")
    return result
