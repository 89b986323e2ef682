"""`compat.gddim` beside the real code, in a checkout at `$CLDFAST_UPSTREAM/gDDIM`, in its x64 mode.

Needs JAX besides. Its helper package for paths and caches is replaced by one that caches nothing,
and one private name of old JAX versions is supplied where it has moved.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cldfast.compat import gddim

ROOT = Path(os.environ.get("CLDFAST_UPSTREAM", "")) / "gDDIM" / "cld_jax"
if not os.environ.get("CLDFAST_UPSTREAM"):
    pytest.skip("CLDFAST_UPSTREAM names no folder of checkouts", allow_module_level=True)
if not ROOT.is_dir():
    pytest.skip(f"no checkout at {ROOT}", allow_module_level=True)
jax = pytest.importorskip("jax")


def module(name: str, **members: Any) -> types.ModuleType:
    result = types.ModuleType(name)
    result.__dict__.update(members)
    return result


@pytest.fixture(scope="module")
def sde_lib(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    from jax._src.numpy import lax_numpy, util

    if not hasattr(lax_numpy, "_promote_dtypes_inexact"):
        lax_numpy._promote_dtypes_inexact = util.promote_dtypes_inexact
    if not hasattr(type(jax.config), "read"):
        type(jax.config).read = lambda self, name: getattr(self, name)
    folder = str(tmp_path_factory.mktemp("cache"))
    stubs = {
        "jammy": module("jammy"),
        "jammy.utils": module("jammy.utils"),
        "jammy.utils.git": module("jammy.utils.git", git_rootdir=lambda name: f"{folder}/{name}"),
        "jammy.io": module("jammy.io", mkdir=lambda _: None, dump=lambda *_: None),
        # What its `sde_lib` takes from its module of helpers, which imports far more.
        "utils": module("utils", sbmm=lambda b, u: jnp.einsum("ij,b...dj->b...di", b, u)),
    }
    stubs["jammy"].io = stubs["jammy.io"]  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in [*stubs, "deis", "sde_lib"]}
    sys.modules.update(stubs)
    sys.path.insert(0, str(ROOT))
    try:
        import sde_lib  # type: ignore[import-not-found]

        yield sde_lib
    finally:
        sys.path.remove(str(ROOT))
        for name, old in before.items():
            if old is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = old


@pytest.fixture(scope="module", params=[(0.0, False), (3.0, False), (3.0, True)])
def both(request: pytest.FixtureRequest, sde_lib: Any) -> tuple[Any, gddim.CLD]:
    beta_1, runge_kutta = request.param
    theirs = sde_lib.CLD(beta_1=beta_1, x64=True, is_R_rk=runge_kutta, used_cache=False)
    ours = gddim.CLD(beta_1=beta_1, is_R_rk=runge_kutta, mode="published")
    return theirs, ours


TIMES = np.array([0.0, 1e-4, 1e-3, 0.02, 0.3, 1.0])
GRID = np.linspace(1.0, 1e-3**0.5, 8) ** 2
# 1e5 steps in float64 round to about 1e-16 * 1e5^(1/2) a step; sums of 1e4 terms likewise.
TOLERANCE = 1e-11


def test_factors(both: tuple[Any, gddim.CLD]) -> None:
    theirs, ours = both
    np.testing.assert_allclose(ours.R(TIMES), theirs.v_R(TIMES), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours.cov(TIMES), theirs.v_cov(TIMES), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours.psi(0.2, TIMES), jax.vmap(theirs.s_psi, (None, 0))(0.2, TIMES))


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_multistep_coefficients(both: tuple[Any, gddim.CLD], order: int) -> None:
    theirs, ours = both
    wanted = np.asarray(theirs.get_deis_coef(order, jax.numpy.asarray(GRID)))
    found = ours.get_deis_coef(order, GRID)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def test_coefficients_of_the_lower_factor(sde_lib: Any, both: tuple[Any, gddim.CLD]) -> None:
    theirs, ours = both
    other = sde_lib.LSDE(theirs)
    wanted = np.asarray(other.get_deis_coef(2, jax.numpy.asarray(GRID)))
    found = ours.get_deis_coef(2, GRID, form="L")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def test_order_0_coefficients(both: tuple[Any, gddim.CLD]) -> None:
    theirs, ours = both
    for name, is_em in (("prepare_order0_coef", False), ("prepare_naive_coef", True)):
        wanted = np.stack(getattr(theirs, name)(jax.numpy.asarray(GRID)), axis=1)
        found = ours.get_order0_coef(GRID, is_em)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def test_exact_factor_is_theirs_but_for_their_steps(sde_lib: Any) -> None:
    """Runge-Kutta steps are exact here, but 99,999 steps of 1e-5 fall short by 1e-5."""
    theirs = sde_lib.CLD(beta_1=3.0, x64=True, is_R_rk=True, used_cache=False)
    exact = gddim.CLD(beta_0=4.0 / 1.00001, beta_1=3.0 / 1.00001, numerical_eps=1e-6)
    at = np.array([1e-3, 0.02, 0.3, 0.999])
    np.testing.assert_allclose(theirs.v_R(at), exact.R(at), rtol=0, atol=1e-8)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_stochastic_coefficients(sde_lib: Any, scale: float) -> None:
    """Those of order 0 by their closed form. The covariances are no test, theirs lack a transpose."""
    theirs = sde_lib.CLD(beta_1=3.0, x64=True, is_R_rk=True, used_cache=False)
    other = sde_lib.LambdaSDE(theirs, scale, used_cache=False)
    ours = gddim.LambdaCLD(gddim.CLD(beta_1=3.0, numerical_eps=1e-6), scale)
    wanted = np.asarray(other.get_deis_coef(0, jax.numpy.asarray(GRID)))
    found = ours.get_deis_coef(0, GRID)
    assert found.shape == wanted.shape
    # Their tables are integrated 1e-5 short, which hat psi amplifies by its own size.
    for k in range(len(found)):
        size = np.abs(wanted[k, :2]).max()
        np.testing.assert_allclose(found[k, :-1], wanted[k, :-1], rtol=0, atol=1e-3 * size)
    # A polynomial's weights, within 2 percent: their last left sum spans a factor of 20 in t.
    wanted = np.asarray(other.get_deis_coef(2, jax.numpy.asarray(GRID)))[:, :-1]
    found = ours.get_deis_coef(2, GRID)[:, :-1]
    assert np.all(
        np.abs(found - wanted).max(axis=(1, 2, 3)) < 2e-2 * np.abs(wanted).max(axis=(1, 2, 3))
    )
