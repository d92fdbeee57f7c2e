#!/bin/sh
# Pack all inputs of the built paper into a tarball and check that it builds from them, without bibtex.
# usage: arxiv.sh [FOLDER] [OUT]
set -eu
folder=${1:-paper}
out=${2:-dist/bitrank-arxiv.tar.gz}
[ -f "$folder/main.fls" ] && [ -f "$folder/main.bbl" ] || { echo "build the paper first: make paper-pdf" >&2; exit 2; }
rm -f "$out" # a failure leaves no archive
parts=$(mktemp -d)
proof=$(mktemp -d)
packed=$(mktemp)
trap 'rm -rf "$parts" "$proof" "$packed"' EXIT

# Input files from LaTeX's record: those in the paper's folder, without LaTeX's own output.
sed -n 's/^INPUT //p' "$folder/main.fls" | sed 's#^\./##' | grep -v '^/' | grep -vE '\.(aux|out|toc)$' | sort -u | while read -r file; do
    mkdir -p "$parts/$(dirname "$file")"
    cp "$folder/$file" "$parts/$file"
done
cp "$folder/main.bbl" "$parts/"
# Not by tar: macOS has another one, without the options that leave out times and owners.
python3 - "$parts" "$packed" <<'PYTHON'
import gzip, sys, tarfile


def plain(entry):
    entry.mtime = entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


with open(sys.argv[2], "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(sys.argv[1], ".", filter=plain)  # in the order of names
PYTHON

tar -C "$proof" -xzf "$packed"
SOURCE_DATE_EPOCH=$(sed -n 's/^% epoch: //p' "$folder/generated/macros.tex")
export SOURCE_DATE_EPOCH FORCE_SOURCE_DATE=1
(
    cd "$proof"
    for _ in 1 2 3; do
        pdflatex -interaction=nonstopmode -halt-on-error main.tex >build.txt || { grep -A 4 '^!' main.log >&2; exit 1; }
    done
    if grep -E 'Warning.*undefined|There were undefined' main.log >&2; then exit 1; fi
) || { echo "the tarball does not build from itself alone" >&2; exit 1; }
[ "$(pdfinfo "$proof/main.pdf" | grep '^Pages')" = "$(pdfinfo "$folder/main.pdf" | grep '^Pages')" ] || {
    echo "the paper built from the tarball has another number of pages" >&2
    exit 1
}
mkdir -p "$(dirname "$out")"
cat "$packed" >"$out" || { rm -f "$out"; exit 1; }
echo "arXiv: $out, $(wc -c <"$out") bytes, built from itself alone"
