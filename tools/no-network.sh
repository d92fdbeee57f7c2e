#!/usr/bin/env bash
# What to say when packages could not be fetched.
cat >&2 <<'TEXT'
bitrank: the packages could not be installed. Check the network or your package index (pip's own settings are used), then run
the same command again; what was installed already is kept. On a GPU machine use TORCH=cuda.
TEXT
