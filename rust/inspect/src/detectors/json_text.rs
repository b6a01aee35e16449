//! JSON text (RFC 8259), read as it comes, without a tree: what is not asked for is skipped.

/// Deeper documents are not ours.
const MOST_DEPTH: u8 = 8;

/// A place in a JSON text. Every method returns `None` where the text is not what it asks for; then the scan is over.
pub struct Scan<'a> {
    rest: &'a [u8],
    depth: u8,
}

impl<'a> Scan<'a> {
    /// Begin at the front.
    pub fn new(text: &'a str) -> Scan<'a> {
        Scan { rest: text.as_bytes(), depth: 0 }
    }

    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        let is_there = self.peek()? == byte;
        self.rest = self.rest.get(1..)?;
        is_there.then_some(())
    }

    /// Read an object; `member` must read each member's value.
    pub fn object(&mut self, mut member: impl FnMut(&mut Scan<'a>, &str) -> Option<()>) -> Option<()> {
        self.list(b'{', b'}', |scan| {
            let name = scan.text()?;
            scan.expect(b':')?;
            member(scan, &name)
        })
    }

    /// Read an array; `element` must read each element.
    pub fn array(&mut self, element: impl FnMut(&mut Scan<'a>) -> Option<()>) -> Option<()> {
        self.list(b'[', b']', element)
    }

    fn list(&mut self, open: u8, close: u8, mut item: impl FnMut(&mut Scan<'a>) -> Option<()>) -> Option<()> {
        self.expect(open)?;
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return None;
        }
        if self.peek()? == close {
            self.depth -= 1;
            return self.expect(close);
        }
        loop {
            item(self)?;
            if self.peek()? == b',' {
                self.expect(b',')?;
                continue;
            }
            self.depth -= 1;
            return self.expect(close);
        }
    }

    /// Read a string. Escapes of single characters only: addresses and names of protocols have none.
    pub fn text(&mut self) -> Option<String> {
        self.expect(b'"')?;
        let mut is_escaped = false;
        let end = self.rest.iter().position(|byte| {
            let is_end = *byte == b'"' && !is_escaped;
            is_escaped = *byte == b'\\' && !is_escaped;
            is_end
        })?;
        let inner = self.rest.get(..end)?;
        self.rest = self.rest.get(end + 1..)?;
        Some(String::from_utf8_lossy(inner).into_owned())
    }

    fn word(&mut self) -> Option<&'a [u8]> {
        self.peek()?;
        let end = self.rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace());
        let (word, rest) = self.rest.split_at_checked(end.unwrap_or(self.rest.len()))?;
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    /// Read a number that is no fraction and not negative, or `null`.
    pub fn number_or_null(&mut self) -> Option<Option<u64>> {
        match self.word()? {
            b"null" => Some(None),
            digits => std::str::from_utf8(digits).ok()?.parse().ok().map(Some),
        }
    }

    /// Read anything and forget it.
    pub fn skip(&mut self) -> Option<()> {
        match self.peek()? {
            b'{' => self.object(|scan, _| scan.skip()),
            b'[' => self.array(Scan::skip),
            b'"' => self.text().map(|_| ()),
            _ => self.word().map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_and_the_rest_skipped() {
        let text = r#" {"a": [1, {"b": "x\"]"}, null], "n": 7, "z": null, "t": "text", "e": {}, "f": [] } "#;
        let (mut number, mut word) = (None, String::new());
        let is_read = Scan::new(text).object(|scan, name| match name {
            "n" => scan.number_or_null().map(|value| number = value),
            "t" => scan.text().map(|value| word = value),
            _ => scan.skip(),
        });
        assert_eq!((is_read, number, word.as_str()), (Some(()), Some(7), "text"));
    }

    #[test]
    fn what_is_broken_or_deep_is_refused() {
        let deep = "[".repeat(100_000);
        for text in ["", "{", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "[1", "{\"a\":\"", deep.as_str()] {
            assert_eq!(Scan::new(text).skip(), None, "{}", text.get(..10).unwrap_or(text));
        }
    }
}
