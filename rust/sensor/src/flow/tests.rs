use super::*;

const CAPACITY: usize = 64;

fn packet(client: u32, server: u32, tcp_flags: u8) -> Packet {
    Packet {
        source: Address::from_v4(client),
        destination: Address::from_v4(server),
        source_port: 1000,
        destination_port: 80,
        protocol: protocol::TCP,
        tcp_flags,
        wire_bytes: 60,
        ..Packet::default()
    }
}

fn answer(to: &Packet, tcp_flags: u8, sequence: u32) -> Packet {
    Packet {
        source: to.destination,
        destination: to.source,
        source_port: to.destination_port,
        destination_port: to.source_port,
        tcp_flags,
        sequence,
        ..*to
    }
}

struct Bench {
    table: FlowTable,
    counters: Counters,
    records: Vec<FlowRecord>,
}

impl Bench {
    fn new() -> Bench {
        Bench { table: FlowTable::new(CAPACITY, SipKey([3, 4])), counters: Counters::ZERO, records: Vec::new() }
    }

    fn see(&mut self, packet: &Packet, now_us: u64) -> Observation {
        let records = &mut self.records;
        self.table.observe(packet, now_us, &mut self.counters, &mut |record| records.push(*record))
    }

    fn converse(&mut self, client: u32, now_us: u64) {
        let syn = packet(client, 9, flags::SYN);
        self.see(&syn, now_us);
        self.see(&answer(&syn, flags::SYN | flags::ACK, 100), now_us);
        let ack = Packet { tcp_flags: flags::ACK, acknowledgement: 101, payload_bytes: 5, ..syn };
        assert!(self.see(&ack, now_us).has_completed);
    }

    fn knows(&mut self, client: u32) -> bool {
        let probe = packet(client, 9, flags::ACK);
        let hash = self.table.hash(&probe);
        self.table.find(&probe, hash) != NIL
    }
}

#[test]
fn a_handshake_counts_only_with_the_right_number() {
    let mut bench = Bench::new();
    let syn = packet(1, 9, flags::SYN);
    bench.see(&syn, 0);
    bench.see(&answer(&syn, flags::SYN | flags::ACK, 100), 1);
    for wrong in [0, 100, 102] {
        let ack = Packet { tcp_flags: flags::ACK, acknowledgement: wrong, ..syn };
        assert!(!bench.see(&ack, 2).has_completed, "{wrong}");
    }
    let ack = Packet { tcp_flags: flags::ACK, acknowledgement: 101, ..syn };
    assert!(bench.see(&ack, 3).has_completed);
    assert!(!bench.see(&ack, 4).has_completed, "only once");
}

#[test]
fn made_up_flows_never_push_out_a_conversation() {
    let mut bench = Bench::new();
    for client in 1..=10 {
        bench.converse(client, 0);
    }
    for client in 1000..11_000 {
        bench.see(&packet(client, 9, flags::SYN), 1_000);
        assert!(bench.table.live() <= CAPACITY);
    }
    assert!((1..=10).all(|client| bench.knows(client)));
    assert_eq!(bench.counters.flows_evicted, 10_000 - (CAPACITY as u64 - 10));
    assert_eq!(bench.table.slab.capacity(), CAPACITY, "the slab did not grow");
}

#[test]
fn a_table_full_of_busy_conversations_refuses_and_counts() {
    let mut bench = Bench::new();
    for client in 1..=CAPACITY as u32 {
        bench.converse(client, 0);
    }
    bench.see(&packet(5000, 9, flags::SYN), 1);
    assert_eq!((bench.counters.flows_refused, bench.counters.flows_evicted), (1, 0));
    bench.see(&packet(5000, 9, flags::SYN), OPEN_IDLE_US);
    assert_eq!((bench.counters.flows_refused, bench.counters.flows_evicted), (1, 1));
}

#[test]
fn silence_ends_a_flow_and_its_record_has_both_directions() {
    let mut bench = Bench::new();
    bench.converse(1, 0);
    let records = &mut bench.records;
    bench.table.expire(OPEN_TIMEOUT_US, 10, &mut bench.counters, &mut |record| records.push(*record));
    let record = bench.records[0];
    assert_eq!((record.packets, record.state, record.end), ([2, 1], FlowState::Established, FlowEnd::TimedOut));
    assert_eq!(bench.table.live(), 0);
}

#[test]
fn ports_used_again_make_a_second_flow() {
    let mut bench = Bench::new();
    bench.converse(1, 0);
    let client = packet(1, 9, flags::FIN | flags::ACK);
    bench.see(&client, 1);
    bench.see(&answer(&client, flags::FIN | flags::ACK, 101), 1);
    bench.converse(1, 2);
    assert_eq!(bench.records.len(), 1);
    assert_eq!((bench.records[0].end, bench.records[0].state), (FlowEnd::Reused, FlowState::Closed));
}

#[test]
fn the_links_stay_sound_under_any_order() {
    let mut bench = Bench::new();
    let mut random = 1_u64;
    for now in 0..200_000_u64 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let bits = (random >> 33) as u32;
        let mut any = packet(bits % 90, 200 + bits / 90 % 3, (bits >> 10) as u8 & 0x3f);
        if bits & 1 << 20 != 0 {
            any = answer(&any, any.tcp_flags, 0);
        }
        bench.see(&any, now * 1000);
        if now % 1000 == 0 {
            bench.records.clear();
            let records = &mut bench.records;
            bench.table.expire(now * 1000, 100, &mut bench.counters, &mut |record| records.push(*record));
            let listed: usize = (0..3).map(|list| walk(&bench.table, list)).sum();
            assert_eq!(listed, bench.table.live());
        }
    }
    bench.table.finish(0, CAPACITY, &mut bench.counters, &mut |_| {});
    assert_eq!((bench.table.live(), bench.table.heads.iter().all(|&head| head == NIL)), (0, true));
}

fn walk(table: &FlowTable, list: usize) -> usize {
    let (mut slot, mut count) = (table.lists[list].oldest, 0);
    while slot != NIL {
        assert_eq!(table.flow(slot).state as usize, list);
        count += 1;
        slot = table.flow(slot).next;
    }
    count
}
