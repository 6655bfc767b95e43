# shellcheck shell=bash
# Prometheus. Sourced by ../lab.
#
#   QUAYMASTER_LAB_PROMETHEUS_CONFIG  a file that stands in the place of the lab's own configuration

# Scrapes what targets/*.json names (a test writes it) every second. The alerts are those of deploy/prometheus, but for
# the time that they wait before they fire: minutes there, a second here.
start_prometheus() {
  local home=$DIR/prometheus port
  port=$(port_for prometheus)
  mkdir -p "$home"/{rules,targets}
  sed 's/^\( *for:\).*/\1 1s/' "$LAB_HOME/../../deploy/prometheus/alerts.yml" >"$home/rules/alerts.yml"
  cat >"$home/prometheus.yml" <<EOF
global:
  scrape_interval: 1s
  evaluation_interval: 1s
rule_files: ["$home/rules/alerts.yml"]
scrape_configs:
  - job_name: quaymaster
    file_sd_configs:
      - files: ["$home/targets/*.json"]
        refresh_interval: 1s
EOF
  if [[ -n ${QUAYMASTER_LAB_PROMETHEUS_CONFIG:-} ]]; then
    cp "$QUAYMASTER_LAB_PROMETHEUS_CONFIG" "$home/prometheus.yml"
  fi
  spawn prometheus prometheus --config.file="$home/prometheus.yml" --storage.tsdb.path="$home/data" \
    --web.listen-address="127.0.0.1:$port"
  wait_ready prometheus curl -sf "http://127.0.0.1:$port/-/ready"
  env_put LAB_PROMETHEUS "127.0.0.1:$port"
  env_put LAB_PROMETHEUS_TARGETS "$home/targets"
  env_put LAB_PROMETHEUS_VERSION "$(prometheus --version 2>&1 | sed -n 's/^prometheus, version \([^ ]*\).*/\1/p')"
}
