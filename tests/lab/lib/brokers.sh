# shellcheck shell=bash
# Kafka and NATS. Sourced by ../lab.
#
# What a test needs besides is told by variables, when a broker is started for the first time:
#   QUAYMASTER_LAB_KAFKA_LISTENERS   further listeners, NAME=PROTOCOL each, such as `TLS=SSL LOGIN=SASL_SSL`; the address of
#                                    each is written to the lab's env as LAB_KAFKA_NAME
#   QUAYMASTER_LAB_KAFKA_PROPERTIES  a file that is put at the end of server.properties
#   QUAYMASTER_LAB_KAFKA_SCRAM       users, as kafka.tools.StorageTool takes them, a line each
#   QUAYMASTER_LAB_KAFKA_SETTINGS    a file that stands in the place of server.properties, where @PORT@, @CONTROLLER@ and
#                                    @HOME@ are the lab's
#   QUAYMASTER_LAB_NATS_CONF         a file that is put at the end of nats.conf
#   QUAYMASTER_LAB_NATS_COMMAND      the server's arguments, in the place of all that nats.conf has else; @HOME@ as above

# Enough for one node with some hundred partitions; the default of 1 GiB is the JVM's, not Kafka's need.
readonly KAFKA_HEAP=384m
readonly KAFKA_JVM=(-Xms64m "-Xmx$KAFKA_HEAP" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.awt.headless=true)

start_kafka() {
  local home=$DIR/kafka libs port controller listener name listeners advertised protocols scram=() user proxied proxy
  libs=$(kafka_libs)
  port=$(port_for kafka)
  controller=$(port_for kafka-controller)
  # Whoever comes through this listener is sent on to a port where a test has a proxy of its own.
  proxied=$(port_for kafka-proxied)
  proxy=$(port_for kafka-proxy)
  listeners=PLAINTEXT://127.0.0.1:$port
  protocols=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT
  for listener in ${QUAYMASTER_LAB_KAFKA_LISTENERS:-}; do
    name=${listener%%=*}
    listeners+=,$name://127.0.0.1:$(port_for "kafka-$name")
    protocols+=,$name:${listener#*=}
    env_put "LAB_KAFKA_$name" "127.0.0.1:$(port_for "kafka-$name")"
  done
  advertised=$listeners,PROXIED://127.0.0.1:$proxy
  listeners+=,PROXIED://127.0.0.1:$proxied
  while read -r user; do
    [[ -z $user ]] || scram+=(--add-scram "$user")
  done <<<"${QUAYMASTER_LAB_KAFKA_SCRAM:-}"
  if [[ ! -f $home/data/meta.properties ]]; then
    mkdir -p "$home"
    cat >"$home/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
controller.listener.names=CONTROLLER
listeners=$listeners,CONTROLLER://127.0.0.1:$controller
advertised.listeners=$advertised
listener.security.protocol.map=$protocols,CONTROLLER:PLAINTEXT
log.dirs=$home/data
auto.create.topics.enable=false
# Everybody may do everything until a test says otherwise.
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
num.partitions=1
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# A broker that was killed may register again when its last life's session is over: 9 s by default.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# Compaction runs soon after it is due, so that a test can see its result.
log.cleaner.backoff.ms=1000
log.retention.check.interval.ms=10000
log.segment.delete.delay.ms=1000
log.cleaner.dedupe.buffer.size=16777216
EOF
    if [[ -n ${QUAYMASTER_LAB_KAFKA_SETTINGS:-} ]]; then
      sed "s|@PORT@|$port|g; s|@CONTROLLER@|$controller|g; s|@HOME@|$home|g" "$QUAYMASTER_LAB_KAFKA_SETTINGS" \
        >"$home/server.properties"
    fi
    if [[ -n ${QUAYMASTER_LAB_KAFKA_PROPERTIES:-} ]]; then
      cat "$QUAYMASTER_LAB_KAFKA_PROPERTIES" >>"$home/server.properties"
    fi
    cat >"$home/log4j2.properties" <<'EOF'
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %c{1} %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
EOF
    java "${KAFKA_JVM[@]}" -cp "$libs/*" "-Dlog4j2.configurationFile=$home/log4j2.properties" \
      kafka.tools.StorageTool format --cluster-id "$(kafka_cluster_id)" --config "$home/server.properties" \
      "${scram[@]}" >>"$DIR/log/kafka.log" 2>&1 || die 1 "Kafka's storage could not be formatted: see \`$DIR/log/kafka.log\`"
  fi
  spawn kafka java "${KAFKA_JVM[@]}" -cp "$libs/*" "-Dlog4j2.configurationFile=$home/log4j2.properties" \
    kafka.Kafka "$home/server.properties"
  wait_ready kafka kcat -q -m 2 -b "127.0.0.1:$port" -L
  env_put LAB_KAFKA "127.0.0.1:$port"
  env_put LAB_KAFKA_PROXIED "127.0.0.1:$proxied"
  env_put LAB_KAFKA_PROXY "127.0.0.1:$proxy"
  env_put LAB_KAFKA_LIBS "$libs"
  env_put LAB_KAFKA_VERSION "$(kafka_version)"
}

# A second broker in the cluster of `kafka`, which must be up. What has two replicas keeps them where this one is stopped.
start_kafka2() {
  local home=$DIR/kafka2 first=$DIR/kafka libs port
  alive kafka || die "$EX_USAGE" "kafka2 is a broker of kafka's cluster: \`lab up\` or \`lab start\` kafka first"
  libs=$(kafka_libs)
  port=$(port_for kafka2)
  if [[ ! -f $home/data/meta.properties ]]; then
    mkdir -p "$home"
    cat >"$home/server.properties" <<EOF
process.roles=broker
node.id=2
controller.quorum.voters=1@127.0.0.1:$(port_for kafka-controller)
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$port
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$home/data
auto.create.topics.enable=false
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=true
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
log.cleaner.dedupe.buffer.size=16777216
EOF
    java "${KAFKA_JVM[@]}" -cp "$libs/*" "-Dlog4j2.configurationFile=$first/log4j2.properties" \
      kafka.tools.StorageTool format --cluster-id "$(sed -n 's/^cluster\.id=//p' "$first/data/meta.properties")" \
      --config "$home/server.properties" >>"$DIR/log/kafka2.log" 2>&1 ||
      die 1 "the second Kafka's storage could not be formatted: see \`$DIR/log/kafka2.log\`"
  fi
  spawn kafka2 java "${KAFKA_JVM[@]}" -cp "$libs/*" "-Dlog4j2.configurationFile=$first/log4j2.properties" \
    kafka.Kafka "$home/server.properties"
  wait_ready kafka2 kafka_has_two "$port"
  env_put LAB_KAFKA2 "127.0.0.1:$port"
}

kafka_has_two() { kcat -q -m 2 -b "127.0.0.1:$1" -L | grep -q '^ 2 brokers'; }

# 16 random bytes as Kafka writes them: URL-safe base64 without padding, and with no dash first: StorageTool takes that
# for an option.
kafka_cluster_id() { head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=' | sed 's/^-/q/'; }

start_nats() {
  local name=$1 home=$DIR/$1 port binary arguments=()
  binary=$(nats_binary "$name")
  port=$(port_for "$name")
  mkdir -p "$home"
  if [[ -n ${QUAYMASTER_LAB_NATS_COMMAND:-} ]]; then
    : >"$home/nats.conf"
    read -ra arguments <<<"--addr 127.0.0.1 --port $port ${QUAYMASTER_LAB_NATS_COMMAND//@HOME@/$home}"
  else
    cat >"$home/nats.conf" <<EOF
server_name: $name
listen: "127.0.0.1:$port"
max_payload: 1MB
jetstream { store_dir: "$home/store", max_memory_store: 64MB, max_file_store: 4GB }
EOF
  fi
  if [[ -n ${QUAYMASTER_LAB_NATS_CONF:-} ]]; then cat "$QUAYMASTER_LAB_NATS_CONF" >>"$home/nats.conf"; fi
  spawn "$name" "$binary" -c "$home/nats.conf" "${arguments[@]}"
  wait_ready "$name" nats_answers "$port"
  env_put "LAB_$(env_word "$name")" "127.0.0.1:$port"
  env_put "LAB_$(env_word "$name")_VERSION" "$("$binary" --version | sed 's/.*v//')"
}

# A server greets with INFO before the client says anything; with JetStream up it says so there.
nats_answers() {
  local line
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  read -r -t 2 line <&3 || true
  exec 3>&-
  [[ $line == *'"jetstream":true'* ]]
}
