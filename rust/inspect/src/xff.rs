//! The client's own address, as a proxy hands it on in a header (`X-Forwarded-For`).

use std::net::IpAddr;

use protocols::HttpTransaction;

use crate::config::Xff;
use crate::flow::Flow;

/// Return the address: of that transaction, or of any that the flow still holds.
pub fn address(flow: &Flow, transaction: Option<u64>, xff: &Xff) -> Option<u128> {
    let parser = flow.app.parser()?;
    let (first, end) = parser.range();
    let ids = transaction.map_or(first..end, |id| id..id.saturating_add(1));
    ids.into_iter().find_map(|id| {
        let http = parser.transaction(id)?.as_any().downcast_ref::<HttpTransaction>()?;
        parse(http.request_header(xff.header.as_bytes())?, xff.is_forward)
    })
}

/// The first address of the list is the client's; the last one is of the proxy that is nearest to us.
fn parse(value: &[u8], is_forward: bool) -> Option<u128> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.split(',');
    let part = if is_forward { parts.next() } else { parts.next_back() }?.trim();
    let part = part.strip_prefix('[').and_then(|rest| rest.split(']').next()).unwrap_or(part);
    let address = part.parse::<IpAddr>().ok().or_else(|| part.rsplit_once(':')?.0.parse().ok())?;
    Some(match address {
        IpAddr::V4(v4) => 0xffff_0000_0000 | u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    })
}
