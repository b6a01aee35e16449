//! What rules can ask of DNP3.

use super::application::Fragment;
use crate::framed::{buffer, number};
use crate::{BufferInfo, COMPLETE, Custom, KeywordInfo, NumberInfo, Transaction, Way, Ways};

pub static BUFFERS: [BufferInfo; 1] = [BufferInfo { aliases: &["dnp3.data"], ..buffer("dnp3_data") }];

pub static NUMBERS: [NumberInfo; 1] = [NumberInfo { aliases: &["dnp3.func"], ..number("dnp3_func", 8, FUNCTIONS) }];

const FUNCTIONS: &[(&str, u64)] = &[
    ("confirm", 0),
    ("read", 1),
    ("write", 2),
    ("select", 3),
    ("operate", 4),
    ("direct_operate", 5),
    ("direct_operate_nr", 6),
    ("immed_freeze", 7),
    ("immed_freeze_nr", 8),
    ("freeze_clear", 9),
    ("freeze_clear_nr", 10),
    ("freeze_at_time", 11),
    ("freeze_at_time_nr", 12),
    ("cold_restart", 13),
    ("warm_restart", 14),
    ("initialize_data", 15),
    ("initialize_appl", 16),
    ("start_appl", 17),
    ("stop_appl", 18),
    ("save_config", 19),
    ("enable_unsolicited", 20),
    ("disable_unsolicited", 21),
    ("assign_class", 22),
    ("delay_measure", 23),
    ("record_current_time", 24),
    ("open_file", 25),
    ("close_file", 26),
    ("delete_file", 27),
    ("get_file_info", 28),
    ("authenticate_file", 29),
    ("abort_file", 30),
    ("activate_config", 31),
    ("authenticate_req", 32),
    ("authenticate_err", 33),
    ("response", 129),
    ("unsolicited_response", 130),
    ("authenticate_resp", 131),
];

const INDICATIONS: [(&str, u16); 16] = [
    ("all_stations", 0x0100),
    ("class_1_events", 0x0200),
    ("class_2_events", 0x0400),
    ("class_3_events", 0x0800),
    ("need_time", 0x1000),
    ("local_control", 0x2000),
    ("device_trouble", 0x4000),
    ("device_restart", 0x8000),
    ("no_func_code_support", 0x0001),
    ("object_unknown", 0x0002),
    ("parameter_error", 0x0004),
    ("event_buffer_overflow", 0x0008),
    ("already_executing", 0x0010),
    ("config_corrupt", 0x0020),
    ("reserved_2", 0x0040),
    ("reserved_1", 0x0080),
];

/// Names of the internal indications that are set.
pub fn indicators(value: u16) -> impl Iterator<Item = &'static str> {
    INDICATIONS.iter().filter(move |(_, bit)| value & bit != 0).map(|(name, _)| *name)
}

pub static KEYWORDS: [KeywordInfo; 2] = [
    KeywordInfo {
        keyword: "dnp3_ind",
        aliases: &["dnp3.ind"],
        ways: Ways::ToClient,
        progress: COMPLETE,
        parse: parse_indications,
    },
    KeywordInfo {
        keyword: "dnp3_obj",
        aliases: &["dnp3.obj"],
        ways: Ways::Both,
        progress: COMPLETE,
        parse: parse_object,
    },
];

/// Some of these bits are set.
struct Indications(u16);

struct Group {
    group: u8,
    variation: u8,
}

/// A number, in decimal or with `0x`.
fn integer(text: &str) -> Option<u16> {
    match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn parse_indications(argument: &str) -> Result<Box<dyn Custom>, String> {
    let mut bits = 0;
    for name in argument.split([',', '|']).map(str::trim) {
        let named = INDICATIONS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, bit)| *bit);
        bits |= named.or_else(|| integer(name)).ok_or_else(|| format!("'{name}' is no internal indication"))?;
    }
    Ok(Box::new(Indications(bits)))
}

fn parse_object(argument: &str) -> Result<Box<dyn Custom>, String> {
    let (group, variation) = argument.split_once(',').ok_or("dnp3_obj needs 'group, variation'")?;
    let number = |text: &str| {
        let value = integer(text.trim()).and_then(|value| u8::try_from(value).ok());
        value.ok_or_else(|| format!("'{text}' is no number of 8 bits"))
    };
    Ok(Box::new(Group { group: number(group)?, variation: number(variation)? }))
}

fn fragment(transaction: &dyn Transaction, way: Way) -> Option<&Fragment> {
    transaction.as_any().downcast_ref::<Fragment>().filter(|fragment| fragment.way() == way)
}

impl Custom for Indications {
    fn matches(&self, transaction: &dyn Transaction, way: Way) -> bool {
        fragment(transaction, way).and_then(|fragment| fragment.indications).is_some_and(|is| is & self.0 != 0)
    }
}

impl Custom for Group {
    fn matches(&self, transaction: &dyn Transaction, way: Way) -> bool {
        let is_it = |object: &super::objects::Object| (object.group, object.variation) == (self.group, self.variation);
        fragment(transaction, way).is_some_and(|fragment| fragment.objects.iter().any(is_it))
    }
}
