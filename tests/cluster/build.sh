#!/usr/bin/env bash
# Builds the control plane into a cache outside the tree and prints the path of the binary.
# The cache key is the content of go.mod, go.sum and main.go, so a second run costs nothing.
set -euo pipefail
cd "$(dirname "$0")"
version=$(sed -n 's|^\tk8s.io/kubernetes \(v.*\)|\1|p' go.mod)
key=$(cat go.mod go.sum main.go | sha256sum | cut -c1-16)
cache=${LEASEHOLD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/leasehold}
binary=$cache/cluster-$version-$key/cluster
if [ ! -x "$binary" ]; then
  command -v go >/dev/null || { echo "Go 1.26 or newer is needed to build the test control plane: https://go.dev/dl" >&2; exit 1; }
  echo "Building Kubernetes $version (etcd, kube-apiserver, controller manager, scheduler, kubectl)." >&2
  echo "The first time takes about 6 minutes on two cores; it is kept in $cache." >&2
  mkdir -p "$(dirname "$binary")"
  base=k8s.io/component-base/version
  minor=${version#v1.}
  flags="-s -w -X $base.gitVersion=$version -X $base.gitMajor=1 -X $base.gitMinor=${minor%%.*}"
  flags="$flags -X $base.gitCommit=0000000000000000000000000000000000000000 -X $base.gitTreeState=clean"
  flags="$flags -X $base.buildDate=2026-01-01T00:00:00Z"
  started=$SECONDS
  CGO_ENABLED=0 go build -trimpath -ldflags "$flags" -o "$binary.$$" . >&2
  mv "$binary.$$" "$binary"
  echo "Built in $((SECONDS - started)) s." >&2
fi
echo "$binary"
