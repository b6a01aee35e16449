//! What every protocol here is put through: cuts of the stream, and bytes that lie.

use crate::{Json, Parser, Protocol, Settings, Start, Transport, Way};

/// A conversation: who sends what.
pub(crate) type Talk = Vec<(Way, Vec<u8>)>;

/// Everything that a parser says about its transactions, as text.
pub(crate) fn describe(protocol: &Protocol, parser: &dyn Parser) -> String {
    let mut out = String::new();
    let (first, end) = parser.range();
    for transaction in (first..end).filter_map(|id| parser.transaction(id)) {
        for record in std::iter::once(None).chain((0..protocol.records.len()).map(Some)) {
            out.push('{');
            transaction.log(record, &mut Json::inside(&mut out, false));
            out.push('}');
        }
        for way in Way::BOTH {
            out.push_str(&format!(" {}", transaction.progress(way)));
            for nth in 0..3 {
                (0..protocol.numbers.len())
                    .for_each(|i| out.push_str(&format!(" {:?}", transaction.number(i, way, nth))));
                for i in 0..protocol.buffers.len() {
                    let view =
                        transaction.buffer(i, way, nth).map(|view| (view.start, view.data.to_vec(), view.is_complete));
                    out.push_str(&format!(" {view:?}"));
                }
            }
        }
        out.push_str(&format!(" {:?} files {:?}\n", transaction.events(), transaction.files()));
    }
    out
}

/// Feed a conversation in pieces of at most `piece` bytes (datagrams are never cut).
pub(crate) fn feed(protocol: &Protocol, transport: Transport, talk: &Talk, piece: usize) -> Box<dyn Parser> {
    let mut parser = (protocol.parser)(&Settings::default(), transport);
    let mut held = [Vec::new(), Vec::new()];
    for (way, bytes) in talk {
        if transport == Transport::Udp {
            let _ = parser.parse(*way, bytes, false);
            continue;
        }
        for part in bytes.chunks(piece) {
            let Some(held) = held.get_mut(*way as usize) else { continue };
            held.extend_from_slice(part);
            match parser.parse(*way, held, false) {
                Ok(read) => drop(held.drain(..read)),
                Err(_) => return parser,
            }
            if held.len() > crate::MOST_HELD {
                return parser;
            }
        }
    }
    parser.finish();
    parser
}

/// The JSON of the alert form of transaction `id`.
pub(crate) fn json(parser: &dyn Parser, id: u64) -> String {
    let mut out = String::new();
    if let Some(transaction) = parser.transaction(id) {
        transaction.log(None, &mut Json::inside(&mut out, false));
    }
    out
}

/// Names of the events of transaction `id`.
pub(crate) fn events(protocol: &Protocol, parser: &dyn Parser, id: u64) -> Vec<&'static str> {
    let list = parser.transaction(id).map(|transaction| transaction.events().to_vec()).unwrap_or_default();
    list.iter().filter_map(|event| protocol.events.get(usize::from(*event)).copied()).collect()
}

/// Whether keyword `name` with `argument` matches transaction `id`.
pub(crate) fn matches(protocol: &Protocol, parser: &dyn Parser, id: u64, name: &str, argument: &str, way: Way) -> bool {
    let keyword = protocol.keywords.iter().find(|keyword| keyword.keyword == name);
    let custom = keyword.and_then(|keyword| (keyword.parse)(argument).ok());
    parser.transaction(id).zip(custom).is_some_and(|(transaction, custom)| custom.matches(transaction, way))
}

/// Every cut of the stream must give the same transactions, and no mutation may panic or grow beyond `most_bytes`.
pub(crate) fn torture(protocol: &Protocol, transport: Transport, talk: &Talk, most_bytes: usize) {
    let whole = describe(protocol, &*feed(protocol, transport, talk, usize::MAX));
    assert!(!whole.is_empty(), "nothing was understood");
    for piece in [1, 2, 3, 5, 7, 11, 13, 17, 29, 64, 200] {
        assert_eq!(describe(protocol, &*feed(protocol, transport, talk, piece)), whole, "pieces of {piece}");
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % (below.max(1) as u64)).unwrap_or(0)
    };
    for _ in 0..3000 {
        let mut mutant = talk.clone();
        for _ in 0..=random(4) {
            let index = random(mutant.len());
            let Some((way, bytes)) = mutant.get_mut(index) else { continue };
            let at = random(bytes.len());
            match random(6) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_within(at..),
                2 => *way = way.reverse(),
                3 => bytes.iter_mut().skip(at).take(2).for_each(|byte| *byte = 0xff),
                _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random(256) as u8),
            }
        }
        for (way, data) in mutant.iter().filter(|(_, data)| !data.is_empty()) {
            for is_usual_port in [true, false] {
                (protocol.probe)(&Start { data, way: *way, transport, is_usual_port });
            }
        }
        let parser = feed(protocol, transport, &mutant, usize::MAX);
        describe(protocol, &*parser);
        assert!(parser.heap_bytes() <= most_bytes, "{} bytes are held", parser.heap_bytes());
    }
}
