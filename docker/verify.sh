#!/usr/bin/env bash
# Build the CPU image and run the smoke matrix in it, on Debian or Ubuntu without a Docker engine.
# Takes minutes and 6 GB of disk.
#
# usage: docker/verify.sh    (make docker-verify)
#   VERIFY_FOLDER   folder for images and volumes (default: a new one under /var/tmp, removed at the end)
#   VERIFY_KEEP=1   keep them; a second run with the same VERIFY_FOLDER then builds from its layers
#   VERIFY_MEMORY   the container's memory limit (default: 1g)
#
# The base image is made from Debian packages instead of downloaded; torch comes from pip's index, or from
# $PIP_FIND_LINKS.
# Exit code 0 if all checks pass, 1 if one fails, 2 if a program is missing.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
packages=(podman runc mmdebstrap fuse-overlayfs uidmap)
limit=${VERIFY_MEMORY:-1g}

say() { printf '\n== %s\n' "$*"; }
fail() { echo "docker-verify: $*" >&2 && exit 1; }

need_packages() {
    local program missing=()
    for program in podman runc mmdebstrap; do command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || missing+=("$program"); done
    [ ${#missing[@]} -gt 0 ] || [ "$(id -u)" != 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        echo "docker-verify needs to be root to make a base image of Debian's packages; run it with sudo, or in a throwaway machine." >&2
        [ ${#missing[@]} -eq 0 ] || echo "missing: ${missing[*]}; apt-get install --no-install-recommends ${packages[*]}" >&2
        exit 2
    fi
    command -v apt-get >/dev/null || { echo "missing: ${missing[*]}, and no apt-get to install them with" >&2 && exit 2; }
    say "installing ${packages[*]}"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >/dev/null ||
        { echo "apt-get could not install ${packages[*]}" >&2 && exit 2; }
}

clean() {
    [ -z "${VERIFY_KEEP:-}" ] || return 0
    "${podman[@]}" rm --all --force >/dev/null 2>&1 || true
    umount --lazy "$folder/store/overlay" 2>/dev/null || true
    [ -n "${VERIFY_FOLDER:-}" ] || rm -rf "$folder"
}

# docs/guides/docker.md explains these arguments.
build_base() {
    "${podman[@]}" image exists localhost/python:bookworm && return
    say "base image: Debian's Python"
    mkdir -p "$folder/base"
    mmdebstrap --quiet --variant=minbase --mode=root --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$folder/base/base.tar"
    printf 'FROM scratch\nADD base.tar /\nRUN ln -sf python3 /usr/bin/python && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED\n' >"$folder/base/Dockerfile"
    "${podman[@]}" build --quiet --isolation chroot --tag localhost/python:bookworm "$folder/base" >/dev/null
    rm -rf "$folder/base"
}

build_image() {
    local arguments=(--quiet --layers --isolation chroot --network host --build-arg BASE=localhost/python:bookworm)
    [ ! -d /etc/ssl/certs ] || arguments+=(--volume /etc/ssl/certs:/etc/ssl/certs:ro) # the machine's own authorities, for pip
    if [ -d "${PIP_FIND_LINKS:-}" ]; then
        arguments+=(--volume "$PIP_FIND_LINKS:$PIP_FIND_LINKS:ro" --build-arg "TORCH_INDEX_ARGS=--find-links=$PIP_FIND_LINKS")
    fi
    say "docker/cpu.Dockerfile"
    SECONDS=0
    "$root/docker/run.sh" build "${arguments[@]}" >/dev/null
    echo "built in $SECONDS s; $("${podman[@]}" image inspect --format '{{.Size}}' localhost/bitrank:cpu | awk '{printf "%.2f GB", $1 / 1e9}') unpacked"
}

inside() { "$root/docker/run.sh" shell "$@"; }

check_isolation() {
    say "isolation: user, root file system, network, memory ($limit)"
    inside python - <"$root/docker/check_isolation.py"
    local code=0
    inside python -c 'b"x" * (8 << 30)' || code=$?
    [ "$code" = 137 ] || fail "a process got 8 GiB under a limit of $limit (exit code $code, expected 137)"
    echo "a process that allocates 8 GiB is killed (137)"
}

check_matrix() {
    say "the smoke matrix in the container, memory limit $limit"
    inside bash -c 'bitrank matrix --profile smoke --jobs 1 && cat /sys/fs/cgroup/memory/memory.max_usage_in_bytes /sys/fs/cgroup/memory.peak 2>/dev/null >results/peak || test -s results/peak'
    echo "peak of the container, page cache included: $(awk '{printf "%.0f MiB", $1 / 2^20}' "$work/results/peak")"
    "$root/docker/run.sh" run-all --profile smoke --jobs 1 | tee "$folder/second" | tail -n 3
    grep -q '14 of 14 runs are complete' "$folder/second" || fail "not all runs were complete in the second invocation"
    [ "$(wc -l <"$work/results/experiment_summary.csv")" = 15 ] || fail "expected 14 results on the volume"
    [ -s "$work/runs/mlflow.db" ] || fail "the store is not on its volume"
    "$root/docker/run.sh" bitrank report --profile smoke >/dev/null
    [ -s "$work/results/report/report.html" ] || fail "the report is not on its volume"
    echo "14 results, the store and the report are on their volumes"
}

check_ui() {
    say "the UI and its health check"
    BITRANK_RUN_ARGS="$BITRANK_RUN_ARGS --detach --name bitrank-ui" "$root/docker/run.sh" bitrank ui --host 0.0.0.0 --profile smoke >/dev/null
    local try
    for try in $(seq 60); do
        if "${podman[@]}" healthcheck run bitrank-ui >/dev/null 2>&1; then
            echo "healthy after about $((try * 2)) s" && "${podman[@]}" rm --force bitrank-ui >/dev/null && return
        fi
        sleep 2
    done
    "${podman[@]}" logs bitrank-ui >&2 || true
    fail "the UI did not become healthy"
}

need_packages
folder=${VERIFY_FOLDER:-$(mktemp -d /var/tmp/bitrank-verify.XXXXXX)}
mkdir -p "$folder" && folder=$(cd "$folder" && pwd)
podman=(podman --root "$folder/store" --runroot "$folder/run" --storage-driver overlay --runtime runc --log-level error)
trap clean EXIT
work=$folder/work # the current folder is the container's; run.sh makes runs and results in it
mkdir -p "$work" && chown 10001:10001 "$work" && cd "$work"
export BITRANK_ENGINE="${podman[*]}" BITRANK_IMAGE=localhost/bitrank:cpu
export BITRANK_MEMORY=$limit BITRANK_RUN_ARGS="--network none --ulimit nofile=4096:4096 --ulimit nproc=1024:1024"
build_base
build_image
check_isolation
check_matrix
check_ui
say "docker-verify: all of it holds"
