#!/bin/sh
# Pack the committed files of this repository as <OUT>/bitrank-<version>-<commit>.tar.gz, for an archive.
# The same commit gives the same bytes on every machine with the same gzip. usage: snapshot.sh [OUT]
set -eu
out=${1:-dist}
git rev-parse --verify --quiet HEAD >/dev/null || { echo "expected a clone with a commit; the archive is made from one" >&2; exit 2; }
[ -z "$(git status --porcelain --untracked-files=no)" ] || {
    echo "uncommitted changes would not be in the archive; commit or stash them first:" >&2
    git status --short --untracked-files=no >&2
    exit 2
}
version=$(sed -n 's/^version: *//p' CITATION.cff)
name=bitrank-$version-$(git rev-parse --short=12 HEAD)
mkdir -p "$out"
git archive --format=tar --prefix="$name/" HEAD | gzip -n >"$out/$name.tar.gz"
(cd "$out" && { sha256sum "$name.tar.gz" 2>/dev/null || shasum -a 256 "$name.tar.gz"; })
