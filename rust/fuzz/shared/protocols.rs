//! Invariant: no bytes in any pieces make a parser panic, claim to have read more than there was, or hold more than
//! [`MOST_HEAP`]; all that its transactions say can be asked for, and their logs are closed JSON.

use protocols::{COMPLETE, Json, MOST_HELD, PROTOCOLS, Parser, Protocol, Settings, Start, Transport, Way};

/// What one flow's parser may hold after an input of up to 64 KiB: the largest bound of their files is 1 MiB (DNS answers,
/// framed protocols), and a compressed body may be unpacked into 256 KiB each way.
pub const MOST_HEAP: usize = 2 << 20;
/// Ids that are asked; the lists are bounded, this bounds the test.
const MOST_ASKED: u64 = 40;

/// First byte: protocol and transport. Then pieces: a byte of way and what happens, a byte of length, bytes.
pub fn run(input: &[u8]) {
    let [choice, rest @ ..] = input else { return };
    let index = usize::from(choice & 0x7f) % PROTOCOLS.len();
    let Some(protocol) = PROTOCOLS.get(index).copied() else { return };
    let transports = protocol.transports;
    let Some(transport) = transports.get(usize::from(choice >> 7) % transports.len().max(1)).copied() else { return };
    let mut flow = Flow {
        protocol,
        transport,
        parser: (protocol.parser)(&Settings::default(), transport),
        held: [Vec::new(), Vec::new()],
    };
    let mut rest = rest;
    while let [kind, length, more @ ..] = rest {
        // every fourth length counts in steps of 32: long pieces are rare otherwise
        let length = usize::from(*length) * if length % 4 == 0 { 32 } else { 1 };
        let (piece, more) = more.split_at(length.min(more.len()));
        rest = more;
        if !flow.piece(*kind, piece) {
            break;
        }
    }
    flow.parser.finish();
    flow.ask();
}

struct Flow {
    protocol: &'static Protocol,
    transport: Transport,
    parser: Box<dyn Parser>,
    held: [Vec<u8>; 2],
}

impl Flow {
    /// Return whether the parser goes on.
    fn piece(&mut self, kind: u8, piece: &[u8]) -> bool {
        let way = if kind & 1 == 0 { Way::ToServer } else { Way::ToClient };
        let is_end = kind & 0x1e == 0x1e;
        if !piece.is_empty() {
            let start = Start { data: piece, way, transport: self.transport, is_usual_port: kind & 0x20 == 0 };
            (self.protocol.probe)(&start);
        }
        let is_going_on = match self.transport {
            Transport::Udp => {
                let _ = self.parser.parse(way, piece, true);
                true // the next datagram is read all the same
            }
            Transport::Tcp if kind & 0x1e == 0x1c && self.held[way as usize].is_empty() => {
                self.parser.gap(way, u64::from(kind) * 7 + 1).is_ok()
            }
            Transport::Tcp => self.bytes(way, piece, is_end),
        };
        assert!(self.parser.heap_bytes() <= MOST_HEAP, "{}: {}", self.protocol.name, self.parser.heap_bytes());
        if kind & 0x40 != 0 {
            self.ask();
        }
        if kind & 0x80 != 0 {
            self.remove();
        }
        is_going_on && self.parser.upgraded().is_none()
    }

    fn bytes(&mut self, way: Way, piece: &[u8], is_end: bool) -> bool {
        let held = &mut self.held[way as usize];
        held.extend_from_slice(piece);
        loop {
            let Ok(read) = self.parser.parse(way, held, is_end) else { return false };
            assert!(read <= held.len(), "{}: {read} of {}", self.protocol.name, held.len());
            held.drain(..read);
            if read == 0 || held.is_empty() {
                return held.len() < MOST_HELD;
            }
        }
    }

    /// Forget what is over, as the inspector does.
    fn remove(&mut self) {
        let (first, end) = self.parser.range();
        for id in first..end.min(first + MOST_ASKED) {
            let is_over =
                self.parser.transaction(id).is_some_and(|one| Way::BOTH.map(|way| one.progress(way)) == [COMPLETE; 2]);
            if is_over {
                self.parser.remove(id);
                assert!(self.parser.transaction(id).is_none());
            }
        }
        let (now, still) = self.parser.range();
        assert!(first <= now && now <= still && still == end);
    }

    /// Ask all there is to ask.
    fn ask(&self) {
        let (first, end) = self.parser.range();
        assert!(first <= end);
        self.parser.is_opaque();
        for transaction in (first..end).take(MOST_ASKED as usize).filter_map(|id| self.parser.transaction(id)) {
            for record in std::iter::once(None).chain((0..self.protocol.records.len()).map(Some)) {
                let mut text = String::from("{");
                transaction.log(record, &mut Json::inside(&mut text, false));
                text.push('}');
                let parsed: Result<serde_json::Value, _> = serde_json::from_str(&text);
                assert!(parsed.is_ok(), "{}: {parsed:?} {text}", self.protocol.name);
                record.map(|record| transaction.is_logged(record));
            }
            for way in Way::BOTH {
                transaction.progress(way);
                for nth in [0, 1, 2, 1023] {
                    for index in 0..self.protocol.numbers.len() {
                        let _ = transaction.number(index, way, nth);
                    }
                    for index in 0..self.protocol.buffers.len() {
                        if let Some(view) = transaction.buffer(index, way, nth) {
                            assert!(view.start.checked_add(view.data.len() as u64).is_some());
                        }
                    }
                }
            }
            assert!(transaction.events().iter().all(|event| usize::from(*event) < self.protocol.events.len()));
            assert!(transaction.files().iter().all(|file| file.view().data.len() as u64 <= file.size));
        }
    }
}
