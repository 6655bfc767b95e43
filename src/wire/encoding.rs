//! How values are written on the bus: as JSON, or as the protobuf messages of `proto/quaymaster.proto`.
//!
//! Everything inside of Quaymaster, the outbox too, has JSON. A sink encodes what it hands to the bus, so that what is
//! owed does not depend on the setting. Our JSON is the canonical JSON of these messages (protobuf's documentation,
//! "ProtoJSON Format") with the fields' own names, which makes either form of the other without loss.

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::LazyLock;

use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
};

use crate::model::Topic;

/// The descriptors of `proto/quaymaster.proto`, by `build.rs`.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quaymaster.desc"));

/// The content type of JSON values (RFC 8259).
const JSON: &str = "application/json";
/// The content type of protobuf values, as in CloudEvents' protobuf format.
const PROTOBUF: &str = "application/protobuf";

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(DESCRIPTORS).expect("build.rs compiled these descriptors")
});

/// How values are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// JSON text.
    #[default]
    Json,
    /// Protobuf's binary form.
    Protobuf,
}

/// A value that is not one of a topic's messages.
#[derive(Debug, thiserror::Error)]
pub enum EncodingError {
    /// Not its JSON.
    #[error("the value is not the JSON of a `{message}`")]
    Json {
        /// The message's name.
        message: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Not its protobuf.
    #[error("the value is not the protobuf of a `{message}`")]
    Protobuf {
        /// The message's name.
        message: &'static str,
        /// Why.
        #[source]
        source: prost::DecodeError,
    },
}

impl Encoding {
    /// The `content-type` of values.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Protobuf => PROTOBUF,
        }
    }

    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Protobuf => "protobuf",
        }
    }

    /// What the bus gets of a topic's JSON value.
    ///
    /// # Errors
    /// For what is not the topic's JSON: our own is.
    pub fn encode<'a>(self, topic: Topic, json: &'a [u8]) -> Result<Cow<'a, [u8]>, EncodingError> {
        match self {
            Self::Json => Ok(Cow::Borrowed(json)),
            Self::Protobuf => to_protobuf(topic, json, true).map(Cow::Owned),
        }
    }
}

impl FromStr for Encoding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "json" => Ok(Self::Json),
            "protobuf" => Ok(Self::Protobuf),
            other => Err(format!("`{other}` is neither `json` nor `protobuf`")),
        }
    }
}

/// The JSON of a value that came from the bus, whichever form it has there. What begins with a brace is JSON: no
/// message of ours begins with that byte, which would be the group 15.
///
/// # Errors
/// For what is neither. What is JSON is not looked at.
pub fn to_json(topic: Topic, value: &[u8]) -> Result<Cow<'_, [u8]>, EncodingError> {
    if value.first() == Some(&b'{') {
        return Ok(Cow::Borrowed(value));
    }
    let name = message_name(topic);
    let message = DynamicMessage::decode(descriptor(name), value).map_err(|source| {
        EncodingError::Protobuf {
            message: name,
            source,
        }
    })?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(false)
        .skip_default_fields(false);
    let mut json = serde_json::Serializer::new(Vec::with_capacity(value.len() * 2));
    message
        .serialize_with_options(&mut json, &options)
        .map_err(|source| EncodingError::Json {
            message: name,
            source,
        })?;
    Ok(Cow::Owned(json.into_inner()))
}

fn to_protobuf(topic: Topic, json: &[u8], lenient: bool) -> Result<Vec<u8>, EncodingError> {
    let name = message_name(topic);
    let wrong = |source| EncodingError::Json {
        message: name,
        source,
    };
    let options = DeserializeOptions::new().deny_unknown_fields(!lenient);
    let mut json = serde_json::Deserializer::from_slice(json);
    let message = DynamicMessage::deserialize_with_options(descriptor(name), &mut json, &options)
        .map_err(wrong)?;
    json.end().map_err(wrong)?;
    Ok(message.encode_to_vec())
}

fn message_name(topic: Topic) -> &'static str {
    match topic {
        Topic::Deltas => "quaymaster.v1.Delta",
        Topic::Records => "quaymaster.v1.Record",
        Topic::Pns => "quaymaster.v1.Mapping",
        Topic::Status => "quaymaster.v1.Status",
        Topic::Processes => "quaymaster.v1.Process",
        Topic::Ports => "quaymaster.v1.Port",
    }
}

fn descriptor(name: &'static str) -> MessageDescriptor {
    POOL.get_message_by_name(name)
        .expect("proto/quaymaster.proto has a message for each topic")
}

/// The protobuf of a value, where the message has a field for each of its fields: for tests that hold both contracts
/// against each other.
///
/// # Errors
/// As [`Encoding::encode`], and for a field that the message does not have.
#[doc(hidden)]
pub fn strictly(topic: Topic, json: &[u8]) -> Result<Vec<u8>, EncodingError> {
    to_protobuf(topic, json, false)
}
