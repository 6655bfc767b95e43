//! What is on the bus against what `schemas/` promises: every value against its JSON Schema, and the AsyncAPI document
//! by AsyncAPI's own parser.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use jsonschema::Validator;
use serde_json::Value;

use crate::consume::Message;
use crate::lab;

/// The schema of each topic's values.
const SCHEMAS: [(&str, &str); 6] = [
    ("deltas", "delta"),
    ("records", "record"),
    ("pns", "mapping"),
    ("status", "status"),
    ("processes", "process"),
    ("ports", "port"),
];

/// Checks every value by the schema of its topic; a tombstone has none.
pub(crate) fn check_values(messages: &[Message]) -> Result<()> {
    for (topic, schema) in SCHEMAS {
        let validator = validator(schema)?;
        let of_topic = messages.iter().filter(|message| message.topic == topic);
        for value in of_topic.filter_map(|message| message.value.as_ref()) {
            let errors: Vec<_> = validator
                .iter_errors(value)
                .map(|e| e.to_string())
                .collect();
            ensure!(errors.is_empty(), "{schema}: {errors:#?}: {value}");
        }
    }
    Ok(())
}

fn validator(schema: &str) -> Result<Validator> {
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let text = std::fs::read_to_string(schemas.join(format!("{schema}.schema.json")))?;
    let schema: Value = serde_json::from_str(&text).context("a schema is not JSON")?;
    jsonschema::draft202012::new(&schema).map_err(|error| anyhow!("{error}"))
}

#[test]
fn asyncapis_own_parser_takes_the_document() -> Result<()> {
    let Some(said) = lab::asyncapi()? else {
        return Ok(());
    };
    ensure!(said.contains("asyncapi: 0 findings"), "{said}");
    Ok(())
}
