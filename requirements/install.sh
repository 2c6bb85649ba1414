#!/bin/sh
# Install a lock file and torch into a Python environment: every file is held against its sha256, nothing is resolved.
#
#   [TORCH=cpu|cuda] requirements/install.sh PYTHON LOCK [options of pip install]      LOCK: development or cluster
#
# Without TORCH it is the CPU builds of torch and torchvision (cpu.txt) if pip's indices have that of torch, and PyPI's
# builds (cuda.txt) otherwise. A torch of the locked version that the environment has already, 2.13.0+cu126 say, stays,
# and so does the torchvision that belongs to it.
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
    # pip takes 2.13.0+cpu for 2.13.0.
    case $present in *+*) "$python" -m pip uninstall --yes torch torchvision ;; esac
    install "$@" -r "$folder/cuda.txt"
    ;;
  "$locked") install "$@" -r "$folder/cuda.txt" ;;
  "$locked+cpu") install "$@" -r "$folder/cpu.txt" ;;
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
exec "$python" -c '
import sys
from importlib.metadata import distributions, version
vision = [found.version for found in distributions(name="torchvision")]
if not vision:
    sys.exit("torchvision is missing: install the one that belongs to torch " + version("torch"))
if "+cpu" in version("torch") and "+cpu" not in vision[0]:
    print("torchvision is the build for CUDA, since no index of pip has the other; it cannot be imported with this torch,",
          "and neither can timm, robustbench and its own networks.", file=sys.stderr)
'
