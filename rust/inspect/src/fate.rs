//! What becomes of a packet that is held until it was looked at, and what its checksums are worth.

use signatures::RejectTarget;

use crate::checksum;
use crate::engine::Inspector;
use crate::layers::Layers;

/// Packets after which it is clear whether a capture's checksums mean anything; as Suricata's `auto`.
const MANY_CHECKED: u64 = 1000;

/// What is to become of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verdict {
    /// It goes on.
    #[default]
    Accept,
    /// It ends here, and nobody is told.
    Drop,
    /// It ends here, and these ends are told (`reject.rs`).
    Reject(RejectTarget),
}

/// What the source of packets says of their transport checksums.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Checksums {
    /// Nothing: they are computed.
    #[default]
    Unknown,
    /// They were looked at, or the field is not filled in: it says nothing.
    Vouched,
    /// The source does not say which: a field that holds the sum over the pseudo-header alone, as this machine's kernel
    /// leaves it to the network card, is taken for one that is not filled in.
    MayBePending,
}

impl Inspector {
    /// A packet, or what it carries in a tunnel, is dropped: the whole packet is.
    ///
    /// Those inside a tunnel are told nothing: an answer would have to go through the tunnel too.
    pub(crate) fn note_drop(&mut self, reject: Option<RejectTarget>, is_in_tunnel: bool) {
        self.fate = match (self.fate, reject) {
            (Verdict::Reject(target), _) => Verdict::Reject(target),
            (_, Some(target)) if !is_in_tunnel => Verdict::Reject(target),
            _ => Verdict::Drop,
        };
    }

    /// Return whether the receiver would believe the packet's checksums.
    pub(crate) fn has_right_checksums(&mut self, layers: &Layers<'_>) -> bool {
        if self.is_file
            && self.config.stream.believes_captures
            && self.checked >= MANY_CHECKED
            && self.wrong * 10 > self.checked
        {
            return true;
        }
        let is_right = self.are_right(layers);
        self.checked += 1;
        self.wrong += u64::from(!is_right);
        is_right
    }

    fn are_right(&self, layers: &Layers<'_>) -> bool {
        match self.checksums {
            Checksums::Vouched => true,
            Checksums::Unknown => checksum::is_right(layers),
            Checksums::MayBePending => checksum::is_right(layers) || checksum::is_pending(layers),
        }
    }
}
