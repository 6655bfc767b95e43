//! Which bus, and the sink that speaks to it.

use std::fmt;
use std::str::FromStr;

use super::access::{FileError, KafkaAccess, NamedFile, NatsAccess, Tls};
use super::kafka::{self, KafkaSink};
use super::nats::{self, NatsSink};
use super::stdout::StdoutSink;
use super::{Sink, SinkError, TopicSettings, tls};

/// Longest address of a bus, in bytes.
const BUS_URL_BYTES_MAX: usize = 4_096;

/// The address of a bus: `stdout:`, `kafka://HOST:PORT[,HOST:PORT…]` or `nats://HOST:PORT[,HOST:PORT…]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusUrl {
    /// JSON lines on standard output.
    Stdout,
    /// Kafka, with the `HOST:PORT` of its bootstrap servers: one or more.
    Kafka(Vec<String>),
    /// NATS with JetStream, with the `HOST:PORT` of its servers: one or more.
    Nats(Vec<String>),
}

/// What is wrong with the address of a bus.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusUrlError {
    /// Neither of the three kinds.
    #[error(
        "`{0}` is no bus: give `stdout:`, `kafka://HOST:PORT[,HOST:PORT…]` or `nats://HOST:PORT`"
    )]
    Scheme(String),
    /// A user or a password, which it does not repeat.
    #[error(
        "the address of the bus holds `@`: users and passwords do not belong there; set `sasl.username` or \
         `nats.username`, and give the password in a file"
    )]
    Credentials,
    /// A server that is not `HOST:PORT`.
    #[error("`{server}` in the bus `{url}` is no HOST:PORT with a port from 1 to 65535")]
    Server {
        /// The part that is wrong.
        server: String,
        /// The whole address.
        url: String,
    },
    /// Longer than any real one.
    #[error("the address of the bus is longer than {BUS_URL_BYTES_MAX} bytes")]
    TooLong,
}

impl FromStr for BusUrl {
    type Err = BusUrlError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        if url.len() > BUS_URL_BYTES_MAX {
            return Err(BusUrlError::TooLong);
        }
        if url.contains('@') {
            return Err(BusUrlError::Credentials);
        }
        if matches!(url, "stdout:" | "stdout") {
            return Ok(Self::Stdout);
        }
        match url.split_once("://") {
            Some(("kafka", rest)) => parse_servers(rest, url).map(Self::Kafka),
            Some(("nats", rest)) => parse_servers(rest, url).map(Self::Nats),
            Some(_) | None => Err(BusUrlError::Scheme(url.to_owned())),
        }
    }
}

impl fmt::Display for BusUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout:"),
            Self::Kafka(servers) => write!(f, "kafka://{}", servers.join(",")),
            Self::Nats(servers) => write!(f, "nats://{}", servers.join(",")),
        }
    }
}

/// A bus and all that a client of it needs.
#[derive(Clone, Debug)]
pub enum Bus {
    /// JSON lines on standard output.
    Stdout,
    /// Kafka.
    Kafka(KafkaAccess),
    /// NATS with JetStream.
    Nats(NatsAccess),
}

impl Bus {
    /// Its address.
    pub fn url(&self) -> BusUrl {
        match self {
            Self::Stdout => BusUrl::Stdout,
            Self::Kafka(access) => BusUrl::Kafka(access.servers.clone()),
            Self::Nats(access) => BusUrl::Nats(access.servers.clone()),
        }
    }

    /// Looks at the files with certificates and secrets, and at librdkafka's settings; connects to nothing.
    ///
    /// # Errors
    /// [`SinkError::File`] for the first file that is of no use, [`SinkError::Misconfigured`] for a setting that
    /// librdkafka does not take.
    pub fn check(&self) -> Result<(), SinkError> {
        match self {
            Self::Stdout => Ok(()),
            Self::Kafka(access) => {
                check_tls(access.tls.as_ref())?;
                kafka::check(access)
            }
            Self::Nats(access) => {
                check_tls(access.tls.as_ref())?;
                nats::check(access)
            }
        }
    }

    /// The files with certificates and secrets.
    pub fn files(&self) -> Vec<&NamedFile> {
        match self {
            Self::Stdout => Vec::new(),
            Self::Kafka(access) => access.files().collect(),
            Self::Nats(access) => access.files().collect(),
        }
    }

    /// What goes over the network so that whoever listens can read it, and what to do; `None` where nothing does.
    pub fn in_the_clear(&self) -> Option<&'static str> {
        match self {
            Self::Kafka(access) if access.tls.is_none() && access.sasl.is_some() => Some(
                "messages, and with PLAIN the password, go to kafka in the clear: set `tls.enabled`",
            ),
            Self::Nats(access) if access.tls.is_none() && access.login.is_some() => Some(
                "messages, and a password or token, go to nats in the clear unless it insists on TLS: set `tls.enabled`",
            ),
            Self::Stdout | Self::Kafka(_) | Self::Nats(_) => None,
        }
    }
}

fn check_tls(settings: Option<&Tls>) -> Result<(), FileError> {
    settings.map_or(Ok(()), tls::check)
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url().fmt(f)
    }
}

/// The bus without TLS and without a user.
impl From<&BusUrl> for Bus {
    fn from(url: &BusUrl) -> Self {
        match url {
            BusUrl::Stdout => Self::Stdout,
            BusUrl::Kafka(servers) => Self::Kafka(servers.into()),
            BusUrl::Nats(servers) => Self::Nats(servers.into()),
        }
    }
}

impl From<&Bus> for Bus {
    fn from(bus: &Bus) -> Self {
        bus.clone()
    }
}

/// Makes the sink for a bus; nothing is connected before [`Sink::prepare`]. `client_id` is the name that the
/// bus sees, by convention `quaymaster-<host>`.
///
/// # Errors
/// [`SinkError::Misconfigured`] where the topics' settings cannot be ([`TopicSettings::check`]).
pub fn open(
    bus: impl Into<Bus>,
    topics: &TopicSettings,
    client_id: &str,
) -> Result<Box<dyn Sink>, SinkError> {
    topics.check()?;
    Ok(match bus.into() {
        Bus::Stdout => Box::new(StdoutSink::new(topics)),
        Bus::Kafka(access) => Box::new(KafkaSink::new(&access, topics, client_id)),
        Bus::Nats(access) => Box::new(NatsSink::new(&access, topics, client_id)),
    })
}

fn parse_servers(text: &str, url: &str) -> Result<Vec<String>, BusUrlError> {
    text.strip_suffix('/')
        .unwrap_or(text)
        .split(',')
        .map(|server| {
            if is_host_and_port(server) {
                Ok(server.to_owned())
            } else {
                Err(BusUrlError::Server {
                    server: server.to_owned(),
                    url: url.to_owned(),
                })
            }
        })
        .collect()
}

/// A name, an IPv4 address or an IPv6 address in brackets, and a port.
fn is_host_and_port(server: &str) -> bool {
    let Some((host, port)) = server.rsplit_once(':') else {
        return false;
    };
    let port_fits = port.bytes().all(|b| b.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|number| number > 0);
    let host_fits = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        }
    };
    port_fits && host_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_written_back() {
        for url in [
            "stdout:",
            "kafka://localhost:9092",
            "kafka://a.example:9092,10.0.0.1:19092,[::1]:9092",
            "nats://127.0.0.1:4222",
        ] {
            let bus: BusUrl = url.parse().expect("a good address");
            assert_eq!(bus.to_string(), url);
        }
        assert_eq!("stdout".parse(), Ok(BusUrl::Stdout));
    }

    #[test]
    fn a_wrong_address_is_refused_by_name() {
        for (url, piece) in [
            ("", "is no bus"),
            ("localhost:9092", "is no bus"),
            ("http://localhost:9092", "is no bus"),
            ("kafka:", "is no bus"),
            ("kafka://", "``"),
            ("kafka://localhost", "`localhost`"),
            ("kafka://localhost:0", "`localhost:0`"),
            ("kafka://localhost:+1", "`localhost:+1`"),
            ("kafka://a:1,,b:2", "``"),
            ("kafka://jane:hunter2@a:1", "`sasl.username`"),
            ("nats://jane:hun@ter2@a", "`nats.username`"),
            ("jane:hunter2@a:1", "holds `@`"),
            ("nats://a:99999", "`a:99999`"),
            ("nats://::1:4222", "HOST:PORT"),
        ] {
            let error = url.parse::<BusUrl>().expect_err(url).to_string();
            assert!(error.contains(piece), "{url}: {error}");
            assert!(!error.contains("jane"), "{url}: {error}");
        }
    }
}
