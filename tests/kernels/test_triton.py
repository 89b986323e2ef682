"""The Triton kernels without a GPU: numerics under the interpreter, machine code ahead of time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
triton = pytest.importorskip("triton", reason="NO_TRITON: Triton is not installed")


def test_numerics_under_the_interpreter() -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET once, where kernels are defined."""
    here = [str(HERE.parents[1]), str(HERE.parent / "support")]
    paths = os.pathsep.join([*here, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "triton_interpreted.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths},
        cwd=HERE, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def compiled(
    kernel: object, arguments: dict[str, object], architecture: int, multiples: str = ""
) -> str:
    """The PTX of a kernel for sm_80 or sm_90.

    arguments: types for run-time ones, as Triton writes them, in tuples for tuples; values for
    the others. multiples: names of arguments that 16 divides, as Triton finds when it is called;
    of strides those of the batch, of all pointers the addresses.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature: dict[str, object] = {}
    constants: dict[str, object] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    types = re.compile(r"\*?(fp32|fp64|bf16|fp16|[iu](32|64))$")

    def is_type(value: object) -> bool:
        if isinstance(value, tuple):
            return all(map(is_type, value))
        return isinstance(value, str) and bool(types.match(value))

    def mark(name: str, path: tuple[int, ...], value: object) -> None:
        if isinstance(value, tuple):
            for i, part in enumerate(value):
                mark(name, (*path, i), part)
        elif str(value).startswith("*") or (name in multiples.split() and path[2:] in ((), (0,))):
            attributes[path] = [["tt.divisibility", 16]]

    for position, name in enumerate(kernel.arg_names):  # type: ignore[attr-defined]
        value = arguments[name]
        if is_type(value):
            signature[name] = value
            if multiples:
                mark(name, (position,), value)
        else:
            signature[name] = "constexpr"
            constants[name] = value
    source = ASTSource(
        fn=kernel, signature=signature, constexprs=constants, attrs=attributes or None
    )
    from cldfast.kernels.backends.triton.stage import OPTIONS

    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=OPTIONS)
    assert made.asm["cubin"]
    return str(made.asm["ptx"])


STRIDES = ("i64", "i64", "i64")
ADDRESS = {"seed": "u64", "first_pair": "i64", "stage_index": "u32", "stream": "u32"}


@pytest.mark.parametrize(
    ("architecture", "state", "table"),
    [(80, "fp32", False), (80, "fp32", True), (90, "fp32", False), (90, "fp32", True),
     (90, "fp64", False)],
)  # fmt: skip
def test_stage_compiles(architecture: int, state: str, table: bool) -> None:
    from cldfast.kernels.backends.triton.stage import BLOCK, stage_kernel

    ptx = compiled(
        stage_kernel,
        {
            "inputs": (f"*{state}", f"*{state}", "*bf16"), "input_strides": (STRIDES,) * 3,
            # Without a table the last plane is what the network sees.
            "outputs": (f"*{state}", f"*{state}", f"*{state}" if table else "*fp16"),
            "output_strides": (STRIDES,) * 3,
            "weights": "*fp64", "step": "*i64" if table else None,
            "pairs": "i64", "width": "i64", "inner": "i64", **ADDRESS,
            "used": 31, "first_row": 0, "ROWS": 3, "OUTS": 3, "INS": 3, "ADDRESSED": True, "NOISY": True,
            "OWN": not table, "TABLE": table, "ODD": 0, "DENSE": 0b111011, "LONG": False,
            "WIDE": state == "fp64", "BLOCK": BLOCK,
        },
        architecture,
    )  # fmt: skip
    # A product is not fused into a sum unless the source says so.
    assert "fma.rn" in ptx
    assert f".target sm_{architecture}" in ptx


@pytest.mark.parametrize("architecture", [80, 90])
def test_dense_planes_are_moved_by_16_bytes(architecture: int) -> None:
    from cldfast.kernels.backends.triton.residual import residual_kernel
    from cldfast.kernels.backends.triton.stage import BLOCK, OPTIONS, stage_kernel

    common = {"inner": "i64", "DENSE": 255, "WIDE": False, "BLOCK": BLOCK}
    stage = compiled(
        stage_kernel,
        {
            "inputs": ("*fp32",) * 3, "input_strides": (STRIDES,) * 3, "outputs": ("*fp32",) * 2,
            "output_strides": (STRIDES,) * 2, "weights": "*fp64",
            "step": None, **ADDRESS, "pairs": "i64", "width": "i64", "used": 31, "first_row": 0, "ROWS": 2,
            "OUTS": 2, "INS": 3, "ADDRESSED": True, "NOISY": True, "OWN": False, "TABLE": False,
            "ODD": 0, "LONG": False, **common,
        },
        architecture, "pairs width input_strides output_strides",
    )  # fmt: skip
    # As the losses call it: one piece a row; vectors have inner = 1, which is compiled in.
    residual = compiled(
        residual_kernel,
        {
            "inputs": ("*fp32",) * 2, "input_strides": (STRIDES,) * 2, "gradients": ("*fp32",),
            "gradient_strides": (STRIDES,), "weights": "*fp64", "scales": None, "factor": "i64",
            "sums": "*fp64", "pieces": 1, "width": "i32", **common, "inner": 1, "RESIDUALS": 1,
            "OUTPUTS": 1, "INS": 2, "SCALED": False,
        },
        architecture, "width input_strides gradient_strides",
    )  # fmt: skip
    accesses = BLOCK // (32 * OPTIONS["num_warps"]) // 4  # of each thread to a plane
    for ptx, inputs, outputs in ((stage, 3, 2), (residual, 2, 1)):
        assert ptx.count("ld.global.v4.b32") == accesses * inputs
        assert ptx.count("st.global.v4.b32") == accesses * outputs


def test_what_changes_from_call_to_call_compiles_nothing_anew() -> None:
    from cldfast.kernels.backends.triton.stage import _words_kernel, stage_kernel

    for kernel in (stage_kernel, _words_kernel):
        fixed = {p.name for p in kernel.params if p.do_not_specialize}
        assert set(ADDRESS) <= fixed


@pytest.mark.parametrize(("architecture", "planes"), [(80, 1), (90, 1), (90, 2)])
def test_residual_compiles(architecture: int, planes: int) -> None:
    from cldfast.kernels.backends.triton.residual import residual_kernel
    from cldfast.kernels.backends.triton.stage import BLOCK

    ptx = compiled(
        residual_kernel,
        {
            "inputs": ("*bf16",) * planes + ("*fp32",) * planes,
            "input_strides": (STRIDES,) * (2 * planes),
            "gradients": ("*bf16",) * planes, "gradient_strides": (STRIDES,) * planes,
            "weights": "*fp64", "scales": "*fp64", "factor": "i64", "sums": "*fp64",
            "pieces": "i32", "width": "i32", "inner": "i32",
            "RESIDUALS": planes, "OUTPUTS": planes, "INS": 2 * planes, "SCALED": True, "DENSE": 255, "WIDE": False, "BLOCK": BLOCK,
        },
        architecture,
    )  # fmt: skip
    assert f".target sm_{architecture}" in ptx


@pytest.mark.parametrize("architecture", [80, 90])
def test_tables_compile(architecture: int) -> None:
    from cldfast.kernels.backends.triton.tables import matrices_kernel
    from cldfast.kernels.time_tables import TERMS

    ptx = compiled(
        matrices_kernel,
        {
            "coefficients": "*fp64", "stride": "i64", "octaves": "*i64", "count": "i32", "end": "i64",
            "times": "*fp64", "entries": "i32", "numbers": "i64", "result": "*fp64", "TERMS": TERMS,
            "BLOCK": 256,
        },
        architecture,
    )  # fmt: skip
    assert "fma.rn.f64" in ptx


def header_numbers(text: str) -> set[float]:
    """All literals of a C++ header, decimal and hexadecimal."""
    found = re.findall(r"-?0x[0-9a-fA-F]+\.[0-9a-f]*p[+-]\d+|-?\d+\.\d+(?:e[+-]?\d+)?", text)
    return {float.fromhex(n) if "x" in n else float(n) for n in found}


def test_constants_are_those_of_the_headers() -> None:
    from cldfast.kernels.backends.triton import normals, polynomials

    csrc = HERE.parents[1] / "csrc" / "shared"
    in_polynomials = header_numbers((csrc / "polynomials.h").read_text(encoding="utf-8"))
    for name in ("LOG", "SINE", "COSINE"):
        series = getattr(polynomials, f"{name}_SERIES")
        assert set(series) <= in_polynomials
        assert getattr(normals, name).value == series
    philox = (csrc / "philox.h").read_text(encoding="utf-8")
    in_philox = header_numbers(philox)
    for name in ("LN4_HIGH", "LN4_LOW", "TURN_HIGH", "TURN_LOW"):
        assert getattr(normals, name).value in in_philox
    assert f"SQRT_HALF = 0x{normals.SQRT_HALF.value:X}" in philox
