#!/usr/bin/env bash
# What bash and, where they are installed, zsh and fish complete.  completions.sh TPLIMIT FOLDER, a folder with programs and data.
set -euo pipefail
tplimit=$1
cd "$2"
source <("$tplimit" completions bash)

fail() { echo "$*" >&2; exit 1; }
# completed WORD.. : what stands for the last word; bash makes words of every '='.
completed() {
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
  _tplimit
  echo "${COMPREPLY[*]:-}"
}
# expect WANTED WORD..
expect() {
  local wanted=$1 got
  shift
  got=$(completed "$@")
  [[ $got == "$wanted" ]] || fail "bash: $* completes to '$got', not '$wanted'"
}
expect 'run' tplimit ru
expect '--version' tplimit --v
expect 'auto exact moments particles' tplimit run --engine ''
expect 'auto exact moments particles' tplimit run --engine =
expect 'particles' tplimit run --engine = p
expect 'single' tplimit simulate linear.tp --precision s
expect 'leading-order' tplimit check linear.tp --dump-after lea
expect '--engine' tplimit run linear.tp --en
expect '--tol --tol-on' tplimit run linear.tp --tol
expect 'linear.tp' tplimit run lin
expect 'linear_16.npz' tplimit compare linear.tp --against linear_1
expect '' tplimit run linear.tp --seed ''
expect '' tplimit run linear.tp --data lin
expect 'linear_16.npz' tplimit run linear.tp --data X = linear_1
expect '' tplimit run linear.tp --set eta = lin
expect 'features' tplimit gallery fea
expect 'layernorm' tplimit std laye
expect 'run' tplimit man ru
expect 'zsh' tplimit completions z

# Every option of --help, and no other.
read -ra commands < <(completed tplimit '' | sed 's/--[a-z-]*//g')
((${#commands[@]} > 10)) || fail "bash knows ${#commands[@]} commands"
for command in "${commands[@]}"; do
  helped=$("$tplimit" "$command" --help | grep -oE '^  (-h,)?--[a-z-]+' | sed 's/.*--/--/' | sort)
  offered=$(completed tplimit "$command" -- | tr ' ' '\n' | sort)
  [[ $helped == "$offered" ]] || fail "$command: --help has $helped, bash offers $offered"
done

if fish=$(command -v fish); then
  "$tplimit" completions fish > "${TMPDIR:-/tmp}/tplimit.$$.fish"
  fish_expect() {
    local got
    got=$("$fish" --no-config -c "source ${TMPDIR:-/tmp}/tplimit.$$.fish; complete -C '$2'" | cut -f 1 | tr '\n' ' ')
    [[ $got == "$1 " ]] || fail "fish: $2 completes to '$got', not '$1'"
  }
  fish_expect 'run' 'tplimit ru'
  fish_expect 'auto exact moments particles' 'tplimit run --engine '
  fish_expect '--tol --tol-on' 'tplimit run linear.tp --tol'
  fish_expect 'linear_16.npz' 'tplimit compare linear.tp --against linear_1'
  fish_expect 'features' 'tplimit gallery fea'
  rm "${TMPDIR:-/tmp}/tplimit.$$.fish"
fi
if zsh=$(command -v zsh); then "$zsh" -n <("$tplimit" completions zsh); fi
