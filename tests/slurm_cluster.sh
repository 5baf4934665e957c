#!/usr/bin/env bash
# A Slurm cluster of two nodes on this machine's loopback address, for test_slurm.py: no systemd, no database, nothing
# outside of a temporary folder. An array may have two tasks. Prints the path of its slurm.conf (to be exported as
# SLURM_CONF) once it is up, and lives until its standard input is closed.
set -euo pipefail

folder=$(mktemp -d "${TMPDIR:-/tmp}/slurm.XXXXXX")
chmod 755 "$folder"
mkdir "$folder/munge" "$folder/state"
daemons=() up=''
stop() {
  trap '' EXIT TERM INT
  if [ "$up" ]; then # A job that is still there would outlive slurmd.
    scancel --user="$(id -un)"
    for _ in {1..100}; do [ -n "$(squeue --noheader)" ] || break; sleep 0.2; done
  fi
  kill ${daemons[@]+"${daemons[@]}"} 2> /dev/null || true
  wait
  rm -rf "$folder"
}
trap stop EXIT
trap 'exit 1' TERM INT

read -r ctld_port n1_port n2_port < <(python3 - <<'PYTHON'
import socket

sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in sockets))
PYTHON
)
export SLURM_CONF=$folder/slurm.conf
cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$ctld_port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MaxArraySize=3
MpiDefault=none
SlurmdParameters=config_overrides
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/completed
ReturnToService=2
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$n1_port CPUs=1
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$n2_port CPUs=1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE
CONF

start() {  # name, command...
  "${@:2}" < /dev/null > "$folder/$1.log" 2>&1 &
  daemons+=($!)
}
as_munge=()
if [ "$(id -u)" = 0 ]; then
  as_munge=(setpriv --reuid=munge --regid=munge --clear-groups --)
  chown munge: "$folder/munge"
fi
chmod 755 "$folder/munge"
"${as_munge[@]}" sh -c "umask 077; head -c 1024 /dev/urandom > '$folder/munge/key'"
start munged "${as_munge[@]}" /usr/sbin/munged --foreground --socket="$folder/munge/socket" \
  --key-file="$folder/munge/key" --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" \
  --seed-file="$folder/munge/seed"
for _ in {1..50}; do [ -S "$folder/munge/socket" ] && break; sleep 0.1; done
start slurmctld /usr/sbin/slurmctld -D
start n1 /usr/sbin/slurmd -D -N n1
start n2 /usr/sbin/slurmd -D -N n2
for _ in {1..150}; do
  if [ "$(sinfo --noheader --states=idle --format=%D 2> /dev/null)" = 2 ]; then
    up=yes
    echo "$SLURM_CONF"
    cat > /dev/null
    exit
  fi
  sleep 0.2
done
tail -n 5 "$folder"/*.log >&2
echo 'Error: the cluster did not come up' >&2
exit 1
