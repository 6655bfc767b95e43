# shellcheck shell=bash
# Processes, ports, cgroups and mounts that belong to one lab. Sourced by ../lab, which sets DIR and CGROUP.
#
# A process is known by its pid and its start time (field 22 of /proc/PID/stat), so that a pid which the kernel gave to
# somebody else meanwhile is never signalled.

# Below the kernel's range for outgoing connections (32768-60999), so that none of those takes a port of ours.
readonly PORT_MIN=20000 PORT_MAX=29999
# One folder per port that a lab holds, with the lab's path in it. Two labs never draw the same port.
readonly PORTS_DIR=/tmp/quaymaster-lab-ports
# How long a component may take until it is ready, or until it has gone.
readonly READY_S=120 STOP_S=30

now_ms() { date +%s%3N; }

env_put() {
  local key=$1 value=$2
  {
    if [[ -f $DIR/env ]]; then grep -v "^$key=" "$DIR/env" || true; fi
    printf '%s=%s\n' "$key" "$value"
  } >"$DIR/env.new"
  mv "$DIR/env.new" "$DIR/env"
}

env_get() { sed -n "s/^$1=//p" "$DIR/env" 2>/dev/null; }

# The start time of a process that is alive; nothing for one that has gone or is a zombie.
start_ticks() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  # The second field is the command in parentheses and may hold anything: cut up to the last one.
  # shellcheck disable=SC2086
  set -- ${stat##*) }
  [[ $1 == Z || $1 == X ]] || echo "${20}"
}

alive() {
  local pid ticks
  [[ -f $DIR/run/$1.pid ]] || return 1
  read -r pid ticks <"$DIR/run/$1.pid"
  [[ $(start_ticks "$pid") == "$ticks" ]]
}

# Starts a daemon in a session of its own, with its output in a log and none of our descriptors.
spawn() {
  local name=$1 pid
  shift
  printf -- '--- %s: %s\n' "$(date -u +%FT%TZ)" "$*" >>"$DIR/log/$name.log"
  setsid "$@" </dev/null >>"$DIR/log/$name.log" 2>&1 9>&- &
  pid=$!
  printf '%s %s\n' "$pid" "$(start_ticks "$pid")" >"$DIR/run/$name.pid"
  : >"$DIR/run/$name.made"
  env_put "LAB_$(env_word "$name")_PID" "$pid"
}

env_word() { tr 'a-z-' 'A-Z_' <<<"$1"; }

# Waits until a command succeeds, or the component has died, or the time is over.
wait_ready() {
  local name=$1 deadline_ms=$(($(now_ms) + READY_S * 1000))
  shift
  until "$@" >/dev/null 2>&1; do
    if ! alive "$name"; then
      tail -n 20 "$DIR/log/$name.log" >&2
      die 1 "$name ended before it was ready; its log is above"
    fi
    if (($(now_ms) > deadline_ms)); then
      tail -n 20 "$DIR/log/$name.log" >&2
      die 1 "$name was not ready within $READY_S s; its log is above"
    fi
    sleep 0.05
  done
}

end_process() {
  local name=$1 signal=$2 pid ticks deadline_ms=$(($(now_ms) + STOP_S * 1000))
  alive "$name" || return 0
  read -r pid ticks <"$DIR/run/$name.pid"
  kill "-$signal" "$pid"
  while [[ $(start_ticks "$pid") == "$ticks" ]]; do
    if (($(now_ms) > deadline_ms)); then
      say "$name did not end within $STOP_S s of SIG$signal: SIGKILL"
      kill -KILL "$pid"
      deadline_ms=$(($(now_ms) + STOP_S * 1000))
    fi
    sleep 0.05
  done
  rm -f "$DIR/run/$name.pid"
}

# Pids of the processes that run this lab's containers: shims and conmons name a path below DIR in their arguments, what
# a rootless podman leaves behind in its environment.
supervisors() {
  local proc exe
  for proc in /proc/[0-9]*; do
    exe=$(readlink "$proc/exe" 2>/dev/null) || continue
    case ${exe##*/} in
    containerd-shim* | conmon | runc | crun | docker-init | docker-proxy)
      if grep -qszF -- "$DIR/" "$proc/cmdline"; then echo "${proc#/proc/}"; fi
      ;;
    podman)
      if grep -qszF -- "$DIR/" "$proc/environ"; then echo "${proc#/proc/}"; fi
      ;;
    esac
  done
}

# This lab's cgroups, in every hierarchy. Podman's Docker API puts containers below a parent of its own choice.
cgroups() {
  local tests=(-path "*/$CGROUP*") container
  for container in "$DIR"/podman/root/overlay-containers/*/; do
    container=$(basename "$container")
    if [[ ${#container} == 64 ]]; then tests+=(-o -path "*/libpod-$container*" -o -path "*/libpod-conmon-$container*"); fi
  done
  find /sys/fs/cgroup -depth -type d \( "${tests[@]}" \) 2>/dev/null || true
}

end_containers() {
  local pid round group task file
  # In rounds: a shim that dies may still be starting something.
  for ((round = 0; round < 20; round++)); do
    local left=0
    for pid in $(supervisors); do
      left=1
      # A rootless container has no cgroup of its own: it is known as its conmon's child.
      if [[ $(readlink "/proc/$pid/exe") == */conmon ]]; then pkill -KILL -P "$pid" || true; fi
      kill -KILL "$pid" 2>/dev/null || true
    done
    for group in $(cgroups); do
      # A frozen process (a paused container) does not die before it is thawed.
      if [[ -f $group/freezer.state ]]; then echo THAWED >"$group/freezer.state" 2>/dev/null || true; fi
      if [[ -f $group/cgroup.freeze ]]; then echo 0 >"$group/cgroup.freeze" 2>/dev/null || true; fi
      while read -r task; do
        left=1
        kill -KILL "$task" 2>/dev/null || true
      done < <(cat "$group/cgroup.procs" 2>/dev/null)
    done
    ((left == 0)) && break
    sleep 0.1
  done
  # The sockets of shims that we killed lie outside DIR, under names that are hashes; the bundles know them.
  while read -r file; do
    pid=$(grep -oE '/run/containerd/s/[0-9a-f]{64}' "$file" | head -n 1) || true
    if [[ -n $pid ]]; then rm -f "$pid"; fi
  done < <(find "$DIR" -xdev -maxdepth 8 \( -name address -o -name bootstrap.json \) -path '*/io.containerd.runtime.v2.task/*' 2>/dev/null)
}

unmount_below() {
  local point
  while read -r point; do
    umount "$point" 2>/dev/null || umount -l "$point" 2>/dev/null || true
  done < <(awk -v dir="$DIR/" 'index($5, dir) == 1 {print $5}' /proc/self/mountinfo | sort -r)
}

remove_cgroups() {
  local group
  for group in $(cgroups); do
    rmdir "$group" 2>/dev/null || true
    if [[ $group == */libpod_parent/* ]]; then rmdir "${group%/*}" 2>/dev/null || true; fi
  done
}

# A free loopback port, held for this lab under a name; the same one at every later call.
port_for() {
  local name=$1 port holder
  port=$(cat "$DIR/run/$name.port" 2>/dev/null || true)
  if [[ -n $port ]]; then
    echo "$port"
    return
  fi
  mkdir -p -m 1777 "$PORTS_DIR"
  while :; do
    port=$((PORT_MIN + RANDOM % (PORT_MAX - PORT_MIN + 1)))
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then continue; fi
    if ! mkdir "$PORTS_DIR/$port" 2>/dev/null; then
      holder=$(cat "$PORTS_DIR/$port/lab" 2>/dev/null || true)
      # What a lab left behind that was removed by hand is free again.
      if [[ -n $holder && ! -e $holder ]]; then rm -rf "${PORTS_DIR:?}/$port"; fi
      continue
    fi
    echo "$DIR" >"$PORTS_DIR/$port/lab"
    echo "$port" >"$DIR/run/$name.port"
    echo "$port"
    return
  done
}

give_back_ports() {
  local held
  for held in "$PORTS_DIR"/*/lab; do
    [[ -f $held ]] || continue
    if [[ $(cat "$held" 2>/dev/null || true) == "$DIR" ]]; then rm -rf "$(dirname "$held")"; fi
  done
}
