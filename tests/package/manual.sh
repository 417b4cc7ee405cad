#!/usr/bin/env bash
# groff takes every page of the manual without a warning, and each shows all options.  manual.sh TPLIMIT FOLDER, to write into.
set -euo pipefail
tplimit=$1 folder=$2
command -v groff > /dev/null || { echo "groff is not installed"; exit 77; }
rm -rf "$folder"
"$tplimit" man --folder "$folder"
pages=0
for page in "$folder"/*.1; do
  warnings=$(groff -man -Tutf8 -ww -P-cbou "$page" 2>&1 > "$page.txt")
  [[ -z $warnings ]] || { echo "$page: $warnings"; exit 1; }
  name=$(basename "$page" .1)
  command=${name#tplimit}
  for option in $("$tplimit" ${command#-} --help | grep -oE '^  (-h,)?--[a-z-]+' | sed 's/.*--/--/'); do
    grep -qE -- "^ +$option( |$)" "$page.txt" || { echo "$page does not show $option"; exit 1; }
  done
  cmp -s "$page" <("$tplimit" man ${command#-}) || { echo "$page is not what 'man ${command#-}' prints"; exit 1; }
  pages=$((pages + 1))
done
((pages > 10)) || { echo "only $pages pages"; exit 1; }
if command -v man > /dev/null; then  # finds titles and sections
  LC_ALL=C.UTF-8 man --warnings -l "$folder/tplimit-run.1" 2>&1 > /dev/null | { ! grep .; }
fi
