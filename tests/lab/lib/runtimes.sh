# shellcheck shell=bash
# containerd, dockerd and podman. Sourced by ../lab.
#
# Nothing of the host's network is touched (no bridge, no firewall rules, no forwarding), no configuration below /etc
# is read, and cgroups are made below one of the lab's own. Pods use the host's network, containers none: start them
# with `--network none`, else Docker looks for its bridge when one is renamed.

# The images that `lab install` builds: busybox, and the same as a pod's pause image.
readonly BUSYBOX_IMAGE=docker.io/library/busybox:lab PAUSE_IMAGE=docker.io/library/pause:lab

# The folder of binaries that a component runs from, followed by the machine's own.
component_path() {
  local dirs=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  case $1 in
  containerd2 | docker-containerd) echo "$CACHE/new/containerd/usr/bin:$dirs" ;;
  docker) echo "$CACHE/new/docker.io/usr/sbin:$CACHE/new/docker.io/usr/bin:$CACHE/new/containerd/usr/bin:$dirs" ;;
  *) echo "/usr/sbin:/usr/bin:/sbin:/bin" ;;
  esac
}

# A runc that notes, for each container that it has created, the id and the PID namespace of its init process: what is
# true of containers that live for some ms, by nobody's word but runc's own and the kernel's.
write_observed_runc() {
  [[ -f $DIR/observed-runc ]] && return
  cat >"$DIR/observed-runc.new" <<EOF
#!/bin/sh
/usr/sbin/runc "\$@"
status=\$?
is_create= pid_file= id=
while [ \$# -gt 0 ]; do
  case \$1 in
  create) is_create=1 ;;
  --pid-file) pid_file=\$2 ;;
  esac
  id=\$1
  shift
done
if [ "\$is_create" ] && [ \$status -eq 0 ] && [ -f "\$pid_file" ]; then
  read -r pid <"\$pid_file" || [ "\$pid" ]
  echo "\$id \$(readlink "/proc/\$pid/ns/pid")" >>"$DIR/observed"
fi
exit \$status
EOF
  chmod 0755 "$DIR/observed-runc.new"
  mv "$DIR/observed-runc.new" "$DIR/observed-runc"
  : >"$DIR/observed"
  env_put LAB_OBSERVED "$DIR/observed"
}

containerd_binary() {
  case $1 in
  containerd2 | docker-containerd) echo "$CACHE/new/containerd/usr/bin/containerd" ;;
  *) echo /usr/bin/containerd ;;
  esac
}

# The sections that differ between containerd's configuration versions 2 (1.x) and 3 (2.x).
containerd_config() {
  local name=$1 home=$2 socket=$3 major=$4
  cat <<EOF
root = "$home/root"
state = "$home/state"
EOF
  local unused=""
  # A dockerd's own containerd serves no CRI; those that do need no NRI, which has one socket for the machine.
  case $name in
  docker-containerd | docker20-containerd)
    if ((major >= 2)); then
      unused='"io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "io.containerd.podsandbox.controller.v1.podsandbox", '
    else
      unused='"io.containerd.grpc.v1.cri", '
    fi
    ;;
  esac
  unused+='"io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"'
  local snapshotter
  for snapshotter in aufs blockfile btrfs devmapper erofs zfs; do
    unused+=", \"io.containerd.snapshotter.v1.$snapshotter\""
  done
  if ((major >= 2)); then echo "version = 3"; else echo "version = 2"; fi
  cat <<EOF
disabled_plugins = [$unused]
[grpc]
  address = "$socket"
[ttrpc]
  address = "$socket.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "$home/opt"
EOF
  case $name in docker*) return ;; esac
  local cri images cni pinned
  if ((major >= 2)); then
    cri='plugins."io.containerd.cri.v1.runtime"' images='plugins."io.containerd.cri.v1.images"'
    pinned="[$images.pinned_images]
  sandbox = \"$PAUSE_IMAGE\""
    cni='bin_dirs = ["/usr/lib/cni"]'
  else
    cri='plugins."io.containerd.grpc.v1.cri"'
    pinned="[$cri]
  sandbox_image = \"$PAUSE_IMAGE\""
    cni='bin_dir = "/usr/lib/cni"'
  fi
  # restrict_oom_score_adj: machines without CAP_SYS_RESOURCE cannot lower a score.
  if ((major >= 2)); then echo "[$cri]"; else echo "$pinned"; fi
  cat <<EOF
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[$cri.cni]
  $cni
  conf_dir = "$home/cni"
[$cri.containerd]
  default_runtime_name = "runc"
[$cri.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[$cri.containerd.runtimes.runc.options]
  BinaryName = "/usr/sbin/runc"
  Root = "$home/runc"
  SystemdCgroup = false
[$cri.containerd.runtimes.observed]
  runtime_type = "io.containerd.runc.v2"
[$cri.containerd.runtimes.observed.options]
  BinaryName = "$DIR/observed-runc"
  Root = "$home/runc"
  SystemdCgroup = false
EOF
  if ((major >= 2)); then
    cat <<EOF
$pinned
[$images]
  snapshotter = "overlayfs"
EOF
  fi
}

start_containerd() {
  local name=$1 home=$DIR/$1 socket=$DIR/$1.sock binary version ctr
  binary=$(containerd_binary "$name")
  # "containerd github.com/containerd/containerd/v2 2.1.9+unknown" and "containerd ... 1.6.20~ds1 1.6.20~ds1-1"
  version=$("$binary" --version | awk '{print $3}' | sed 's/[~+].*//')
  ctr=$(dirname "$binary")/ctr
  mkdir -p "$home"/{root,state,cni,opt}
  write_observed_runc
  containerd_config "$name" "$home" "$socket" "${version%%.*}" >"$home/config.toml"
  spawn "$name" env PATH="$(component_path "$name")" TMPDIR="$home" "$binary" --config "$home/config.toml"
  wait_ready "$name" "$ctr" -a "$socket" namespaces list
  case $name in
  containerd2 | containerd16)
    wait_ready "$name" "$LAB_HOME/cri" --socket "$socket" version
    if [[ ! -f $home/images ]]; then
      "$ctr" -a "$socket" -n k8s.io images import "$CACHE/images/lab.tar" >>"$DIR/log/$name.log" 2>&1
      : >"$home/images"
    fi
    ;;
  esac
  case $name in
  containerd2)
    env_put LAB_CONTAINERD_SOCKET "$socket"
    env_put LAB_CRI_SOCKET "$socket"
    env_put LAB_CTR "$ctr"
    env_put LAB_CONTAINERD_VERSION "$version"
    ;;
  containerd16)
    env_put LAB_CONTAINERD16_SOCKET "$socket"
    env_put LAB_CTR16 "$ctr"
    env_put LAB_CONTAINERD16_VERSION "$version"
    ;;
  esac
  env_put LAB_CRI "$LAB_HOME/cri"
  env_put LAB_BUSYBOX_IMAGE "$BUSYBOX_IMAGE"
}

start_docker() {
  local name=$1 home=$DIR/$1 socket=$DIR/$1.sock containerd binary cli word
  if [[ ! -f $home/containerd ]]; then
    mkdir -p "$home"
    if [[ $name == docker20 ]]; then
      echo "$DIR/docker20-containerd.sock"
    elif alive containerd2; then
      echo "$DIR/containerd2.sock"
    else
      echo "$DIR/docker-containerd.sock"
    fi >"$home/containerd"
  fi
  containerd=$(cat "$home/containerd")
  if [[ $name == docker20 ]]; then
    binary=/usr/sbin/dockerd cli=/usr/bin/docker
  else
    binary=$CACHE/new/docker.io/usr/sbin/dockerd cli=$CACHE/new/docker-cli/usr/bin/docker
  fi
  write_unscored_runc
  # live-restore: containers outlive their dockerd, so that what happened meanwhile is there to be missed.
  cat >"$home/daemon.json" <<EOF
{
  "bridge": "none", "iptables": false, "ip6tables": false, "ip-forward": false, "ip-masq": false,
  "userland-proxy": false, "live-restore": true, "storage-driver": "overlay2",
  "cgroup-parent": "/$CGROUP", "exec-opts": ["native.cgroupdriver=cgroupfs"],
  "runtimes": { "observed": { "path": "$DIR/observed-runc" }, "unscored": { "path": "$DIR/unscored-runc" } }
}
EOF
  # 20.10 puts an identity into /etc/docker, wherever its other folders are, and holds it in memory from then on.
  local identity=/etc/docker/key.json identity_was_there=0
  if [[ -e $identity ]]; then identity_was_there=1; fi
  # A dockerd that was killed leaves its pid file; the pid in it may be somebody else's by now.
  rm -f "$home/docker.pid"
  spawn "$name" env PATH="$(component_path "$name")" TMPDIR="$home" DOCKER_RAMDISK=1 "$binary" \
    --config-file "$home/daemon.json" --host "unix://$socket" --containerd "$containerd" \
    --data-root "$home/root" --exec-root "$home/exec" --pidfile "$home/docker.pid"
  wait_ready "$name" docker_answers "$cli" "$socket"
  if ((!identity_was_there)); then rm -f "$identity"; fi
  if [[ ! -f $home/images ]]; then
    DOCKER_CONFIG=$home "$cli" -H "unix://$socket" load -q -i "$CACHE/images/lab.tar" >>"$DIR/log/$name.log" 2>&1
    : >"$home/images"
  fi
  word=$(env_word "$name")
  env_put "LAB_${word}_SOCKET" "$socket"
  env_put "LAB_${word}_CLI" "$cli"
  env_put "LAB_${word}_VERSION" "$(docker_version "$cli" "$socket")"
}

docker_version() { DOCKER_CONFIG=$DIR/run "$1" -H "unix://$2" version --format '{{.Server.Version}}'; }

# `docker version` succeeds in part when there is no server: what counts is the server's answer.
docker_answers() { [[ -n $(docker_version "$1" "$2") ]]; }

# As root (`podman`), or as `nobody` (`rootless`): with no subordinate ids, so that its user namespace has one user.
start_podman() {
  local name=$1 home=$DIR/$1 socket=$DIR/$1.sock as=() word
  if [[ $name == rootless ]]; then as=(setpriv --reuid nobody --regid nogroup --clear-groups); fi
  mkdir -p "$home"/{etc,root,run,tmp,net,volumes}
  cat >"$home/etc/storage.conf" <<EOF
[storage]
driver = "$([[ $name == rootless ]] && echo vfs || echo overlay)"
graphroot = "$home/root"
rootless_storage_path = "$home/root"
runroot = "$home/run"
[storage.options]
ignore_chown_errors = "true"
EOF
  # default_ulimits: podman raises both limits otherwise, which a machine without CAP_SYS_RESOURCE refuses.
  cat >"$home/etc/containers.conf" <<EOF
[containers]
netns = "none"
apparmor_profile = "unconfined"
default_ulimits = ["nofile=$(ulimit -Sn):$(ulimit -Hn)", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "$home/tmp"
volume_path = "$home/volumes"
[network]
network_config_dir = "$home/net"
EOF
  echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$home/etc/policy.json"
  if [[ $name == rootless ]]; then
    # It makes its socket in a folder of its own.
    socket=$home/podman.sock
    chown -R nobody:nogroup "$home"
    chmod 0700 "$home/run"
  fi
  # When a container ends, its conmon calls podman again, with none of our environment: only what lies at the usual
  # places counts. So these are the lab's own, in a mount namespace: the configuration, and the locks in /dev/shm.
  # shellcheck disable=SC2016
  spawn "$name" env -C "$home" PATH=/usr/sbin:/usr/bin:/sbin:/bin TMPDIR="$home/tmp" HOME="$home" XDG_RUNTIME_DIR="$home/run" \
    unshare --mount --propagation slave sh -c 'mount --bind "$1/etc" /etc/containers && mount -t tmpfs -o mode=1777 locks /dev/shm &&
      socket=$2 && shift 2 && exec "$@" podman system service --time 0 "unix://$socket"' sh "$home" "$socket" ${as[@]+"${as[@]}"}
  wait_ready "$name" podman_answers "$socket"
  if [[ ! -f $DIR/run/$name.images ]]; then
    DOCKER_CONFIG=$DIR/run /usr/bin/docker -H "unix://$socket" load -q -i "$CACHE/images/lab.tar" >>"$DIR/log/$name.log" 2>&1
    : >"$DIR/run/$name.images"
  fi
  word=$(env_word "$name")
  env_put "LAB_${word}_SOCKET" "$socket"
  env_put "LAB_${word}_CLI" /usr/bin/docker
  env_put "LAB_${word}_VERSION" "$(podman --version | awk '{print $3}')"
}

podman_answers() { [[ $(curl -s -m 2 --unix-socket "$1" http://d/_ping) == OK ]]; }

# What the image is built with: Docker's plugins, and a base image that comes from no registry.
give_builder() {
  local cli=$CACHE/new/docker-cli/usr/bin/docker plugin file
  alive docker || die "$EX_USAGE" "\`docker\` is not up in \`$DIR\`"
  mkdir -p "$DIR/run/cli-plugins"
  for plugin in docker-buildx docker-compose; do
    file=$CACHE/new/$plugin/usr/libexec/docker/cli-plugins/$plugin
    [[ -x $file && -f $ROOTFS ]] || die "$EX_UNAVAILABLE" "$plugin or the base system is not there: \`lab install image\` brings them"
    ln -sf "$file" "$DIR/run/cli-plugins/$plugin"
  done
  DOCKER_CONFIG=$DIR/run "$cli" -H "unix://$DIR/docker.sock" import "$ROOTFS" debian:bookworm-slim >>"$DIR/log/docker.log"
}
