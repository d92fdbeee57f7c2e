#!/usr/bin/env bash
# Build the image and run bitrank in it, with docker or podman. See `docker/run.sh --help`.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

usage() {
    cat <<'TEXT'
usage: docker/run.sh [cpu|gpu|rocm] COMMAND [ARGUMENTS]

  build [ENGINE ARGUMENTS]         build the image, such as: build --build-arg EXTRA_PACKAGES="gcc libc6-dev"
  run CONFIG TASK [ARGUMENTS]      one run; TASK is a name, or a file or folder of your own
  run-all [ARGUMENTS]              what is missing of the study matrix
  ui [ARGUMENTS]                   the MLflow UI on 127.0.0.1:$PORT (default 5000)
  shell [COMMAND]                  a shell, or one command, in the image
  bitrank ARGUMENTS                any other command: list, report, doctor, …

cpu is the default; gpu is NVIDIA (the container toolkit must be there), rocm is AMD.

examples:
  docker/run.sh build
  docker/run.sh run Joint-3 wiki_articles --max-steps 10
  docker/run.sh gpu run-all --profile paper --seeds 0
  BITRANK_MEMORY=4g docker/run.sh run B-FP reviews.csv
  docker/run.sh bitrank report

The current folder is the working folder in the container: what is written below it stays. Other files and
folders that arguments name are read-only there. Results outside go only into folders that exist.

From the environment:
  BITRANK_STORE, BITRANK_RESULTS   folders for runs and results (default: ./runs, ./results)
  BITRANK_DATA                     a folder of models and data, seen as /data, read-only
  BITRANK_CACHE_VOLUME             the volume for downloads (default: bitrank-cache- and the user's number)
  BITRANK_MEMORY                   a limit on memory, such as 4g
  BITRANK_ENGINE                   docker, podman, or either with arguments of its own
  BITRANK_IMAGE, BITRANK_RUN_ARGS  another image; more arguments for the engine's run
  WANDB_API_KEY, HF_TOKEN, MLFLOW_TRACKING_PASSWORD and others
                                   passed by name, so that their values are on no command line
TEXT
}

wrong() {
    echo "docker/run.sh: $*" >&2
    echo "docker/run.sh --help lists all commands" >&2
    exit 2
}

# Set "engine" to the engine's command line.
find_engine() {
    read -ra engine <<<"${BITRANK_ENGINE:-}"
    if [ ${#engine[@]} -eq 0 ]; then
        if command -v docker >/dev/null; then engine=(docker)
        elif command -v podman >/dev/null; then engine=(podman)
        else wrong "neither docker nor podman was found; install one, or name yours in BITRANK_ENGINE"; fi
    fi
    command -v "${engine[0]}" >/dev/null || wrong "BITRANK_ENGINE names ${engine[0]}, which was not found"
    kind=$(basename "${engine[0]}")
}

build() {
    local name=$hardware arguments=()
    [ "$hardware" = gpu ] && name=cuda
    # podman's own image format has no health checks.
    [ "$kind" = podman ] && arguments+=(--format docker)
    exec "${engine[@]}" build ${arguments[@]+"${arguments[@]}"} --build-arg "COMMIT=$(commit)" --file "$root/docker/$name.Dockerfile" --tag "$image" "$@" "$root"
}

# The checkout's commit, with the suffix -dirty if tracked files differ; empty outside a checkout.
commit() {
    git -C "$root" rev-parse HEAD >/dev/null 2>&1 || return 0
    git -C "$root" describe --always --abbrev=40 --dirty --exclude '*'
}

# Arguments of the engine's run for every command.
common() {
    arguments=(run --rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges)
    if [ "$kind" = podman ]; then arguments+=(--security-opt label=disable); else arguments+=(--init); fi
    [ -z "${BITRANK_MEMORY:-}" ] || arguments+=(--memory "$BITRANK_MEMORY")
    case "$hardware" in
        gpu) if [ "$kind" = podman ]; then arguments+=(--device nvidia.com/gpu=all); else arguments+=(--gpus all); fi ;;
        rocm) arguments+=(--device /dev/kfd --device /dev/dri --group-add video --group-add render) ;;
    esac
    tokens
    mounts
    read -ra more <<<"${BITRANK_RUN_ARGS:-}"
    arguments+=(${more[@]+"${more[@]}"}) # an empty array is an unknown name to the bash of macOS
}

# By name only, so that the values appear on no command line.
tokens() {
    local name
    for name in WANDB_API_KEY WANDB_MODE WANDB_PROJECT WANDB_ENTITY WANDB_BASE_URL HF_TOKEN HF_ENDPOINT MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN PIP_INDEX_URL PIP_EXTRA_INDEX_URL HTTP_PROXY HTTPS_PROXY NO_PROXY; do
        [ -z "${!name:-}" ] || arguments+=(--env "$name")
    done
}

# Folders of the host, and the cache. Files belong to the calling user; for root, to the image's user.
mounts() {
    local store=${BITRANK_STORE:-runs} results=${BITRANK_RESULTS:-results} user=10001 folder
    [ "$here" != / ] || wrong "the current folder is / and would be seen in the container; go to a folder of your own"
    [ "$(id -u)" = 0 ] || user=$(id -u)
    # An engine would make absent mount points (runs, results) as root.
    for folder in "$store" "$results" runs results; do own "$folder"; done
    if [ "$user" = 10001 ]; then
        own .memory
        [ -n "$(find . -prune \( -user 10001 -o -perm -0002 \))" ] ||
            echo "docker/run.sh: user 10001 of the image cannot make files in $here; for plans, exports or a paper go to a folder made by: mkdir work && chown 10001:10001 work" >&2
    else
        arguments+=(--user "$user:$(id -g)")
        [ "$kind" != podman ] || arguments+=(--userns keep-id)
    fi
    # One a user: kernels that another user compiled are refused, and new downloads could not be written.
    arguments+=(--mount "type=volume,source=${BITRANK_CACHE_VOLUME:-bitrank-cache-$user},target=/cache")
    bind . /study
    bind "$store" /study/runs
    bind "$results" /study/results
    [ -z "${BITRANK_DATA:-}" ] || bind "$BITRANK_DATA" /data ,readonly
}

# Make a folder of the host, if absent, for the container's user.
own() {
    [ -d "$1" ] || { mkdir -p "$1" && { [ "$(id -u)" != 0 ] || chown 10001:10001 "$1"; }; } ||
        wrong "cannot make the folder $1; go to a folder of your own, or name others in BITRANK_STORE and BITRANK_RESULTS"
}

# A folder or file of the host, seen at another path: bind SOURCE TARGET [,readonly]
bind() {
    [ -e "$1" ] || wrong "there is no $1"
    local path
    if [ -d "$1" ]; then path=$(cd "$1" && pwd); else path=$(cd "$(dirname "$1")" && pwd)/$(basename "$1"); fi
    [[ $path != *,* ]] || wrong "engines cannot mount a path with a comma: $path"
    path="type=bind,source=$path,target=$2${3:-}"
    [[ " ${arguments[*]} " == *" $path "* ]] || arguments+=(--mount "$path") # engines refuse a target twice
}

# Set "command" to the arguments with paths as the container sees them, and bind what lies outside the current folder.
share() {
    local word prefix name before=""
    command=()
    [ $# -gt 0 ] || return 0
    command=("$1") # the name of a command, which a folder such as "paper" may have too
    for word in "${@:2}"; do
        prefix=""
        # --option=PATH and, of --set, KEY=PATH
        if [ ! -e "$word" ] && [[ $word =~ ^[A-Za-z_-]+= ]]; then prefix=${word%%=*}= word=${word#*=}; fi
        name=${prefix%=}
        [[ $word != sqlite:///* ]] || prefix+=sqlite:/// word=${word#sqlite:///}
        case "${name:-$before}" in
            --save | --out | --notes | --results | --store) written "$word" ;;
            *) read_only "$word" ;;
        esac
        command+=("$prefix$seen")
        before=$word
    done
}

# Whether the container has a path of its own by this name, or it is a URI.
is_inside() {
    case "$1" in
        "" | /study | /study/* | /cache | /cache/*) return 0 ;;
        /data | /data/*) [ -n "${BITRANK_DATA:-}" ] ;;
        *) [[ $1 == *://* ]] ;;
    esac
}

# Set "seen" to a value, of which each part that is a file or folder of the host is bound: read_only A,B
read_only() {
    local rest=$1 part found=""
    while part=${rest%%,*}; do
        seen=$part
        if ! is_inside "$part" && [ -e "$part" ] && { ! below "$part" || leaves "$full"; }; then
            seen=/input$full
            bind "$full" "$seen" ,readonly
            bind_links "$full"
        fi
        found+=$seen
        [[ $rest == *,* ]] || break
        found+=, rest=${rest#*,}
    done
    seen=$found
}

# Set "place" to where a link of a folder that is bound below /input leads in the container.
follow() {
    local text
    text=$(readlink -- "$1")
    case "$text" in
        /*) place=$text ;;
        *) place=/input$(cd -- "${1%/*}/$(dirname -- "$text")" && pwd)/$(basename -- "$text") ;;
    esac
}

# Whether a link among the entries of a folder leads out of the current folder, or to the host's name of it.
leaves() {
    local link
    [ -d "$1" ] || return 1
    while IFS= read -r link; do
        [ -e "$link" ] || continue
        follow "$link"
        [[ $place == /input"$here"/* ]] || return 0
    done < <(find "$1" -maxdepth 1 -type l)
    return 1
}

# Bind the targets of links among the entries of a folder: the files of a model in a hub's cache are such links.
bind_links() {
    local link
    [ -d "$1" ] || return 0
    while IFS= read -r link; do
        [ -e "$link" ] || continue
        follow "$link"
        [[ $place == /input"$1"/* ]] || bind "$(readlink -f -- "$link")" "$place" ,readonly
    done < <(find "$1" -maxdepth 1 -type l)
}

# Set "seen" to a path that is written. Outside the current folder only a folder that exists keeps it.
written() {
    seen=$1
    if is_inside "$1" || below "$1"; then return; fi
    [ -d "$1" ] || wrong "$1 lies outside the current folder and would be lost with the container; name a path below $here, or a folder that exists"
    seen=/output$full
    bind "$full" "$seen"
}

# Whether a path, which may be absent, lies below the current folder; sets "full" to its real path, and "seen" if it is
# not the same in the container.
below() {
    local path=$1 absent=""
    while [ ! -e "$path" ]; do absent=/$(basename -- "$path")$absent path=$(dirname -- "$path"); done
    full=$(readlink -f -- "$path")$absent
    [[ $full/ == "$here"/* ]] || return 1
    [ "$full" = "$here/$1" ] || seen=/study${full#"$here"} # links to the host's name of the folder lead nowhere
}

run_one() {
    [ $# -ge 2 ] || wrong "run needs CONFIG and TASK, such as: run Joint-3 wiki_articles"
    case "$2" in
        *.csv | *.tsv | *.json | *.jsonl | *.parquet | *.arrow) [ -e "$2" ] || is_inside "$2" || wrong "there is no $2" ;;
    esac
    share run --config "$1" --task "$2" "${@:3}"
    exec "${engine[@]}" "${arguments[@]}" "$image" "${command[@]}"
}

serve() {
    local port=${PORT:-5000}
    [[ $port =~ ^[0-9]+$ ]] || wrong "PORT must be a number, got $port"
    # Listen on the container's network, which is published on the host's 127.0.0.1 only.
    share ui --host 0.0.0.0 --port "$port" "$@"
    exec "${engine[@]}" "${arguments[@]}" --publish "127.0.0.1:$port:$port" "$image" "${command[@]}"
}

shell() {
    [ $# -gt 0 ] || set -- bash
    exec "${engine[@]}" "${arguments[@]}" --interactive --entrypoint "$1" "$image" "${@:2}"
}

hardware=cpu
case "${1:-}" in
    cpu | gpu | rocm) hardware=$1 && shift ;;
    cuda) hardware=gpu && shift ;;
esac
action=${1:-}
[ $# -eq 0 ] || shift
case "$action" in
    -h | --help | help) usage && exit 0 ;;
    "") wrong "expected a command: build, run, run-all, ui, shell or bitrank" ;;
    build | run | run-all | ui | shell | bitrank) ;;
    *) wrong "there is no command $action; expected build, run, run-all, ui, shell or bitrank" ;;
esac
find_engine
here=$(pwd -P)
image=${BITRANK_IMAGE:-bitrank:${hardware/gpu/cuda}}
[ "$action" != build ] || build "$@"
common
[ ! -t 0 ] || [ ! -t 1 ] || arguments+=(--tty --interactive)
case "$action" in
    run) run_one "$@" ;;
    run-all) share matrix "$@"; exec "${engine[@]}" "${arguments[@]}" "$image" "${command[@]}" ;;
    ui) serve "$@" ;;
    shell) shell "$@" ;;
    bitrank) share "$@"; exec "${engine[@]}" "${arguments[@]}" "$image" ${command[@]+"${command[@]}"} ;;
esac
