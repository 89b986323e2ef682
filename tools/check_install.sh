#!/usr/bin/env bash
# Installs cldfast as users do, for each Python that there is, and tries it away from the source tree.
#
# Each Python gets a new environment, in which these follow one another: the wheel, the sdist, and the
# sdist where no compiler is to be found. What is tried: tests/wheel_check.py, the README's ten lines,
# `cldfast info`, the demo, and mypy --strict on a user's program. The first environment also runs a
# part of the tests that the sdist brings. The rows of the table that is printed are seconds.
# PYTHONS names other Pythons, KINDS fewer kinds, WORK a folder with room for PyTorch.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

. tools/pythons.sh
work=$(mktemp -d -p "${WORK:-${TMPDIR:-/tmp}}")
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONPATH= CLDFAST_CUDA=${CLDFAST_CUDA:-0}
table=$work/table.md
printf '| Python | PyTorch | from | install | ten lines | `info` | demo | types |\n' >"$table"
printf '|---|---|---|---:|---:|---:|---:|---:|\n' >>"$table"

# Runs a step; leaves its seconds in `took`, and shows its output where it fails.
step() {
    local from=$SECONDS
    if ! "$@" >"$work/log" 2>&1; then
        tail -40 "$work/log" >&2
        echo "failed: $*" >&2
        exit 1
    fi
    took=$((SECONDS - from))
}

tests_of_the_sdist() {
    tar -xzf "$sdist" -C "$work"
    "$bin/pip" install -q -c "$root/constraints.txt" pytest pytest-benchmark hypothesis mpmath
    (cd "$work"/cldfast-*/ && OMP_NUM_THREADS=1 "$bin/pytest" -q -p no:cacheprovider tests/test_readme.py \
        tests/test_layering.py tests/kernels/test_stage.py tests/planner/test_plan.py \
        tests/process tests/sampling/test_run.py)
}

sed -n '/^```python$/,/^```$/{/^```/d;p}' README.md >"$work/ten_lines.py"
cp tests/wheel_check.py tests/user_program.py "$work/"
demo=${DEMO-cldfast demo --minutes 0.2}  # empty for none
first=yes
for python in $(pythons); do
    rm -rf "$work/venv"
    "$python" -m venv "$work/venv"
    bin=$work/venv/bin
    if [ -n "$first" ]; then
        "$bin/pip" install -q build
        step "$bin/python" -m build --sdist --outdir "$work/dist" .
        sdist=$(ls "$work"/dist/*.tar.gz)
    fi
    "$bin/pip" wheel -q --no-deps -w "$work/wheels" "$sdist"
    "$bin/pip" install -q -c constraints.txt torch mypy scikit-learn matplotlib POT
    torch=$("$bin/python" -c 'import torch; print(torch.__version__)')
    for kind in ${KINDS:-wheel sdist pure}; do
        cd "$work"
        "$bin/pip" uninstall -q -y cldfast 2>/dev/null || true
        tag=cp$("$bin/python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
        case $kind in
        wheel) source=$(ls "$work"/wheels/*"$tag-$tag"*.whl) compiler=${CXX:-} check=all ;;
        sdist) source=$sdist compiler=${CXX:-} check=all ;;
        pure) source=$sdist compiler=/nowhere/c++ check=pure ;;
        esac
        CXX=$compiler step "$bin/pip" install --no-cache-dir -c "$root/constraints.txt" "$source"
        row="| $("$bin/python" -V | cut -d' ' -f2) | $torch | $kind | $took"
        step "$bin/python" wheel_check.py $check
        step "$bin/python" ten_lines.py
        row="$row | $took"
        step "$bin/cldfast" info
        row="$row | $took"
        if [ -n "$demo" ]; then
            step "$bin"/$demo --out "$work/demo-$tag-$kind"
            row="$row | $took"
        else
            row="$row | -"
        fi
        step "$bin/mypy" --strict --cache-dir "$work/mypy-$tag" user_program.py
        echo "$row | $took |" | tee -a "$table"
        if [ -n "$first" ]; then
            step tests_of_the_sdist
            echo "the tests of the sdist: $(tail -1 "$work/log")"
            first=
        fi
        cd "$root"
    done
done
cat "$table"
