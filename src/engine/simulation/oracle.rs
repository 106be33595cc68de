//! What the server owes to a peer: a plain reading of RFC 6455 that looks at everything a peer
//! ever sends at once, puts messages together in memory, and shares no code with the server.
//!
//! It fixes every byte but two texts, which are for people: the reason in a close frame that
//! fails a connection, and the fields and page of an HTTP response that refuses one.

/// The largest payload of a control frame (RFC 6455 section 5.5).
const CONTROL_MAX: usize = 125;
/// The answer to [`super::peer::REQUEST`]: its key and what is made of it are from section 1.3.
const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
/// The close frame of a server that stops.
pub(super) const GOING_AWAY: &[u8] = b"\x88\x02\x03\xe9";

/// How what is owed ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Ending {
    /// Not at all: the server waits for more.
    #[default]
    Open,
    /// With the bytes owed, and then the end of the stream.
    Said,
    /// With a close frame of this code, and then the end of the stream.
    Close(u16),
    /// With an HTTP response of this status, and then the end of the stream.
    Response(u16),
}

/// How what was sent compares with what is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    /// Something else was sent.
    Not,
    /// It is a beginning.
    Part,
    /// It is all.
    Whole,
}

/// All that is owed to a peer for all that the peer ever sends.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// What is owed before the ending.
    pub(super) bytes: Vec<u8>,
    /// The ends of the request and of each whole frame: bytes that came by then, and bytes owed
    /// for them.
    pub(super) boundaries: Vec<(usize, usize)>,
    ending: Ending,
    /// Where the frame begins that brings the ending, and by where it must have been noticed.
    ending_from: usize,
    ending_by: usize,
}

impl Expected {
    /// What is owed for `input`, which begins with a request of `head` bytes that costs `status`.
    pub(super) fn new(input: &[u8], head: usize, status: u16, message_max: usize) -> Expected {
        let mut expected =
            Expected { ending_from: usize::MAX, ending_by: usize::MAX, ..Expected::default() };
        if input.len() < head {
            return expected;
        }
        if status != 101 {
            expected.end(Ending::Response(status), 0, head);
            return expected;
        }
        expected.bytes.extend_from_slice(ANSWER);
        expected.boundaries.push((head, ANSWER.len()));
        expected.frames(input, head, message_max);
        expected
    }

    /// The same for a connection over the limit.
    pub(super) fn refuse(&mut self) {
        if let Some(&(head, _)) = self.boundaries.first() {
            self.bytes.clear();
            self.boundaries.clear();
            self.end(Ending::Response(503), 0, head);
        }
    }

    /// Whether the server has said or will say its last, once `input` bytes came.
    pub(super) fn ends_by(&self, input: usize) -> bool {
        self.ending_from <= input
    }

    /// Whether the server must have noticed that the end came, once `input` bytes did.
    pub(super) fn has_ended_by(&self, input: usize) -> bool {
        self.ending_by <= input
    }

    /// How many bytes are owed at least once `input` bytes came.
    pub(super) fn owed(&self, input: usize) -> usize {
        let whole = self.boundaries.partition_point(|&(end, _)| end <= input);
        if whole == 0 { 0 } else { self.boundaries[whole - 1].1 }
    }

    /// Compares all of `sent`, the first `matched` bytes of which are those owed, with the expected
    /// of a server that learned after `stopped_at` bytes of input that it is to stop.
    pub(super) fn fit(&self, sent: &[u8], matched: usize, stopped_at: Option<usize>) -> Fit {
        let rest = &sent[matched..];
        let plain = if matched == self.bytes.len() {
            fit_ending(rest, self.ending)
        } else if rest.is_empty() {
            Fit::Part
        } else {
            Fit::Not
        };
        match stopped_at {
            Some(input) if input < self.ending_from => self.fit_stopped(sent, matched, input),
            Some(input) if input < self.ending_by => {
                plain.max(self.fit_stopped(sent, matched, input))
            }
            Some(_) | None => plain,
        }
    }

    /// A server that stops sends all that is owed, may finish the frame that is arriving, and
    /// sends its close frame after that; or nothing, if the request is not whole.
    fn fit_stopped(&self, sent: &[u8], matched: usize, input: usize) -> Fit {
        let whole = self.boundaries.partition_point(|&(end, _)| end <= input);
        if whole == 0 {
            return if sent.is_empty() { Fit::Whole } else { Fit::Not };
        }
        let fit = |end: usize| match sent.get(end..) {
            None if matched == sent.len() => Fit::Part,
            Some(rest) if matched >= end && rest == GOING_AWAY => Fit::Whole,
            Some(rest) if matched >= end && GOING_AWAY.starts_with(rest) => Fit::Part,
            None | Some(_) => Fit::Not,
        };
        let (begin, owed) = self.boundaries[whole - 1];
        let arriving = match self.boundaries.get(whole) {
            Some(&(_, end)) if begin < input => fit(end),
            None if begin < input && matched == sent.len() => {
                // The frame never becomes whole.
                if matched == self.bytes.len() { Fit::Whole } else { Fit::Part }
            }
            Some(_) | None => Fit::Not,
        };
        arriving.max(fit(owed))
    }

    fn end(&mut self, ending: Ending, from: usize, by: usize) {
        (self.ending, self.ending_from, self.ending_by) = (ending, from, by);
    }

    fn frames(&mut self, input: &[u8], head: usize, message_max: usize) {
        let mut at = head;
        // The message that is arriving: whether it is a text, and its payload so far.
        let mut message: Option<(bool, Vec<u8>)> = None;
        loop {
            let header = match Header::read(&input[at..]) {
                Ok(Some(header)) => header,
                Ok(None) => return,
                Err(bytes) => return self.end(Ending::Close(1002), at, at + bytes),
            };
            let fail = |code| (Ending::Close(code), at, at + header.bytes);
            let whole = header.bytes.saturating_add(header.payload).saturating_add(at);
            let arrived = &input[at + header.bytes..whole.min(input.len())];
            let is_whole = whole <= input.len();
            let payload: Vec<u8> =
                arrived.iter().zip(0..).map(|(byte, n)| byte ^ header.key[n % 4]).collect();
            let mut echo = vec![header.first];
            match header.payload {
                0..=125 => echo.push(header.payload as u8),
                126..=0xffff => {
                    echo.push(126);
                    echo.extend((header.payload as u16).to_be_bytes());
                }
                _ => {
                    echo.push(127);
                    echo.extend((header.payload as u64).to_be_bytes());
                }
            }
            echo.extend(&payload);
            match header.first & 0x0f {
                8 if is_whole => {
                    let by = |code| (Ending::Close(code), at, whole);
                    let code = payload.first_chunk().map(|&code| u16::from_be_bytes(code));
                    let (ending, from, by) = match code {
                        None if payload.len() == 1 => by(1002),
                        Some(0..=999 | 1004..=1006 | 1015..=2999 | 5000..) => by(1002),
                        Some(_) if std::str::from_utf8(&payload[2..]).is_err() => by(1007),
                        None | Some(_) => {
                            self.bytes.extend([0x88, payload.len().min(2) as u8]);
                            self.bytes.extend(payload.iter().take(2));
                            (Ending::Said, at, whole)
                        }
                    };
                    return self.end(ending, from, by);
                }
                9 if is_whole => {
                    self.bytes.push(0x8a);
                    self.bytes.extend(&echo[1..]);
                }
                8 | 9 => return,
                10 if is_whole => {}
                10 => return,
                opcode => {
                    let (is_text, mut so_far) = match (opcode, message.take()) {
                        (0, Some(message)) => message,
                        (1 | 2, None) => (opcode == 1, Vec::new()),
                        (_, None | Some(_)) => {
                            let (ending, from, by) = fail(1002);
                            return self.end(ending, from, by);
                        }
                    };
                    if so_far.len().saturating_add(header.payload) > message_max {
                        let (ending, from, by) = fail(1009);
                        return self.end(ending, from, by);
                    }
                    so_far.extend(payload);
                    let is_final = header.first & 0x80 != 0;
                    if is_text
                        && let Err(error) = std::str::from_utf8(&so_far)
                        && (error.error_len().is_some() || is_final && is_whole)
                    {
                        return self.end(Ending::Close(1007), at, whole.min(input.len()));
                    }
                    if is_whole || !is_text {
                        self.bytes.extend(echo);
                    }
                    if !is_whole {
                        return;
                    }
                    message = (!is_final).then_some((is_text, so_far));
                }
            }
            at = whole;
            self.boundaries.push((at, self.bytes.len()));
        }
    }
}

/// The header of a frame.
struct Header {
    first: u8,
    key: [u8; 4],
    payload: usize,
    bytes: usize,
}

impl Header {
    /// `None` if it is not whole; an error says how many bytes show that it is wrong.
    fn read(input: &[u8]) -> Result<Option<Header>, usize> {
        let Some(&first) = input.first() else { return Ok(None) };
        let is_control = matches!(first, 0x88..=0x8a);
        if !(is_control || matches!(first & 0x7f, 0..=2)) {
            return Err(1);
        }
        let Some(&second) = input.get(1) else { return Ok(None) };
        let short = usize::from(second & 0x7f);
        if second < 0x80 || is_control && short > CONTROL_MAX {
            return Err(2);
        }
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some(length) = input.get(2..2 + extended) else { return Ok(None) };
        let length = length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
        let least = [0, 126, 0x1_0000][extended.min(4) / 2];
        if extended > 0 && !(least..1 << 63).contains(&length) {
            return Err(2 + extended);
        }
        let payload = if extended > 0 { length } else { short };
        let Some(&key) = input[2 + extended..].first_chunk() else { return Ok(None) };
        Ok(Some(Header { first, key, payload, bytes: 2 + extended + 4 }))
    }
}

fn fit_ending(sent: &[u8], ending: Ending) -> Fit {
    match ending {
        Ending::Open | Ending::Said if sent.is_empty() => Fit::Whole,
        Ending::Open | Ending::Said => Fit::Not,
        Ending::Close(code) => {
            let [high, low] = code.to_be_bytes();
            let length = sent.get(1).copied().unwrap_or(2);
            let begin = [0x88, length, high, low];
            let common = sent.len().min(4);
            let is_right = sent[..common] == begin[..common]
                && (2..=CONTROL_MAX).contains(&usize::from(length))
                && sent[common..].is_ascii();
            match sent.len().cmp(&(2 + usize::from(length))) {
                std::cmp::Ordering::Less if is_right => Fit::Part,
                std::cmp::Ordering::Equal if is_right => Fit::Whole,
                _ => Fit::Not,
            }
        }
        Ending::Response(status) => {
            let begin = format!("HTTP/1.1 {status} ");
            let common = sent.len().min(begin.len());
            if sent[..common] != begin.as_bytes()[..common] {
                return Fit::Not;
            }
            let Ok(text) = std::str::from_utf8(sent) else { return Fit::Not };
            let Some((head, page)) = text.split_once("\r\n\r\n") else { return Fit::Part };
            let length = head.split("\r\n").find_map(|line| line.strip_prefix("Content-Length: "));
            match length
                .and_then(|length| length.parse().ok())
                .map(|length| page.len().cmp(&length))
            {
                Some(std::cmp::Ordering::Less) => Fit::Part,
                Some(std::cmp::Ordering::Equal) => Fit::Whole,
                Some(std::cmp::Ordering::Greater) | None => Fit::Not,
            }
        }
    }
}
