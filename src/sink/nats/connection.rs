//! The connection: made once, kept up by the client for ever; how often it was lost, and the server's last word.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event};
use tokio::sync::watch;

use super::login;
use crate::sink::access::{NatsAccess, Tls};
use crate::sink::{SinkError, tls};
use crate::telemetry::chain;

/// Time for a connection, and for the first one before the bus counts as not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for an answer. What is not answered by then may have been stored all the same.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Two pings without an answer, and the client reconnects.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// The waits between attempts to reconnect: grow by this, up to the longest.
const RECONNECT_STEP: Duration = Duration::from_millis(50);
/// The longest of them.
const RECONNECT_LONGEST: Duration = Duration::from_secs(1);

/// How often the client's state is looked at while it is away.
const STATE_INTERVAL: Duration = Duration::from_millis(100);

/// How the connection stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    /// How often the connection was lost.
    pub(super) losses: u64,
    /// The newest error that server or client told of, which a request that times out does not tell itself
    /// (a missing right, say).
    pub(super) last_error: String,
    /// The newest rights that were missing, as the server tells them, with the number of each.
    violations: VecDeque<(u64, String)>,
    /// How many there were.
    violated: u64,
}

/// Missing rights that are remembered: more than there are kinds of requests under way at once.
const VIOLATIONS_MAX: usize = 256;
/// What such an error begins with (nats-server, `server/client.go`).
const VIOLATION: &str = "permissions violation";

/// A connection to a server or cluster. Cheap to clone; the last one closes it.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    standing: watch::Receiver<Standing>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// [`SinkError::Unavailable`] where no server answers in time, [`SinkError::Denied`] where it refuses who we are,
    /// [`SinkError::Untrusted`] where a certificate is not believed, [`SinkError::File`] where a file of ours is of no
    /// use.
    pub(crate) async fn open(access: &NatsAccess, name: &str) -> Result<Self, SinkError> {
        if let Some(settings) = &access.tls {
            tls::check(settings)?;
        }
        login::check(access)?;
        let servers = &access.servers;
        let (sender, standing) = watch::channel(Standing::default());
        let sender = Arc::new(sender);
        let urls: Vec<_> = servers
            .iter()
            .map(|server| format!("nats://{server}"))
            .collect();
        let login = access.login.clone();
        let answer = move |nonce: Vec<u8>| {
            let answered = login::answer(login.as_ref(), &nonce);
            async move { answered }
        };
        let options = with_tls(
            ConnectOptions::with_auth_callback(answer),
            access.tls.as_ref(),
        );
        let options = options
            .name(name)
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(ANSWER_TIMEOUT))
            .ping_interval(PING_INTERVAL)
            .max_reconnects(None)
            .reconnect_delay_callback(|attempts| {
                let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
                RECONNECT_STEP
                    .saturating_mul(attempts)
                    .min(RECONNECT_LONGEST)
            })
            .event_callback(move |event| {
                note(&sender, &event);
                std::future::ready(())
            });
        let tried = || format!("failed to connect to nats at {}", servers.join(","));
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, options.connect(urls));
        let client = match connecting.await {
            Ok(Ok(client)) => client,
            Ok(Err(source)) => return Err(refused(access, tried(), source)),
            Err(source) => {
                return Err(SinkError::Unavailable {
                    message: tried(),
                    source: Some(Box::new(source)),
                });
            }
        };
        let jetstream = ContextBuilder::new()
            .timeout(ANSWER_TIMEOUT)
            .build(client.clone());
        Ok(Self {
            client,
            jetstream,
            standing,
        })
    }

    /// The newest error that was told of.
    pub(super) fn last_error(&self) -> String {
        self.standing.borrow().last_error.clone()
    }

    /// How many rights were missing so far: a mark for [`Self::refused_since`].
    pub(super) fn refusals(&self) -> u64 {
        self.standing.borrow().violated
    }

    /// What the server said since a mark of a right that is missing on a subject which begins so. It tells that only by the
    /// way, and a request ends as one without an answer.
    pub(super) fn refused_since(&self, mark: u64, subject: &str) -> Option<String> {
        let quoted = format!("\"{subject}");
        let standing = self.standing.borrow();
        let mut since = standing.violations.iter();
        since
            .find(|(number, text)| *number > mark && text.contains(&quoted))
            .map(|(_, text)| text.clone())
    }

    /// The error of a request on such a subject that came to nothing: where a right is missing, that.
    pub(super) fn explain(&self, mark: u64, subject: &str, error: SinkError) -> SinkError {
        match self.refused_since(mark, subject) {
            Some(told) => SinkError::Denied {
                message: format!("{error}: {told}: grant that right"),
            },
            None => error,
        }
    }

    /// How often a connection was made: it tells of each reconnect for sure, which events do not.
    pub(super) fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    pub(super) fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits until the connection is up.
    pub(crate) async fn wait_until_up(&self) {
        let mut standing = self.standing.clone();
        while !self.is_up() {
            // The state is looked at again after a while too: the client may drop events.
            // An error means that the client is gone, and with it whoever waits here.
            let _ = tokio::time::timeout(STATE_INTERVAL, async {
                if standing.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
            .await;
        }
    }

    /// Waits until the connection that is there at this call has been lost.
    pub(super) fn lost(&self) -> impl Future<Output = ()> + use<> {
        let mut standing = self.standing.clone();
        let before = standing.borrow().losses;
        async move {
            let later = standing.wait_for(|standing| standing.losses != before);
            if later.await.is_err() {
                // The client is gone; whoever waits for an answer of it has a timeout.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The certificates are named, and read by the client at each connection.
fn with_tls(options: ConnectOptions, tls: Option<&Tls>) -> ConnectOptions {
    let Some(tls) = tls else { return options };
    let mut options = options.require_tls(true);
    if let Some(ca) = &tls.ca {
        options = options.add_root_certificates(ca.path.clone());
    }
    if let Some(identity) = &tls.identity {
        options =
            options.add_client_certificate(identity.cert.path.clone(), identity.key.path.clone());
    }
    options
}

/// Why the first connection failed.
fn refused(access: &NatsAccess, tried: String, error: ConnectError) -> SinkError {
    let servers = access.servers.join(",");
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            let remedy = match &access.login {
                Some(login) => format!("look at the user and `{}`", login.origin()),
                None => "name a user with `nats.username`, `nats.token_file`, `nats.nkey_file` or \
                         `nats.credentials_file`"
                    .to_owned(),
            };
            SinkError::Denied {
                message: format!(
                    "nats at {servers} refuses the login: {remedy}: {}",
                    chain(&error)
                ),
            }
        }
        ConnectErrorKind::ServerParse
        | ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Tls
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => {
            match tls::explain(&error, &servers, access.tls.as_ref()) {
                Some(message) => SinkError::Untrusted { message },
                None => SinkError::Unavailable {
                    message: tried,
                    source: Some(Box::new(error)),
                },
            }
        }
    }
}

fn note(standing: &watch::Sender<Standing>, event: &Event) {
    match event {
        Event::Connected => {
            tracing::debug!("connected to nats");
            standing.send_modify(|standing| {
                standing.last_error.clear();
            });
        }
        Event::Disconnected | Event::Closed => {
            tracing::debug!(event = %event, "nats is away");
            standing.send_modify(|standing| {
                standing.losses += 1;
                if standing.last_error.is_empty() {
                    standing.last_error = event.to_string();
                }
            });
        }
        Event::ServerError(_) | Event::ClientError(_) => {
            tracing::debug!(event = %event, "nats tells of an error");
            standing.send_modify(|standing| {
                standing.last_error = event.to_string();
                if standing.last_error.to_lowercase().contains(VIOLATION) {
                    standing.violated += 1;
                    let violation = (standing.violated, standing.last_error.clone());
                    standing.violations.truncate(VIOLATIONS_MAX - 1);
                    standing.violations.push_front(violation);
                }
            });
        }
        Event::LameDuckMode | Event::Draining | Event::SlowConsumer(_) => {
            tracing::debug!(event = %event, "nats tells of itself");
        }
    }
}
