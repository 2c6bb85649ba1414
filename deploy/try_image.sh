#!/usr/bin/env bash
# Build the image and try it: the quickstart in one container, then a Ray cluster of two that runs the same sweep, once
# from `puregrid run --address` and once as a job. All containers run as user 1000, without capabilities and with a
# read-only root: the store is their only writable volume, /tmp is in memory, and home is /tmp, since Ray keeps a token
# there. Ends with 0 if every row is the same byte for byte.
#
#   deploy/try_image.sh [options of puregrid run, such as --set datasets.0.images.first=100]
#
# It needs podman or docker, and leaves the image behind, as localhost/puregrid:try. From the environment:
#
#   ENGINE           podman (default where there is one) or docker
#   ENGINE_OPTIONS   words before its command: --storage-driver vfs
#   BUILD_OPTIONS    words for `build`: --isolation chroot --network host
#   RUN_OPTIONS      words for `run`: --runtime runc
#   BASE             base image; `debootstrap` makes one from Debian's packages, for machines that reach no registry
#                    (as root; this and the next are for that case)
#   DEBIAN_MIRROR    where debootstrap finds them; its own default otherwise
#   MOUNTS           files and folders that the build sees under the same path: certificates, folders of wheels
#   TORCH_INDEX      as in the Dockerfile; set to nothing for the index of pip's own settings, which the build gets too
#   SCRATCH          a folder for the store, the token and the base; a temporary one otherwise
set -euo pipefail
cd "$(dirname "$0")/.."

engine=${ENGINE:-$(command -v podman || command -v docker || true)}
[ -n "$engine" ] || { echo "Neither podman nor docker is installed; ENGINE names another one." >&2; exit 2; }
read -ra engine_options <<< "${ENGINE_OPTIONS:-}"
read -ra build_options <<< "${BUILD_OPTIONS:-}"
read -ra run_options <<< "${RUN_OPTIONS:-}"
read -ra mounts <<< "${MOUNTS:-}"
scratch=${SCRATCH:-$(mktemp -d)}
rm -rf "$scratch/store"
mkdir -p "$scratch/store"
image=localhost/puregrid:try
name=puregrid-try-$$
sweep=quickstart
options=("$@")

e() { "$engine" "${engine_options[@]}" "$@"; }
size() { e image inspect "$1" --format '{{.Size}}' | awk '{printf "%.0f", $1 / 1e6}'; }
say() { printf '%5d s  %s\n' "$SECONDS" "$*"; }
clean() {
  e rm --force "$name-head" "$name-worker" > "$scratch/removed.log" 2>&1 || true
  e network rm "$name" >> "$scratch/removed.log" 2>&1 || true
  [ -n "${SCRATCH:-}" ] || rm -rf "$scratch"
}
trap clean EXIT

# --- build
base=()
if [ "${BASE:-}" = debootstrap ]; then
  # One that was made before is taken again, and with it the layers that were built on it.
  if ! e image inspect localhost/puregrid-base:try > "$scratch/base.log" 2>&1; then
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
      bookworm "$scratch/root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} > "$scratch/debootstrap.log"
    # `python` and `pip` in /usr/local, as Python's own images have them.
    chroot "$scratch/root" python3 -m venv /usr/local
    tar --directory "$scratch/root" --one-file-system --create . | e import - localhost/puregrid-base:try \
      > "$scratch/base.log" 2>&1
    rm -rf "$scratch/root"
  fi
  base=(--build-arg BASE=localhost/puregrid-base:try)
  say "base of $(size localhost/puregrid-base:try) MB made from Debian's packages"
elif [ -n "${BASE:-}" ]; then
  base=(--build-arg "BASE=$BASE")
fi
# The build installs as this machine does: same index, same certificates.
{ echo "[global]"; python3 -m pip config list | sed -nE "s/^[a-z:]+\.(cert|index-url|extra-index-url|find-links)='(.*)'$/\1 = \2/p" | awk '!seen[$1]++'; } > "$scratch/pip.conf"
volumes=(--volume "$scratch/pip.conf:/etc/pip.conf:ro")
for path in "${mounts[@]}"; do volumes+=(--volume "$path:$path:ro"); done
commit=$(git rev-parse HEAD)
[ -z "$(git status --porcelain -- defense puregrid tasks workflows)" ] || commit="$commit modified"
[ "${engine##*/}" != podman ] || build_options+=("${volumes[@]}")
e build --tag "$image" --file Dockerfile "${base[@]}" --build-arg COMMIT="$commit" \
  ${TORCH_INDEX+--build-arg TORCH_INDEX="$TORCH_INDEX"} "${build_options[@]}" . > "$scratch/build.log" 2>&1 \
  || { tail -n 30 "$scratch/build.log" >&2; exit 1; }
say "image of $(size "$image") MB built from commit $commit"

# --- one container
umask 077
python3 -c 'import secrets; print(secrets.token_hex(32))' > "$scratch/auth_token"
chown -R 1000 "$scratch/store" "$scratch/auth_token" 2> "$scratch/chown.log" \
  || { echo "The store must belong to user 1000, which takes root." >&2; exit 2; }
restricted=(
  --read-only --tmpfs /tmp:rw,mode=1777 --env HOME=/tmp --shm-size 1g --user 1000 --cap-drop ALL --security-opt no-new-privileges
  --env OMP_NUM_THREADS=1 --volume "$scratch/store:/store" "${run_options[@]}"
)
e run --rm "${restricted[@]}" "$image" sh -c '
  set -e
  test "$(id -u)" = 1000
  for path in /opt/puregrid /usr/local /etc; do
    if touch "$path/x" 2> /tmp/touched; then echo "$path can be written"; exit 1; fi
  done
  python -c "
from importlib.metadata import version
print(*(name + \" \" + version(name) for name in (\"torch\", \"torchvision\", \"ray\", \"timm\", \"robustbench\")), sep=\", \")
if (\"+cpu\" in version(\"torch\")) != (\"+cpu\" in version(\"torchvision\")):
    print(\"torchvision is not of this torch: no index here has the build; timm and robustbench are not imported\")
else:
    import torchvision, timm, robustbench
    print(\"torchvision, timm and robustbench are imported\")
"
' > "$scratch/user.log" 2>&1 || { tail -n 30 "$scratch/user.log" >&2; exit 1; }
say "user 1000, read-only root"
while read -r line; do say "$line"; done < "$scratch/user.log"
e run --rm "${restricted[@]}" "$image" puregrid run "$sweep" --store /store/one "${options[@]}" > "$scratch/one.log" 2>&1 \
  || { tail -n 30 "$scratch/one.log" >&2; exit 1; }
say "quickstart in one container: $(find "$scratch/store/one/rows" -name '*.parquet' | wc -l) units"
e run --rm "${restricted[@]}" "$image" puregrid report "$sweep" --store /store/one --out /store/report.html \
  "${options[@]}" > "$scratch/report.log" 2>&1 || { tail -n 30 "$scratch/report.log" >&2; exit 1; }
grep -q "$commit" "$scratch/store/report.html" || { echo "The report does not say commit $commit." >&2; exit 1; }
say "the report says commit $commit"

# --- two containers
e network create "$name" > "$scratch/network.log"
cluster=(
  --detach --network "$name" --env RAY_AUTH_MODE=token --env RAY_AUTH_TOKEN_PATH=/auth_token
  --volume "$scratch/auth_token:/auth_token:ro"
)
e run "${cluster[@]}" --name "$name-head" "${restricted[@]}" "$image" \
  ray start --head --num-cpus=0 --port=6379 --dashboard-host=127.0.0.1 --object-store-memory=200000000 \
  --disable-usage-stats --block > "$scratch/head.id"
head=$(e inspect "$name-head" --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}')
e run "${cluster[@]}" --name "$name-worker" "${restricted[@]}" "$image" \
  ray start --address="$head:6379" --num-cpus=2 --object-store-memory=200000000 --disable-usage-stats --block \
  > "$scratch/worker.id"
on_head() { e exec "$name-head" "$@"; }
ready=
for _ in $(seq 120); do
  if on_head ray list nodes --format json 2> "$scratch/nodes.log" | grep -c ALIVE | grep -qx 2; then ready=yes; break; fi
  sleep 2
done
[ -n "$ready" ] || { cat "$scratch/nodes.log" >&2; e logs "$name-head" >&2; e logs "$name-worker" >&2; exit 1; }
worker=$(e inspect "$name-worker" --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}')
say "two containers are one Ray cluster: head $head, worker $worker"
e exec "$name-worker" ray status --address "$head:6379" > "$scratch/status.log" 2>&1 \
  || { cat "$scratch/status.log" >&2; exit 1; }
if e exec --env RAY_AUTH_MODE=disabled "$name-worker" ray status --address "$head:6379" > "$scratch/stranger.log" 2>&1; then
  echo "The cluster talks to somebody without the token." >&2; exit 1
fi
grep -qiE 'unauthenticated|token' "$scratch/stranger.log" || { cat "$scratch/stranger.log" >&2; exit 1; }
say "with the token: an answer; without it: refused"
on_head puregrid run "$sweep" --store /store/cluster --address auto --mlflow off "${options[@]}" > "$scratch/cluster.log" 2>&1 \
  || { tail -n 30 "$scratch/cluster.log" >&2; exit 1; }
say "puregrid run --address auto: $(find "$scratch/store/cluster/rows" -name '*.parquet' | wc -l) units"
on_head ray job submit --address http://127.0.0.1:8265 -- \
  puregrid run "$sweep" --store /store/job --address auto --mlflow off "${options[@]}" > "$scratch/job.log" 2>&1 \
  || { tail -n 30 "$scratch/job.log" >&2; exit 1; }
say "ray job submit: $(find "$scratch/store/job/rows" -name '*.parquet' | wc -l) units"

for other in cluster job; do diff --recursive --brief "$scratch/store/one/rows" "$scratch/store/$other/rows"; done
hosts=$(grep -ho '"host": *"[^"]*"' -r "$scratch/store/cluster/commits" | sort | uniq -c | tr -s ' \n' ' ')
say "the rows of all three are the same, byte for byte; of the second were computed by:$hosts"
