#!/bin/sh
# Build paper/main.pdf from paper/main.tex and paper/generated, then run tools/check_paper.py.
# usage: build_paper.sh [FOLDER]
# Exit code 2 if a program is missing, 1 if the build or a check fails.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-paper}
packages="texlive-latex-recommended texlive-fonts-recommended lmodern latexmk poppler-utils aspell aspell-en"

missing=""
for program in pdflatex bibtex latexmk pdffonts aspell python3; do
    command -v "$program" >/dev/null 2>&1 || missing="$missing $program"
done
if [ -n "$missing" ]; then
    cat >&2 <<TEXT
The paper cannot be built: missing$missing.
Debian or Ubuntu:
  sudo apt-get install --no-install-recommends $packages
or with Docker, from the root of the repository:
  docker run --rm -v "\$PWD:/work" -w /work debian:bookworm-slim sh -c \\
    'apt-get update && apt-get install -y --no-install-recommends make python3 $packages && make paper-pdf'
TEXT
    exit 2
fi
if [ ! -f "$folder/generated/macros.tex" ]; then
    echo "there is no $folder/generated/macros.tex; make it from a store of runs: make paper STORE=runs" >&2
    exit 2
fi

# The date of the newest run replaces the build time, so that equal inputs give equal PDFs.
SOURCE_DATE_EPOCH=$(sed -n 's/^% epoch: //p' "$folder/generated/macros.tex")
export SOURCE_DATE_EPOCH FORCE_SOURCE_DATE=1
cd "$folder"
run_latex() {
    latexmk "$@" -pdf -interaction=nonstopmode -halt-on-error main.tex >build.txt 2>&1 && return
    grep -A 4 '^!' main.log >&2 || tail -n 20 build.txt >&2
    echo "LaTeX stopped; all it said is in $folder/main.log" >&2
    exit 1
}
run_latex
# latexmk compares sizes and whole seconds, so it misses a change of the references within one second.
for _ in 1 2 3; do
    grep -q 'Rerun to get' main.log || break
    run_latex -g
done
python3 "$here/check_paper.py" .
echo "paper: $folder/main.pdf"
