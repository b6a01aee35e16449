//! Cutting a stream of text into lines that end with a line feed.

/// A line, without its end.
pub(crate) struct Line<'a> {
    /// At most as many bytes as were asked for.
    pub bytes: &'a [u8],
    /// It was longer.
    pub is_cut: bool,
}

/// Where one way of a stream of lines stands.
#[derive(Default, Debug)]
pub(crate) struct Lines {
    is_passing_over: bool,
}

impl Lines {
    /// Take the line in front of `data`: how many bytes to read on, and the line, unless those were the rest of a long
    /// one. `None`: more bytes are needed. At the end of the stream, what is left is a line.
    pub(crate) fn take<'a>(&mut self, data: &'a [u8], most: usize, is_end: bool) -> Option<(usize, Option<Line<'a>>)> {
        let end = data.iter().position(|byte| *byte == b'\n');
        if self.is_passing_over {
            self.is_passing_over = end.is_none();
            return (!data.is_empty()).then(|| (end.map_or(data.len(), |end| end + 1), None));
        }
        let whole = match end {
            Some(end) => data.get(..end)?,
            None if data.len() > most || (is_end && !data.is_empty()) => data,
            None => return None,
        };
        if whole.len() > most {
            // what comes behind `most` bytes belongs to nobody
            self.is_passing_over = end.is_none_or(|end| end > most);
            return Some((most, Some(Line { bytes: data.get(..most)?, is_cut: true })));
        }
        let bytes = whole.strip_suffix(b"\r").unwrap_or(whole);
        Some((end.map_or(whole.len(), |end| end + 1), Some(Line { bytes, is_cut: false })))
    }
}
