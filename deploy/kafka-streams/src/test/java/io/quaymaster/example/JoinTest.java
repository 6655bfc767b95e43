package io.quaymaster.example;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.time.Duration;
import java.time.Instant;
import java.util.Properties;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.streams.TestInputTopic;
import org.apache.kafka.streams.TestOutputTopic;
import org.apache.kafka.streams.TopologyTestDriver;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class JoinTest {
    private static final long NOW = 1_700_000_000_000L;
    private static final Duration GRACE = Duration.ofSeconds(5);

    @TempDir
    java.nio.file.Path state;

    private TopologyTestDriver driver;
    private TestInputTopic<String, String> mappings;
    private TestInputTopic<String, String> events;
    private TestOutputTopic<String, String> output;

    @BeforeEach
    void start() {
        Properties settings = Join.settings("bootstrap.servers=none:1", "events=events", "output=output", "state.dir=" + state);
        driver = new TopologyTestDriver(Join.topology(settings, 12), settings, Instant.ofEpochMilli(NOW));
        StringSerializer to = new StringSerializer();
        mappings = driver.createInputTopic("quaymaster.pns", to, to);
        events = driver.createInputTopic("events", to, to);
        output = driver.createOutputTopic("output", new StringDeserializer(), new StringDeserializer());
    }

    @AfterEach
    void end() {
        driver.close();
    }

    @Test
    void anEventIsGivenTheContainerOfItsNamespaceAtItsTime() throws Exception {
        put("h", 7, "web", NOW - 60_000, null);
        events.pipeInput(event("h", 7, NOW));
        assertEquals("web", read().path("container_name").asText());
    }

    @Test
    void anEventThatIsEarlierThanItsMappingWaitsForIt() throws Exception {
        events.pipeInput(event("h", 7, NOW));
        driver.advanceWallClockTime(GRACE.dividedBy(2));
        assertTrue(output.isEmpty());
        put("h", 7, "web", NOW - 10, null);
        driver.advanceWallClockTime(Waiting.LOOK_EVERY);
        JsonNode joined = read();
        assertEquals("web", joined.path("container_name").asText());
        assertEquals("matched", joined.path("match").asText());
        driver.advanceWallClockTime(GRACE);
        assertTrue(output.isEmpty(), "it is told once");
    }

    @Test
    void anEventWithoutAMappingIsPassedOnMarkedWhenTheGraceIsOver() throws Exception {
        events.pipeInput(event("h", 7, NOW));
        driver.advanceWallClockTime(GRACE);
        JsonNode passed = read();
        assertEquals("unmatched", passed.path("match").asText());
        assertFalse(passed.has("container_name"));
    }

    @Test
    void aNumberThatWasHandedOutAgainNeverNamesTheOtherContainer() throws Exception {
        put("h", 7, "first", NOW - 60_000, NOW - 30_000);
        events.pipeInput(event("h", 7, NOW - 29_000));
        assertEquals("first", read().path("container_name").asText(), "within the tolerance");
        events.pipeInput(event("h", 7, NOW));
        driver.advanceWallClockTime(Waiting.LOOK_EVERY);
        assertTrue(output.isEmpty(), "`first` has ended");
        mappings.pipeInput("h/7", (String) null);
        put("h", 7, "second", NOW - 1_000, null);
        driver.advanceWallClockTime(Waiting.LOOK_EVERY);
        assertEquals("second", read().path("container_name").asText());
        events.pipeInput(event("h", 7, NOW - 40_000));
        driver.advanceWallClockTime(GRACE);
        assertEquals("unmatched", read().path("match").asText(), "`second` did not live then");
    }

    @Test
    void aTombstoneTakesTheMappingAway() throws Exception {
        put("h", 7, "web", NOW - 60_000, null);
        mappings.pipeInput("h/7", (String) null);
        events.pipeInput(event("h", 7, NOW));
        driver.advanceWallClockTime(GRACE);
        assertEquals("unmatched", read().path("match").asText());
    }

    @Test
    void theSameNumberOfAnotherHostIsAnotherNamespace() throws Exception {
        put("h", 7, "web", NOW - 60_000, null);
        events.pipeInput(event("other", 7, NOW));
        driver.advanceWallClockTime(GRACE);
        assertEquals("unmatched", read().path("match").asText());
    }

    @Test
    void aMemberOfASharedNamespaceIsKnownByItsMountNamespace() throws Exception {
        mappings.pipeInput("h/7", mapping("web", NOW - 60_000, null).replace("\"members\":[]", """
                "shared":true,"members":[{"container_id":"1","container_name":"web","mnt_ns":1},\
                {"container_id":"2","container_name":"sidecar","mnt_ns":2}]"""));
        events.pipeInput(event("h", 7, NOW).replace("}", ",\"mnt_ns\":2}"));
        JsonNode container = read();
        assertEquals("sidecar", container.path("container_name").asText());
        assertEquals("mnt_ns", container.path("by").asText());
    }

    @Test
    void whatCannotBeJoinedIsPassedOnAtOnce() {
        for (String event : new String[] {"", "not JSON", "[]"}) {
            events.pipeInput(event);
            assertEquals(event, output.readValue());
        }
        String withText = "{\"host_id\":\"h\",\"pns_inode\":\"seven\",\"time_ms\":1}";
        for (String event : new String[] {"{}", withText, "{\"host_id\":\"h\",\"pns_inode\":7}"}) {
            events.pipeInput(event);
            assertTrue(output.readValue().contains("invalid"), event);
        }
        events.pipeInput(event("h", 4026531836L, NOW).replace("4026531836", "\"pid:[4026531836]\""));
        assertTrue(output.readValue().contains("\"host\""));
        mappings.pipeInput("h/7", "foreign");
        events.pipeInput(event("h", 7, NOW));
        driver.advanceWallClockTime(GRACE);
        assertTrue(output.readValue().contains("unmatched"));
    }

    @Test
    void theRecordsOfQuaymastersOwnProcessesAreRead() throws Exception {
        Properties settings = Join.settings("bootstrap.servers=none:1", "events=events", "output=output",
            "host.at=/fields/host_id", "pns.at=/fields/pns_inode", "time.at=/timestamp", "time.unit=s");
        Attribution attribution = new Attribution(settings);
        byte[] event = ("{\"data_type\":5050,\"timestamp\":" + NOW / 1_000
                + ",\"fields\":{\"host_id\":\"h\",\"pns_inode\":\"7\"}}").getBytes();
        assertEquals("h/7", attribution.key(event).orElseThrow());
        byte[] mapping = mapping("web", NOW + 900 + Attribution.TOLERANCE_MS, null).getBytes();
        assertTrue(attribution.matched(event, mapping).isPresent(), "a whole second is all of that second");
    }

    private void put(String host, long number, String name, long from, Long to) {
        mappings.pipeInput(host + "/" + number, mapping(name, from, to));
    }

    private static String mapping(String name, long from, Long to) {
        return """
            {"container_id":"%s-id","container_name":"%s","valid_from_ms":%d,"valid_to_ms":%s,"expires_at_ms":%d,"members":[]}"""
            .formatted(name, name, from, to, NOW + 3_600_000);
    }

    private static String event(String host, long number, long time) {
        return "{\"host_id\":\"%s\",\"pns_inode\":%d,\"time_ms\":%d}".formatted(host, number, time);
    }

    /** What the next event was given. */
    private JsonNode read() throws Exception {
        return new ObjectMapper().readTree(output.readValue()).path("container");
    }
}
