#!/usr/bin/env bash
# Print a remedy when packages cannot be downloaded.
cat >&2 <<'TEXT'
bitrank: the packages could not be installed. Check the network or your package index (pip's own settings
are used), then run the same command again; installed packages are kept. On a GPU machine use TORCH=cuda.
TEXT
