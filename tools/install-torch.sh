#!/usr/bin/env bash
# Install torch: the build that TORCH (cpu, cuda or rocm) asks for. PIP and PY come from the Makefile or a Dockerfile.
# TORCH_INDEX_ARGS, if given, is for pip (such as --find-links=FOLDER); TORCH_BACKEND names a build as uv does (cu128, rocm7.1, …).
set -u
said=${TMPDIR:-/tmp}/bitrank-torch.$$
trap 'rm -f "$said"' EXIT
backend=${TORCH_BACKEND:-}
case "$TORCH" in
    cpu) backend=${backend:-cpu} ;;
    rocm) backend=${backend:-rocm7.2} ;;
esac
# On Linux PyPI's own build is the one for CUDA: pip is not asked for another unless it was told where to look.
if [ -n "${TORCH_INDEX_ARGS:-}" ] || { [ "$TORCH" != rocm ] && [ -z "${TORCH_BACKEND:-}" ]; }; then
    # shellcheck disable=SC2086 # both hold several words
    $PIP install ${TORCH_INDEX_ARGS:-} -c constraints.txt -c "constraints/torch-$TORCH.txt" torch 2>"$said" && exit 0
fi
if [ -n "$backend" ] && [ -z "${TORCH_INDEX_ARGS:-}" ]; then
    echo "asking uv for the $backend build of torch: it knows where PyTorch keeps it"
    $PIP install uv && $PY -m uv pip install -q --python "$PY" --torch-backend "$backend" torch==2.13.0 && exit 0
fi
if [ -f "$said" ]; then grep -v '^WARNING' "$said" | tail -n 3; fi
bash tools/no-network.sh
exit 2
