# shellcheck shell=bash
# CRI-O and cri-dockerd. Sourced by ../lab.
#
# Nothing below /etc is read, and pods use the host's network: no CNI is called. What a test wants otherwise is told by a
# variable, when CRI-O is started for the first time:
#   QUAYMASTER_LAB_CRIO_POD_EVENTS   `false` for CRI-O's own default, in which its event stream ends at once

# A runc that first raises a score below zero, which both give a pod's sandbox (-998): a machine without CAP_SYS_RESOURCE
# refuses it, and neither has containerd's restrict_oom_score_adj.
write_unscored_runc() {
  [[ -f $DIR/unscored-runc ]] && return
  write_observed_runc
  cat >"$DIR/unscored-runc.new" <<EOF
#!/bin/sh
before=
for argument; do
  if [ "\$before" = --bundle ]; then
    sed -i 's/"oomScoreAdj": *-[0-9]*/"oomScoreAdj":0/' "\$argument/config.json"
  fi
  before=\$argument
done
exec "$DIR/observed-runc" "\$@"
EOF
  chmod 0755 "$DIR/unscored-runc.new"
  mv "$DIR/unscored-runc.new" "$DIR/unscored-runc"
}

crio_config() {
  local home=$1 socket=$2 pod_events=$3
  cat <<EOF
[crio]
root = "$home/root"
runroot = "$home/run"
storage_driver = "overlay"
log_dir = "$home/log"
version_file = "$home/run/version"
version_file_persist = "$home/version"
clean_shutdown_file = "$home/clean.shutdown"
[crio.api]
listen = "$socket"
stream_address = "127.0.0.1"
stream_port = "0"
[crio.runtime]
default_runtime = "runc"
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
container_exits_dir = "$home/run/exits"
container_attach_socket_dir = "$home/run/attach"
namespaces_dir = "$home/run/ns"
pinns_path = "$(go_program pinns)"
hooks_dir = ["$home/hooks"]
cdi_spec_dirs = ["$home/cdi"]
default_mounts_file = "$home/etc/mounts.conf"
decryption_keys_path = "$home/etc/keys"
seccomp_profile = "unconfined"
apparmor_profile = "unconfined"
irqbalance_config_file = ""
irqbalance_config_restore_file = "disable"
enable_criu_support = false
enable_pod_events = $pod_events
[crio.runtime.runtimes.runc]
runtime_path = "$DIR/unscored-runc"
runtime_type = "oci"
runtime_root = "$home/runc"
monitor_path = "/usr/bin/conmon"
monitor_cgroup = "pod"
[crio.image]
pause_image = "$PAUSE_IMAGE"
pause_command = ""
signature_policy = "$home/etc/policy.json"
signature_policy_dir = "$home/etc/policies"
[crio.network]
network_dir = "$home/cni"
plugin_dirs = ["$home/cni-bin"]
[crio.metrics]
enable_metrics = false
[crio.nri]
enable_nri = false
EOF
}

start_crio() {
  local home=$DIR/crio socket=$DIR/crio.sock image
  write_unscored_runc
  if [[ ! -f $home/images ]]; then
    mkdir -p "$home"/{root,run,etc/policies,etc/keys,etc/registries.d,hooks,cdi,cni,cni-bin}
    : >"$home/etc/mounts.conf"
    : >"$home/etc/registries.conf"
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' "$home/root" "$home/run" >"$home/etc/storage.conf"
    echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$home/etc/policy.json"
    crio_config "$home" "$socket" "${QUAYMASTER_LAB_CRIO_POD_EVENTS:-true}" >"$home/crio.conf"
    for image in "$BUSYBOX_IMAGE" "$PAUSE_IMAGE"; do
      CONTAINERS_STORAGE_CONF=$home/etc/storage.conf TMPDIR=$home skopeo --insecure-policy --registries.d "$home/etc/registries.d" \
        copy -q "docker-archive:$CACHE/images/lab.tar:$image" "containers-storage:[overlay@$home/root+$home/run]$image" \
        >>"$DIR/log/crio.log" 2>&1 || die 1 "the image $image could not be given to CRI-O: see \`$DIR/log/crio.log\`"
    done
    : >"$home/images"
  fi
  spawn crio env PATH="$(component_path crio)" TMPDIR="$home" CONTAINERS_STORAGE_CONF="$home/etc/storage.conf" "$(go_program crio)" \
    --config "$home/crio.conf" --config-dir "" --registries-conf "$home/etc/registries.conf" \
    --registries-conf-dir "$home/etc/registries.d"
  wait_ready crio "$LAB_HOME/cri" --socket "$socket" version
  env_put LAB_CRIO_SOCKET "$socket"
  env_put LAB_CRIO_VERSION "${CRIO_VERSION#v}"
  put_cri_clients
}

# Its pods' sandboxes need the runtime `unscored` of the lab's dockerd: `cri runp --runtime unscored`.
#
# It gives every process by the name of dockerd or containerd on the machine another OOM score (cri-dockerd,
# `containermanager`), so it sees none: it runs in a PID namespace of its own.
start_cri_dockerd() {
  local home=$DIR/cri-dockerd socket=$DIR/cri-dockerd.sock pid
  alive docker || die "$EX_USAGE" "cri-dockerd serves docker's containers: \`lab up\` or \`lab start\` docker too"
  mkdir -p "$home"/{root,cni,cni-bin,cni-cache}
  rm -f "$socket"
  spawn cri-dockerd unshare --pid --fork --kill-child --mount-proc \
    env PATH="$(component_path docker)" TMPDIR="$home" "$(go_program cri-dockerd)" \
    --container-runtime-endpoint "unix://$socket" --docker-endpoint "unix://$DIR/docker.sock" \
    --cri-dockerd-root-directory "$home/root" --pod-infra-container-image "$PAUSE_IMAGE" \
    --streaming-bind-addr 127.0.0.1:0 --cni-conf-dir "$home/cni" --cni-bin-dir "$home/cni-bin" --cni-cache-dir "$home/cni-cache"
  wait_ready cri-dockerd "$LAB_HOME/cri" --socket "$socket" version
  # `unshare` passes no SIGTERM on, and ends with what it has started.
  read -r pid _ <"$DIR/run/cri-dockerd.pid"
  pid=$(pgrep -P "$pid")
  printf '%s %s\n' "$pid" "$(start_ticks "$pid")" >"$DIR/run/cri-dockerd.pid"
  env_put LAB_CRI_DOCKERD_SOCKET "$socket"
  env_put LAB_CRI_DOCKERD_VERSION "${CRI_DOCKERD_VERSION#v}"
  put_cri_clients
}

put_cri_clients() {
  env_put LAB_CRI "$LAB_HOME/cri"
  env_put LAB_CRICTL "$(go_program crictl)"
  env_put LAB_BUSYBOX_IMAGE "$BUSYBOX_IMAGE"
}
