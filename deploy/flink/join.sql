-- Each process event with the container that had its PID namespace at its time; every event once, in an append-only topic.
--
-- A temporal join: of the mapping's versions, which are ordered by valid time, that of the event's time is taken; the
-- condition on the end of its validity sees to it that a number never names its earlier owner. What else there is, and
-- why it is not taken:
--   regular join    the mappings' refreshes and tombstones would take back and repeat what was joined already
--   interval join   wants a longest life of a container
--   processing time Flink has none for a table from a topic, and an early event would miss its mapping
--
-- An event goes out when the events (all partitions that are not idle) have come 5 s past it, and the table has been read
-- that far. The table is held twice: as the rows of the topic, and by the join. For more than some million mappings:
--   SET 'state.backend.type' = 'rocksdb';
SET 'execution.checkpointing.interval' = '30s';

INSERT INTO process_events_enriched
SELECT
  e.pns_key, e.host_id, e.pns_inode, e.time_ms, e.pid, e.exe,
  ROW(
    CASE
      WHEN p.container_id IS NOT NULL THEN 'matched'
      -- The host's own PID namespace: the kernel's constant. No container is mapped to it.
      WHEN e.pns_inode = 4026531836 THEN 'host'
      ELSE 'unmatched'
    END,
    p.container_id, p.container_name, p.image_name, p.runtime, p.pod_name, p.pod_namespace, p.pod_uid, p.shared)
FROM process_events AS e
LEFT JOIN pns FOR SYSTEM_TIME AS OF e.event_time AS p
  ON e.pns_key = p.pns_key
  AND e.time_ms <= COALESCE(p.valid_to_ms + 2000, e.time_ms)
  AND e.time_ms <= p.expires_at_ms;
