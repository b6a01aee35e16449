//! Protocols that are recognised and not read: `app_proto` is right, rule headers may name them, and that is all.
//!
//! Promises: a probe says yes only where several fields agree; what a flow holds is nothing.
//! Leaves to others: their messages. A protocol that is to be read gets a file of its own and leaves this one.
//! Read first: [`Recognised`], then the probes in `recognised/binary.rs`.

mod binary;
mod rpc;
#[cfg(test)]
mod tests;
mod text;

use crate::{ParseError, Parser, Probe, Protocol, Settings, Start, Transaction, Transport, Way};

use Transport::{Tcp, Udp};

const fn named(
    name: &'static str,
    transports: &'static [Transport],
    ports: &'static [u16],
    probe: fn(&Start<'_>) -> Probe,
) -> Protocol {
    Protocol {
        name,
        aliases: &[],
        transports,
        ports,
        probe,
        parser: |_: &Settings, _| Box::new(Recognised),
        buffers: &[],
        numbers: &[],
        keywords: &[],
        states: &[],
        records: &[],
        events: &[],
    }
}

/// The preface of a client that knows its server (RFC 9113 section 3.4); asked before HTTP/1, whose shape it has.
pub static HTTP2: Protocol = named("http2", &[Tcp], &[80, 443], text::http2);
/// Telnet (RFC 854), by its options.
pub static TELNET: Protocol = named("telnet", &[Tcp], &[23], text::telnet);
/// IMAP (RFC 9051).
pub static IMAP: Protocol = named("imap", &[Tcp], &[143], text::imap);
/// WebSocket (RFC 6455), as it goes on after HTTP's upgrade.
pub static WEBSOCKET: Protocol = named("websocket", &[Tcp], &[], binary::websocket);
/// LDAP (RFC 4511).
pub static LDAP: Protocol = named("ldap", &[Tcp, Udp], &[389, 3268], binary::ldap);
/// Kerberos 5 (RFC 4120).
pub static KRB5: Protocol = named("krb5", &[Tcp, Udp], &[88], binary::krb5);
/// NFS (RFC 1813, RFC 7530) over ONC RPC (RFC 5531).
pub static NFS: Protocol = named("nfs", &[Tcp, Udp], &[2049], rpc::nfs);
/// SMB 1 to 3.
pub static SMB: Protocol = named("smb", &[Tcp], &[139, 445], rpc::smb);
/// DCE/RPC, connection-oriented and not.
pub static DCERPC: Protocol = named("dcerpc", &[Tcp, Udp], &[135], rpc::dcerpc);
/// RDP, before it encrypts.
pub static RDP: Protocol = named("rdp", &[Tcp], &[3389], binary::rdp);
/// QUIC (RFC 9000, RFC 9369), its drafts, and what came before.
pub static QUIC: Protocol = named("quic", &[Udp], &[443, 80, 784, 853, 8853], binary::quic);
/// IKE 1 and 2 (RFC 2408, RFC 7296).
pub static IKE: Protocol = named("ike", &[Udp], &[500, 4500], binary::ike);

/// The parser of a flow that nobody reads.
struct Recognised;

impl Parser for Recognised {
    fn parse(&mut self, _way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        Ok(data.len())
    }

    fn gap(&mut self, _way: Way, _bytes: u64) -> Result<(), ParseError> {
        Ok(())
    }

    fn range(&self) -> (u64, u64) {
        (0, 0)
    }

    fn transaction(&self, _id: u64) -> Option<&dyn Transaction> {
        None
    }

    fn remove(&mut self, _id: u64) {}

    fn finish(&mut self) {}

    fn heap_bytes(&self) -> usize {
        0
    }
}

/// Return `Yes` or `No`.
fn decide(is_so: bool) -> Probe {
    if is_so { Probe::Yes } else { Probe::No }
}

/// Ask for more of a stream until there are `least` bytes; a datagram has no more.
fn short(start: &Start<'_>, least: usize) -> Option<Probe> {
    match start.transport {
        _ if start.data.len() >= least => None,
        Tcp => Some(Probe::More),
        Udp => Some(Probe::No),
    }
}
