//! What the operator wants: which fields are logged, and what happens to encrypted data.

use crate::Settings;

/// Fields of the log record, as bits.
pub mod field {
    pub const VERSION: u32 = 1;
    pub const SUBJECT: u32 = 1 << 1;
    pub const ISSUER: u32 = 1 << 2;
    pub const SERIAL: u32 = 1 << 3;
    pub const FINGERPRINT: u32 = 1 << 4;
    pub const NOT_BEFORE: u32 = 1 << 5;
    pub const NOT_AFTER: u32 = 1 << 6;
    pub const SNI: u32 = 1 << 7;
    pub const CERTIFICATE: u32 = 1 << 8;
    pub const CHAIN: u32 = 1 << 9;
    pub const RESUMED: u32 = 1 << 10;
    pub const JA3: u32 = 1 << 11;
    pub const JA3S: u32 = 1 << 12;
    pub const JA4: u32 = 1 << 13;
    pub const ALT_NAMES: u32 = 1 << 14;
    pub const CLIENT_ALPNS: u32 = 1 << 15;
    pub const SERVER_ALPNS: u32 = 1 << 16;
    pub const CLIENT: u32 = 1 << 17;
    pub const CLIENT_CERTIFICATE: u32 = 1 << 18;
    pub const CLIENT_CHAIN: u32 = 1 << 19;
    pub const CLIENT_HANDSHAKE: u32 = 1 << 20;
    pub const SERVER_HANDSHAKE: u32 = 1 << 21;

    /// What is logged without `extended`.
    pub const BASIC: u32 = SUBJECT | ISSUER | RESUMED | ALT_NAMES;
    /// What is logged with it.
    pub const EXTENDED: u32 = BASIC
        | VERSION
        | SERIAL
        | FINGERPRINT
        | NOT_BEFORE
        | NOT_AFTER
        | SNI
        | JA3
        | JA3S
        | CLIENT_ALPNS
        | SERVER_ALPNS
        | CLIENT;

    /// Names in `custom`.
    pub const NAMES: &[(&str, u32)] = &[
        ("version", VERSION),
        ("subject", SUBJECT),
        ("issuer", ISSUER),
        ("serial", SERIAL),
        ("fingerprint", FINGERPRINT),
        ("not_before", NOT_BEFORE),
        ("not_after", NOT_AFTER),
        ("sni", SNI),
        ("certificate", CERTIFICATE),
        ("chain", CHAIN),
        ("session_resumed", RESUMED),
        ("ja3", JA3),
        ("ja3s", JA3S),
        ("ja4", JA4),
        ("subjectaltname", ALT_NAMES),
        ("client_alpns", CLIENT_ALPNS),
        ("server_alpns", SERVER_ALPNS),
        ("client", CLIENT),
        ("client_certificate", CLIENT_CERTIFICATE),
        ("client_chain", CLIENT_CHAIN),
        ("client_handshake", CLIENT_HANDSHAKE),
        ("server_handshake", SERVER_HANDSHAKE),
    ];
}

/// `app-layer.protocols.tls.encryption-handling`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handling {
    /// `default` and `track-only`: the session stays a session, what is encrypted is not looked at.
    Track,
    /// Once the handshake is over, so is the session.
    Bypass,
    /// Record headers are followed to the end.
    Full,
}

/// All of it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bits of [`field`].
    pub fields: u32,
    pub is_resumption_logged: bool,
    pub handling: Handling,
    pub has_ja3: bool,
    pub has_ja4: bool,
}

impl Options {
    /// Read them.
    pub fn new(settings: &Settings) -> Options {
        // `auto`, the default, means "if a rule asks for it": nobody tells a parser that, and a hash is cheap
        let is_on = |name: &str| settings.text(name).is_none_or(|text| text == "auto" || settings.flag(name, true));
        let (has_ja3, has_ja4) =
            (is_on("app-layer.protocols.tls.ja3-fingerprints"), is_on("app-layer.protocols.tls.ja4-fingerprints"));
        Options {
            fields: logged_fields(settings),
            is_resumption_logged: settings.flag("outputs.eve-log.types.tls.session-resumption", true),
            handling: match settings.text("app-layer.protocols.tls.encryption-handling") {
                Some("bypass") => Handling::Bypass,
                Some("full") => Handling::Full,
                _ => Handling::Track,
            },
            has_ja3,
            has_ja4,
        }
    }

    /// Return whether `field` is logged.
    pub fn logs(&self, field: u32) -> bool {
        self.fields & field != 0
    }
}

/// `custom` says all; else `extended` (as in the shipped configuration) or the basic ones, and `ja4` on request.
fn logged_fields(settings: &Settings) -> u32 {
    let custom = items(settings, "outputs.eve-log.types.tls.custom");
    if !custom.is_empty() {
        let bits = custom.iter().filter_map(|item| field::NAMES.iter().find(|(name, _)| name == item));
        return bits.fold(0, |fields, (_, bit)| fields | bit);
    }
    let is_extended = settings.flag("outputs.eve-log.types.tls.extended", true);
    let ja4 = if settings.flag("outputs.eve-log.types.tls.ja4", false) { field::JA4 } else { 0 };
    (if is_extended { field::EXTENDED } else { field::BASIC }) | ja4
}

/// Return the items of a list, however it was flattened: `[a, b]` as one text, or `name.0`, `name.1`.
pub(crate) fn items<'a>(settings: &'a Settings, name: &str) -> Vec<&'a str> {
    let prefix = format!("{name}.");
    let mut texts: Vec<&str> = settings.text(name).into_iter().collect();
    let numbered: Vec<String> = settings.under(&prefix).map(|(key, _)| key.to_owned()).collect();
    texts.extend(numbered.iter().filter_map(|key| settings.text(key)));
    let is_between = |letter: char| matches!(letter, '[' | ']' | ',' | '"' | '\'') || letter.is_whitespace();
    texts.iter().flat_map(|text| text.split(is_between)).filter(|item| !item.is_empty()).collect()
}
