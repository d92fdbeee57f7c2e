#!/usr/bin/env bash
# Install torch: the build that TORCH (cpu or cuda) asks for. PIP and PY come from the Makefile.
set -u
if $PIP install -c constraints.txt -c "constraints/torch-$TORCH.txt" torch 2>"${TMPDIR:-/tmp}/bitrank-torch.$$"; then
    rm -f "${TMPDIR:-/tmp}/bitrank-torch.$$"
    exit 0
fi
if [ "$TORCH" = cpu ]; then
    echo "pip's index has no CPU build of torch; asking uv, which knows PyTorch's own"
    if $PIP install uv && $PY -m uv pip install -q --python "$PY" --torch-backend cpu torch==2.13.0; then
        rm -f "${TMPDIR:-/tmp}/bitrank-torch.$$"
        exit 0
    fi
fi
grep -v '^WARNING' "${TMPDIR:-/tmp}/bitrank-torch.$$" | tail -n 3
rm -f "${TMPDIR:-/tmp}/bitrank-torch.$$"
bash tools/no-network.sh
exit 2
