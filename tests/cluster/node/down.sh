#!/usr/bin/env bash
# Ends the cluster that up.sh has started in DIR and removes all that it left: processes, containers, mounts, network,
# cgroups and DIR itself. Works after an up.sh that failed half-way too, and a second time it has nothing to do.
#   down.sh [DIR]
# All of the cluster lives in the process, mount and network namespaces of one process, so ending that one (by its
# recorded id, if it is still the process that up.sh started) ends everything.
set -euo pipefail
dir=${1:-${XDG_RUNTIME_DIR:-/tmp}/leasehold-cluster}
link=leasehold0
cgroup=leasehold-cluster

[ -e "$dir/.leasehold-cluster" ] || { echo "No cluster is in $dir."; exit 0; }
[ "$(id -u)" -eq 0 ] || { echo "down.sh must run as root." >&2; exit 1; }
dir=$(cd "$dir" && pwd)

# alive FILE: whether the process whose id and start time up.sh has written there still runs.
alive() {
  local pid began now
  [ -s "$1" ] && read -r pid began <"$1" && now=$(cut -d' ' -f22 "/proc/$pid/stat" 2>/dev/null) && [ "$now" = "$began" ]
}

for file in "$dir/init.pid" "$dir/unshare.pid"; do
  ! alive "$file" || kill -KILL "$(cut -d' ' -f1 "$file")" 2>/dev/null || true
done
for ((i = 0; i < 300; i++)); do
  alive "$dir/init.pid" || alive "$dir/unshare.pid" || break
  sleep 0.1
done
! alive "$dir/init.pid" || { echo "The cluster's processes do not end; the first is $(cat "$dir/init.pid")." >&2; exit 1; }

# The link's end out here goes with the namespace, but not at once.
if [ "$(cat "/sys/class/net/$link/ifalias" 2>/dev/null)" = "$dir" ]; then
  ip link delete "$link" 2>/dev/null || true
fi

for root in /sys/fs/cgroup/"$cgroup" /sys/fs/cgroup/*/"$cgroup"; do
  [ -d "$root" ] || continue
  for ((i = 0; i < 100; i++)); do
    find "$root" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.1
  done
  [ ! -d "$root" ] || { echo "The cgroup $root cannot be removed." >&2; exit 1; }
done

# What the kubelet has set in the kernel gets its old value, and the folders that up.sh had to make on the way go.
if [ -e "$dir/sysctl" ]; then
  while read -r file value; do
    [ "$(cat "$file")" = "$value" ] || echo "$value" >"$file"
  done <"$dir/sysctl"
fi
if [ -e "$dir/made" ]; then
  tac "$dir/made" | while read -r folder; do rmdir "$folder" 2>/dev/null || true; done
fi

# Last, so that a failure above can be tried again. Nothing of the cluster is mounted out here.
if grep -q " $dir/" /proc/self/mounts; then
  echo "Something is still mounted in $dir, which is kept: see /proc/mounts." >&2
  exit 1
fi
rm -rf "$dir"
