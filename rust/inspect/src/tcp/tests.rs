use protocols::Settings;

use super::*;
use crate::config::InspectConfig;

fn config(settings: &[(&str, &str)]) -> StreamConfig {
    let mut all = Settings::default();
    for (name, value) in settings {
        all.set(name, value);
    }
    InspectConfig::from_settings(&all).stream
}

fn segment(way: Way, flags: u8, sequence: u32, acknowledgement: u32, payload: &'static [u8]) -> Segment<'static> {
    Segment {
        tcp: Tcp { sequence, acknowledgement, flags, window: 8192, ..Tcp::default() },
        payload,
        way,
        is_refused: false,
    }
}

fn open(session: &mut Session, config: &StreamConfig) {
    use Way::{ToClient, ToServer};
    for packet in [
        segment(ToServer, flag::SYN, 100, 0, b""),
        segment(ToClient, flag::SYN | flag::ACK, 500, 101, b""),
        segment(ToServer, flag::ACK, 101, 501, b""),
    ] {
        assert!(session.packet(&packet, config).is_valid);
    }
    assert_eq!(session.state, State::Established);
}

#[test]
fn a_connection_opens_speaks_and_closes() {
    use Way::{ToClient, ToServer};
    let config = config(&[]);
    let mut session = Session::default();
    open(&mut session, &config);
    assert!(session.packet(&segment(ToServer, flag::ACK, 101, 501, b"hello"), &config).inserted.is_kept);
    assert_eq!(session.sides[0].stream.acked, 0);
    session.packet(&segment(ToClient, flag::ACK, 501, 106, b""), &config);
    assert_eq!(session.sides[0].stream.acked, 5);
    let rows = [
        (segment(ToServer, flag::FIN | flag::ACK, 106, 501, b""), State::CloseWait),
        (segment(ToClient, flag::FIN | flag::ACK, 501, 107, b""), State::LastAck),
        (segment(ToServer, flag::ACK, 107, 502, b""), State::Closed),
    ];
    for (packet, state) in rows {
        session.packet(&packet, &config);
        assert_eq!(session.state, state);
    }
}

#[test]
fn what_a_receiver_would_not_take_is_no_part_of_the_stream() {
    use Way::{ToClient, ToServer};
    let config = config(&[]);
    let rows = [
        (segment(ToServer, flag::ACK, 101 + (1 << 20), 501, b"far"), "stream.est_packet_out_of_window"),
        (segment(ToServer, flag::ACK, 101, 501 + (1 << 21), b"acks"), "stream.est_invalid_ack"),
        (segment(ToClient, flag::RST, 400, 0, b""), "stream.suspected_rst_inject"),
        (segment(ToClient, flag::SYN | flag::ACK, 600, 101, b""), "stream.est_synack_resend_with_diff_seq"),
    ];
    for (packet, event) in rows {
        let mut session = Session::default();
        open(&mut session, &config);
        let told = session.packet(&packet, &config);
        assert_eq!((told.is_valid, told.event), (false, Some(event)));
    }
}

#[test]
fn without_a_handshake_it_depends_on_the_setting() {
    let packet = segment(Way::ToServer, flag::ACK, 7000, 9000, b"data");
    let told = Session::default().packet(&packet, &config(&[]));
    assert!(told.lacks_session && !told.is_valid);
    let mut session = Session::default();
    let told = session.packet(&packet, &config(&[("stream.midstream", "true")]));
    assert!(told.is_valid && told.is_pickup && told.inserted.is_kept);
    assert_eq!(session.sides[0].stream.contiguous(0, 100), b"data");
}

#[test]
fn a_sequence_number_may_wrap() {
    let config = config(&[]);
    let mut session = Session::default();
    let start = u32::MAX - 2;
    session.packet(&segment(Way::ToServer, flag::SYN, start, 0, b""), &config);
    session.packet(&segment(Way::ToClient, flag::SYN | flag::ACK, 1, start.wrapping_add(1), b""), &config);
    session.packet(&segment(Way::ToServer, flag::ACK, start.wrapping_add(1), 2, b"abcdef"), &config);
    session.packet(&segment(Way::ToServer, flag::ACK, start.wrapping_add(7), 2, b"ghi"), &config);
    assert_eq!(session.sides[0].stream.contiguous(0, 100), b"abcdefghi");
}
