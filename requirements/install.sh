#!/bin/sh
# Install a lock file and torch into a Python environment: every file is held against its sha256, nothing is resolved.
#
#   [TORCH=cpu|cuda] requirements/install.sh PYTHON LOCK [options of pip install]      LOCK: development or cluster
#
# Without TORCH it is the CPU build (cpu.txt) if pip's indices have it, PyPI's build (cuda.txt) otherwise. A torch of the
# locked version that the environment has already, 2.13.0+cu126 say, stays: pip does not ask where it came from.
set -eu
python=$1
lock=$2
shift 2
folder=$(dirname "$0")
install() { "$python" -m pip install --require-hashes --no-deps "$@"; }

install "$@" -r "$folder/$lock.txt"
locked=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$folder/cuda.txt")
present=$("$python" -c 'from importlib.metadata import distributions
print(*(found.version for found in distributions(name="torch")))')
case "${TORCH:-$present}" in
  cpu) install "$@" -r "$folder/cpu.txt" ;;
  cuda)
    case $present in *+*) "$python" -m pip uninstall --yes torch ;; esac # which pip takes for 2.13.0 too
    install "$@" -r "$folder/cuda.txt"
    ;;
  "$locked") install "$@" -r "$folder/cuda.txt" ;;
  "$locked"+*) ;;
  *)
    if ! answer=$(install "$@" -r "$folder/cpu.txt" 2>&1); then
      # Nothing but its absence is a reason to take the other build.
      case $answer in
        *"No matching distribution found for torch=="*) install "$@" -r "$folder/cuda.txt" ;;
        *) printf '%s\n' "$answer" >&2; exit 1 ;;
      esac
    fi
    ;;
esac
