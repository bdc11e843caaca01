# Sourced by the parts: what several of them need. A part runs in a cluster that has the images, with its KUBECONFIG, and
# kubectl, helm and in-node in PATH.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
# shellcheck disable=SC2034 # for those that source this
chart=$repository/charts/leasehold
# Where the release is.
system=leasehold-system

say() { echo "$(date +%T) $*"; }

fail() {
  exec >&2
  say "FAILED: $*"
  # In a subshell, whoever started it fails next.
  if [ "$BASH_SUBSHELL" -eq 0 ]; then
    kubectl get lockstore,dlock,lclaim,pods -A -o wide || true
    kubectl logs -n $system -l app.kubernetes.io/component=controller --tail=30 --prefix || true
  fi
  exit 1
}
set -E
trap '[ "$BASH_SUBSHELL" -gt 0 ] || fail "$0, line $LINENO: $BASH_COMMAND"' ERR

# within SECONDS WHAT COMMAND...
within() {
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt "$limit" ] || fail "in vain: $what"
    sleep 0.1
  done
}

# same WHAT NOW BEFORE
same() { [ "$2" = "$3" ] || fail "$1: $2; it was $3"; }
# higher WHAT NOW BEFORE
higher() { [ "$2" -gt "$3" ] || fail "$1: $2; it was $3"; }

# --- The release ---

# What rollout status says of the controllers, and the store.
all_ready() {
  kubectl -n $system rollout status deployment/leasehold --timeout=90s >/dev/null || fail 'not two controllers'
  kubectl wait --for=condition=Ready lockstore/default --timeout=60s >/dev/null || fail 'the LockStore is not Ready in time'
}
of_store() { kubectl get lockstore default -o jsonpath="{.status.$1}"; }
# The replica that leads.
leading() { kubectl -n $system get lease leasehold.dev-controller -o jsonpath='{.spec.holderIdentity}' | cut -d_ -f1; }
redis_pod() { kubectl -n $system get pod leasehold-redis-0 -o jsonpath='{.metadata.uid}'; }
# The store is Ready by a controller that began after the term OLD.
opened_since() { [ "$(of_store term)" -gt "$1" ] && [ "$(of_store 'conditions[?(@.type=="Ready")].status')" = True ]; }

# signal SIGNAL PROGRAM POD [NAMESPACE]: to the pod's processes of this name, from the node, since nothing inside a
# container can stop its first process.
signal() {
  # shellcheck disable=SC2016
  in-node sh -c 'for file in $(grep -sl "$1" /proc/[0-9]*/cgroup); do
    process=${file%/cgroup}; [ "$(cat "$process/comm")" != "$2" ] || kill -"$3" "${process#/proc/}"
  done' sh "pod$(kubectl get pod "$3" ${4:+-n "$4"} -o jsonpath='{.metadata.uid}')" "$2" "$1"
}

# --- The application of app.yaml, in the namespace shop ---

start_app() {
  kubectl create namespace shop >/dev/null
  kubectl label namespace shop pod-security.kubernetes.io/enforce=restricted >/dev/null
  kubectl config set-context --current --namespace=shop >/dev/null
  kubectl apply -f "$here/app.yaml" >/dev/null
  within 60 'three pods are Ready' three_ready
  within 30 'one of them leads' one_leads
  kubectl wait --for=condition=Held lclaim/nightly --timeout=30s >/dev/null || fail 'the claim is not held'
}
leader() { kubectl get pods -l app=report,leasehold.dev/role=leader -o jsonpath='{.items[*].metadata.name}'; }
token_of_leader() {
  kubectl get pods -l app=report,leasehold.dev/role=leader -o jsonpath='{.items[0].metadata.annotations.leasehold\.dev/fencing-token}'
}
three_ready() { [ "$(kubectl get pods -l app=report -o jsonpath='{.items[*].status.containerStatuses[0].ready}')" = 'true true true' ]; }
one_leads() { [ "$(leader | wc -w)" -eq 1 ]; }
token_of() { kubectl get lclaim "$1" -o jsonpath='{.status.fencingToken}'; }
# What must not change while nobody ends: who leads, and who holds, with which token.
holds() { echo "$(leader) $(token_of_leader); $(kubectl get lclaim -o jsonpath='{range .items[*]}{.metadata.name} {.status.fencingToken} {end}')"; }

# claim NAME LOCK [SECONDS]: is held in time.
claim() {
  kubectl apply -f - >/dev/null <<YAML
{apiVersion: leasehold.dev/v1alpha1, kind: LockClaim, metadata: {name: $1}, spec: {locks: [{name: $2}]}}
YAML
  kubectl wait --for=condition=Held "lclaim/$1" --timeout="${3:-30}s" >/dev/null || fail "the claim $1 is not held"
}
# Something new is granted, and given back.
grants() {
  kubectl apply -f - >/dev/null <<YAML
{apiVersion: leasehold.dev/v1alpha1, kind: DistributedLock, metadata: {name: probe}}
YAML
  claim probe probe
  kubectl delete lclaim/probe dlock/probe --timeout=30s >/dev/null || fail 'what was granted is not deleted'
}

# --- A direct hold of the lock shop/direct: what a process that renews by itself sends, by redis-cli in the Redis pod ---

# direct FUNCTION KEYS ARGUMENT...: one line, the parts of the answer.
direct() { kubectl -n $system exec leasehold-redis-0 -- redis-cli -e FCALL "$@" | paste -sd' '; }
record='leasehold:{shop/direct}'
# direct_lock SECONDS: with leases so long.
direct_lock() {
  kubectl apply -f - >/dev/null <<YAML
{apiVersion: leasehold.dev/v1alpha1, kind: DistributedLock, metadata: {name: direct}, spec: {leaseDurationSeconds: $1}}
YAML
  kubectl wait --for=condition=Ready dlock/direct --timeout=30s >/dev/null || fail 'the lock is not Ready'
}
granted() {
  local answer
  answer=$(direct leasehold1_acquire 3 "$record:lock" "$record:queue" "$record:waiters" "$1" c 1 0 0 "run/$1" '')
  [[ $answer == granted\ * ]] && token=$(cut -d' ' -f2 <<<"$answer")
}
# acquire ID: it holds, with $token.
acquire() { within 30 'the direct hold is granted' granted "$1"; }
release() { direct leasehold1_release 3 "$record:lock" "$record:queue" "$record:waiters" "$1"; }
# renew ID FILE: five times a second, in the background, each answer in a line of FILE; $! ends it.
renew() {
  # shellcheck disable=SC2016
  kubectl -n $system exec leasehold-redis-0 -- sh -c \
    'while :; do echo $(redis-cli -e FCALL leasehold1_renew 1 "$1" "$2" 2>&1) || exit; sleep 0.2; done' sh "$record:lock" "$1" >"$2" &
}
longer() { [ "$(wc -l <"$1")" -gt "$2" ]; }
# renewed TOKEN FILE: every renewal until now was answered as held, and they go on.
renewed() {
  local wrong
  within 5 'the direct hold is renewed' longer "$2" "$(wc -l <"$2")"
  wrong=$(grep -vE "^granted $1 [0-9]+$" "$2") || return 0
  fail "a renewal of the direct hold with token $1 is answered: $(head -n 1 <<<"$wrong")"
}
