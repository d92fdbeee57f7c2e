#!/usr/bin/env bash
# Install the build TORCH (cpu, cuda or rocm) of torch. The Makefile or a Dockerfile sets PIP and PY.
# TORCH_INDEX_ARGS are optional arguments of pip (such as --find-links=FOLDER); TORCH_BACKEND is a build in
# uv's notation (cu128, rocm7.1, …).
set -u
log=$(mktemp "${TMPDIR:-/tmp}/bitrank-torch.XXXXXX") || exit 2
trap 'rm -f "$log"' EXIT
backend=${TORCH_BACKEND:-}
case "$TORCH" in
    cpu) backend=${backend:-cpu} ;;
    rocm) backend=${backend:-rocm7.2} ;;
esac
# On Linux PyPI has the CUDA build only, so pip can install another one only with index arguments.
if [ -n "${TORCH_INDEX_ARGS:-}" ] || { [ "$TORCH" != rocm ] && [ -z "${TORCH_BACKEND:-}" ]; }; then
    # shellcheck disable=SC2086 # both are lists of arguments
    $PIP install ${TORCH_INDEX_ARGS:-} -c constraints.txt -c "constraints/torch-$TORCH.txt" torch 2>"$log" && exit 0
fi
if [ -n "$backend" ] && [ -z "${TORCH_INDEX_ARGS:-}" ]; then
    echo "installing the $backend build of torch with uv, which knows PyTorch's index"
    $PIP install uv==0.13.9 && $PY -m uv pip install -q --python "$PY" --torch-backend "$backend" torch==2.13.0 && exit 0
fi
if [ -f "$log" ]; then grep -v '^WARNING' "$log" | tail -n 3; fi
bash tools/no-network.sh
exit 2
