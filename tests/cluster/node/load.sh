#!/usr/bin/env bash
# Brings an image (a docker-archive, as image.sh makes it) into the cluster that up.sh has started in DIR:
#   load.sh TAR [DIR]
# Pods find it under the name in the archive, with imagePullPolicy IfNotPresent or Never.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: load.sh TAR [DIR]" >&2; exit 2; }
dir=${2:-${XDG_RUNTIME_DIR:-/tmp}/leasehold-cluster}
[ -x "$dir/bin/ctr" ] || { echo "load.sh: no cluster runs in $dir: up.sh starts one" >&2; exit 1; }
exec "$dir/bin/ctr" images import "$1"
