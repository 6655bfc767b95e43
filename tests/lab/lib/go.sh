# shellcheck shell=bash
# What is in Go's modules and in no package of the distribution: helm, CRI-O, cri-dockerd, crictl. Sourced by ../lab.
#
# Go itself compares what it downloads with its checksum database (GOSUMDB), and each module's dependencies with the go.sum
# inside it.

readonly HELM_VERSION=v3.22.0 CRIO_VERSION=v1.34.0 CRI_DOCKERD_VERSION=v0.4.0 CRICTL_VERSION=v1.34.0
# What CRI-O can be built without: other signatures than OpenPGP's in Go, file systems and libraries whose headers would have
# to be there.
readonly CRIO_TAGS=containers_image_openpgp,containers_image_ostree_stub,exclude_graphdriver_btrfs,exclude_graphdriver_devicemapper,libdm_no_deferred_remove

# Where a program is that is built here; the folder is named by the version, so that a newer one is built anew.
go_program() {
  case $1 in
  crio | pinns) echo "$CACHE/go-programs/crio-$CRIO_VERSION/$1" ;;
  cri-dockerd) echo "$CACHE/go-programs/cri-dockerd-$CRI_DOCKERD_VERSION/$1" ;;
  crictl) echo "$CACHE/go-programs/crictl-$CRICTL_VERSION/$1" ;;
  esac
}

build_crio() {
  [[ -x $(go_program crio) ]] && return 0
  build_module github.com/cri-o/cri-o "$CRIO_VERSION" crio ./cmd/crio -tags "$CRIO_TAGS"
}

# cri-dockerd writes its version into every answer; it stands in no file of the module.
build_cri_dockerd() {
  [[ -x $(go_program cri-dockerd) ]] && return 0
  build_module github.com/Mirantis/cri-dockerd "$CRI_DOCKERD_VERSION" cri-dockerd . \
    -ldflags "-s -w -X github.com/Mirantis/cri-dockerd/cmd/version.Version=${CRI_DOCKERD_VERSION#v}"
}

build_crictl() {
  [[ -x $(go_program crictl) ]] && return 0
  build_module sigs.k8s.io/cri-tools "$CRICTL_VERSION" crictl ./cmd/crictl
}

# Builds one program of a module as if that were the main module: its own `replace` lines count then, which `go install` does
# not allow. The module's folder among Go's own cannot be written to, so it is copied.
build_module() {
  local module=$1 version=$2 name=$3 package=$4 go=go source into
  shift 4
  if ! go_minor_at_least 24; then go=$(fetch_go); fi
  into=$(dirname "$(go_program "$name")")
  say "$name $version, by Go"
  rm -rf "$into" "$into.new" "$into.src"
  mkdir -p "$into.new"
  source=$(GOTOOLCHAIN=auto GOFLAGS=-modcacherw "$go" mod download -json "$module@$version" 2>"$CACHE/$name.log" |
    sed -n 's/^\t"Dir": "\(.*\)",$/\1/p') || true
  [[ -d $source ]] || {
    tail -n 5 "$CACHE/$name.log" >&2
    die "$EX_UNAVAILABLE" "Go could not bring the module $module $version"
  }
  cp -r "$source" "$into.src"
  chmod -R u+w "$into.src"
  (
    cd "$into.src"
    GOTOOLCHAIN=auto GOFLAGS='-modcacherw -buildvcs=false' "$go" build -mod=readonly -trimpath -ldflags '-s -w' "$@" \
      -o "$into.new/$name" "$package"
  ) >"$CACHE/$name.log" 2>&1 || {
    tail -n 20 "$CACHE/$name.log" >&2
    die "$EX_UNAVAILABLE" "Go could not build $name $version: see \`$CACHE/$name.log\`"
  }
  if [[ $name == crio ]]; then
    # CRI-O pins namespaces by this program of its tree.
    gcc -std=c99 -Os -static -s -o "$into.new/pinns" "$into.src"/pinns/src/*.c >"$CACHE/pinns.log" 2>&1 || {
      tail -n 20 "$CACHE/pinns.log" >&2
      die "$EX_UNAVAILABLE" "gcc could not build CRI-O's pinns"
    }
  fi
  mv "$into.new" "$into"
  rm -rf "$into.src"
}

# Helm, built by the machine's Go, or by one of the later suites.
fetch_helm() {
  [[ -x $CACHE/helm/helm ]] && return 0
  local go=go
  if ! go_minor_at_least 21; then go=$(fetch_go); fi
  say "helm $HELM_VERSION, by Go"
  rm -rf "$CACHE/helm" "$CACHE/helm.new"
  # From 1.21 on Go fetches by itself the Go that a module asks for.
  GOTOOLCHAIN=auto GOFLAGS=-modcacherw GOBIN=$CACHE/helm.new "$go" install "helm.sh/helm/v3/cmd/helm@$HELM_VERSION" >"$CACHE/helm.log" 2>&1 || {
    tail -n 5 "$CACHE/helm.log" >&2
    die "$EX_UNAVAILABLE" "Go could not build helm $HELM_VERSION"
  }
  mv "$CACHE/helm.new" "$CACHE/helm"
}

go_minor_at_least() {
  local version
  version=$(go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
  [[ -n $version ]] && ((version >= $1))
}

# A Go from the later suites, unpacked; prints the program. The compiler and the sources are packages of their own.
fetch_go() {
  local version
  update_suites
  for version in 1.27 1.26 1.24; do
    [[ -n $(suites apt-cache madison "golang-$version-go") ]] || continue
    rm -rf "$CACHE/go" "$CACHE/deb"
    mkdir -p "$CACHE/go" "$CACHE/deb"
    (cd "$CACHE/deb" && suites apt-get download "golang-$version-go" "golang-$version-src") >"$CACHE/suites.log" 2>&1 || continue
    for package in "$CACHE/deb"/*.deb; do dpkg -x "$package" "$CACHE/go"; done
    rm -rf "$CACHE/deb"
    if "$CACHE/go/usr/lib/go-$version/bin/go" version >/dev/null 2>&1; then
      echo "$CACHE/go/usr/lib/go-$version/bin/go"
      return 0
    fi
  done
  die "$EX_UNAVAILABLE" "found no Go in ${SUITES[*]} that runs on this machine"
}
