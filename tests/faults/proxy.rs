//! A network between the collector and its broker that cuts, delays, and goes dead without a word.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    Fair,
    /// Each piece comes so much later.
    Slow(Duration),
    /// Connections are closed, and new ones at once.
    Cut,
    /// The connections that there are carry nothing any more, for good, and neither end is told. New ones do.
    HalfOpen,
}

/// The network. It ends when this is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    weather: watch::Sender<Weather>,
    serving: JoinHandle<()>,
}

impl Proxy {
    /// Stands at an address (port 0: any) before a server.
    pub(crate) async fn start(at: &str, server: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(at).await;
        let listener = listener.with_context(|| format!("no proxy can stand at {at}"))?;
        let address = listener.local_addr()?;
        let (weather, seen) = watch::channel(Weather::Fair);
        let server = server.to_owned();
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(carry(stream, server.clone(), seen.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            weather,
            serving,
        })
    }

    pub(crate) fn becomes(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// One connection, to its end.
async fn carry(client: TcpStream, server: String, mut weather: watch::Receiver<Weather>) {
    if *weather.borrow_and_update() == Weather::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (there, back) = (weather.clone(), weather.clone());
    let carrying = async {
        tokio::select! {
            () = pump(from_client, to_server, there) => {}
            () = pump(from_server, to_client, back) => {}
        }
    };
    let turning = async {
        while weather.changed().await.is_ok() {
            let now = *weather.borrow_and_update();
            if matches!(now, Weather::Cut | Weather::HalfOpen) {
                return now;
            }
        }
        Weather::Cut
    };
    tokio::pin!(carrying);
    let turned = tokio::select! {
        () = &mut carrying => return,
        turned = turning => turned,
    };
    if turned == Weather::HalfOpen {
        // The sockets stay open, and nobody reads or writes them, until the network itself is gone.
        std::future::pending::<()>().await;
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        let now = *weather.borrow();
        if let Weather::Slow(delay) = now {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
