//! FTP's data connection: one file. Nothing in it tells what it is, so there is no probe: the sensor knows from the
//! control connection which flow it will be, and hands the name and the command over as settings (`ftp-data.filename`,
//! `ftp-data.command`).

use std::any::Any;

use crate::framed::buffer;
use crate::{
    Body, BodyState, BufferInfo, COMPLETE, Custom, Json, KeywordInfo, ParseError, Parser, Probe, Protocol, RecordInfo,
    Settings, Transaction, Transport, View, Way, Ways,
};

/// The window of a file that rules see: twice Suricata's `content-inspect-window` for FTP-like bodies of 32 KiB.
const MOST_BODY: usize = 64 << 10;
const STARTED: u8 = 1;

static BUFFERS: [BufferInfo; 2] = [
    BufferInfo { aliases: &["file_data"], progress: STARTED, is_growing: true, ..buffer("file.data") },
    BufferInfo { progress: STARTED, ..buffer("file.name") },
];

/// FTP's data connection.
pub static PROTOCOL: Protocol = Protocol {
    name: "ftp-data",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[],
    probe: |_| Probe::No,
    parser: |settings: &Settings, _| {
        let text = |name| settings.text(name).unwrap_or_default();
        let transfer = Transfer {
            command: text("ftp-data.command").to_ascii_uppercase(),
            name: text("ftp-data.filename").as_bytes().to_vec(),
            files: Vec::new(),
            is_over: false,
        };
        Box::new(FtpData { transfer: Some(transfer) })
    },
    buffers: &BUFFERS,
    numbers: &[],
    keywords: &[KeywordInfo {
        keyword: "ftpdata_command",
        aliases: &["ftpdata.command"],
        ways: Ways::Both,
        progress: STARTED,
        parse: |argument| match argument.trim().to_ascii_lowercase().as_str() {
            "stor" => Ok(Box::new(IsCommand("STOR"))),
            "retr" => Ok(Box::new(IsCommand("RETR"))),
            other => Err(format!("'{other}' is neither stor nor retr")),
        },
    }],
    states: &[],
    records: &[RecordInfo { event_type: "ftp_data", to_server: COMPLETE, to_client: COMPLETE, way: Way::ToServer }],
    events: &[],
};

struct FtpData {
    transfer: Option<Transfer>,
}

struct Transfer {
    command: String,
    name: Vec<u8>,
    files: Vec<Body>,
    is_over: bool,
}

impl Parser for FtpData {
    fn parse(&mut self, way: Way, data: &[u8], is_end: bool) -> Result<usize, ParseError> {
        let Some(transfer) = self.transfer.as_mut() else { return Ok(data.len()) };
        if !data.is_empty() {
            if transfer.files.is_empty() {
                transfer.files.push(Body::new(&transfer.name, way, MOST_BODY));
            }
            transfer.files.iter_mut().filter(|body| body.way == way).for_each(|body| body.append(data));
        }
        if is_end && transfer.files.iter().any(|body| body.way == way) {
            transfer.end(BodyState::Closed);
        }
        Ok(data.len())
    }

    fn gap(&mut self, way: Way, bytes: u64) -> Result<(), ParseError> {
        let files = self.transfer.iter_mut().flat_map(|transfer| transfer.files.iter_mut());
        for body in files.filter(|body| body.way == way) {
            body.has_gaps = true;
            body.size = body.size.saturating_add(bytes);
        }
        Ok(())
    }

    fn range(&self) -> (u64, u64) {
        if self.transfer.is_some() { (0, 1) } else { (1, 1) }
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.transfer.as_ref().filter(|_| id == 0).map(|transfer| transfer as _)
    }

    fn remove(&mut self, id: u64) {
        if id == 0 {
            self.transfer = None;
        }
    }

    fn finish(&mut self) {
        self.transfer.iter_mut().for_each(|transfer| transfer.end(BodyState::Truncated));
    }

    fn heap_bytes(&self) -> usize {
        let files = self.transfer.iter().flat_map(|transfer| transfer.files.iter());
        files.map(|body| size_of::<Body>() + body.heap_bytes()).sum()
    }
}

impl Transfer {
    fn end(&mut self, state: BodyState) {
        self.is_over = true;
        self.files.iter_mut().for_each(|body| body.close(state));
    }
}

impl Transaction for Transfer {
    fn progress(&self, _way: Way) -> u8 {
        if self.is_over { COMPLETE } else { STARTED }
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        let body = self.files.first().filter(|body| body.way == way && nth == 0)?;
        match index {
            0 => Some(body.view()),
            1 => Some(View::whole(&body.name)),
            _ => None,
        }
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open("ftp_data");
        if !self.name.is_empty() {
            json.text("filename", &self.name);
        }
        if !self.command.is_empty() {
            json.text("command", &self.command);
        }
        json.close();
    }

    fn files(&self) -> &[Body] {
        &self.files
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct IsCommand(&'static str);

impl Custom for IsCommand {
    fn matches(&self, transaction: &dyn Transaction, _way: Way) -> bool {
        transaction.as_any().downcast_ref::<Transfer>().is_some_and(|transfer| transfer.command == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_name_that_the_sensor_knows() {
        let mut settings = Settings::default();
        settings.set("ftp-data.filename", "a.bin");
        settings.set("ftp-data.command", "retr");
        let mut parser = (PROTOCOL.parser)(&settings, Transport::Tcp);
        assert_eq!(parser.parse(Way::ToClient, &[7; 100_000], false), Ok(100_000));
        assert_eq!(parser.gap(Way::ToClient, 10), Ok(()));
        assert_eq!(parser.parse(Way::ToClient, b"end", true), Ok(3));
        assert!(parser.heap_bytes() < 400_000);
        let file = parser.transaction(0).and_then(|it| it.files().first());
        let facts = file.map(|body| (body.size, body.has_gaps, body.state, body.name.clone()));
        assert_eq!(facts, Some((100_013, true, BodyState::Closed, b"a.bin".to_vec())));
    }
}
