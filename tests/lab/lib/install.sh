# shellcheck shell=bash
# What has to be on the machine. Sourced by ../lab.
#
# Four kinds of parts:
# - packages of the distribution, by apt, with their services kept from starting;
# - newer binaries from Debian's later suites, unpacked into the cache and never installed. apt sees those suites only
#   in calls that bring their own lists and sources (`suites`): the machine's apt never hears of them;
# - Kafka's jars, by Maven; and the stream processors of deploy/, which Maven builds and tests;
# - what is in Go's modules and in no package: helm, CRI-O, cri-dockerd, crictl (go.sh).

readonly SUITES=(sid trixie)
readonly PARTS=(build deb consumers faults package image kubernetes asyncapi cri crictl containerd2 containerd16 docker docker20 podman crio cri-dockerd kafka nats nats29 prometheus kafka-streams flink)
KAFKA_VERSION_WANTED=$(sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' "$LAB_HOME/kafka/pom.xml")
readonly KAFKA_VERSION_WANTED

readonly KUBERNETES_VALIDATE_VERSION=1.37.0 ASYNCAPI_PARSER_VERSION=3.6.6

# What Debian's base system gets besides, for the package and the image; the archive is named after it.
readonly ROOTFS_PACKAGES=adduser,ca-certificates,libssl3,procps,zlib1g
ROOTFS=$CACHE/rootfs-$(printf %s "$ROOTFS_PACKAGES" | cksum | cut -d' ' -f1).tar
readonly ROOTFS

kafka_libs() { echo "$CACHE/kafka-$KAFKA_VERSION_WANTED"; }
kafka_version() { echo "$KAFKA_VERSION_WANTED"; }

# The jars of a stream processor, named by the versions that it wants, and what is built of it, named by its source: more
# than one work tree may use the cache.
example_source() { echo "$LAB_HOME/../../deploy/$1"; }
example_libs() { echo "$CACHE/$1/libs-$(sha256sum "$(example_source "$1")/pom.xml" | head -c 12)"; }
example_build() {
  local source
  source=$(example_source "$1")
  echo "$CACHE/$1/build-$(find "$source" \( -path "$source/target" -prune \) -o \( -name '*.java' -o -name pom.xml \) -print0 |
    sort -z | xargs -0 cat | sha256sum | head -c 12)"
}

nats_binary() {
  if [[ $1 == nats ]]; then echo "$CACHE/new/nats-server/usr/sbin/nats-server"; else echo /usr/sbin/nats-server; fi
}

# The distribution's packages that a part needs.
packages_of() {
  case $1 in
  # g++: librdkafka's configure refuses to go on without a C++ compiler, though nothing of C++ is built.
  build) echo gcc g++ libc6-dev make pkg-config zlib1g-dev libssl-dev ca-certificates ;;
  # What makes the Debian package.
  deb) echo dpkg-dev binutils ;;
  consumers) echo kcat ;;
  # libfaketime, for a clock that steps.
  faults) echo faketime ;;
  # What tries the Debian package as well: a root file system of its own, and systemd's own check of the unit.
  # What builds the image and looks at docker-compose.yml.
  image) echo debootstrap ;;
  asyncapi) command -v npm >/dev/null || echo nodejs npm ;;
  # What renders the chart and validates manifests. Go and pip bring the rest.
  kubernetes) echo python3 python3-pip ca-certificates ;;
  package) echo debootstrap dpkg-dev binutils systemd util-linux adduser ;;
  cri) echo python3 python3-grpcio python3-protobuf protobuf-compiler ;;
  containerd2) echo runc busybox-static ;;
  containerd16) echo containerd runc busybox-static ;;
  docker) echo runc iptables busybox-static libsystemd0 libcap2 ;;
  docker20) echo docker.io containerd runc iptables busybox-static ;;
  podman) echo podman runc curl docker.io busybox-static procps ;;
  # Go programs, some with C in them; skopeo puts the images into CRI-O's storage.
  crio) echo gcc libc6-dev ca-certificates conmon runc skopeo busybox-static ;;
  cri-dockerd | crictl) echo gcc libc6-dev ca-certificates procps util-linux ;;
  kafka)
    echo kcat
    if ! java_major_at_least 17; then echo default-jre-headless; fi
    if ! command -v mvn >/dev/null; then echo maven; fi
    ;;
  nats) ;;
  nats29) echo nats-server ;;
  prometheus) echo prometheus curl ;;
  kafka-streams | flink)
    if ! java_major_at_least 17 || ! command -v javac >/dev/null; then echo default-jdk-headless; fi
    if ! command -v mvn >/dev/null; then echo maven; fi
    ;;
  esac
}

# Packages of later suites that a part needs, each with the least major version that will do.
newer_of() {
  case $1 in
  containerd2) echo containerd:2 ;;
  docker) echo containerd:2 docker.io:26 docker-cli:26 ;;
  nats) echo nats-server:2 ;;
  image) echo docker-buildx:0 docker-compose:2 ;;
  esac
}

java_major_at_least() {
  local version
  version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p') || return 1
  [[ -n $version ]] && ((version >= $1))
}

need_root() { ((EUID == 0)) || die "$EX_UNAVAILABLE" "real runtimes need root, and this is uid $EUID"; }

# Says what a component lacks before it is started without it.
need_component() {
  local missing=() tool tools=() file files=()
  case $1 in
  containerd2) tools=(runc python3) files=("$CACHE/new/containerd/usr/bin/containerd" "$CACHE/cri/api.desc" "$CACHE/images/lab.tar") ;;
  docker-containerd) tools=(runc) files=("$CACHE/new/containerd/usr/bin/containerd") ;;
  containerd16) tools=(containerd runc python3) files=("$CACHE/cri/api.desc" "$CACHE/images/lab.tar") ;;
  docker20-containerd) tools=(containerd runc) ;;
  docker) tools=(runc iptables) files=("$CACHE/new/docker.io/usr/sbin/dockerd" "$CACHE/new/docker-cli/usr/bin/docker" "$CACHE/images/lab.tar") ;;
  docker20) tools=(dockerd runc iptables) files=("$CACHE/images/lab.tar") ;;
  podman | rootless) tools=(podman runc curl pkill) files=("$CACHE/images/lab.tar") ;;
  kafka | kafka2) tools=(java kcat) files=("$(kafka_libs)/done") ;;
  crio) tools=(runc conmon skopeo python3) files=("$(go_program crio)" "$(go_program pinns)" "$(go_program crictl)" "$CACHE/cri/api.desc" "$CACHE/images/lab.tar") ;;
  cri-dockerd) tools=(unshare pgrep python3) files=("$(go_program cri-dockerd)" "$CACHE/cri/api.desc") ;;
  nats) files=("$(nats_binary nats)") ;;
  nats29) files=("$(nats_binary nats29)") ;;
  prometheus) tools=(prometheus promtool curl) ;;
  kafka-streams | flink) tools=(java) files=("$(example_libs "$1")/done" "$(example_build "$1")/done") ;;
  esac
  for tool in "${tools[@]}"; do command -v "$tool" >/dev/null || missing+=("$tool"); done
  for file in "${files[@]}"; do [[ -e $file ]] || missing+=("$file"); done
  ((${#missing[@]} == 0)) || die "$EX_UNAVAILABLE" "$1 needs ${missing[*]}: \`lab install\` brings them"
}

cmd_install() {
  local refresh=0 part wanted=() packages=() newer=() entry
  for part in "$@"; do
    if [[ $part == --refresh ]]; then
      refresh=1
      continue
    fi
    [[ " ${PARTS[*]} " == *" $part "* ]] || die "$EX_USAGE" "there is no part \`$part\`"
    wanted+=("$part")
  done
  ((${#wanted[@]} > 0)) || wanted=("${PARTS[@]}")
  if tools_suffice "${wanted[@]}"; then return 0; fi
  for part in "${wanted[@]}"; do
    # shellcheck disable=SC2207
    packages+=($(packages_of "$part"))
    # shellcheck disable=SC2207
    newer+=($(newer_of "$part"))
    # Runtimes with CRI are driven through the CRI client.
    case $part in containerd2 | containerd16 | crio | cri-dockerd)
      # shellcheck disable=SC2207
      packages+=($(packages_of cri))
      ;;
    esac
  done
  need_debian
  mkdir -p "$CACHE"
  exec 8>"$CACHE/lock"
  flock -w 1800 8 || die 1 "another \`lab install\` does not end"
  install_packages "${packages[@]}"
  if ((refresh)); then rm -rf "$CACHE/new" "$CACHE/cri" "$CACHE/suites"; fi
  for entry in $(printf '%s\n' "${newer[@]}" | sort -u); do fetch_newer "${entry%:*}" "${entry#*:}"; done
  for part in "${wanted[@]}"; do
    case $part in
    cri | containerd2 | containerd16 | crio | cri-dockerd) make_cri_schema ;;
    kafka) fetch_kafka ;;
    package | image) build_rootfs ;;
    asyncapi) fetch_asyncapi_parser ;;
    kubernetes) fetch_helm && fetch_kubernetes_schemas ;;
    kafka-streams | flink) build_example "$part" ;;
    esac
    case $part in
    crio) build_crio ;;
    cri-dockerd) build_cri_dockerd ;;
    crictl) build_crictl ;;
    esac
    case $part in containerd2 | containerd16 | docker | docker20 | podman | crio) build_images ;; esac
  done
  exec 8>&-
}

is_debian() {
  grep -qE '^ID(_LIKE)?=.*debian' /etc/os-release 2>/dev/null && command -v apt-get >/dev/null
}

# Whether these parts are tools alone, and all there. Root on Debian does not ask: packages tell it more exactly.
tools_suffice() {
  local part
  if ((EUID == 0)) && is_debian; then return 1; fi
  for part in "$@"; do
    case $part in build | deb) ;; *) return 1 ;; esac
  done
  [[ -z $(missing_tools "$@") ]]
}

# What a build and a package lack, by the tools' own names.
missing_tools() {
  local part tool
  for part in "$@"; do
    case $part in
    build)
      for tool in gcc g++ make pkg-config; do command -v "$tool" >/dev/null || echo "$tool"; done
      for tool in zlib openssl; do pkg-config --exists "$tool" 2>/dev/null || echo "$tool's headers"; done
      ;;
    deb) for tool in dpkg-deb dpkg-shlibdeps strip; do command -v "$tool" >/dev/null || echo "$tool"; done ;;
    esac
  done | paste -sd, | sed 's/,/, /g'
}

# Ends, where it cannot install: of cmd_install's `packages` and `wanted`.
need_debian() {
  local missing lacks=()
  missing=$(missing_tools "${wanted[@]}")
  if ! is_debian; then
    [[ -z $missing ]] || lacks+=("not there: $missing;")
    die "$EX_UNAVAILABLE" "installs by itself only on Debian; ${lacks[*]} these packages or their like are needed: ${packages[*]}"
  fi
  if ((EUID != 0)); then
    [[ -n $missing ]] || missing=$(missing_packages "${packages[@]}")
    die "$EX_UNAVAILABLE" "needs root to install and to run what it installs${missing:+; not there yet: $missing}"
  fi
}

missing_packages() {
  local package
  for package in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
  done | sort -u | tr '\n' ' '
}

install_packages() {
  local missing
  missing=$(missing_packages "$@")
  [[ -n $missing ]] || return 0
  say "apt: $missing"
  refuse_service_starts
  # `apt-get update` may fail for a source that this does not need; the installation then says what is missing.
  apt-get -q -o DPkg::Lock::Timeout=300 update >"$CACHE/apt.log" 2>&1 || say "apt-get update: $(grep -E '^[EW]:' "$CACHE/apt.log" | head -n 3)"
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends install $missing \
    >>"$CACHE/apt.log" 2>&1 || {
    tail -n 20 "$CACHE/apt.log" >&2
    die "$EX_UNAVAILABLE" "apt could not install: $missing"
  }
  allow_service_starts
}

# The packages of runtimes and brokers would start their services. invoke-rc.d and deb-systemd-invoke ask this file
# first; 101 is their word for "not allowed". A file that was there before comes back.
refuse_service_starts() {
  local policy=/usr/sbin/policy-rc.d
  trap allow_service_starts EXIT
  if [[ -e $policy && ! -e $policy.before-lab ]]; then mv "$policy" "$policy.before-lab"; fi
  printf '#!/bin/sh\n# Of quaymaster-lab, while it installs packages.\nexit 101\n' >"$policy"
  chmod +x "$policy"
}

allow_service_starts() {
  local policy=/usr/sbin/policy-rc.d
  if grep -qs quaymaster-lab "$policy"; then rm -f "$policy"; fi
  if [[ -e $policy.before-lab ]]; then mv "$policy.before-lab" "$policy"; fi
  trap - EXIT
}

# One of apt's commands that sees only the later suites, with everything it reads and writes below the cache.
suites() {
  local command=$1
  shift
  local home=$CACHE/suites
  "$command" -q -o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$home/sources" \
    -o "Dir::Etc::Preferences=/dev/null" -o "Dir::Etc::PreferencesParts=/dev/null" \
    -o "Dir::State=$home" -o "Dir::State::status=$home/status" -o "Dir::Cache=$home/cache" \
    -o "APT::Sandbox::User=root" "$@"
}

# Where the machine itself gets Debian from, as apt understands its sources.
mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 2>/dev/null | head -n 1
}

update_suites() {
  local home=$CACHE/suites uri suite
  [[ -f $home/done ]] && return 0
  uri=$(mirror)
  if [[ -z $uri ]]; then
    # The lists are not there before the first update.
    apt-get -q -o DPkg::Lock::Timeout=300 update >"$CACHE/apt.log" 2>&1 || true
    uri=$(mirror)
  fi
  [[ -n $uri ]] || die "$EX_UNAVAILABLE" "found no Debian mirror among the machine's apt sources"
  mkdir -p "$home"/{sources,lists/partial,cache/archives/partial}
  : >"$home/status"
  for suite in "${SUITES[@]}"; do
    cat >"$home/sources/$suite.sources" <<EOF
Types: deb
URIs: $uri
Suites: $suite
Components: main
Targets: Packages
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
    if ! suites apt-get update >"$CACHE/suites.log" 2>&1 || grep -q '^E:' "$CACHE/suites.log"; then
      say "the suite $suite cannot be had: $(grep -E '^[EW]:' "$CACHE/suites.log" | head -n 1)"
      rm -f "$home/sources/$suite.sources"
    fi
  done
  ls "$home/sources"/*.sources >/dev/null 2>&1 || die "$EX_UNAVAILABLE" "none of the suites ${SUITES[*]} can be had"
  : >"$home/done"
}

# Unpacks the newest version of a package that runs on this machine into the cache.
fetch_newer() {
  local package=$1 major_min=$2 version into=$CACHE/new/$1 major
  [[ -f $into/version ]] && return 0
  update_suites
  for version in $(suites apt-cache madison "$package" | awk -F'|' '{gsub(/ /, "", $2); print $2}'); do
    major=${version#*:}
    ((${major%%.*} >= major_min)) || continue
    rm -rf "$into" "$CACHE/deb"
    mkdir -p "$into" "$CACHE/deb"
    (cd "$CACHE/deb" && suites apt-get download "$package=$version") >"$CACHE/suites.log" 2>&1 || continue
    dpkg -x "$CACHE/deb"/*.deb "$into"
    rm -rf "$CACHE/deb"
    if runs_here "$package"; then
      echo "$version" >"$into/version"
      say "$package $version"
      return 0
    fi
    say "$package $version does not run on this machine"
  done
  rm -rf "$into"
  die "$EX_UNAVAILABLE" "found no $package >= $major_min in ${SUITES[*]} that runs on this machine"
}

# Later suites are built against a later libc: what needs one cannot be run here.
runs_here() {
  local bin=$CACHE/new/$1/usr
  case $1 in
  containerd) "$bin/bin/containerd" --version && "$bin/bin/containerd-shim-runc-v2" -v && "$bin/bin/ctr" --version ;;
  docker.io) "$bin/sbin/dockerd" --version ;;
  docker-cli) "$bin/bin/docker" --version ;;
  nats-server) "$bin/sbin/nats-server" --version ;;
  docker-buildx | docker-compose) "$bin/libexec/docker/cli-plugins/$1" version ;;
  *) return 0 ;;
  esac >/dev/null 2>&1
}

# Kubernetes' schemas, with the validator that brings them.
fetch_kubernetes_schemas() {
  local into=$CACHE/kubernetes-validate
  [[ -d $into ]] && return 0
  say "kubernetes-validate $KUBERNETES_VALIDATE_VERSION, by pip"
  rm -rf "$into.new"
  python3 -m pip install -q --disable-pip-version-check --target "$into.new" \
    "kubernetes-validate==$KUBERNETES_VALIDATE_VERSION" >"$CACHE/pip.log" 2>&1 || {
    tail -n 5 "$CACHE/pip.log" >&2
    die "$EX_UNAVAILABLE" "pip could not bring kubernetes-validate"
  }
  mv "$into.new" "$into"
}

fetch_asyncapi_parser() {
  local into=$CACHE/asyncapi
  [[ -d $into/node_modules ]] && return 0
  say "AsyncAPI's parser $ASYNCAPI_PARSER_VERSION, by npm"
  rm -rf "$into"
  mkdir -p "$into"
  echo '{"private": true}' >"$into/package.json"
  npm install --prefix "$into" --no-audit --no-fund --ignore-scripts "@asyncapi/parser@$ASYNCAPI_PARSER_VERSION" \
    >"$CACHE/npm.log" 2>&1 || {
    rm -rf "$into"
    tail -n 5 "$CACHE/npm.log" >&2
    die "$EX_UNAVAILABLE" "npm could not bring AsyncAPI's parser"
  }
}

# Debian's base system, of the machine's own release, as an archive: packages and images are tried in it.
build_rootfs() {
  [[ -f $ROOTFS ]] && return 0
  local uri release
  uri=$(mirror)
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  [[ -n $uri ]] || die "$EX_UNAVAILABLE" "found no Debian mirror among the machine's apt sources"
  say "a root file system of $release"
  rm -rf "$CACHE/rootfs"
  debootstrap --variant=minbase --include="$ROOTFS_PACKAGES" "$release" "$CACHE/rootfs" "$uri" \
    >"$CACHE/debootstrap.log" 2>&1 || {
    tail -n 5 "$CACHE/debootstrap.log" >&2
    die "$EX_UNAVAILABLE" "debootstrap could not make a root file system"
  }
  rm -rf "$CACHE/rootfs/var/cache/apt/archives"/*.deb "$CACHE/rootfs/var/lib/apt/lists"/*
  tar -C "$CACHE/rootfs" --numeric-owner --one-file-system --exclude=./proc/* --exclude=./sys/* -cf "$ROOTFS.new" .
  rm -rf --one-file-system "$CACHE/rootfs"
  mv "$ROOTFS.new" "$ROOTFS"
}

# The CRI as Kubernetes publishes it, compiled to the descriptors that ./cri reads. Not the subset that Quaymaster has.
make_cri_schema() {
  [[ -f $CACHE/cri/api.desc ]] && return 0
  local package version proto
  update_suites
  rm -rf "$CACHE/cri" "$CACHE/deb"
  mkdir -p "$CACHE/cri/src" "$CACHE/deb"
  for package in golang-k8s-cri-api-dev golang-github-kubernetes-cri-api-dev; do
    (cd "$CACHE/deb" && suites apt-get download "$package") >"$CACHE/suites.log" 2>&1 && break
  done
  for version in "$CACHE/deb"/*.deb; do dpkg -x "$version" "$CACHE/cri/src"; done
  rm -rf "$CACHE/deb"
  proto=$(find "$CACHE/cri/src" -path '*/runtime/v1/api.proto' | head -n 1)
  [[ -n $proto ]] || die "$EX_UNAVAILABLE" "found no package with the CRI's api.proto in ${SUITES[*]}"
  # Options for Go's generator and for logs need a newer protoc or one more import, and change nothing on the wire.
  sed -E '/^(import|option) .*gogoproto/d; s/ *\[[^]]*(gogoproto|debug_redact)[^]]*\]//' "$proto" >"$CACHE/cri/api.proto"
  protoc -I "$CACHE/cri" --descriptor_set_out="$CACHE/cri/api.desc.new" "$CACHE/cri/api.proto" 2>"$CACHE/suites.log" ||
    die 1 "protoc did not take the CRI's api.proto: $(head -n 3 "$CACHE/suites.log")"
  mv "$CACHE/cri/api.desc.new" "$CACHE/cri/api.desc"
  rm -rf "$CACHE/cri/src"
}

fetch_kafka() {
  local libs
  libs=$(kafka_libs)
  [[ -f $libs/done ]] && return 0
  say "Kafka $KAFKA_VERSION_WANTED, by Maven"
  rm -rf "$libs"
  # In a folder of its own: Maven reads .mvn of the folder that it is called in.
  mvn -q -B -f "$LAB_HOME/kafka/pom.xml" dependency:copy-dependencies "-DoutputDirectory=$libs" >"$CACHE/maven.log" 2>&1 || {
    tail -n 20 "$CACHE/maven.log" >&2
    die "$EX_UNAVAILABLE" "Maven could not bring Kafka $KAFKA_VERSION_WANTED"
  }
  : >"$libs/done"
}

build_example() {
  local name=$1 libs build
  libs=$(example_libs "$name")
  build=$(example_build "$name")
  [[ -f $libs/done && -f $build/done ]] && return 0
  say "deploy/$name, by Maven"
  rm -rf "$libs" "$build"
  mvn -q -B -f "$(example_source "$name")/pom.xml" package dependency:copy-dependencies -DincludeScope=runtime \
    "-Doutput=$build" "-DoutputDirectory=$libs" >"$CACHE/maven.log" 2>&1 || {
    grep -E '^\[ERROR\]' "$CACHE/maven.log" | head -n 20 >&2
    die "$EX_UNAVAILABLE" "Maven could not build deploy/$name: see \`$CACHE/maven.log\`"
  }
  : >"$libs/done"
  : >"$build/done"
}

# An archive as `docker save` writes it, which docker, podman and ctr all load: busybox, and the same as a pause image.
build_images() {
  [[ -f $CACHE/images/lab.tar ]] && return 0
  local work=$CACHE/images/work applet layer diff
  rm -rf "$work"
  mkdir -p "$work/rootfs"/{bin,dev,etc,proc,sys,tmp,root} "$work/image"
  cp /bin/busybox "$work/rootfs/bin/busybox"
  for applet in $(/bin/busybox --list); do
    [[ $applet == busybox ]] || ln -s busybox "$work/rootfs/bin/$applet"
  done
  echo 'root:x:0:0:root:/root:/bin/sh' >"$work/rootfs/etc/passwd"
  chmod 1777 "$work/rootfs/tmp"
  tar -C "$work/rootfs" --owner=0 --group=0 --numeric-owner --mtime=@0 --sort=name -cf "$work/image/layer.tar" .
  diff=$(sha256sum "$work/image/layer.tar" | cut -d' ' -f1)
  layer=$diff
  mkdir "$work/image/$layer"
  mv "$work/image/layer.tar" "$work/image/$layer/layer.tar"
  image_config "$diff" '["/bin/sh"]' >"$work/image/busybox.json"
  image_config "$diff" '["/bin/sleep", "2147483647"]' >"$work/image/pause.json"
  local busybox pause
  busybox=$(sha256sum "$work/image/busybox.json" | cut -d' ' -f1)
  pause=$(sha256sum "$work/image/pause.json" | cut -d' ' -f1)
  mv "$work/image/busybox.json" "$work/image/$busybox.json"
  mv "$work/image/pause.json" "$work/image/$pause.json"
  cat >"$work/image/manifest.json" <<EOF
[{"Config": "$busybox.json", "RepoTags": ["busybox:lab"], "Layers": ["$layer/layer.tar"]},
 {"Config": "$pause.json", "RepoTags": ["pause:lab"], "Layers": ["$layer/layer.tar"]}]
EOF
  tar -C "$work/image" --owner=0 --group=0 --numeric-owner --mtime=@0 --sort=name -cf "$CACHE/images/lab.tar.new" .
  mv "$CACHE/images/lab.tar.new" "$CACHE/images/lab.tar"
  rm -rf "$work"
}

image_config() {
  local diff=$1 cmd=$2 architecture
  architecture=$(dpkg --print-architecture)
  cat <<EOF
{"architecture": "$architecture", "os": "linux", "created": "2024-01-01T00:00:00Z",
 "config": {"Cmd": $cmd, "Env": ["PATH=/bin"], "WorkingDir": "/"},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$diff"]},
 "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "quaymaster-lab"}]}
EOF
}
