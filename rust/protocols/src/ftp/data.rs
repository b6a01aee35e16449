//! A file by FTP: the whole flow is its content.

use std::any::Any;

use super::transaction::{Expected, Transfer};
use crate::{
    Body, BodyState, BufferInfo, COMPLETE, Custom, Json, KeywordInfo, ParseError, Parser, Probe, Protocol, RecordInfo,
    Settings, Transaction, Transport, View, Way, Ways,
};

/// Bytes of a file that rules see at once; the default of `request-body-limit` for HTTP, which has the same purpose.
const MOST_FILE: usize = 100 << 10;

/// Content has come.
const BODY: u8 = 1;

mod buffer {
    pub const FILE_DATA: usize = 0;
    pub const FILE_NAME: usize = 1;
}

const fn of_file(keyword: &'static str, aliases: &'static [&'static str], is_growing: bool) -> BufferInfo {
    let (ways, progress) = (Ways::Both, BODY);
    BufferInfo { keyword, aliases, modifiers: &[], ways, progress, is_multiple: true, is_growing }
}

/// FTP's data. Nothing is recognised as such: see [`data_parser`].
pub static DATA: Protocol = Protocol {
    name: "ftp-data",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[],
    probe: |_| Probe::No,
    parser: |_: &Settings, _| Box::new(FtpData { transfer: None, is_removed: false }),
    buffers: &[of_file("file.data", &["file_data"], true), of_file("file.name", &[], false)],
    numbers: &[],
    keywords: &[KeywordInfo {
        keyword: "ftpdata_command",
        aliases: &["ftpdata.command"],
        ways: Ways::Both,
        progress: BODY,
        parse: parse_command,
    }],
    states: &[],
    records: &[RecordInfo { event_type: "ftp_data", to_server: COMPLETE, to_client: COMPLETE, way: Way::ToServer }],
    events: &[],
};

/// Make the parser of a flow that an FTP session announced. Ways are of the data's flow, whose client sent the SYN:
/// in active mode that is the FTP server.
pub fn data_parser(expected: &Expected) -> Box<dyn Parser> {
    let to_server = match expected.transfer {
        Transfer::Store => Way::ToServer,
        Transfer::Retrieve => Way::ToClient,
    };
    let way = if expected.is_active { to_server.reverse() } else { to_server };
    let file = Body::new(&expected.name, way, MOST_FILE);
    Box::new(FtpData {
        transfer: Some(Content { expected: expected.clone(), files: [file], progress: BODY }),
        is_removed: false,
    })
}

struct Content {
    expected: Expected,
    files: [Body; 1],
    progress: u8,
}

struct FtpData {
    transfer: Option<Content>,
    is_removed: bool,
}

impl Parser for FtpData {
    fn parse(&mut self, way: Way, data: &[u8], is_end: bool) -> Result<usize, ParseError> {
        if let Some(content) = &mut self.transfer {
            let [file] = &mut content.files;
            if file.way == way && content.progress != COMPLETE {
                file.append(data);
                if is_end {
                    file.close(if file.has_gaps { BodyState::Truncated } else { BodyState::Closed });
                    content.progress = COMPLETE;
                }
            }
        }
        Ok(data.len())
    }

    fn gap(&mut self, way: Way, bytes: u64) -> Result<(), ParseError> {
        if let Some(Content { files: [file], .. }) = &mut self.transfer
            && file.way == way
        {
            file.has_gaps = true;
            file.size = file.size.saturating_add(bytes);
        }
        Ok(())
    }

    fn range(&self) -> (u64, u64) {
        (u64::from(self.is_removed), u64::from(self.is_removed || self.transfer.is_some()))
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.transfer.as_ref().filter(|_| id == 0).map(|content| content as _)
    }

    fn remove(&mut self, id: u64) {
        if id == 0 && self.transfer.take().is_some() {
            self.is_removed = true;
        }
    }

    fn finish(&mut self) {
        if let Some(content) = &mut self.transfer {
            content.files[0].close(BodyState::Truncated);
            content.progress = COMPLETE;
        }
    }

    fn heap_bytes(&self) -> usize {
        self.transfer.as_ref().map_or(0, |content| content.files[0].heap_bytes() + content.expected.name.capacity())
    }
}

impl Transaction for Content {
    fn progress(&self, _way: Way) -> u8 {
        self.progress
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        let file = self.files.get(nth).filter(|file| file.way == way)?;
        match index {
            buffer::FILE_DATA => Some(file.view()),
            buffer::FILE_NAME => Some(View::whole(&file.name)),
            _ => None,
        }
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open("ftp_data");
        json.text("filename", &self.expected.name);
        json.text("command", self.expected.transfer.command());
        json.close();
    }

    fn files(&self) -> &[Body] {
        &self.files
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Custom for Transfer {
    fn matches(&self, transaction: &dyn Transaction, _way: Way) -> bool {
        transaction.as_any().downcast_ref::<Content>().is_some_and(|content| content.expected.transfer == *self)
    }
}

fn parse_command(argument: &str) -> Result<Box<dyn Custom>, String> {
    match argument.trim().to_ascii_lowercase().as_str() {
        "retr" => Ok(Box::new(Transfer::Retrieve)),
        "stor" => Ok(Box::new(Transfer::Store)),
        other => Err(format!("{other} is neither retr nor stor")),
    }
}
