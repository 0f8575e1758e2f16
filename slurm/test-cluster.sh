#!/usr/bin/env bash
# A real SLURM on this machine alone, for tests: a controller and a few small nodes on loopback. Needs root (nodes are
# namespaces with host names of their own) and Debian's or Ubuntu's packages, which it installs where they are absent.
#   slurm/test-cluster.sh start DIR    then: . DIR/env.sh
#   slurm/test-cluster.sh stop DIR     ends what start began, and removes DIR
# Environment: NODES (4), CPUS (4, of each node; pretended), PORT (27900; nodes take the next ones).
set -euo pipefail
action=${1:?start or stop} dir=$(realpath -m "${2:?a folder}")
nodes=${NODES:-4} cpus=${CPUS:-4} port=${PORT:-27900} mark="# cinevox test cluster"
export SLURM_CONF=$dir/slurm.conf

fail() { echo "test-cluster: $*" >&2; tail -n 5 "$dir"/log/*.log >&2 2>/dev/null || true; exit 1; }
begun() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }  # when the kernel started a process
is_ours() {  # a process id may be another's by now
  local pid since
  [ -s "$1" ] && read -r pid since <"$1" && [ -n "$since" ] && [ "$(begun "$pid")" = "$since" ]
}
spawn() {  # NAME WORD...: in a session of its own; its id and start stand in run/NAME
  local name=$1; shift
  is_ours "$dir/run/$name" && return
  setsid "$@" </dev/null >"$dir/log/$name.log" 2>&1 &
  echo "$! $(begun $!)" >"$dir/run/$name"
}
until_true() {  # SECONDS WORD...
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.1; done
}
all_idle() { [ "$(sinfo --noheader --Node --partition=cpu --format=%T | grep -cx idle)" = "$nodes" ]; }

configure() {
  cat <<CONF
ClusterName=cinevox
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
# cred_expire: a requeued job waits as long before it starts again (120 s unless told)
AuthInfo=socket=$dir/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.daemon
SlurmdPidFile=$dir/run/%n.daemon
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
KillWait=15
# On a busy machine an answer takes long; what is not answered is sent again, to a requeued job too.
MessageTimeout=60
SlurmctldTimeout=30
SlurmdTimeout=15
InactiveLimit=0
CONF
  for i in $(seq "$nodes"); do
    echo "NodeName=cinevox$i NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=$cpus RealMemory=8000 State=UNKNOWN"
  done
  echo "PartitionName=cpu Nodes=ALL Default=YES DefaultTime=10 PriorityTier=2 PreemptMode=OFF State=UP"
  echo "PartitionName=gpu Nodes=ALL DefaultTime=10 PriorityTier=2 PreemptMode=OFF State=UP"
  # Jobs here make room for those of the others: SIGTERM, and SIGKILL after KillWait.
  echo "PartitionName=spot Nodes=ALL DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE State=UP"
}

start() {
  [ "$(id -u)" = 0 ] || fail "must be root"
  if ! type -P slurmctld slurmd sbatch munged >/dev/null; then
    apt-get update -qq >&2 || fail "apt-get update failed"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
      slurmctld slurmd slurm-wlm-basic-plugins slurm-client munge >&2 || fail "SLURM cannot be installed"
  fi
  mkdir -p "$dir"/{log,run,state,spool,munge}
  chmod 711 "$dir/munge"
  configure >"$SLURM_CONF"
  echo "export SLURM_CONF=$(printf %q "$SLURM_CONF")" >"$dir/env.sh"
  for name in "$(hostname -s)" $(seq -f 'cinevox%g' "$nodes"); do
    getent hosts "$name" >/dev/null || echo "127.0.0.1 $name $mark" >>/etc/hosts
  done
  [ -s "$dir/munge/key" ] || (umask 077; head -c 128 /dev/urandom >"$dir/munge/key")
  spawn munged munged --foreground --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
    --pid-file="$dir/munge/pid" --seed-file="$dir/munge/seed" --log-file="$dir/log/munge.log"
  until_true 10 munge --socket="$dir/munge/socket" --no-input || fail "munge does not answer"
  spawn slurmctld slurmctld -D -f "$SLURM_CONF"
  until_true 20 scontrol show partition cpu || fail "the controller does not answer"
  for i in $(seq "$nodes"); do
    # The process that is noted takes all of the node along when it is killed: as if it lost power.
    # shellcheck disable=SC2016
    spawn "cinevox$i" unshare --uts --pid --fork --kill-child --mount-proc \
      bash -c 'hostname "$0"; slurmd -D -N "$0" -f "$SLURM_CONF" & wait $!' "cinevox$i"
  done
  until_true 30 all_idle || fail "not all nodes are idle"
  echo "$nodes nodes: . $dir/env.sh"
}

stop() {
  if is_ours "$dir/run/slurmctld"; then
    squeue --noheader --format=%A | sort -u | xargs -r scancel --signal=KILL --full || true
    squeue --noheader --format=%A | sort -u | xargs -r scancel || true
    until_true 20 eval '[ -z "$(squeue --noheader)" ]' || true
  fi
  for note in "$dir"/run/cinevox? "$dir"/run/slurmctld "$dir"/run/munged; do
    if is_ours "$note"; then read -r pid _ <"$note"; kill -KILL "$pid"; fi
  done
  if grep -q "$mark" /etc/hosts; then  # rewritten in place: it may be a mount
    kept=$(grep -v "$mark" /etc/hosts || true); echo "$kept" >/etc/hosts
  fi
  rm -rf "$dir"
}

case $action in
  start) start ;;
  stop) stop ;;
  *) fail "no such action: $action" ;;
esac
