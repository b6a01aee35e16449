//! How one flow's HTTP is to be read.

use super::uri::UriConfig;
use crate::Settings;

const PREFIX: &str = "app-layer.protocols.http.libhtp.default-config.";
/// The default configuration file's `request-body-limit` and `response-body-limit`.
const BODY_LIMIT: u64 = 100 << 10;
/// More of one body is never held, whatever the settings say: 0 there means "no limit", and memory is one.
const MOST_BODY: u64 = 256 << 10;
/// The default of `meta-field-limit`.
const FIELD_LIMIT: u64 = 18432;
/// A line must fit into what a parser is shown ([`crate::MOST_HELD`]), with something behind it to see that it is over.
const MOST_FIELD: u64 = (crate::MOST_HELD as u64) - 1024;
/// The default of `compression-bomb-limit`.
const BOMB_LIMIT: u64 = 1 << 20;
/// Each layer costs 43 KiB while its body arrives.
const MOST_LAYERS: u64 = 8;

/// Settings under `app-layer.protocols.http.libhtp.default-config`.
pub struct Config {
    /// Bytes of a body that are looked at, by way; 0: all.
    pub body_limits: [u64; 2],
    /// Layers of `Content-Encoding` that are undone, by way.
    pub layers: [usize; 2],
    /// `lzma` counts as an encoding.
    pub is_lzma_on: bool,
    /// Bytes out of one layer above which the ratio is looked at.
    pub bomb_limit: u64,
    /// Longest line of a head.
    pub field_limit: usize,
    /// How `http.uri` is made.
    pub uri: UriConfig,
    /// EVE lists all headers, by way.
    /// All that is known is logged, and not only the first few members.
    pub is_extended: bool,
    pub dumps_headers: [bool; 2],
}

impl Config {
    /// Read it; what is not set has the default of Suricata's configuration file.
    pub fn new(settings: &Settings) -> Config {
        let name = |key: &str| format!("{PREFIX}{key}");
        let layers = |key: &str, default| {
            let layers = settings.number(&name(key), default).min(MOST_LAYERS);
            usize::try_from(layers).unwrap_or_default()
        };
        let field_limit = match settings.number(&name("meta-field-limit"), FIELD_LIMIT) {
            0 => MOST_FIELD, // "no limit"
            other => other.min(MOST_FIELD),
        };
        let dump = settings.text("outputs.eve-log.types.http.dump-all-headers").unwrap_or_default();
        Config {
            body_limits: [
                settings.number(&name("request-body-limit"), BODY_LIMIT),
                settings.number(&name("response-body-limit"), BODY_LIMIT),
            ],
            layers: [
                layers("request-body-decompress-layer-limit", 2),
                layers("response-body-decompress-layer-limit", 2),
            ],
            is_lzma_on: settings.flag(&name("lzma-enabled"), false),
            bomb_limit: settings.number(&name("compression-bomb-limit"), BOMB_LIMIT),
            field_limit: usize::try_from(field_limit).unwrap_or(crate::MOST_HELD),
            uri: UriConfig::new(settings, PREFIX),
            is_extended: settings.flag("outputs.eve-log.types.http.extended", settings.is_stock_output()),
            dumps_headers: [matches!(dump, "both" | "request"), matches!(dump, "both" | "response")],
        }
    }

    /// Return how many bytes of a body of that way are held at most.
    pub fn most_held(&self, way: crate::Way) -> usize {
        let limit = match self.body_limits[way as usize] {
            0 => MOST_BODY,
            limit => limit.min(MOST_BODY),
        };
        usize::try_from(limit).unwrap_or(crate::MOST_HELD)
    }
}
