#!/usr/bin/env bash
# The GPU check: all that only a real GPU can tell, the most important first, in ten minutes and without a network.
#
#   bash bench/gpu_check.sh [--out DIR] [--minutes 10] [--only PART ...] [--wheels DIR]       or:  make gpu
#
# It runs from an unpacked tree; nothing has to be installed. Packages that this Python lacks may lie as wheels in a
# folder: --wheels DIR, else `wheels` inside or beside the tree. PYTHON names the interpreter (python3). Results are written
# as they come, to --out, else $OUT, else build/gpu. Without a GPU the emulator rehearses it all, and no time is printed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

wheels=
[ ! -d wheels ] || wheels=wheels
[ -n "$wheels" ] || [ ! -d ../wheels ] || wheels=../wheels
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --wheels) wheels=${2:?--wheels: expected a folder}; shift 2 ;;
    --wheels=*) wheels=${1#*=}; shift ;;
    *) arguments+=("$1"); shift ;;
  esac
done

if [ -n "$wheels" ]; then
  unpacked=$(mktemp -d)
  trap 'rm -rf "$unpacked"' EXIT
  "$python" -m bench.gpu_check.wheels "$wheels" "$unpacked"
  export PYTHONPATH="$unpacked${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" -m bench.gpu_check ${arguments[@]+"${arguments[@]}"}
