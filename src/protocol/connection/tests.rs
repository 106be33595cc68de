//! Single connections: received bytes go in, replies come out.

use super::*;
use crate::buffer::{Cursors, Spill, SpillPool};
use crate::metrics::Counters;
use crate::protocol::context::{FrameLimits, Settings};
use crate::protocol::extension::Policy;
use crate::protocol::frame::MASKED;
use crate::protocol::moment::Moment;

const SETTINGS: Settings = Settings {
    protocol: Protocol::WebSocket,
    message_max: 1000,
    policy: Policy::Mirror,
    level: 6,
    frames: FrameLimits::NONE,
};
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";

fn spill() -> Spill {
    Spill::new(&SpillPool::new(0, Default::default()))
}

/// A connection after its handshake, and the region that it answers in.
struct Talk {
    connection: Connection,
    spill: Spill,
    counters: Counters,
    frames: FrameLimits,
    now: Moment,
}

impl Talk {
    fn open() -> Talk {
        let mut talk = Talk {
            connection: Connection::new(Admission::Open),
            spill: spill(),
            counters: Counters::default(),
            frames: FrameLimits::NONE,
            now: Moment::default(),
        };
        let (answer, next) = talk.hear(REQUEST);
        assert!(answer.starts_with(b"HTTP/1.1 101 "));
        assert_eq!(next, Next::Receive);
        talk
    }

    /// The answer to `bytes`, and what follows.
    fn hear(&mut self, received: &[u8]) -> (Vec<u8>, Next) {
        self.spill.append(received, 0);
        let settings = Settings { frames: self.frames, ..SETTINGS };
        let context = Context::new(settings, &self.counters);
        context.now.set(self.now);
        let region = &mut self.spill.region();
        let mut next = self.connection.advance(region, &context);
        if let Next::Fail(violation) = next {
            self.connection.fail(violation, region, &context);
            next = Next::Close;
        }
        (self.reply(), next)
    }

    fn close(&mut self) -> (Vec<u8>, Next) {
        let context = Context::new(SETTINGS, &self.counters);
        let region = &mut self.spill.region();
        let next = self.connection.dismiss(Dismissal::Stopping, region, &context);
        (self.reply(), next)
    }

    fn reply(&mut self) -> Vec<u8> {
        if !self.spill.has_reply() {
            return Vec::new();
        }
        let (mut reply, rest) = std::mem::replace(&mut self.spill, spill()).split_reply(0);
        self.spill = rest.unwrap_or_else(spill);
        reply.take_part(usize::MAX).to_vec()
    }
}

/// A client's frame with the masking key 1, 2, 3, 4.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..=125 => frame.push(MASKED | short as u8),
        long => {
            frame.push(MASKED | 126);
            frame.extend((long as u16).to_be_bytes());
        }
    }
    frame.extend([1, 2, 3, 4]);
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ (at % 4 + 1) as u8));
    frame
}

fn close_of(violation: Violation) -> Vec<u8> {
    close::frame(violation.close_code(), violation.reason())
}

#[test]
fn a_ping_between_two_fragments_is_answered_between_them() {
    let mut talk = Talk::open();
    assert_eq!(talk.hear(&frame(0x01, b"one ")).0, b"\x01\x04one ");
    assert_eq!(talk.hear(&frame(0x89, b"ping")).0, b"\x8a\x04ping");
    assert_eq!(talk.hear(&frame(0x80, b"two")).0, b"\x80\x03two");
    assert_eq!(talk.counters.messages.value(), 1);
    assert_eq!(talk.counters.frames_in.value(), 3);
}

#[test]
fn a_message_may_have_the_most_frames_and_not_one_more() {
    let mut talk = Talk::open();
    talk.frames = FrameLimits { message: 3, ..FrameLimits::NONE };
    let fragments = [frame(0x01, b"a"), frame(0x00, b"b"), frame(0x80, b"c")].concat();
    for _ in 0..2 {
        let echo = b"\x01\x01a\x00\x01b\x80\x01c".to_vec();
        assert_eq!(talk.hear(&fragments), (echo, Next::Receive));
    }
    let begin = [frame(0x01, b"a"), frame(0x00, b"b"), frame(0x89, b""), frame(0x00, b"c")];
    let echo = b"\x01\x01a\x00\x01b\x8a\x00\x00\x01c".to_vec();
    assert_eq!(talk.hear(&begin.concat()), (echo, Next::Receive), "a ping does not count");
    let close = close_of(Violation::MessageFramesTooMany);
    assert_eq!(talk.hear(&frame(0x80, b"d")), (close, Next::Close));
    assert_eq!(talk.counters.messages_overfragmented.value(), 1);
}

#[test]
fn pings_and_pongs_have_a_rate_and_a_close_frame_has_none() {
    let mut talk = Talk::open();
    talk.frames = FrameLimits { control: 2, ..FrameLimits::NONE };
    let at = |millis| Moment::at(std::time::Duration::from_millis(millis));
    let both = [frame(0x89, b"?"), frame(0x8a, b"")].concat();
    for millis in [900, 1000, 2999] {
        talk.now = at(millis);
        assert_eq!(talk.hear(&both), (b"\x8a\x01?".to_vec(), Next::Receive), "{millis} ms");
    }
    let mut other = Talk::open();
    (other.frames, other.now) = (talk.frames, at(2999));
    assert_eq!(other.hear(&both).1, Next::Receive);
    assert_eq!(other.hear(&frame(0x88, b"")), (b"\x88\x00".to_vec(), Next::Close));
    let close = close_of(Violation::ControlFramesTooMany);
    assert_eq!(talk.hear(&frame(0x8a, b"")), (close, Next::Close));
    assert_eq!(talk.counters.control_floods.value(), 1);
}

#[test]
fn binary_payload_goes_out_as_it_comes_and_text_when_it_is_whole() {
    for (first, expected) in
        [(0x82, [&b"\x82\x7e\x00\xc8"[..], &[7; 100]].concat()), (0x81, vec![])]
    {
        let whole = frame(first, &[7; 200]);
        let mut talk = Talk::open();
        let (half, rest) = whole.split_at(108);
        let (early, _) = talk.hear(half);
        assert_eq!(early, expected, "first byte {first:x}");
        let (late, _) = talk.hear(rest);
        assert_eq!([early, late].concat(), [&[first, 126, 0, 200][..], &[7; 200]].concat());
    }
}

#[test]
fn wrong_text_fails_at_its_first_wrong_byte_and_takes_nothing_owed_with_it() {
    let mut talk = Talk::open();
    let mut received = frame(0x81, b"right");
    received.extend(&frame(0x81, b"ab\xff and more that never comes")[..6 + 3]);
    let (reply, next) = talk.hear(&received);
    assert_eq!(reply, [&b"\x81\x05right"[..], &close_of(Violation::TextNotUtf8)].concat());
    assert_eq!(next, Next::Close);
}

#[test]
fn a_text_may_not_end_within_a_character_though_a_fragment_may() {
    let mut talk = Talk::open();
    assert_eq!(talk.hear(&frame(0x01, b"\xe2\x82")).0, b"\x01\x02\xe2\x82");
    assert_eq!(talk.hear(&frame(0x00, b"\xac\xe2")).0, b"\x00\x02\xac\xe2");
    let (reply, _) = talk.hear(&frame(0x80, b""));
    assert_eq!(reply, close_of(Violation::TextNotUtf8));
}

#[test]
fn the_message_counts_against_the_limit_and_not_the_fragment() {
    let mut talk = Talk::open();
    assert_eq!(talk.hear(&frame(0x02, &[0; 600])).0.len(), 604);
    let (reply, next) = talk.hear(&frame(0x80, &[0; 401]));
    assert_eq!(reply, close_of(Violation::MessageTooBig));
    assert_eq!(next, Next::Close);
    assert_eq!(talk.counters.protocol_violations.value(), 1);
}

#[test]
fn a_close_is_answered_with_its_code_and_what_follows_is_ignored() {
    let mut talk = Talk::open();
    let mut received = frame(0x88, b"\x03\xe8bye");
    received.extend(frame(0x81, b"too late"));
    assert_eq!(talk.hear(&received), (b"\x88\x02\x03\xe8".to_vec(), Next::Close));
    assert_eq!(talk.hear(&frame(0x81, b"later")), (vec![], Next::Close));
    let mut talk = Talk::open();
    assert_eq!(talk.hear(&frame(0x88, b"")).0, b"\x88\x00");
}

#[test]
fn the_servers_close_waits_for_the_end_of_a_binary_frame_and_takes_back_text() {
    let mut talk = Talk::open();
    let binary = frame(0x82, b"binary");
    assert_eq!(talk.hear(&binary[..8]).0, b"\x82\x06bi");
    assert_eq!(talk.close(), (vec![], Next::Receive));
    assert_eq!(talk.hear(&binary[8..]).0, b"nary\x88\x02\x03\xe9");

    let mut talk = Talk::open();
    let text = frame(0x81, b"text");
    assert_eq!(talk.hear(&text[..8]).0, b"");
    assert_eq!(talk.close(), (b"\x88\x02\x03\xe9".to_vec(), Next::Receive));
    assert_eq!(talk.hear(&text[8..]), (vec![], Next::Receive));
    assert_eq!(talk.hear(&frame(0x82, b"ignored")), (vec![], Next::Receive));
    assert_eq!(talk.hear(&frame(0x88, b"\x03\xe9")), (vec![], Next::Close));
}

#[test]
fn the_servers_close_crosses_the_peers() {
    let mut talk = Talk::open();
    let close = frame(0x88, b"\x03\xe8");
    assert_eq!(talk.hear(&close[..7]).0, b"");
    assert_eq!(talk.close().0, b"\x88\x02\x03\xe9");
    assert_eq!(talk.hear(&close[7..]), (vec![], Next::Close));
}

#[test]
fn a_whole_pipeline_is_one_reply_in_the_buffer_of_the_request() {
    let mut talk = Talk::open();
    let mut received = frame(0x81, b"first");
    received.extend(frame(0x82, &[9; 200]));
    received.extend(frame(0x8a, b"unasked pong"));
    received.extend(frame(0x81, "größer".as_bytes()));
    let mut bytes = received;
    let mut cursors = Cursors::received(bytes.len());
    let context = Context::new(SETTINGS, &talk.counters);
    let next = talk.connection.advance(&mut Region::new(&mut bytes, &mut cursors), &context);
    assert_eq!(next, Next::Receive);
    assert!(!cursors.has_leftover());
    let expected =
        [&b"\x81\x05first\x82\x7e\x00\xc8"[..], &[9; 200], b"\x81\x08", "größer".as_bytes()];
    assert_eq!(bytes[cursors.reply()], expected.concat());
}
