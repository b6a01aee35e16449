//! Names of the numbers in DNS messages, from IANA's registry "Domain Name System (DNS) Parameters".

/// Types of records. Rules may write them in capitals or not.
pub const RRTYPES: &[(&str, u64)] = &[
    ("A", 1),
    ("NS", 2),
    ("MD", 3),
    ("MF", 4),
    ("CNAME", 5),
    ("SOA", 6),
    ("MB", 7),
    ("MG", 8),
    ("MR", 9),
    ("NULL", 10),
    ("WKS", 11),
    ("PTR", 12),
    ("HINFO", 13),
    ("MINFO", 14),
    ("MX", 15),
    ("TXT", 16),
    ("RP", 17),
    ("AFSDB", 18),
    ("X25", 19),
    ("ISDN", 20),
    ("RT", 21),
    ("NSAP", 22),
    ("NSAPPTR", 23),
    ("SIG", 24),
    ("KEY", 25),
    ("PX", 26),
    ("GPOS", 27),
    ("AAAA", 28),
    ("LOC", 29),
    ("NXT", 30),
    ("SRV", 33),
    ("ATMA", 34),
    ("NAPTR", 35),
    ("KX", 36),
    ("CERT", 37),
    ("A6", 38),
    ("DNAME", 39),
    ("OPT", 41),
    ("APL", 42),
    ("DS", 43),
    ("SSHFP", 44),
    ("IPSECKEY", 45),
    ("RRSIG", 46),
    ("NSEC", 47),
    ("DNSKEY", 48),
    ("DHCID", 49),
    ("NSEC3", 50),
    ("NSEC3PARAM", 51),
    ("TLSA", 52),
    ("HIP", 55),
    ("CDS", 59),
    ("CDNSKEY", 60),
    ("SVCB", 64),
    ("HTTPS", 65),
    ("SPF", 99),
    ("TKEY", 249),
    ("TSIG", 250),
    ("IXFR", 251),
    ("AXFR", 252),
    ("MAILA", 254),
    ("ANY", 255),
    ("URI", 256),
    ("CAA", 257),
    ("a", 1),
    ("ns", 2),
    ("cname", 5),
    ("soa", 6),
    ("null", 10),
    ("ptr", 12),
    ("hinfo", 13),
    ("mx", 15),
    ("txt", 16),
    ("aaaa", 28),
    ("srv", 33),
    ("opt", 41),
    ("sshfp", 44),
    ("https", 65),
    ("any", 255),
];

/// Answers' codes.
pub const RCODES: &[(&str, u64)] = &[
    ("NOERROR", 0),
    ("FORMERR", 1),
    ("SERVFAIL", 2),
    ("NXDOMAIN", 3),
    ("NOTIMP", 4),
    ("REFUSED", 5),
    ("YXDOMAIN", 6),
    ("YXRRSET", 7),
    ("NXRRSET", 8),
    ("NOTAUTH", 9),
    ("NOTZONE", 10),
    ("noerror", 0),
    ("formerr", 1),
    ("servfail", 2),
    ("nxdomain", 3),
    ("notimp", 4),
    ("refused", 5),
];

/// What a message asks for.
pub const OPCODES: &[(&str, u64)] =
    &[("query", 0), ("iquery", 1), ("status", 2), ("notify", 4), ("update", 5), ("dso", 6)];

/// Opcodes from here on are in no registry.
pub const FIRST_UNKNOWN_OPCODE: u8 = 7;

fn name_of(table: &[(&'static str, u64)], value: u64) -> Option<&'static str> {
    table.iter().find(|(_, number)| *number == value).map(|(name, _)| *name)
}

/// Return a type's name, in capitals.
pub fn rrtype_name(rrtype: u16) -> Option<&'static str> {
    name_of(RRTYPES, rrtype.into())
}

/// Return the number of a type by its name in capitals.
pub fn rrtype_number(name: &str) -> Option<u16> {
    RRTYPES.iter().find(|(other, _)| *other == name).and_then(|(_, number)| u16::try_from(*number).ok())
}

/// Return a type's name or its number.
pub fn rrtype_text(rrtype: u16) -> String {
    rrtype_name(rrtype).map_or_else(|| rrtype.to_string(), str::to_owned)
}

/// Return a code's name or its number.
pub fn rcode_text(rcode: u8) -> String {
    name_of(RCODES, rcode.into()).map_or_else(|| rcode.to_string(), str::to_owned)
}
