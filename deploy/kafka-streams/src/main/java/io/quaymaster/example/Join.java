package io.quaymaster.example;

import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.kstream.Branched;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Named;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.Repartitioned;
import org.apache.kafka.streams.state.Stores;

/**
 * Joins process events with Quaymaster's table of PID namespaces, in Kafka Streams.
 *
 * <pre>
 * mvn package dependency:copy-dependencies -DincludeScope=runtime
 * java -cp 'target/*:target/dependency/*' io.quaymaster.example.Join bootstrap.servers=localhost:9092 \
 *     events=process-events output=process-events-enriched
 * </pre>
 *
 * <p>Start as many as are needed: they share the partitions. Each argument is {@code name=value}: one of those below, or
 * any setting of Kafka Streams.
 *
 * <table>
 * <tr><td>events, output</td><td>topics of JSON objects; must be there</td></tr>
 * <tr><td>mappings</td><td>quaymaster.pns</td></tr>
 * <tr><td>grace.ms</td><td>5000: how long an event waits for its mapping</td></tr>
 * <tr><td>host.at, pns.at, time.at, time.unit, mnt.at</td><td>/host_id, /pns_inode, /time_ms, ms, /mnt_ns: where an event
 *     has what. Quaymaster's own 5050: /fields/host_id, /fields/pns_inode, /timestamp, s, /fields/mnt_ns</td></tr>
 * </table>
 *
 * <p>What it relies on:
 *
 * <ul>
 * <li>The table is read first. Each message of it is given the time 0, and Kafka Streams takes what is older first
 *     from the partitions that a task has; with {@code max.task.idle.ms} ≥ 0 it fetches what the broker has of each before
 *     it decides. So no event is looked up in a table that is half filled.
 * <li>Events are put under the table's key ({@code host_id/pns_inode}) into a topic with as many partitions: Quaymaster
 *     uses {@code murmur2_random}, which is what Java's producer does with a key, so both of a key are in one task.
 * <li>A tombstone removes a mapping from the table. It comes when the mapping's linger is over (10 min): an event that
 *     is later than that finds nothing, and never another container.
 * <li>The table's own topic is its changelog (TOPOLOGY_OPTIMIZATION): it is not stored on Kafka a second time.
 * </ul>
 *
 * <p>The event gets an object {@code container}, as {@code quaymaster enrich} writes it: {@code match} is matched, unmatched,
 * host (the host's own namespace) or invalid (without such fields). The last two wait for nothing; what is no JSON goes
 * on as it came. At least once; with {@code processing.guarantee=exactly_once_v2} exactly once.
 */
public final class Join {
    static final String MAPPINGS = "mappings";

    private Join() {}

    public static void main(String[] arguments) throws Exception {
        Properties settings = settings(arguments);
        String table = settings.getProperty("mappings", "quaymaster.pns");
        int partitions;
        try (Admin admin = Admin.create(settings)) {
            partitions = admin.describeTopics(Set.of(table)).allTopicNames().get().get(table).partitions().size();
        }
        KafkaStreams streams = new KafkaStreams(topology(settings, partitions), settings);
        CountDownLatch ended = new CountDownLatch(1);
        streams.setStateListener((now, before) -> {
            if (now.hasCompletedShutdown()) {
                ended.countDown();
            }
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
        ended.await();
    }

    /** What Kafka Streams and the join are told; each argument is {@code name=value}. */
    static Properties settings(String... arguments) {
        Properties settings = new Properties();
        settings.putAll(Map.of(
                StreamsConfig.APPLICATION_ID_CONFIG, "quaymaster-join",
                StreamsConfig.TOPOLOGY_OPTIMIZATION_CONFIG, StreamsConfig.OPTIMIZE,
                StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, "1000",
                ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest"));
        for (String argument : arguments) {
            String[] parts = argument.split("=", 2);
            if (parts.length != 2) {
                throw new IllegalArgumentException("`" + argument + "` is not name=value");
            }
            settings.put(parts[0], parts[1]);
        }
        for (String name : new String[] {"bootstrap.servers", "events", "output"}) {
            if (!settings.containsKey(name)) {
                throw new IllegalArgumentException("`" + name + "=…` is missing");
            }
        }
        return settings;
    }

    static Topology topology(Properties settings, int partitions) {
        Attribution attribution = new Attribution(settings);
        long graceMs = Long.parseLong(settings.getProperty("grace.ms", "5000"));
        Serde<String> text = Serdes.String();
        Serde<byte[]> bytes = Serdes.ByteArray();
        StreamsBuilder builder = new StreamsBuilder();

        builder.table(
                settings.getProperty("mappings", "quaymaster.pns"),
                Consumed.with(text, bytes).withTimestampExtractor((message, before) -> 0),
                Materialized.<String, byte[]>as(Stores.persistentKeyValueStore(MAPPINGS))
                        .withKeySerde(text)
                        .withValueSerde(bytes));
        builder.addStateStore(Stores.keyValueStoreBuilder(Stores.inMemoryKeyValueStore(Waiting.STORE), text, bytes));

        Map<String, KStream<String, byte[]>> events = builder
                .stream(settings.getProperty("events"), Consumed.with(bytes, bytes))
                .selectKey((key, event) -> attribution.key(event).orElse(""))
                .split(Named.as("events-"))
                .branch((key, event) -> key.isEmpty(), Branched.as("of-nobody"))
                .defaultBranch(Branched.as("to-join"));
        KStream<String, byte[]> joined = events.get("events-to-join")
                .repartition(Repartitioned.with(text, bytes).withName("by-namespace").withNumberOfPartitions(partitions))
                .process(() -> new Waiting(attribution, graceMs), MAPPINGS, Waiting.STORE);
        events.get("events-of-nobody")
                .mapValues(attribution::ofNobody)
                .merge(joined)
                .to(settings.getProperty("output"), Produced.with(text, bytes));
        return builder.build(settings);
    }
}
