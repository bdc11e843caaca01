#!/usr/bin/env bash
# Starts a whole Kubernetes of one node on this machine, for end-to-end tests, without Docker; down.sh ends it.
#   up.sh [DIR]
# DIR (by default leasehold-cluster in the folder for such things) then holds
#   kubeconfig   for an administrator, from anywhere on this machine
#   env          to be sourced: KUBECONFIG, and PATH with kubectl, helm, helm-unittest, kubeconform, ctr and in-node,
#                which runs a command inside the node, where Services and pods can be reached
#   audit.log    one line of JSON for each write to the API; of pods, with what is written
#   static-pods/ the kubelet's static pods
#   logs/, run/  the log of each part, and the command that starts it; pids/ has its process id inside the node
# Needs root. Only one such cluster can run at a time.
#
# All parts (etcd, API server, controller manager, scheduler, containerd, kubelet, kube-proxy, CoreDNS and the pods)
# run in a process, mount and network namespace of their own, and the pods in a cgroup of their own. The node is
# 10.99.0.1, joined to this machine (10.99.0.2) by one link; nothing in it reaches any other network.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-${XDG_RUNTIME_DIR:-/tmp}/leasehold-cluster}
link=leasehold0
cgroup=leasehold-cluster
node=10.99.0.1
outside=10.99.0.2
services=10.96.0.0/16
pods=10.244.0.0/24
dns=10.96.0.10

say() { echo "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

[ "$(id -u)" -eq 0 ] || fail "up.sh must run as root: it makes namespaces, a network link and cgroups."
bin=$("$here/build.sh")
cluster=$("$here/../build.sh")
began=$EPOCHREALTIME
[ ! -e "$dir/.leasehold-cluster" ] || fail "A cluster is in $dir already. End it first: $here/down.sh $dir"
[ -z "$(ls -A "$dir" 2>/dev/null)" ] || fail "$dir is not empty."
[ ! -e "/sys/class/net/$link" ] ||
  fail "Another cluster runs on this machine. End it first: $here/down.sh $(cat "/sys/class/net/$link/ifalias")"
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
# Sockets have short names.
[ ${#dir} -le 60 ] || fail "$dir is too long a name: 60 characters at most."
touch "$dir/.leasehold-cluster"
chmod 700 "$dir"
mkdir "$dir"/{bin,cni,config,logs,pids,run,static-pods,keys}
trap '[ $? -eq 0 ] || say "The cluster did not start. To remove what there is of it: $here/down.sh $dir"' EXIT

# await SECONDS NAME WHAT COMMAND...: runs the command until it succeeds; if it does not in time, or the part with that
# name has ended, shows the end of the part's log.
declare -A launched
await() {
  local limit=$((SECONDS + $1)) name=$2 what=$3
  shift 3
  until "$@" >/dev/null 2>&1; do
    if [ -n "${launched[$name]:-}" ] && ! kill -0 "${launched[$name]}" 2>/dev/null; then
      tail -n 20 "$dir/logs/$name.log" >&2
      fail "$name has ended; above is the end of its log, $dir/logs/$name.log."
    fi
    if [ $SECONDS -ge $limit ]; then
      tail -n 20 "$dir/logs/$name.log" >&2
      fail "Timed out: $what. Above is the end of $dir/logs/$name.log."
    fi
    sleep 0.1
  done
}

# start NAME COMMAND...: starts a part inside the node.
start() {
  local name=$1
  shift
  {
    echo '#!/usr/bin/env bash'
    # shellcheck disable=SC2016 # for the script that is written
    echo 'echo $$ >'"$(printf %q "$dir/pids/$name")"
    printf 'exec env -i HOME=%q PATH=%q' "$dir" "$bin:$PATH"
    printf ' \\\n  %q' "$@"
    echo
  } >"$dir/run/$name"
  chmod +x "$dir/run/$name"
  setsid "$dir/bin/in-node" "$dir/run/$name" </dev/null >"$dir/logs/$name.log" 2>&1 &
  launched[$name]=$!
}

# --- The node: namespaces, network, cgroup ---

# These belong to the whole machine, and the kubelet sets them.
for key in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys \
  kernel/keys/root_maxbytes; do
  [ ! -e "/proc/sys/$key" ] || echo "/proc/sys/$key $(cat "/proc/sys/$key")" >>"$dir/sysctl"
done

# Names fixed in containerd and the kubelet: the node has its own, empty ones.
own="/run/netns /run/containerd /run/nri /var/lib/cni /var/lib/kubelet /var/log/containers /var/log/pods"
for folder in $own; do
  path=""
  for part in ${folder//\// }; do
    path=$path/$part
    [ -d "$path" ] || { mkdir "$path" && echo "$path" >>"$dir/made"; }
  done
done

cat >"$dir/run/init" <<INIT
#!/usr/bin/env bash
# The first process of the node: without it there is none. It also reaps what its containers leave.
read -r pid rest </proc/self/stat
set -- \$rest
echo "\$pid \${20}" >"$dir/init.pid"
mount --make-rshared /
mount -t proc proc /proc || exit 1
for folder in $own; do mount -t tmpfs tmpfs "\$folder" || exit 1; done
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
touch "$dir/init.ready"
while :; do
  sleep 86400 &
  wait \$!
done
INIT
chmod +x "$dir/run/init"
setsid unshare --mount --net --pid --fork --kill-child --propagation private "$dir/run/init" </dev/null >"$dir/logs/init.log" 2>&1 &
launched[init]=$!
echo "$! $(cut -d' ' -f22 "/proc/$!/stat")" >"$dir/unshare.pid"
await 10 init "the namespaces of the node" test -e "$dir/init.ready"
init=$(cut -d' ' -f1 "$dir/init.pid")

cat >"$dir/bin/in-node" <<SH
#!/bin/sh
exec nsenter --target $init --mount --net --pid -- "\$@"
SH
cat >"$dir/bin/kubectl" <<SH
#!/bin/sh
exec "$cluster" kubectl "\$@"
SH
cat >"$dir/bin/ctr" <<SH
#!/bin/sh
exec "$bin/ctr" --address "$dir/containerd.sock" --namespace k8s.io "\$@"
SH
chmod +x "$dir"/bin/*
for tool in helm helm-unittest untt kubeconform; do ln -s "$bin/$tool" "$dir/bin/$tool"; done

ip link add "$link" type veth peer name eth0 netns "$init"
ip link set "$link" alias "$dir"
ip address add $outside/30 dev "$link"
ip link set "$link" up
"$dir/bin/in-node" ip address add $node/30 dev eth0
"$dir/bin/in-node" ip link set eth0 up
# Connections to Services are looked up before kube-proxy's rules send them to pods. There is no other way out.
"$dir/bin/in-node" ip route add $services dev eth0

if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  read -ra controllers </sys/fs/cgroup/cgroup.controllers
  for controller in "${controllers[@]}"; do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
  done
  mkdir -p "/sys/fs/cgroup/$cgroup"
else
  for hierarchy in /sys/fs/cgroup/*/; do
    hierarchy=${hierarchy%/}
    [ ! -L "$hierarchy" ] || continue
    mkdir -p "$hierarchy/$cgroup"
    for file in cpuset.cpus cpuset.mems; do
      [ ! -e "$hierarchy/$file" ] || cat "$hierarchy/$file" >"$hierarchy/$cgroup/$file"
    done
  done
fi

# --- Keys, users and settings ---

"$here/images.sh" "$dir/images" &
images=$!

cd "$dir/keys"
# certificate NAME SUBJECT EXTENSION: signed by the cluster's authority.
certificate() {
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "$2" -keyout "$1.key" -out "$1.csr"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -days 3650 -CAcreateserial -extfile <(echo "$3") -out "$1.crt"
}
{
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=leasehold-cluster \
    -keyout ca.key -out ca.crt
  openssl ecparam -name prime256v1 -genkey -noout -out accounts.key
  certificate apiserver /CN=kube-apiserver "subjectAltName=IP:$node,IP:${services%.0/*}.1,IP:127.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
  certificate apiserver-to-kubelet /O=system:masters/CN=kube-apiserver "extendedKeyUsage=clientAuth"
} >"$dir/logs/openssl.log" 2>&1 || { tail -n 20 "$dir/logs/openssl.log" >&2; fail "Making the keys failed."; }
cd "$dir"

# user NAME GROUP FILE: gives a user a token and a kubeconfig.
user() {
  local token
  token=$(openssl rand -hex 16)
  echo "$token,$1,$1,$2" >>"$dir/keys/tokens"
  cat >"$3" <<YAML
apiVersion: v1
kind: Config
current-context: leasehold
clusters:
  - name: leasehold
    cluster:
      server: https://$node:6443
      certificate-authority-data: $(base64 -w0 "$dir/keys/ca.crt")
users:
  - name: $1
    user:
      token: $token
contexts:
  - name: leasehold
    context:
      cluster: leasehold
      user: $1
YAML
}
user admin system:masters "$dir/kubeconfig"
user system:kube-controller-manager system:authenticated "$dir/config/controller-manager"
user system:kube-scheduler system:authenticated "$dir/config/scheduler"
user system:node:node system:nodes "$dir/config/kubelet"
user system:kube-proxy system:authenticated "$dir/config/proxy"
user coredns system:masters "$dir/config/coredns"

cat >"$dir/env" <<SH
export KUBECONFIG=$(printf %q "$dir/kubeconfig")
export PATH=$(printf %q "$dir/bin"):\$PATH
export KUBECACHEDIR=$(printf %q "$dir/cache") HELM_CACHE_HOME=$(printf %q "$dir/helm/cache")
export HELM_CONFIG_HOME=$(printf %q "$dir/helm/config") HELM_DATA_HOME=$(printf %q "$dir/helm/data")
export NO_PROXY=\${NO_PROXY:+\$NO_PROXY,}$node
SH
# shellcheck disable=SC1091
source "$dir/env"

cat >"$dir/config/audit.yaml" <<'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: None
    verbs: [get, list, watch]
  - level: Request
    resources: [{resources: [pods, pods/status]}]
  - level: Metadata
YAML

# restrict_oom_score_adj: where this machine is a container itself, a score may not be lowered, and no pod would start.
cat >"$dir/config/containerd.toml" <<TOML
version = 3
root = "$dir/containerd"
state = "$dir/containerd-state"
disabled_plugins = [
  "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.differ.v1.erofs",
]
[grpc]
  address = "$dir/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/containerd-opt"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "localhost/leasehold/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "$bin/runc"
      SystemdCgroup = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
    conf_dir = "$dir/cni"
TOML

# Each pod has its own link to the node, so that all traffic is routed, and none bridged past kube-proxy's rules.
cat >"$dir/cni/10-pods.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": {"type": "host-local",
  "ranges": [[{"subnet": "$pods"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "$dir/cni-addresses"}}]}
JSON

echo "nameserver $node" >"$dir/config/resolv.conf"
# Images are never removed and pods never evicted because of the disk: this machine's is not the node's.
cat >"$dir/config/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $dir/keys/ca.crt}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup
clusterDNS: [$dns]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://$dir/containerd.sock
evictionHard: {memory.available: 50Mi}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
localStorageCapacityIsolation: false
podLogsDir: $dir/pod-logs
resolvConf: $dir/config/resolv.conf
staticPodPath: $dir/static-pods
volumePluginDir: $dir/volume-plugins
YAML

cat >"$dir/config/Corefile" <<CADDY
cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {
  bind $node
  errors
  kubernetes cluster.local in-addr.arpa ip6.arpa {
    kubeconfig $dir/config/coredns
    pods verified
  }
}
.:53 {
  bind $node
  template ANY ANY {
    rcode NXDOMAIN
  }
}
CADDY

cat >"$dir/config/dns.yaml" <<YAML
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: $dns
  ports:
    - {name: dns, port: 53, protocol: UDP}
    - {name: dns-tcp, port: 53, protocol: TCP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{addresses: [$node], conditions: {ready: true}}]
ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
YAML

# --- The parts ---

start etcd "$cluster" etcd --data-dir "$dir/etcd" --unsafe-no-fsync --log-level warn \
  --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
  --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
  --initial-cluster default=http://127.0.0.1:2380
start containerd "$bin/containerd" --config "$dir/config/containerd.toml"
start kube-apiserver "$cluster" kube-apiserver --etcd-servers http://127.0.0.1:2379 \
  --advertise-address $node --secure-port 6443 --service-cluster-ip-range $services --allow-privileged \
  --tls-cert-file "$dir/keys/apiserver.crt" --tls-private-key-file "$dir/keys/apiserver.key" \
  --client-ca-file "$dir/keys/ca.crt" --token-auth-file "$dir/keys/tokens" --authorization-mode Node,RBAC \
  --enable-admission-plugins NodeRestriction \
  --service-account-issuer https://kubernetes.default.svc.cluster.local \
  --service-account-key-file "$dir/keys/accounts.key" --service-account-signing-key-file "$dir/keys/accounts.key" \
  --kubelet-client-certificate "$dir/keys/apiserver-to-kubelet.crt" \
  --kubelet-client-key "$dir/keys/apiserver-to-kubelet.key" --kubelet-preferred-address-types InternalIP \
  --audit-policy-file "$dir/config/audit.yaml" --audit-log-path "$dir/audit.log"
await 60 kube-apiserver "the API server's readiness" kubectl get --raw /readyz --request-timeout 5s
start kube-controller-manager "$cluster" kube-controller-manager --kubeconfig "$dir/config/controller-manager" \
  --service-account-private-key-file "$dir/keys/accounts.key" --root-ca-file "$dir/keys/ca.crt" \
  --use-service-account-credentials --leader-elect=false
start kube-scheduler "$cluster" kube-scheduler --kubeconfig "$dir/config/scheduler" --leader-elect=false
start coredns "$bin/node" coredns -conf "$dir/config/Corefile"
await 30 containerd "containerd's readiness" "$dir/bin/ctr" version
start kubelet "$bin/node" kubelet --config "$dir/config/kubelet.yaml" --kubeconfig "$dir/config/kubelet" \
  --root-dir "$dir/kubelet" --cert-dir "$dir/keys" --hostname-override node --node-ip $node
kubectl apply --filename "$dir/config/dns.yaml" >"$dir/logs/dns.log" 2>&1 ||
  { cat "$dir/logs/dns.log" >&2; fail "Creating the DNS service failed."; }
wait "$images" || fail "Making the images failed."
for image in "$dir"/images/*.tar; do
  "$here/load.sh" "$image" "$dir" >"$dir/logs/load.log" 2>&1 ||
    { cat "$dir/logs/load.log" >&2; fail "Importing $image failed."; }
done
await 60 kubelet "a Ready node" kubectl wait node node --for condition=Ready --timeout 1s
# Started earlier, it would end as soon as the node gets its address.
start kube-proxy "$bin/node" kube-proxy --kubeconfig "$dir/config/proxy" --proxy-mode nftables \
  --hostname-override node --cluster-cidr $pods --conntrack-max-per-core 0 --conntrack-min 0 \
  --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0
await 30 kube-proxy "kube-proxy's rules" "$dir/bin/in-node" nft list chain ip kube-proxy services
await 30 kube-controller-manager "the default service account" kubectl get serviceaccount default
await 30 coredns "an answer of the DNS service" "$dir/bin/in-node" busybox nslookup kubernetes.default.svc.cluster.local $dns

ended=$EPOCHREALTIME
# In microseconds, whatever the locale's decimal sign.
took=$(((${ended//[!0-9]/} - ${began//[!0-9]/}) / 100000))
say "A Kubernetes $(sed -n 's|^\tk8s.io/kubernetes \(v.*\)|\1|p' "$here/go.mod") of one node runs, after $((took / 10)).$((took % 10)) s. To use it: source $dir/env"
