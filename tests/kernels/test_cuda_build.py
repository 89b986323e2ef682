"""The CUDA half without a GPU: what nvcc makes of each kernel, and a module that loads anyway."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cuda_on_host import ROOT, needs_cuda_toolkit

import cldfast
from cldfast import kernels

# Registers of a thread. With 128 a multiprocessor of 65,536 holds two blocks of 256 threads, which
# together keep 48 KiB of loads on their way, twice what the memory's latency asks for. A matrix for
# each row needs an address and a conversion for each entry: training's perturbation, a small stage.
BUDGET = {
    "stage_vector": 128,
    "stage_rows": 128,
    "stage_scalar": 112,
    "residual_vector": 128,
    "residual_scalar": 112,
}
OWN_MATRIX_BUDGET = 192
SMALL_BUDGET = 40


def resource_reports(source: str, architecture: str, folder: Path) -> dict[str, dict[str, int]]:
    """Registers, stack frame and spilled bytes of each kernel of a source, as ptxas reports them."""
    nvcc = needs_cuda_toolkit() / "bin" / "nvcc"
    # The flags of csrc/cuda/cuda.cmake.
    command = [
        str(nvcc), "-cubin", f"-arch={architecture}", "-std=c++17", "-O3", "--fmad=false", "-Xptxas",
        "-v", f"-I{ROOT / 'csrc'}", str(ROOT / "csrc" / source),
        "-o", str(folder / f"{Path(source).stem}.{architecture}.cubin"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    reports: dict[str, dict[str, int]] = {}
    name = ""
    for line in done.stderr.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            name = found.group(1)
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", line):
            reports.setdefault(name, {}).update(
                zip(("stack", "stores", "loads"), map(int, found.groups()), strict=True)
            )
        elif found := re.search(r"Used (\d+) registers", line):
            reports[name]["registers"] = int(found.group(1))
    return reports


def test_no_kernel_spills_or_passes_its_budget(tmp_path: Path) -> None:
    # Fast normals have the same code but for the normals, which need fewer registers.
    sources = {
        "cuda/stage.cu": ("sm_80", "sm_90"),
        "cuda/stage_fast.cu": ("sm_90",),
        "cuda/residual.cu": ("sm_80", "sm_90"),
        "cuda/table.cu": ("sm_90",),
    }
    needs_cuda_toolkit()
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            (source, architecture, pool.submit(resource_reports, source, architecture, tmp_path))
            for source, architectures in sources.items()
            for architecture in architectures
        ]
    seen = set()
    for source, architecture, job in jobs:
        reports = job.result()
        assert reports, source
        for mangled, report in reports.items():
            kernel = next((name for name in BUDGET if name in mangled), "")
            seen.add(kernel)
            budget = BUDGET.get(kernel, SMALL_BUDGET)
            # stage_vector<outputs, inputs, matrix, plain>, the matrix 1 where each row has its own
            if re.search(r"stage_vectorILi[34]ELi\dELi1E", mangled):
                budget = OWN_MATRIX_BUDGET
            what = f"{mangled} of {source} for {architecture}: {report}"
            assert report["stores"] == report["loads"] == report["stack"] == 0, f"spill in {what}"
            assert report["registers"] <= budget, f"over {budget} registers in {what}"
    assert seen == {*BUDGET, ""}


# An H200 issues 4 instructions of 32 lanes to each of 132 multiprocessors in a cycle, at 1.755 GHz
# 29.7e12 a second to lanes; a copy moves about 4.3e12 bytes (DESIGN), and the step 20 bytes a pair. At
# 85 % of that it may cost 162 instructions a pair, or else they decide, not the memory. Some slots stay
# empty. Counted is all that follows the barrier, also the long division of sizes past 2^31, some 25.
STEP_BUDGET, STEP_PAIRS = 145, 8
# With the hardware's logarithm, sine and cosine a pair takes some 60 fewer. A recorded step makes its round
# keys from the seed, 20 additions for two pairs, most of which take the place of other instructions.
FAST_BUDGET, RECORDED = 90, 3


def test_a_step_has_few_enough_instructions_to_wait_for_memory(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton", reason="NO_TRITON: Triton brings the disassembler")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    if not tool.exists():
        pytest.skip("NO_NVDISASM: this Triton brings no disassembler")
    for name, budget in {"stage": STEP_BUDGET, "stage_fast": FAST_BUDGET}.items():
        resource_reports(f"cuda/{name}.cu", "sm_90", tmp_path)
        done = subprocess.run(
            [str(tool), "-c", str(tmp_path / f"{name}.sm_90.cubin")],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            pytest.skip("NVDISASM_TOO_OLD: this disassembler does not know the compiler's format")
        parts = re.split(r"^\.text\.", done.stdout, flags=re.M)
        # Given or recorded, with an output of 16 bits or of 32.
        usual = re.compile(r"\w*stage_vectorILi2ELi3ELi([02])ELb[01]E")
        texts = [(found[1], part) for part in parts if (found := usual.match(part))]
        assert len(texts) == 4
        for matrix, text in texts:
            line = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z]\w*)"
            found = re.findall(line, text, flags=re.M)
            step = [name for name in found[found.index("BAR") :] if name != "NOP"]
            assert len(step) <= (budget + RECORDED * (matrix == "2")) * STEP_PAIRS


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPU: a device is there")
def test_without_a_device_the_module_loads_and_the_library_goes_on() -> None:
    reason = kernels.missing_backend("cuda")
    report = cldfast.info()
    assert reason and report["backends"]["cuda"] == f"not available: {reason}"
    assert report["auto"]["cuda"] == "reference"
    try:
        from cldfast import _cuda
    except ImportError:
        if shutil.which("nvcc") and not os.environ.get("CLDFAST_SANITIZE"):
            raise
        assert "CUDA kernels were not built" in reason and report["cuda"] is None
    else:
        assert "no CUDA device: cudaError" in reason
        with pytest.raises(_cuda.CudaError, match=r"^cudaError\w+ in cudaGetDeviceCount: "):
            _cuda.device_count()
        assert report["cuda"]["architectures"] == _cuda.ARCHITECTURES.split()
        assert {"80", "90"} <= set(report["cuda"]["architectures"])
    with pytest.raises(
        ValueError, match="backend 'cuda' needs tensors on a device of type cuda, got device cpu"
    ):
        kernels.resolve_backend("cuda", torch.device("cpu"))
    with pytest.raises(ValueError, match="backend 'cuda' is not available: "):
        kernels.resolve_backend("cuda", torch.device("cuda"))
    with pytest.raises(ValueError, match="backend 'triton' is not available: "):
        kernels.resolve_backend("triton", torch.device("cuda"))
    x = cldfast.sample(lambda u, t: -u[:, 2:], cldfast.CLD(), (4, 2), steps=2)
    assert bool(torch.isfinite(x).all())


def test_auto_on_a_gpu_without_kernels_is_the_reference_and_says_so() -> None:
    if not kernels.missing_backend("cuda") or not kernels.missing_backend("triton"):
        pytest.skip("GPU: a device is there")
    script = (
        "import torch, warnings\n"
        "from cldfast import kernels\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(2):\n"
        "        assert kernels.resolve_backend('auto', torch.device('cuda')).name == 'reference'\n"
        "assert len(caught) == 1 and 'fast kernels for cuda are missing' in str(caught[0].message), caught\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="binutils' readelf is missing")
def test_the_module_needs_no_cuda_library() -> None:
    module = pytest.importorskip("cldfast._cuda", reason="NO_NVCC: the CUDA kernels were not built")
    told = subprocess.run(
        ["readelf", "-d", module.__file__], check=True, capture_output=True, text=True
    ).stdout
    needed = [line for line in told.splitlines() if "NEEDED" in line]
    assert needed
    for line in needed:
        assert not any(name in line for name in ("cuda", "torch", "c10", "nvidia")), line
    # The runtime's functions are neither asked for nor shown: PyTorch's own could take their place.
    told = subprocess.run(
        ["readelf", "--dyn-syms", "-W", module.__file__], check=True, capture_output=True, text=True
    ).stdout
    assert not re.search(r" (__)?cuda\w+(@\S+)?$", told, flags=re.M)


def test_importing_the_library_loads_no_compiler() -> None:
    script = (
        "import sys, cldfast\n"
        "loaded = {'torch._dynamo', 'triton', 'cldfast.kernels.backends.triton.stage'}\n"
        "assert not loaded & set(sys.modules), loaded & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
