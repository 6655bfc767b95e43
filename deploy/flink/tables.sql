-- The tables of the join: process events, Quaymaster's table of PID namespaces, and the joined events.
--
-- Change the addresses and names to yours; RunSql overrides options from its command line. See join.sql.

-- Your process events. What must be there under some name: the host, the number of the PID namespace, the time. For
-- Quaymaster's own 5050 (quaymaster.processes): fields ROW<host_id STRING, pns_inode STRING, …> and `timestamp` in seconds.
CREATE TABLE process_events (
  host_id STRING,
  pns_inode BIGINT,
  time_ms BIGINT,
  pid BIGINT,
  exe STRING,
  -- The key of the namespace's mapping.
  pns_key AS host_id || '/' || CAST(pns_inode AS STRING),
  event_time AS TO_TIMESTAMP_LTZ(time_ms, 3),
  -- The grace: how much later than the event its mapping may come. Each event is held back that long.
  WATERMARK FOR event_time AS event_time - INTERVAL '5' SECOND
) WITH (
  'connector' = 'kafka',
  'topic' = 'process-events',
  'properties.bootstrap.servers' = 'localhost:9092',
  'properties.group.id' = 'quaymaster-flink-join',
  'scan.startup.mode' = 'group-offsets',
  'properties.auto.offset.reset' = 'latest',
  -- A partition without events does not hold up the others.
  'scan.watermark.idle-timeout' = '5s',
  'format' = 'json',
  'json.ignore-parse-errors' = 'true'
);

-- One row for each PID namespace. Its versions are those of the valid time: a refresh, or the end of a mapping, replaces
-- the row of that life; a number that is handed out again is another row.
CREATE TABLE pns (
  pns_key STRING,
  container_id STRING,
  container_name STRING,
  image_name STRING,
  runtime STRING,
  pod_name STRING,
  pod_namespace STRING,
  pod_uid STRING,
  shared BOOLEAN,
  valid_from_ms BIGINT,
  valid_to_ms BIGINT,
  expires_at_ms BIGINT,
  put_time TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
  -- Two seconds earlier: the tolerance between the clocks of events and mappings.
  valid_from AS TO_TIMESTAMP_LTZ(valid_from_ms - 2000, 3),
  -- The watermark goes by the time of the put, not by that of the row: a refresh of an old container moves it on, and
  -- events wait until the table has been read as far as to them. No row is too late for it: a temporal join keeps
  -- every row that comes.
  WATERMARK FOR valid_from AS put_time - INTERVAL '5' SECOND,
  PRIMARY KEY (pns_key) NOT ENFORCED
) WITH (
  'connector' = 'upsert-kafka',
  'topic' = 'quaymaster.pns',
  'properties.bootstrap.servers' = 'localhost:9092',
  -- Where nothing is put, nothing is waited for.
  'scan.watermark.idle-timeout' = '5s',
  'key.format' = 'raw',
  'value.format' = 'json',
  'value.json.ignore-parse-errors' = 'true',
  'value.fields-include' = 'EXCEPT_KEY'
);

CREATE TABLE process_events_enriched (
  pns_key STRING,
  host_id STRING,
  pns_inode BIGINT,
  time_ms BIGINT,
  pid BIGINT,
  exe STRING,
  container ROW<
    `match` STRING, container_id STRING, container_name STRING, image_name STRING, runtime STRING,
    pod_name STRING, pod_namespace STRING, pod_uid STRING, shared BOOLEAN>
) WITH (
  'connector' = 'kafka',
  'topic' = 'process-events-enriched',
  'properties.bootstrap.servers' = 'localhost:9092',
  'key.format' = 'raw',
  'key.fields' = 'pns_key',
  'value.format' = 'json',
  'value.json.encode.ignore-null-fields' = 'true',
  'value.fields-include' = 'EXCEPT_KEY'
);
