#!/usr/bin/env bash
# Take out of a virtual environment what no run needs. usage: strip.sh VENV cpu|cuda|rocm
set -euo pipefail
venv=$1 hardware=$2
packages=$(echo "$venv"/lib/python3*/site-packages)

"$venv/bin/python" -m pip uninstall -q -y uv 2>/dev/null || true # it may have fetched torch; nothing asks for it afterwards
# The libraries' own tests, and what only a compiler would read. Bytecode stays: a run would have to make it again, in its own memory.
find "$packages" -depth -type d -name tests -exec rm -rf {} +
rm -rf "$packages"/torch/{test,include,bin/{protoc,test_,*Test,*.pt}*} "$packages"/torch/share/cmake "$packages"/pyarrow/include
find "$packages" \( -name '*.a' -o -name '*.pyi' \) -delete
# bitsandbytes carries a library for every version of CUDA, ROCm and XPU; a machine loads its own kind and that for the CPU.
find "$packages/bitsandbytes" -name 'libbitsandbytes_*.so' ! -name 'libbitsandbytes_cpu.so' ! -name "libbitsandbytes_$hardware*" -delete
