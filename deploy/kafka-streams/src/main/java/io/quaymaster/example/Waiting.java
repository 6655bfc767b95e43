package io.quaymaster.example;

import java.time.Duration;
import java.util.Optional;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.processor.PunctuationType;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.processor.api.RecordMetadata;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.TimestampedKeyValueStore;
import org.apache.kafka.streams.state.ValueAndTimestamp;

/**
 * Looks an event up, and lets it wait a little where its mapping is not there yet.
 *
 * <p>A plain stream-table join answers once, at once. Kafka Streams' join with a grace period (KIP-923) holds every
 * event back until later ones push the time on, and needs a versioned table, which drops the mapping of a container
 * that started before its history. Hence this: what has its mapping goes on at once, the rest waits in a store that
 * survives a restart, for the grace at most.
 */
final class Waiting implements Processor<String, byte[], String, byte[]> {
    static final String STORE = "waiting";
    /** Events that wait in one partition; beyond it they go on unmatched at once. */
    static final long WAITING_MAX = 100_000;
    static final Duration LOOK_EVERY = Duration.ofMillis(200);

    private final Attribution attribution;
    private final long graceMs;
    private ProcessorContext<String, byte[]> context;
    private TimestampedKeyValueStore<String, byte[]> mappings;
    private KeyValueStore<String, byte[]> waiting;

    Waiting(Attribution attribution, long graceMs) {
        this.attribution = attribution;
        this.graceMs = graceMs;
    }

    @Override
    public void init(ProcessorContext<String, byte[]> context) {
        this.context = context;
        mappings = context.getStateStore(Join.MAPPINGS);
        waiting = context.getStateStore(STORE);
        context.schedule(LOOK_EVERY, PunctuationType.WALL_CLOCK_TIME, this::lookAgain);
    }

    @Override
    public void process(Record<String, byte[]> event) {
        Optional<byte[]> matched = lookUp(event.key(), event.value());
        if (matched.isPresent()) {
            context.forward(event.withValue(matched.get()));
        } else if (waiting.approximateNumEntries() >= WAITING_MAX) {
            context.forward(event.withValue(attribution.unmatched(event.value())));
        } else {
            long offset = context.recordMetadata().map(RecordMetadata::offset).orElse(0L);
            long untilMs = context.currentSystemTimeMs() + graceMs;
            // By the time until which it waits, so that the store gives them in that order.
            waiting.put("%015d/%019d/%s".formatted(untilMs, offset, event.key()), event.value());
        }
    }

    private void lookAgain(long nowMs) {
        try (KeyValueIterator<String, byte[]> all = waiting.all()) {
            while (all.hasNext()) {
                KeyValue<String, byte[]> one = all.next();
                String[] parts = one.key.split("/", 3);
                Optional<byte[]> matched = lookUp(parts[2], one.value);
                if (matched.isPresent() || Long.parseLong(parts[0]) <= nowMs) {
                    byte[] value = matched.orElseGet(() -> attribution.unmatched(one.value));
                    context.forward(new Record<>(parts[2], value, nowMs));
                    waiting.delete(one.key);
                }
            }
        }
    }

    private Optional<byte[]> lookUp(String key, byte[] event) {
        byte[] mapping = ValueAndTimestamp.getValueOrNull(mappings.get(key));
        return mapping == null ? Optional.empty() : attribution.matched(event, mapping);
    }
}
