//! What an S7comm PDU says.

use super::names;
use crate::framed::{cut, log_named, name_of};
use crate::pair::Said;
use crate::{Json, Reader};

/// Variables of one request: controllers accept 20.
const MOST_ITEMS: usize = 64;
/// Names of blocks and program invocations have at most some twenty characters.
const MOST_NAME: usize = 255;
/// What is kept of a PDU's data: the largest negotiated PDU is 960 bytes.
const MOST_DATA: usize = 4096;

const PLUS: u8 = 0x72;

pub mod rosctr {
    pub const JOB: u8 = 1;
    pub const ACK: u8 = 2;
    pub const ACK_DATA: u8 = 3;
    pub const USERDATA: u8 = 7;
}

pub mod function {
    pub const READ: u8 = 0x04;
    pub const WRITE: u8 = 0x05;
    pub const REQUEST_DOWNLOAD: u8 = 0x1a;
    pub const DOWNLOAD_ENDED: u8 = 0x1c;
    pub const START_UPLOAD: u8 = 0x1d;
    pub const END_UPLOAD: u8 = 0x1f;
    pub const PI_SERVICE: u8 = 0x28;
    pub const PLC_STOP: u8 = 0x29;
}

/// A variable that is read or written.
#[derive(Debug)]
struct Item {
    area: u8,
    db: u16,
    /// In bits, but for counters and timers.
    address: u32,
    length: u16,
}

impl Item {
    /// The address as rules and logs count it: bytes, but for counters and timers their number.
    fn place(&self) -> u32 {
        if matches!(self.area, 0x1c | 0x1d) { self.address } else { self.address >> 3 }
    }
}

#[derive(Debug, Default)]
pub struct Message {
    protocol: u8,
    rosctr: u8,
    reference: u16,
    pub function: Option<u8>,
    error: Option<(u8, u8)>,
    /// Type (0 push, 4 request, 8 response), group and subfunction.
    userdata: Option<(u8, u8, u8)>,
    items: Vec<Item>,
    item_data: Vec<Vec<u8>>,
    pi_service: Option<Vec<u8>>,
    block: Option<Vec<u8>>,
    data: Vec<u8>,
    pub is_right: bool,
}

impl Message {
    /// Read a PDU; `None` where it is of another protocol.
    pub fn read(bytes: &[u8]) -> Option<Message> {
        let mut reader = Reader::new(bytes);
        let mut message = Message { protocol: reader.u8()?, ..Message::default() };
        match message.protocol {
            PLUS => {
                message.rosctr = bytes.get(1).copied().unwrap_or(0); // its version, but nothing is asked of it
                message.is_right = true;
            }
            0x32 => message.is_right = message.read_classic(&mut reader).is_some(),
            _ => return None,
        }
        Some(message)
    }

    fn read_classic(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        self.rosctr = reader.u8()?;
        reader.take(2)?;
        self.reference = reader.be16()?;
        let (parameter_length, data_length) = (reader.be16()?, reader.be16()?);
        if matches!(self.rosctr, rosctr::ACK | rosctr::ACK_DATA) {
            self.error = Some((reader.u8()?, reader.u8()?));
        }
        let parameter = reader.take(usize::from(parameter_length))?;
        let data = reader.take(usize::from(data_length))?;
        self.data = cut(data, MOST_DATA);
        let mut parameter = Reader::new(parameter);
        match self.rosctr {
            rosctr::USERDATA => self.read_userdata(&mut parameter),
            rosctr::JOB | rosctr::ACK | rosctr::ACK_DATA => {
                self.function = parameter.u8();
                if self.rosctr == rosctr::JOB { self.read_job(&mut parameter, data) } else { Some(()) }
            }
            _ => None,
        }
    }

    fn read_userdata(&mut self, parameter: &mut Reader<'_>) -> Option<()> {
        parameter.take(3)?; // 00 01 12
        let _length = parameter.u8()?;
        let _method = parameter.u8()?;
        let (both, subfunction) = (parameter.u8()?, parameter.u8()?);
        self.userdata = Some((both >> 4, both & 0x0f, subfunction));
        Some(())
    }

    fn read_job(&mut self, parameter: &mut Reader<'_>, data: &[u8]) -> Option<()> {
        match self.function? {
            function::READ | function::WRITE => {
                self.read_items(parameter)?;
                if self.function == Some(function::WRITE) {
                    self.read_values(data);
                }
            }
            function::REQUEST_DOWNLOAD..=function::DOWNLOAD_ENDED | function::START_UPLOAD => {
                parameter.take(7)?;
                self.block = Some(name(parameter)?);
            }
            function::PI_SERVICE => {
                parameter.take(7)?;
                let length = parameter.be16()?;
                self.block = Some(cut(parameter.take(usize::from(length))?, MOST_NAME));
                self.pi_service = Some(name(parameter)?);
            }
            function::PLC_STOP => {
                parameter.take(5)?;
                self.pi_service = Some(name(parameter)?);
            }
            _ => {}
        }
        Some(())
    }

    fn read_items(&mut self, parameter: &mut Reader<'_>) -> Option<()> {
        let count = usize::from(parameter.u8()?);
        for nth in 0..count.min(MOST_ITEMS) {
            let (_kind, length) = (parameter.u8()?, usize::from(parameter.u8()?));
            let mut item = Reader::new(parameter.take(length)?);
            if nth + 1 < count {
                parameter.take(length % 2)?; // items begin at even places
            }
            match item.u8()? {
                0x10 => {
                    let (_size, length, db) = (item.u8()?, item.be16()?, item.be16()?);
                    let (area, address) = (item.u8()?, item.be24()?);
                    self.items.push(Item { area, db, address, length });
                }
                0xb0 => {
                    // several pieces of data blocks: count, then length, block and byte of each
                    for _ in 0..usize::from(item.u8()?).min(MOST_ITEMS) {
                        let (length, db, byte) = (item.u8()?, item.be16()?, item.be16()?);
                        self.items.push(Item {
                            area: 0x84,
                            db,
                            address: u32::from(byte) << 3,
                            length: u16::from(length),
                        });
                    }
                }
                _ => {} // symbolic and drive addresses
            }
        }
        Some(())
    }

    /// The values of a write: return code, transport size, length, bytes, and one more to an even place.
    fn read_values(&mut self, data: &[u8]) {
        let mut reader = Reader::new(data);
        while self.item_data.len() < MOST_ITEMS {
            let Some((size, length)) = (|| Some(((reader.u8()?, reader.u8()?).1, reader.be16()?)))() else { return };
            // sizes 3 to 5 count bits, the others bytes
            let bytes = if (3..=5).contains(&size) { usize::from(length).div_ceil(8) } else { usize::from(length) };
            let Some(value) = reader.take(bytes) else { return };
            self.item_data.push(value.to_vec());
            if reader.take(bytes % 2).is_none() {
                return;
            }
        }
    }

    fn log_items(&self, json: &mut Json) {
        if !self.items.is_empty() {
            json.open_array("items");
            for item in &self.items {
                json.open_element();
                let area = name_of(names::AREAS, u64::from(item.area)).unwrap_or("unknown");
                json.text("area", area);
                json.number("db", u64::from(item.db));
                json.number("address", u64::from(item.place()));
                json.number("length", u64::from(item.length));
                json.close();
            }
            json.close_array();
        }
    }

    /// Whether it asks for something to be done.
    pub fn is_job(&self) -> bool {
        self.protocol != PLUS && self.rosctr == rosctr::JOB
    }
}

/// A name with its length before it.
fn name(reader: &mut Reader<'_>) -> Option<Vec<u8>> {
    let length = usize::from(reader.u8()?);
    reader.take(length).map(|bytes| cut(bytes, MOST_NAME))
}

impl Said for Message {
    const NAME: &'static str = "s7comm";
    const IS_PAIRED: bool = true;

    fn waits(&self) -> bool {
        self.is_job() || self.userdata.is_some_and(|(kind, ..)| kind == 4)
    }

    fn is_answer(&self) -> bool {
        let is_ack = self.protocol != PLUS && matches!(self.rosctr, rosctr::ACK | rosctr::ACK_DATA);
        is_ack || self.userdata.is_some_and(|(kind, ..)| kind == 8)
    }

    fn answers(&self, request: &Message) -> bool {
        self.reference == request.reference && self.userdata.is_some() == request.userdata.is_some()
    }

    fn buffer(&self, index: usize, nth: usize) -> Option<&[u8]> {
        match index {
            3 => self.item_data.get(nth).map(Vec::as_slice),
            _ if nth > 0 => None,
            0 => (!self.data.is_empty()).then_some(&self.data),
            1 => self.pi_service.as_deref(),
            2 => self.block.as_deref(),
            _ => None,
        }
    }

    fn number(&self, index: usize, nth: usize) -> Option<u64> {
        let item = self.items.get(nth);
        match index {
            2 => item.map(|item| u64::from(item.area)),
            3 => item.map(|item| u64::from(item.db)),
            4 => item.map(|item| u64::from(item.place())),
            5 => item.map(|item| u64::from(item.length)),
            _ if nth > 0 => None,
            10 => Some(u64::from(self.protocol)),
            _ if self.protocol == PLUS => None,
            0 => Some(u64::from(self.rosctr)),
            1 => self.function.map(u64::from),
            6 => self.userdata.map(|(_, group, _)| u64::from(group)),
            7 => self.userdata.map(|(.., subfunction)| u64::from(subfunction)),
            8 => self.error.map(|(class, _)| u64::from(class)),
            9 => self.error.map(|(_, code)| u64::from(code)),
            11 => Some(u64::from(self.reference)),
            _ => None,
        }
    }

    fn log(&self, json: &mut Json) {
        if self.protocol == PLUS {
            json.text("protocol", "s7comm_plus");
            json.number("version", u64::from(self.rosctr));
            return;
        }
        log_named(json, "rosctr", names::ROSCTR, u64::from(self.rosctr));
        json.number("pdu_reference", u64::from(self.reference));
        if let Some(function) = self.function {
            log_named(json, "function", names::FUNCTIONS, u64::from(function));
        }
        if let Some((class, code)) = self.error {
            json.number("error_class", u64::from(class));
            json.number("error_code", u64::from(code));
        }
        if let Some((kind, group, subfunction)) = self.userdata {
            json.open("userdata");
            json.text(
                "type",
                match kind {
                    4 => "request",
                    8 => "response",
                    _ => "push",
                },
            );
            log_named(json, "group", names::GROUPS, u64::from(group));
            json.number("subfunction", u64::from(subfunction));
            json.close();
        }
        self.log_items(json);
        for (key, value) in [("pi_service", &self.pi_service), ("block", &self.block)] {
            if let Some(value) = value {
                json.text(key, value);
            }
        }
        json.number("data_length", self.data.len() as u64);
    }

    fn heap_bytes(&self) -> usize {
        let values = self.item_data.iter().map(|value| value.capacity() + size_of::<Vec<u8>>()).sum::<usize>();
        let texts = [&self.pi_service, &self.block].into_iter().flatten().map(Vec::capacity).sum::<usize>();
        self.data.capacity() + self.items.capacity() * size_of::<Item>() + values + texts
    }
}
