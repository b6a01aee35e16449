//! Tables of literals by a few of their bytes.

use std::collections::{HashMap, HashSet};

use super::{Found, rarity};

/// The bit table has that many bits for each literal, of which two are set: one position in 256 is looked at closer for
/// nothing …
const BITS_PER_LITERAL: usize = 32;
/// … up to 32 KiB, a small processor's first cache: 8,000 literals.
const MOST_BITS: u32 = 18;
const LEAST_BITS: u32 = 7;

/// One literal, all of whose cases are meant.
#[derive(Debug)]
struct Literal {
    /// Where it is in [`Table::bytes`].
    at: u32,
    length: u16,
    /// Where the bytes of the table are in it.
    back: u16,
    /// Those bytes, folded.
    gram: u32,
    /// Where its rules are in [`Table::rules`].
    rules: u32,
    count: u32,
    /// Its rules have no other literal: if one is found, all are.
    is_only: bool,
}

/// Literals by `N` of their bytes, whose hash leads to them.
#[derive(Debug, Default)]
pub(super) struct Table {
    bits: Box<[u64]>,
    shift: u32,
    /// Where a hash's literals begin; one more than there are hashes.
    starts: Box<[u32]>,
    start_shift: u32,
    literals: Box<[Literal]>,
    bytes: Box<[u8]>,
    rules: Box<[u32]>,
}

/// Literals in lower case, each once, and the rules that want them.
pub(super) type Merged = Vec<(Vec<u8>, (Vec<u32>, bool))>;

/// Bring together what belongs to the same literal.
pub(super) fn merge(entries: &[(Vec<u8>, u32)]) -> Merged {
    let mut uses: HashMap<u32, u32> = HashMap::new();
    let mut sorted: Vec<(Vec<u8>, u32)> = Vec::with_capacity(entries.len());
    for (literal, rule) in entries.iter().filter(|(literal, _)| !literal.is_empty()) {
        // longer ones are cut: their rules look closer anyway
        let literal = literal.get(..usize::from(u16::MAX)).unwrap_or(literal);
        sorted.push((literal.to_ascii_lowercase(), *rule));
    }
    sorted.sort_unstable();
    sorted.dedup();
    sorted.iter().for_each(|(_, rule)| *uses.entry(*rule).or_default() += 1);
    let mut merged: Merged = Vec::new();
    for (literal, rule) in sorted {
        let is_only = uses.get(&rule) == Some(&1);
        match merged.last_mut() {
            Some((last, (rules, all))) if *last == literal => {
                rules.push(rule);
                *all &= is_only;
            }
            _ => merged.push((literal, (vec![rule], is_only))),
        }
    }
    merged
}

/// Fold cases, and with them what differs in the same bit: only a filter.
#[inline]
fn gram<const N: usize>(bytes: &[u8; N]) -> u32 {
    // a fold becomes one load; copying into an array of four becomes a call
    let whole = bytes.iter().rev().fold(0, |sum: u32, byte| sum << 8 | u32::from(*byte));
    whole | (0x2020_2020u32 >> (32 - 8 * N))
}

#[inline]
fn hash(gram: u32) -> u32 {
    gram.wrapping_mul(0x9e37_79b1) // 2^32 divided by the golden ratio
}

/// Two bits of a word: one load says of four bytes whether they may be wanted, and is wrong once in hundreds of times.
#[inline]
fn marks(hash: u32) -> u64 {
    1 << (hash & 63) | 1 << (hash >> 6 & 63)
}

/// Ordinary traffic: literals are looked for by bytes that are not in it, where they have some.
const ORDINARY: &[u8] = b"GET / HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) \
    AppleWebKit/537.36 (KHTML, like Gecko) Chrome/115.0.0.0 Safari/537.36\r\nMozilla/4.0 (compatible; MSIE 7.0; \
    Windows NT 6.1; Trident/4.0) (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/115.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8\r\n\
    Accept-Language: en-GB,en-US;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nConnection: keep-alive\r\n\
    Connection: close\r\nReferer: http://www.example.com/index.html\r\nReferer: https://\r\nCookie: session=\r\n\
    Upgrade-Insecure-Requests: 1\r\nPOST /index.php?id=1&action=\r\nContent-Type: application/x-www-form-urlencoded\r\n\
    Content-Length: 100\r\nCache-Control: no-cache\r\nPragma: no-cache\r\n\r\nHTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2024 \
    00:00:00 GMT\r\nServer: Apache/2.4 nginx\r\nLast-Modified: Tue, Wed, Thu, Fri, Sat, Sun, GMT\r\nETag: \"\r\n\
    Transfer-Encoding: chunked\r\nSet-Cookie: id=; path=/; expires=; HttpOnly; Secure\r\nVary: Accept-Encoding\r\n\
    Content-Type: text/html; charset=utf-8\r\nContent-Encoding: gzip\r\nExpires: Location: http://\r\nimage/png \
    image/jpeg image/gif text/css text/javascript application/javascript application/json application/octet-stream\r\n\
    X-Requested-With: XMLHttpRequest\r\n<!DOCTYPE html><html><head><title></title><meta http-equiv=\"content\" name=\"\
    <script type=\"text/javascript\" src=\"http://</script><link rel=\"stylesheet\" href=\"/css/style.css\"><body><div \
    class=\"content\" id=\"main\"></div><p></p><a href=\"/\"><img src=\"/images/ .jpg\" width=\"100\" height=\"\" alt=\"\"><span \
    style=\"display: none\"></span><ul><li></li></ul><br /></body></html>function(){var document.getElementById(return \
    window.location if(this. for(var i=0;i<length;i++)\0\0\0\0\xff\xff\xff\xff    \t\t\t\t0000111122223333........";

/// What bytes of ordinary traffic lose against others in the choice: more than four rare bytes can gain.
const ORDINARY_PENALTY: i64 = 60;

/// Return the place and the folded bytes of the rarest `N` bytes of a literal.
fn choose<const N: usize>(literal: &[u8], shares: &HashMap<u32, u32>, ordinary: &HashSet<u32>) -> Option<(usize, u32)> {
    let grams = literal.windows(N).filter_map(|window| window.first_chunk::<N>()).enumerate();
    let weighed = grams.map(|(at, bytes)| {
        let rare: u32 = bytes.iter().map(|byte| u32::from(rarity(*byte))).sum();
        let share = shares.get(&gram(bytes)).copied().unwrap_or(1);
        // twice as many literals with the same bytes weigh as much as a step and a half of rarity
        let penalty = if ordinary.contains(&gram(bytes)) { ORDINARY_PENALTY } else { 0 };
        (i64::from(rare) * 2 - i64::from(share.max(1).ilog2()) * 3 - penalty, at, gram(bytes))
    });
    weighed.max_by_key(|(weight, ..)| *weight).map(|(_, at, gram)| (at, gram))
}

impl Table {
    pub fn new<'a, const N: usize>(literals: impl Iterator<Item = &'a (Vec<u8>, (Vec<u32>, bool))> + Clone) -> Table {
        let mut shares: HashMap<u32, u32> = HashMap::new();
        let grams = |literal: &'a [u8]| literal.windows(N).filter_map(|window| window.first_chunk::<N>());
        for (literal, _) in literals.clone() {
            grams(literal).for_each(|bytes| *shares.entry(gram(bytes)).or_default() += 1);
        }
        let ordinary: HashSet<u32> = grams(ORDINARY).map(gram).collect();
        let mut table = Table::default();
        let (mut list, mut bytes, mut rules) = (Vec::new(), Vec::new(), Vec::new());
        for (literal, (wanted, is_only)) in literals {
            let Some((back, gram)) = choose::<N>(literal, &shares, &ordinary) else { continue };
            let (at, first) = (bytes.len() as u32, rules.len() as u32);
            bytes.extend_from_slice(literal);
            rules.extend_from_slice(wanted);
            let (length, back, count) = (literal.len() as u16, back as u16, wanted.len() as u32);
            list.push(Literal { at, length, back, gram, rules: first, count, is_only: *is_only });
        }
        (table.bytes, table.rules) = (bytes.into_boxed_slice(), rules.into_boxed_slice());
        if !list.is_empty() {
            table.index(list);
        }
        table
    }

    fn index(&mut self, mut list: Vec<Literal>) {
        let size = (list.len() * BITS_PER_LITERAL).next_power_of_two().ilog2().clamp(LEAST_BITS, MOST_BITS);
        let starts = list.len().next_power_of_two().ilog2().clamp(1, MOST_BITS);
        (self.shift, self.start_shift) = (32 - size, 32 - starts);
        list.sort_by_key(|literal| hash(literal.gram) >> self.start_shift);
        let mut bits = vec![0u64; (1usize << size) / 64].into_boxed_slice();
        self.shift = 32 - (size - 6);
        let mut begin = vec![0u32; (1 << starts) + 1].into_boxed_slice();
        for literal in &list {
            bits[(hash(literal.gram) >> self.shift) as usize] |= marks(hash(literal.gram));
            begin[(hash(literal.gram) >> self.start_shift) as usize + 1] += 1;
        }
        let mut sum = 0;
        begin.iter_mut().for_each(|count| {
            sum += *count;
            *count = sum;
        });
        (self.bits, self.starts, self.literals) = (bits, begin, list.into_boxed_slice());
    }

    /// Add the rules of all literals in `data`.
    pub fn scan<const N: usize>(&self, data: &[u8], found: &mut Found) {
        if self.literals.is_empty() {
            return;
        }
        let shift = self.shift;
        let bits = &*self.bits;
        for (at, window) in data.windows(N).enumerate() {
            let Some(bytes) = window.first_chunk::<N>() else { continue };
            let gram = gram(bytes);
            let hash = hash(gram);
            let marks = marks(hash);
            if bits.get((hash >> shift) as usize).is_some_and(|word| word & marks == marks) {
                self.compare(data, at, gram, found);
            }
        }
    }

    /// Add the rules of all literals of one byte in `data`. Such bytes are everywhere: each is looked up once.
    pub fn scan_bytes(&self, data: &[u8], found: &mut Found) {
        if self.literals.is_empty() {
            return;
        }
        let mut seen = [false; 256];
        data.iter().for_each(|byte| seen[usize::from(*byte)] = true);
        for literal in &self.literals {
            let Some(byte) = self.bytes.get(literal.at as usize) else { continue };
            if seen[usize::from(*byte)] || seen[usize::from(byte.to_ascii_uppercase())] {
                self.rules_of(literal).iter().for_each(|rule| found.add(*rule));
            }
        }
    }

    fn rules_of(&self, literal: &Literal) -> &[u32] {
        let rules = literal.rules as usize..(literal.rules + literal.count) as usize;
        self.rules.get(rules).unwrap_or_default()
    }

    #[inline]
    fn compare(&self, data: &[u8], at: usize, gram: u32, found: &mut Found) {
        let bucket = (hash(gram) >> self.start_shift) as usize;
        let (Some(from), Some(to)) = (self.starts.get(bucket), self.starts.get(bucket + 1)) else { return };
        for literal in self.literals.get(*from as usize..*to as usize).unwrap_or_default() {
            if literal.gram != gram {
                continue;
            }
            let rules = self.rules_of(literal);
            if literal.is_only && rules.first().is_some_and(|rule| found.contains(*rule)) {
                continue;
            }
            let length = usize::from(literal.length);
            let place = at.checked_sub(usize::from(literal.back)).and_then(|start| data.get(start..)?.get(..length));
            let bytes = self.bytes.get(literal.at as usize..literal.at as usize + length);
            if let (Some(place), Some(bytes)) = (place, bytes)
                && place.eq_ignore_ascii_case(bytes)
            {
                rules.iter().for_each(|rule| found.add(*rule));
            }
        }
    }

    pub fn heap_bytes(&self) -> usize {
        let words = self.bits.len() * 8 + (self.starts.len() + self.rules.len()) * 4;
        words + self.literals.len() * size_of::<Literal>() + self.bytes.len()
    }
}
