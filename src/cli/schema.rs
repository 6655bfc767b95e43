//! `quaymaster schema`: prints the schemas of what is published, as they are in `schemas/` and `proto/`.

use std::io::Write;

use clap::ValueEnum;

use super::{EXIT_FAILURE, Failure};

/// Which schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Schema {
    /// A change of a container, JSON Schema 2020-12
    Delta,
    /// The full state of a container, JSON Schema 2020-12
    Record,
    /// A PID namespace and its containers, JSON Schema 2020-12
    Mapping,
    /// The collector's own state, JSON Schema 2020-12
    Status,
    /// A process of a snapshot, JSON Schema 2020-12
    Process,
    /// A listening socket of a snapshot, JSON Schema 2020-12
    Port,
    /// The topics, their keys and headers, AsyncAPI 3
    Asyncapi,
    /// All values as protobuf messages, proto3
    Protobuf,
}

impl Schema {
    /// The text of the schema.
    pub fn text(self) -> &'static str {
        match self {
            Self::Delta => include_str!("../../schemas/delta.schema.json"),
            Self::Record => include_str!("../../schemas/record.schema.json"),
            Self::Mapping => include_str!("../../schemas/mapping.schema.json"),
            Self::Status => include_str!("../../schemas/status.schema.json"),
            Self::Process => include_str!("../../schemas/process.schema.json"),
            Self::Port => include_str!("../../schemas/port.schema.json"),
            Self::Asyncapi => include_str!("../../schemas/asyncapi.yaml"),
            Self::Protobuf => include_str!("../../proto/quaymaster.proto"),
        }
    }
}

/// Prints a schema.
///
/// # Errors
/// [`EXIT_FAILURE`] where the output cannot be written.
pub fn run(schema: Schema, out: &mut dyn Write) -> Result<(), Failure> {
    out.write_all(schema.text().as_bytes())
        .map_err(|error| Failure::new(EXIT_FAILURE, format!("failed to write the schema: {error}")))
}
