#!/usr/bin/env bash
# Builds what a node of the end-to-end cluster needs, and the tools that its tests need, into a cache outside the tree,
# and prints the path of the folder with the programs:
#   node (kubelet, kube-proxy and CoreDNS), containerd with its shim and ctr, runc, helm, kubeconform, helm-unittest (untt).
# The cache key is the content of this file, go.mod, go.sum and main.go, so a second run costs nothing.
# Packages of the system that are missing are installed by root on Debian and Ubuntu, and named otherwise.
set -euo pipefail
cd "$(dirname "$0")"

# shellcheck source=../packages.sh
source ../packages.sh

# A path or a program, and the Debian package that brings it.
needs="/usr/include/seccomp.h:libseccomp-dev /usr/lib/cni/ptp:containernetworking-plugins busybox:busybox-static
  nft:nftables conntrack:conntrack ip:iproute2 nsenter:util-linux openssl:openssl pkg-config:pkg-config
  cc:gcc redis-server:redis-server python3:python3 setpriv:util-linux"
missing=()
for need in $needs; do
  thing=${need%%:*}
  [ -e "$thing" ] || command -v "$thing" >/dev/null || missing+=("${need##*:}")
done
[ -e /usr/include/stdio.h ] || ! command -v apt-get >/dev/null || missing+=(libc6-dev)
install_missing "${missing[@]}"

version=$(sed -n 's|^\tk8s.io/kubernetes \(v.*\)|\1|p' go.mod)
key=$(cat build.sh go.mod go.sum main.go | sha256sum | cut -c1-16)
cache=${LEASEHOLD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/leasehold}/node-$key
if [ ! -e "$cache/complete" ]; then
  command -v go >/dev/null || fail "Go 1.26 or newer is needed to build the test cluster: https://go.dev/dl"
  echo "Building the node of the test cluster (kubelet, containerd, runc, CoreDNS, Helm, ...)." >&2
  echo "The first time takes about 12 minutes on two cores; it is kept in $cache." >&2
  mkdir -p "$cache/bin"
  export GOBIN=$cache/bin CGO_ENABLED=0

  # get PACKAGE VERSION [LDFLAGS]: builds one program of another project, unless an interrupted run has done so.
  get() {
    name=$(basename "$1")
    [ -x "$GOBIN/$name" ] && return
    started=$SECONDS
    printf '  %s %s ' "$name" "$2" >&2
    go install -trimpath -tags "${tags:-}" -ldflags "-s -w ${3:-}" "$1@$2" >"$cache/log" 2>&1 || broken "$name"
    echo "$((SECONDS - started)) s" >&2
  }
  broken() {
    echo >&2
    tail -n 30 "$cache/log" >&2
    fail "Building $1 failed."
  }

  started=$SECONDS
  printf '  kubelet, kube-proxy and CoreDNS for Kubernetes %s ' "$version" >&2
  base=k8s.io/component-base/version
  minor=${version#v1.}
  flags="-s -w -X $base.gitVersion=$version -X $base.gitMajor=1 -X $base.gitMinor=${minor%%.*}"
  flags="$flags -X $base.gitCommit=0000000000000000000000000000000000000000 -X $base.gitTreeState=clean"
  flags="$flags -X $base.buildDate=2026-01-01T00:00:00Z"
  go build -trimpath -ldflags "$flags" -o "$GOBIN/node.$$" . >"$cache/log" 2>&1 || broken node
  mv "$GOBIN/node.$$" "$GOBIN/node"
  echo "$((SECONDS - started)) s" >&2

  containerd=v2.4.2
  info=github.com/containerd/containerd/v2/version.Version
  get github.com/containerd/containerd/v2/cmd/containerd $containerd "-X $info=$containerd"
  get github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 $containerd "-X $info=$containerd"
  get github.com/containerd/containerd/v2/cmd/ctr $containerd "-X $info=$containerd"
  CGO_ENABLED=1 tags=seccomp get github.com/opencontainers/runc v1.5.2
  get helm.sh/helm/v4/cmd/helm v4.3.1 "-X helm.sh/helm/v4/internal/version.version=v4.3.1"
  get github.com/yannh/kubeconform/cmd/kubeconform v0.8.0

  # This one replaces a module of its own, so it cannot be installed like the others.
  unittest=github.com/helm-unittest/helm-unittest
  if [ ! -x "$GOBIN/helm-unittest" ]; then
    started=$SECONDS
    printf '  helm-unittest v1.1.2 ' >&2
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    (
      cd "$work"
      go mod init leasehold.dev/tools
      go mod edit -require $unittest@v1.1.2 \
        -replace github.com/vmware-labs/yaml-jsonpath@v0.3.2=github.com/helm-unittest/yaml-jsonpath@v0.4.0
      go get -tool $unittest/cmd/helm-unittest@v1.1.2
      go build -trimpath -ldflags "-s -w" -o "$GOBIN/helm-unittest" $unittest/cmd/helm-unittest
    ) >"$cache/log" 2>&1 || broken helm-unittest
    echo "$((SECONDS - started)) s" >&2
  fi
  ln -sf helm-unittest "$GOBIN/untt"
  rm "$cache/log"
  touch "$cache/complete"
fi
echo "$cache/bin"
