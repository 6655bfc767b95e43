package io.quaymaster.example;

import com.fasterxml.jackson.core.JsonPointer;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.util.List;
import java.util.Optional;
import java.util.Properties;

/**
 * Whose process an event tells of: pure, without Kafka.
 *
 * <p>An event belongs to the container of the mapping under {@code host_id/pns_inode}, if its time lies between
 * {@code valid_from_ms} and {@code valid_to_ms}, give or take {@link #TOLERANCE_MS}, and before the mapping expired. The
 * kernel hands a freed namespace number out again at once, so a number without the time says nothing.
 */
final class Attribution {
    /** The clock that an event's time comes from and the one of the mapping differ by this much at most. */
    static final long TOLERANCE_MS = 2_000;
    /** The host's own PID namespace: the kernel's constant PROC_PID_INIT_INO. No container is mapped to it. */
    static final String HOST_NAMESPACE = "4026531836";

    /** What the joined event has of its container. */
    private static final List<String> COPIED =
            List.of("container_id", "container_name", "image_name", "runtime", "pod_name", "pod_namespace", "pod_uid", "shared");
    /** What a member of a shared namespace has of its own. */
    private static final List<String> OF_MEMBER = List.of("container_id", "container_name", "image_name");

    private static final ObjectMapper JSON = new ObjectMapper();

    private final JsonPointer host;
    private final JsonPointer namespace;
    private final JsonPointer time;
    private final JsonPointer mountNamespace;
    private final long unitsPerSecond;

    /** Where an event has what, as JSON pointers; {@code time.unit} is s, ms, us or ns. */
    Attribution(Properties settings) {
        host = JsonPointer.compile(settings.getProperty("host.at", "/host_id"));
        namespace = JsonPointer.compile(settings.getProperty("pns.at", "/pns_inode"));
        time = JsonPointer.compile(settings.getProperty("time.at", "/time_ms"));
        mountNamespace = JsonPointer.compile(settings.getProperty("mnt.at", "/mnt_ns"));
        unitsPerSecond = switch (settings.getProperty("time.unit", "ms")) {
            case "s" -> 1;
            case "ms" -> 1_000;
            case "us" -> 1_000_000;
            case "ns" -> 1_000_000_000;
            default -> throw new IllegalArgumentException("time.unit is s, ms, us or ns");
        };
    }

    /** The key of the mapping that could be the event's; empty for what has none: no JSON, no such fields, the host's. */
    Optional<String> key(byte[] event) {
        return parsed(event).flatMap(this::key);
    }

    private Optional<String> key(JsonNode event) {
        String number = numberOf(event);
        String hostId = event.at(host).asText();
        boolean isMissing = hostId.isEmpty() || !number.matches("[1-9]\\d{0,19}") || number(event, time).isEmpty();
        return isMissing || number.equals(HOST_NAMESPACE) ? Optional.empty() : Optional.of(hostId + "/" + number);
    }

    /** The number of the event's namespace, which may be written as the kernel's link: {@code pid:[4026532448]}. */
    private String numberOf(JsonNode event) {
        return event.at(namespace).asText().replaceAll("^pid:\\[(\\d+)]$", "$1");
    }

    /** The event with its container's fields; empty where the mapping is another's, of another time, or no mapping. */
    Optional<byte[]> matched(byte[] eventJson, byte[] mappingJson) {
        Optional<JsonNode> event = parsed(eventJson);
        Optional<JsonNode> mapping = parsed(mappingJson);
        if (event.isEmpty() || mapping.isEmpty() || !holds(event.get(), mapping.get())) {
            return Optional.empty();
        }
        ObjectNode container = JSON.createObjectNode().put("match", "matched");
        copy(COPIED, mapping.get(), container);
        if (mapping.get().path("shared").asBoolean()) {
            // In a shared namespace the mount namespace tells whose process it is.
            long mnt = number(event.get(), mountNamespace).orElse(0L);
            container.put("by", "top");
            for (JsonNode member : mapping.get().path("members")) {
                if (mnt != 0 && member.path("mnt_ns").asLong() == mnt) {
                    copy(OF_MEMBER, member, container.put("by", "mnt_ns"));
                }
            }
        }
        return Optional.of(with(event.get(), container));
    }

    /** The event with the mark that its namespace has no mapping. */
    byte[] unmatched(byte[] event) {
        return marked(event, "unmatched");
    }

    /** An event without a {@link #key}, with the mark that says why; what is no JSON object stays as it came. */
    byte[] ofNobody(byte[] event) {
        boolean isOfHost = parsed(event).filter(node -> numberOf(node).equals(HOST_NAMESPACE)).isPresent();
        return marked(event, isOfHost ? "host" : "invalid");
    }

    private static byte[] marked(byte[] event, String match) {
        ObjectNode container = JSON.createObjectNode().put("match", match);
        return parsed(event).map(node -> with(node, container)).orElse(event);
    }

    private static byte[] with(JsonNode event, ObjectNode container) {
        return written(((ObjectNode) event).set("container", container));
    }

    private static void copy(List<String> names, JsonNode from, ObjectNode to) {
        names.stream().filter(from::has).forEach(name -> to.set(name, from.get(name)));
    }

    private boolean holds(JsonNode event, JsonNode mapping) {
        Optional<Long> units = number(event, time);
        if (units.isEmpty() || !mapping.path("valid_from_ms").isIntegralNumber()) {
            return false;
        }
        long at = unitsPerSecond == 1 ? units.get() * 1_000 : units.get() / (unitsPerSecond / 1_000);
        // Of whole seconds the last millisecond counts.
        long atLast = unitsPerSecond == 1 ? at + 999 : at;
        return mapping.path("valid_from_ms").asLong() - TOLERANCE_MS <= atLast
                && at <= mapping.path("valid_to_ms").asLong(Long.MAX_VALUE - TOLERANCE_MS) + TOLERANCE_MS
                && at <= mapping.path("expires_at_ms").asLong(Long.MAX_VALUE);
    }

    private static Optional<Long> number(JsonNode event, JsonPointer at) {
        JsonNode node = event.at(at);
        boolean isNumber = node.isIntegralNumber() && node.canConvertToLong() || node.asText().matches("\\d{1,18}");
        return isNumber ? Optional.of(node.asLong()) : Optional.empty();
    }

    private static Optional<JsonNode> parsed(byte[] json) {
        try {
            return Optional.ofNullable(json == null ? null : JSON.readTree(json)).filter(JsonNode::isObject);
        } catch (IOException notJson) {
            return Optional.empty();
        }
    }

    private static byte[] written(JsonNode node) {
        try {
            return JSON.writeValueAsBytes(node);
        } catch (IOException error) {
            throw new IllegalStateException("a JSON object can be written", error);
        }
    }
}
