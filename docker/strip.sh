#!/usr/bin/env bash
# Remove files that no run needs from a virtual environment. usage: strip.sh VENV cpu|cuda|rocm
set -euo pipefail
venv=$1 hardware=$2
packages=$(echo "$venv"/lib/python3*/site-packages)

"$venv/bin/python" -m pip uninstall -q -y uv 2>/dev/null || true # it may have fetched torch; nothing needs it afterwards
# Tests of libraries and headers. Bytecode stays, else each run would compile it again, in its own memory.
find "$packages" -depth -type d -name tests -exec rm -rf {} +
rm -rf "$packages"/torch/{test,include,bin/{protoc,test_,*Test,*.pt}*} "$packages"/torch/share/cmake "$packages"/pyarrow/include
find "$packages" \( -name '*.a' -o -name '*.pyi' \) -delete
# bitsandbytes has a library per version of CUDA, ROCm and XPU; a machine loads its own and the CPU's.
find "$packages/bitsandbytes" -name 'libbitsandbytes_*.so' ! -name 'libbitsandbytes_cpu.so' ! -name "libbitsandbytes_$hardware*" -delete
