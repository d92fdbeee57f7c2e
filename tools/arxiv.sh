#!/bin/sh
# Pack all inputs of the built paper into a tarball and check that it builds from them, without bibtex.
# usage: arxiv.sh [FOLDER] [OUT]
set -eu
folder=${1:-paper}
out=${2:-dist/bitrank-arxiv.tar.gz}
[ -f "$folder/main.fls" ] && [ -f "$folder/main.bbl" ] || { echo "build the paper first: make paper-pdf" >&2; exit 2; }
mkdir -p "$(dirname "$out")"
parts=$(mktemp -d)
proof=$(mktemp -d)
trap 'rm -rf "$parts" "$proof"' EXIT

# Input files from LaTeX's record: those in the paper's folder, without LaTeX's own output.
sed -n 's/^INPUT //p' "$folder/main.fls" | sed 's#^\./##' | grep -v '^/' | grep -vE '\.(aux|out|toc)$' | sort -u | while read -r file; do
    mkdir -p "$parts/$(dirname "$file")"
    cp "$folder/$file" "$parts/$file"
done
cp "$folder/main.bbl" "$parts/"
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$parts" -cf - . | gzip -n >"$out"

tar -C "$proof" -xzf "$out"
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
echo "arXiv: $out, $(wc -c <"$out") bytes, built from itself alone"
