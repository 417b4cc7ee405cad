#!/usr/bin/env bash
# The Debian package of a build: fields, files, licences; what it holds runs.  package.sh BUILD FOLDER PROGRAMS, FOLDER to write into.
set -euo pipefail
build=$1 folder=$2 programs=$3
for tool in cpack dpkg-deb dpkg-shlibdeps; do
  command -v $tool > /dev/null || { echo "$tool is not installed"; exit 77; }
done
fail() { echo "$*" >&2; exit 1; }
rm -rf "$folder"
mkdir -p "$folder"
(cd "$folder" && cpack -G DEB --config "$build/CPackConfig.cmake" -B "$folder" > cpack.log 2>&1) || fail "$(cat "$folder/cpack.log")"
packages=("$folder"/tplimit_*.deb)
((${#packages[@]} == 1)) && [[ -f ${packages[0]} ]] || fail "packages: ${packages[*]}"
package=${packages[0]}

version=$("$build/tplimit" --version)
[[ $(dpkg-deb -f "$package" Package) == tplimit ]] || fail "name: $(dpkg-deb -f "$package" Package)"
[[ "tplimit $(dpkg-deb -f "$package" Version)" == "$version" ]] || fail "version: $(dpkg-deb -f "$package" Version)"
depends=$(dpkg-deb -f "$package" Depends)
for library in libc6 libfmt libsleef libstdc++6 libtbb12 zlib1g; do
  [[ $depends == *$library* ]] || fail "it does not depend on $library: $depends"
done
dpkg-deb -f "$package" Description | grep -q 'Vector units: ' || fail "the description does not say for which machines"

dpkg-deb -c "$package" | awk '$2 != "root/root" { exit 1 }' || fail "not all belongs to root"
files=$(dpkg-deb -c "$package" | awk '{ print $6 }')
expected=(./usr/bin/tplimit ./usr/share/doc/tplimit/{copyright,changelog.gz,README.md,docs/cli.md,programs/start/mlp_mup.tp}
          ./usr/share/bash-completion/completions/tplimit ./usr/share/zsh/vendor-completions/_tplimit
          ./usr/share/fish/vendor_completions.d/tplimit.fish ./usr/share/man/man1/tplimit.1.gz)
for command in $("$build/tplimit" man | sed -n 's/^\.BR tplimit\\-\([a-z]*\) .*/\1/p'); do
  expected+=("./usr/share/man/man1/tplimit-$command.1.gz")
done
for file in "${expected[@]}"; do grep -qxF "$file" <<< "$files" || fail "the package lacks $file"; done
! grep -E '\.(a|hpp|cmake)$|/include/|/lib/' <<< "$files" || fail "the package of the program holds libraries"

dpkg-deb -x "$package" "$folder/root"
[[ $("$folder/root/usr/bin/tplimit" --version) == "$version" ]] || fail "the packaged program does not run"
# Every licence that is named has its text, every file of data its licence.
copyright=$folder/root/usr/share/doc/tplimit/copyright
head -n 1 "$copyright" | grep -qx 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/' || fail "$copyright is not machine-readable"
for name in $(sed -n 's/^License: //p' "$copyright" | sed 's/ and /\n/g' | sort -u); do
  grep -A 1 -x "License: $name" "$copyright" | grep -q '^ ' || fail "the licence $name has no text"
done
for file in "$programs"/data/*; do
  name=programs/data/$(basename "$file")
  [[ $name == */LICENSES.txt ]] || grep -qE "^Files: .*$name" "$copyright" || fail "$name has no licence"
done
