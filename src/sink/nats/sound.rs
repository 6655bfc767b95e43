//! Whether messages may go out: after each reconnect the last acknowledged delta is read back once, by whichever
//! message comes first; the others wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, watch};

use super::check::check;
use super::connection::Connection;
use super::naming::Naming;
use crate::sink::{Landmark, Loss, Position, SinkError, Verdict};

/// What is known of the stream of the deltas.
pub(super) struct Sound {
    /// With which connection the last look was well ([`Connection::connects`]).
    looked_at: AtomicU64,
    known: Mutex<Known>,
    loss: watch::Sender<Option<Loss>>,
}

struct Known {
    last: Option<Landmark>,
    bus: Arc<str>,
}

impl Sound {
    /// `last` was found there with the connection as it is.
    pub(super) fn new(connection: &Connection, last: Option<Landmark>, bus: Arc<str>) -> Self {
        Self {
            looked_at: AtomicU64::new(connection.connects()),
            known: Mutex::new(Known { last, bus }),
            loss: watch::Sender::new(None),
        }
    }

    /// Returns when all is there; never, where it is not.
    ///
    /// # Errors
    /// Where the server cannot tell now.
    pub(super) async fn look(
        &self,
        connection: &Connection,
        naming: &Naming,
    ) -> Result<(), SinkError> {
        let connects = connection.connects();
        if self.looked_at.load(Ordering::Acquire) == connects && !self.is_lost() {
            return Ok(());
        }
        let mut known = self.known.lock().await;
        if self.looked_at.load(Ordering::Acquire) != connects && !self.is_lost() {
            let checked = check(connection, naming, known.last.as_ref(), &[]).await?;
            match checked.verdict {
                Verdict::Lost(loss) => self.tell(loss),
                Verdict::Kept if !known.bus.is_empty() && known.bus != checked.bus => {
                    self.tell(Loss {
                        reason: "the stream of the deltas was made anew".to_owned(),
                        newest: None,
                    });
                }
                Verdict::Kept => {
                    known.bus = checked.bus;
                    self.looked_at.store(connects, Ordering::Release);
                }
            }
        }
        drop(known);
        self.wait_where_lost().await;
        Ok(())
    }

    /// Keeps the place of an acknowledged delta. One that is not behind the last one, and is no double, was put into
    /// a stream that was made anew or cut while the connection stood; then this never returns.
    pub(super) async fn remember(&self, position: Position, ce_id: &Arc<str>, is_double: bool) {
        let mut known = self.known.lock().await;
        let is_behind = known
            .last
            .as_ref()
            .is_none_or(|last| last.position.offset < position.offset);
        if is_behind {
            known.last = Some(Landmark {
                bus: Arc::clone(&known.bus),
                position,
                ce_id: Arc::clone(ce_id),
            });
        } else if !is_double {
            self.tell(Loss {
                reason: format!("sequence {} was given twice", position.offset),
                newest: None,
            });
        }
        drop(known);
        self.wait_where_lost().await;
    }

    /// Streams were gone, and are there again without what they held. Never returns where something was acknowledged.
    pub(super) async fn created_again(&self, created: &[String]) {
        let known = self.known.lock().await;
        if !known.bus.is_empty() || known.last.is_some() {
            self.tell(Loss {
                reason: format!("these streams were gone: {}", created.join(", ")),
                newest: None,
            });
        }
        drop(known);
        self.wait_where_lost().await;
    }

    /// Waits until data is found to be lost.
    pub(super) async fn lost(&self) -> Loss {
        let mut loss = self.loss.subscribe();
        loop {
            if let Some(loss) = loss.borrow_and_update().clone() {
                return loss;
            }
            if loss.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn is_lost(&self) -> bool {
        self.loss.borrow().is_some()
    }

    async fn wait_where_lost(&self) {
        if self.is_lost() {
            // The run ends, and this future with it.
            std::future::pending::<()>().await;
        }
    }

    /// The first loss is the one that counts.
    fn tell(&self, loss: Loss) {
        self.loss.send_if_modified(|told| {
            let is_first = told.is_none();
            if is_first {
                *told = Some(loss);
            }
            is_first
        });
    }
}
