#!/bin/sh
# Sets up a one-machine SLURM and removes it again: a controller, one node with all cores, one partition. Use it to try
# sweeps/slurm before running on a cluster. Debian or Ubuntu, as root. It writes to one folder, except for the link
# /etc/slurm/slurm.conf, because snakemake hides SLURM's variables from its jobs. It refuses an existing configuration.
#
#   sh sweeps/slurm/one_machine.sh up       install slurm-wlm and munge if needed, start the daemons
#   sh sweeps/slurm/one_machine.sh try      run sweeps/tiny.tsv with snakemake; then a job that its time limit kills, and a retry
#   sh sweeps/slurm/one_machine.sh down     stop the daemons, remove the folder; --purge: also the packages
set -eu
FOLDER=${SLURM_FOLDER:-$PWD/runs/slurm}
HOST=$(hostname -s)

say() { echo "one_machine: $*" >&2; }

up() {
    if [ -e /etc/slurm/slurm.conf ] && [ "$(readlink /etc/slurm/slurm.conf)" != "$FOLDER/slurm.conf" ]; then
        say "there already is a SLURM here: /etc/slurm/slurm.conf"
        exit 1
    fi
    if ! command -v slurmctld > /dev/null || ! command -v munged > /dev/null; then
        # keep the packages from starting daemons: ours have their own configuration
        printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d.one_machine
        chmod +x /usr/sbin/policy-rc.d.one_machine
        [ -e /usr/sbin/policy-rc.d ] || cp /usr/sbin/policy-rc.d.one_machine /usr/sbin/policy-rc.d
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge > /dev/null
        cmp -s /usr/sbin/policy-rc.d.one_machine /usr/sbin/policy-rc.d && rm /usr/sbin/policy-rc.d
        rm /usr/sbin/policy-rc.d.one_machine
    fi
    mkdir -p "$FOLDER/state" "$FOLDER/spool" /run/munge
    chown munge /run/munge
    [ -s /etc/munge/munge.key ] || mungekey --create
    if ! munge -n > /dev/null 2>&1; then
        runuser -u munge -- /usr/sbin/munged || { say "munged does not start, see /var/log/munge"; exit 1; }
    fi
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.8)}' /proc/meminfo)
    cat > "$FOLDER/slurm.conf" <<CONF
ClusterName=one_machine
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=10
MinJobAge=600
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=$HOST Default=YES MaxTime=INFINITE DefaultTime=30 State=UP
CONF
    mkdir -p /etc/slurm
    ln -sfn "$FOLDER/slurm.conf" /etc/slurm/slurm.conf
    slurmctld
    slurmd
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        sinfo -h -o %T 2> /dev/null | grep -q idle && { sinfo; return; }
        sleep 2
    done
    say "the node is not idle: $(sinfo -h 2>&1); the last lines of the logs:"
    tail -n 5 "$FOLDER"/*.log >&2
    exit 1
}

try() {
    # without SLURM's accounting database, squeue knows the jobs but sacct does not
    profile="--workflow-profile sweeps/slurm --set-threads adapt=1 --latency-wait 10 --slurm-status-command squeue
        --slurm-init-seconds-before-status-checks 5"
    snakemake $profile --set-resources adapt:gpu=0 adapt:runtime=30 --config sweep=sweeps/tiny.tsv results_dir="$FOLDER/results" figures_dir="$FOLDER/figures"
    say "now with a first limit of one minute on eight epochs; each attempt may take twice as long as the one before"
    printf 'task\tmethod\tsparsity\tmax_train_examples\tepochs\tcheckpoint_steps\nmovie_reviews\tadaprune\t0.5\t500\t8\t10\n' \
        > "$FOLDER/long.tsv"
    snakemake $profile --retries 5 --set-resources "adapt:runtime=2**(attempt-1)" adapt:gpu=0 \
        --config sweep="$FOLDER/long.tsv" results_dir="$FOLDER/long" figures_dir="$FOLDER/figures"
}

down() {
    for daemon in slurmd slurmctld; do
        [ ! -s "$FOLDER/$daemon.pid" ] || kill "$(cat "$FOLDER/$daemon.pid")" 2> /dev/null || true
    done
    [ ! -s /run/munge/munged.pid ] || kill "$(cat /run/munge/munged.pid)" 2> /dev/null || true
    sleep 2
    [ "$(readlink /etc/slurm/slurm.conf)" != "$FOLDER/slurm.conf" ] || rm /etc/slurm/slurm.conf
    rm -rf "$FOLDER"
    [ "${1:-}" != --purge ] || DEBIAN_FRONTEND=noninteractive apt-get purge -y slurm-wlm slurmctld slurmd slurm-client munge > /dev/null
}

case "${1:-}" in
up | try) "$1" ;;
down) down "${2:-}" ;;
*) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
esac
