//! Flows that another flow has announced: FTP says on which port its next file goes.

use std::collections::VecDeque;

use protocols::{FtpExpected, FtpTransaction, PROTOCOLS, Parser, Transaction, ftp_data_parser};

use crate::flow::Flow;

/// Announcements that wait for their flow; an FTP session has one at a time.
const MOST_WAITING: usize = 256;
/// An announced flow begins at once; later, the port may be somebody else's.
const WAITING_US: u64 = 30_000_000;

struct Announcement {
    server: (u128, u16),
    client: u128,
    expected: FtpExpected,
    time_us: u64,
}

/// What was announced and has not begun.
#[derive(Default)]
pub struct Announcements {
    list: VecDeque<Announcement>,
}

impl Announcements {
    /// Remember what a transaction of this flow announces.
    pub fn note(&mut self, flow: &Flow, transaction: &dyn Transaction, now_us: u64) {
        let ftp = transaction.as_any().downcast_ref::<FtpTransaction>();
        let Some(expected) = ftp.and_then(FtpTransaction::expected) else { return };
        // in active mode the FTP server connects to its client
        let (server, client) = if expected.is_active { (0, 1) } else { (1, 0) };
        let server = (flow.addresses[server], expected.port);
        if self.list.iter().any(|waiting| waiting.server == server && waiting.expected == *expected) {
            return;
        }
        if self.list.len() >= MOST_WAITING {
            self.list.pop_front();
        }
        let (client, expected) = (flow.addresses[client], expected.clone());
        self.list.push_back(Announcement { server, client, expected, time_us: now_us });
    }

    /// Return protocol and parser of a flow that begins, if it was announced.
    pub fn take(&mut self, flow: &Flow, now_us: u64) -> Option<(u8, Box<dyn Parser>)> {
        if self.list.is_empty() {
            return None;
        }
        self.list.retain(|waiting| now_us.saturating_sub(waiting.time_us) < WAITING_US);
        let server = (flow.addresses[1], flow.ports[1]);
        let place =
            self.list.iter().position(|waiting| waiting.server == server && waiting.client == flow.addresses[0])?;
        let announcement = self.list.remove(place)?;
        let index = PROTOCOLS.iter().position(|protocol| protocol.name == "ftp-data")?;
        Some((u8::try_from(index).ok()?, ftp_data_parser(&announcement.expected)))
    }
}
