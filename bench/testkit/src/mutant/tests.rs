//! Every fault, tried by a raw client beside the same server without it.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Behavior, Fault, Mutant, Role, run_cases};
use crate::client::{ACCEPT, KEY as NONCE};
use crate::deflate::{Compressor, Reference};
use crate::fake::{Fake, Peer, response_to};
use crate::inflate::TAIL;
use crate::process::wait_until;
use crate::random::Random;
use crate::{BINARY, CLOSE, Client, FIN, KEY, PING, PONG, REQUEST, RESPONSE, RSV1, TEXT};
use crate::{frame, frame::masked, pattern, reply};

/// The first frame of a text message that goes on, and the last.
const FIRST: u8 = 0x01;
const LAST: u8 = FIN;
/// The limit of the servers, in bytes.
const LIMIT: usize = 2 << 20;
/// RFC 7692 section 7.2.3.1 and 7.2.3.2: the second one refers to the first.
const HELLO: &[u8] = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
const HELLO_AGAIN: &[u8] = b"\xf2\x00\x11\x00\x00";

/// What a client sends after the opening handshake, and what the server answers to it until it ends the
/// connection: without the fault, and with it.
struct Trial {
    fault: Fault,
    /// The offer of permessage-deflate.
    offer: &'static str,
    sent: Vec<u8>,
    right: Vec<u8>,
    wrong: Vec<u8>,
}

fn trial(fault: Fault, sent: &[Vec<u8>], right: &[Vec<u8>], wrong: &[Vec<u8>]) -> Trial {
    Trial { fault, offer: "", sent: sent.concat(), right: right.concat(), wrong: wrong.concat() }
}

impl Trial {
    fn offering(self, offer: &'static str) -> Trial {
        Trial { offer, ..self }
    }
}

/// The close frame of the client with this code.
fn close(code: u16) -> Vec<u8> {
    frame(CLOSE, &code.to_be_bytes())
}

/// The close frame of the server with this code.
fn closed(code: u16) -> Vec<u8> {
    reply(CLOSE, &code.to_be_bytes())
}

/// Successive messages, compressed by the server with this window.
fn compressed(window: usize, messages: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut compressor = Compressor::new(window);
    messages.iter().map(|message| compressor.message(message)).collect()
}

/// Each frame that breaks a rule for which the code is 1002, and is answered so with the fault.
fn tolerated() -> Vec<Trial> {
    let long = pattern(65_536);
    let key = KEY.as_slice();
    // The longest form of a length, with its highest bit.
    let high = [b"\x82\xff\x80\0\0\0\0\x01\0\0", key, &frame(BINARY, &long)[14..]].concat();
    // One byte, whose length has 16 bits.
    let not_shortest = [b"\x81\xfe\0\x01", key, &[b'a' ^ KEY[0]]].concat();
    let half = [frame(FIRST | RSV1, &HELLO[..4]), frame(LAST | RSV1, &HELLO[4..])];
    let text = || vec![reply(TEXT, b"a")];
    let tolerated = [
        (Fault::AnyMasking, vec![reply(TEXT, b"a")], text()),
        (Fault::AnyLengths, vec![not_shortest], text()),
        (Fault::HighBit, vec![high], vec![reply(BINARY, &long)]),
        (Fault::Rsv1Ignored, vec![frame(TEXT | RSV1, b"a")], text()),
        (Fault::Rsv2Ignored, vec![frame(TEXT | 0x20, b"a")], text()),
        (Fault::Rsv3Ignored, vec![frame(TEXT | 0x10, b"a")], text()),
        (Fault::DataOpcodesIgnored, vec![frame(0x83, b"x"), frame(TEXT, b"a")], text()),
        (Fault::ControlOpcodesIgnored, vec![frame(0x8B, b"x"), frame(TEXT, b"a")], text()),
        (
            Fault::FragmentedControl,
            vec![frame(0x09, b"a"), frame(LAST, b"b")],
            vec![reply(PONG, b"a")],
        ),
        (Fault::LongControl, vec![frame(PING, &[7; 126])], vec![reply(PONG, &[7; 126])]),
        (Fault::OrphansIgnored, vec![frame(LAST, b"x"), frame(TEXT, b"a")], text()),
        (
            Fault::MessageWithinMessage,
            vec![frame(FIRST, b"a"), frame(TEXT, b"b")],
            vec![reply(TEXT, b"ab")],
        ),
        (Fault::DeflateControl, vec![frame(PING | RSV1, b"a")], vec![reply(PONG, b"a")]),
        (Fault::DeflateContinuation, half.to_vec(), vec![reply(TEXT | RSV1, HELLO)]),
    ];
    let trials = tolerated.into_iter().map(|(fault, mut sent, mut wrong)| {
        sent.push(close(1000));
        wrong.push(closed(1000));
        trial(fault, &sent, &[closed(1002)], &wrong)
    });
    let offered = |fault| matches!(fault, Fault::DeflateControl | Fault::DeflateContinuation);
    trials
        .map(
            |trial| if offered(trial.fault) { trial.offering("permessage-deflate") } else { trial },
        )
        .collect()
}

/// What is valid, and answered otherwise with the fault.
fn answered() -> Vec<Trial> {
    let changed = |length: usize, phases: [usize; 2]| {
        let mut bytes = pattern(length);
        *bytes.last_mut().expect("a byte") ^= KEY[phases[0]] ^ KEY[phases[1]];
        bytes
    };
    let whole = |fault, length: usize, wrong: &[u8]| {
        let payload = pattern(length);
        let right = reply(BINARY, &payload);
        (fault, vec![frame(BINARY, &payload)], vec![right], vec![reply(BINARY, wrong)])
    };
    let shorter = |fault, length: usize| whole(fault, length, &pattern(length)[..length - 1]);
    let carried = [b'd' ^ KEY[3], b'e' ^ KEY[0], b'f' ^ KEY[1]];
    let carried: Vec<u8> = (0..3).map(|at| carried[at] ^ KEY[at]).collect();
    let carried = [b"abc", &carried[..]].concat();
    let numbered: Vec<Vec<u8>> = (1..=11).map(|number| frame(BINARY, &[number])).collect();
    let echoes = |numbers: &[u8]| -> Vec<Vec<u8>> {
        numbers.iter().map(|number| reply(BINARY, &[*number])).collect()
    };
    let every = echoes(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    let lost = echoes(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 11]);
    let doubled = echoes(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 11]);
    let text = |payload: &[u8]| vec![reply(TEXT, payload)];
    let two = || vec![frame(FIRST, b"a"), frame(LAST, b"b")];
    let three = vec![frame(FIRST, b"a"), frame(0, b"bc"), frame(LAST, b"d")];
    let interleaved = || vec![frame(FIRST, b"a"), frame(PING, b"p"), frame(LAST, b"b")];
    let pong = || reply(PONG, b"p");
    let ping = || vec![frame(PING, b"p")];
    let many: Vec<Vec<u8>> = [frame(FIRST, b"a")]
        .into_iter()
        .chain((0..5000).map(|_| frame(0, b"a")))
        .chain([frame(LAST, b"b")])
        .collect();
    let answered = [
        (
            Fault::PhaseCarried,
            vec![frame(0x02, b"abc"), frame(LAST, b"def")],
            vec![reply(BINARY, b"abcdef")],
            vec![reply(BINARY, &carried)],
        ),
        whole(Fault::PhaseLostAt64K, 65_537, &changed(65_537, [0, 1])),
        whole(Fault::PhaseLostByChunks, 4094, &changed(4094, [1, 0])),
        (Fault::PingsUnanswered, ping(), vec![pong()], vec![]),
        (Fault::PongEmpty, ping(), vec![pong()], vec![reply(PONG, b"")]),
        (
            Fault::PongCutAt124,
            vec![frame(PING, &[7; 125])],
            vec![reply(PONG, &[7; 125])],
            vec![reply(PONG, &[7; 124])],
        ),
        (Fault::PongAnswered, vec![frame(PONG, b"p")], vec![], vec![pong()]),
        (Fault::InterleavedSwallowed, interleaved(), vec![pong(), reply(TEXT, b"ab")], text(b"ab")),
        (
            Fault::InterleavedDelayed,
            interleaved(),
            vec![pong(), reply(TEXT, b"ab")],
            vec![reply(TEXT, b"ab"), pong()],
        ),
        (Fault::FragmentsSwapped, three, text(b"abcd"), text(b"bcad")),
        (Fault::LastFragmentOnly, two(), text(b"ab"), text(b"b")),
        (Fault::TextAsBinary, vec![frame(TEXT, b"a")], text(b"a"), vec![reply(BINARY, b"a")]),
        (Fault::EmptySwallowed, vec![frame(TEXT, b"")], text(b""), vec![]),
        shorter(Fault::LastByteLostAt125, 125),
        shorter(Fault::LastByteLostAt126, 126),
        shorter(Fault::LastByteLostAt65535, 65_535),
        shorter(Fault::LastByteLostAt65536, 65_536),
        shorter(Fault::CutAt1M, (1 << 20) + 1),
        (
            Fault::EmptyFragmentsRefused,
            vec![frame(FIRST, b""), frame(LAST, b"a")],
            text(b"a"),
            vec![],
        ),
        (
            Fault::ManyFragmentsLost,
            many,
            text(&[&[b'a'; 5001][..], b"b"].concat()),
            text(&[b'a'; 5000]),
        ),
        (Fault::EveryTenthLost, numbered.clone(), every.clone(), lost),
        (Fault::EveryTenthDoubled, numbered, every, doubled),
        (
            Fault::PipelinedSwapped,
            vec![frame(TEXT, b"a"), frame(TEXT, b"b")],
            vec![reply(TEXT, b"a"), reply(TEXT, b"b")],
            vec![reply(TEXT, b"b"), reply(TEXT, b"a")],
        ),
        (Fault::ByFragment, two(), text(b"ab"), vec![reply(FIRST, b"a"), reply(LAST, b"b")]),
        (
            Fault::PingsFirst,
            vec![frame(TEXT, b"a")],
            text(b"a"),
            vec![reply(PING, b"first"), reply(TEXT, b"a")],
        ),
    ];
    let trials = answered.into_iter().map(|(fault, mut sent, mut right, mut wrong)| {
        sent.push(close(1000));
        right.push(closed(1000));
        let fails = fault == Fault::EmptyFragmentsRefused;
        wrong.push(closed(if fails { 1002 } else { 1000 }));
        trial(fault, &sent, &right, &wrong)
    });
    let mut keys = Random::new(1);
    let mut masked = |first: u8, payload: &[u8]| masked(first, payload, keys.key());
    let masks = [masked(TEXT, b"a"), masked(CLOSE, b"\x03\xe8")];
    let long = [b"\x81\x7e\0\x01a".to_vec(), b"\x88\x7e\0\x02\x03\xe8".to_vec()];
    let forms = [(Fault::WrongMasking, masks), (Fault::LongLengths, long)];
    let forms = forms.map(|(fault, wrong)| {
        let right = [reply(TEXT, b"a"), closed(1000)];
        trial(fault, &[frame(TEXT, b"a"), close(1000)], &right, &wrong)
    });
    let segments = [trial(
        Fault::SegmentRestLost,
        &[frame(TEXT, b"a"), close(1000)],
        &[reply(TEXT, b"a"), closed(1000)],
        &[reply(TEXT, b"a")],
    )];
    trials.chain(forms).chain(segments).collect()
}

/// Text that is valid or not.
fn texts() -> Vec<Trial> {
    let refused = [
        (Fault::Utf8Unchecked, &b"a\xff"[..]),
        (Fault::Utf8Surrogates, b"\xed\xa0\x80"),
        (Fault::Utf8Overlong, b"\xc0\xaf\xe0\x80\xaf\xf0\x80\x80\xaf"),
        (Fault::Utf8Beyond, b"\xf4\x90\x80\x80\xf7\xbf\xbf\xbf"),
        (Fault::Utf8Unfinished, b"a\xce"),
    ];
    let refused = refused.map(|(fault, text)| {
        let sent = [frame(TEXT, text), close(1000)];
        trial(fault, &sent, &[closed(1007)], &[reply(TEXT, text), closed(1000)])
    });
    let noncharacter = "\u{1FFFE}".as_bytes();
    let character = "κ".as_bytes();
    let accepted = [
        trial(
            Fault::Utf8NoncharactersRefused,
            &[frame(TEXT, noncharacter), close(1000)],
            &[reply(TEXT, noncharacter), closed(1000)],
            &[closed(1007)],
        ),
        trial(
            Fault::Utf8SplitRefused,
            &[frame(FIRST, &character[..1]), frame(LAST, &character[1..]), close(1000)],
            &[reply(TEXT, character), closed(1000)],
            &[closed(1007)],
        ),
        trial(
            Fault::Utf8Late,
            &[frame(FIRST, b"\xff"), frame(PING, b"p"), frame(LAST, b"")],
            &[closed(1007)],
            &[reply(PONG, b"p"), closed(1007)],
        ),
        // The second byte of the payload never comes.
        trial(Fault::Utf8ByFrame, &[frame(TEXT, b"\xffa")[..7].to_vec()], &[closed(1007)], &[]),
    ];
    refused.into_iter().chain(accepted).collect()
}

/// How a connection is closed.
fn closings() -> Vec<Trial> {
    let reserved = || frame(TEXT | 0x10, b"a");
    let half = [frame(FIRST, b"a"), close(1000), frame(LAST, b"b")];
    let broken = [&1000u16.to_be_bytes()[..], b"\xff"].concat();
    let too_long = b"\x82\xff\0\0\x01\0\0\0\0\0".to_vec();
    vec![
        trial(Fault::ErrorCode1003, &[reserved()], &[closed(1002)], &[closed(1003)]),
        trial(Fault::TextCode1002, &[frame(TEXT, b"\xff")], &[closed(1007)], &[closed(1002)]),
        trial(Fault::SizeCode1002, &[too_long], &[closed(1009)], &[closed(1002)]),
        trial(Fault::FailsSilently, &[reserved()], &[closed(1002)], &[]),
        trial(Fault::ClosesWith1001, &[close(1000)], &[closed(1000)], &[closed(1001)]),
        trial(Fault::CloseSends1005, &[frame(CLOSE, b"")], &[reply(CLOSE, b"")], &[closed(1005)]),
        trial(Fault::CloseReasonBroken, &[close(1000)], &[closed(1000)], &[reply(CLOSE, &broken)]),
        trial(
            Fault::CloseUnanswered,
            &[close(1000), frame(TEXT, b"a")],
            &[closed(1000)],
            &[reply(TEXT, b"a")],
        ),
        trial(Fault::CloseTwice, &[close(1000)], &[closed(1000)], &[closed(1000), closed(1000)]),
        trial(Fault::CloseDropped, &[close(1000)], &[closed(1000)], &[]),
        trial(
            Fault::CloseAfterMessage,
            &half,
            &[closed(1000)],
            &[reply(TEXT, b"ab"), closed(1000)],
        ),
        trial(
            Fault::AnswersAfterClose,
            &[close(1000), frame(TEXT, b"a"), frame(PING, b"p"), close(1000)],
            &[closed(1000)],
            &[closed(1000), reply(TEXT, b"a"), reply(PONG, b"p")],
        ),
        trial(Fault::CloseCodesUnchecked, &[close(999)], &[closed(1002)], &[closed(999)]),
        trial(Fault::CloseCodesPrivateRefused, &[close(3000)], &[closed(3000)], &[closed(1002)]),
        trial(
            Fault::CloseReasonUnchecked,
            &[frame(CLOSE, &broken)],
            &[closed(1007)],
            &[closed(1000)],
        ),
        trial(Fault::CloseHalfCode, &[frame(CLOSE, b"a")], &[closed(1002)], &[closed(1000)]),
    ]
}

/// Compressed messages.
fn compressions() -> Vec<Trial> {
    let mark = |payload: &[u8]| reply(TEXT | RSV1, payload);
    let sent = |payload: &[u8]| frame(TEXT | RSV1, payload);
    let hello = || vec![sent(HELLO), close(1000)];
    let twice = || vec![sent(HELLO), sent(HELLO_AGAIN), close(1000)];
    let again = compressed(32 << 10, &[b"Hello", b"Hello"]);
    let taken_over = vec![mark(&again[0]), mark(&again[1]), closed(1000)];
    let right = || vec![mark(HELLO), closed(1000)];
    // The end refers to the beginning only with a window of more than 300 bytes.
    let far = [b"abcdefgh", &[b'-'; 300][..], b"abcdefgh"].concat();
    let (near, wide) = (compressed(256, &[&far]), compressed(32 << 10, &[&far]));
    let farthest = Compressor::referring(Reference::Farthest, 32 << 10).message(&far);
    let bomb = compressed(32 << 10, &[&vec![b'0'; LIMIT + 1]]).remove(0);
    let stored = b"\x00\x05\x00\xfa\xffHello\x00";
    let last = b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00";
    let half = compressed(32 << 10, &[b"Hel"]).remove(0);
    let not_text = compressed(32 << 10, &[b"a\xff"]).remove(0);
    let one = |fault, payload: &[u8], right: &[u8], wrong: Vec<u8>| {
        trial(fault, &[sent(payload), close(1000)], &[mark(right), closed(1000)], &[wrong])
    };
    let nothing = compressed(32 << 10, &[b""]).remove(0);
    let refused = [
        one(Fault::DeflateStoredRefused, stored, HELLO, closed(1007)),
        one(Fault::DeflateFinalRefused, last, HELLO, closed(1007)),
        one(Fault::DeflateEmptyRefused, b"\0", &nothing, closed(1007)),
        trial(
            Fault::DeflateEmptyMissing,
            &[sent(b"\0"), close(1000)],
            &[mark(&nothing), closed(1000)],
            &[mark(b""), closed(1000)],
        ),
        trial(Fault::DeflateTailCut, &hello(), &right(), &[mark(&HELLO[..6]), closed(1000)]),
        trial(
            Fault::DeflatePlainRefused,
            &[frame(TEXT, b"a"), close(1000)],
            &[reply(TEXT, b"a"), closed(1000)],
            &[closed(1002)],
        ),
        trial(
            Fault::DeflateErrorsIgnored,
            &[sent(&HELLO[..4]), close(1000)],
            &[closed(1007)],
            &[mark(&half), closed(1000)],
        ),
        trial(
            Fault::DeflateTextUnchecked,
            &[sent(&not_text), close(1000)],
            &[closed(1007)],
            &[mark(&not_text), closed(1000)],
        ),
    ];
    let trials = vec![
        trial(Fault::DeflateUnmarked, &hello(), &right(), &[reply(TEXT, HELLO), closed(1000)]),
        trial(
            Fault::DeflateMarkedContinuation,
            &hello(),
            &right(),
            &[reply(FIRST | RSV1, &HELLO[..3]), reply(LAST | RSV1, &HELLO[3..]), closed(1000)],
        ),
        trial(
            Fault::DeflateTailKept,
            &hello(),
            &right(),
            &[mark(&[HELLO, &TAIL].concat()), closed(1000)],
        ),
        trial(
            Fault::DeflateWindowExceeded,
            &[sent(&wide[0]), close(1000)],
            &[mark(&near[0]), closed(1000)],
            &[mark(&farthest), closed(1000)],
        )
        .offering("permessage-deflate; server_max_window_bits=8"),
        trial(
            Fault::DeflateContextKept,
            &twice(),
            &[mark(HELLO), mark(HELLO), closed(1000)],
            &taken_over,
        )
        .offering("permessage-deflate; server_no_context_takeover"),
        trial(Fault::DeflateContextLost, &twice(), &taken_over, &[mark(HELLO), closed(1007)]),
        trial(
            Fault::DeflateShortWindow,
            &[sent(&wide[0]), close(1000)],
            &[mark(&wide[0]), closed(1000)],
            &[closed(1007)],
        ),
        trial(
            Fault::DeflateUnlimited,
            &[sent(&bomb), close(1000)],
            &[closed(1009)],
            &[mark(&bomb), closed(1000)],
        ),
    ];
    trials
        .into_iter()
        .chain(refused)
        .map(
            |trial| {
                if trial.offer.is_empty() { trial.offering("permessage-deflate") } else { trial }
            },
        )
        .collect()
}

/// A request, and what the response begins with: without the fault, and with it.
fn handshakes() -> Vec<(Fault, String, String, String)> {
    let plain = REQUEST.to_owned();
    let replaced = |from: &str, to: &str| RESPONSE.replacen(from, to, 1);
    let with = |field: &str| replaced("\r\n\r\n", &format!("\r\n{field}\r\n\r\n"));
    let asking = |offer: &str| request_with(offer);
    let answer = |answer: &str| with(&format!("Sec-WebSocket-Extensions: {answer}"));
    let accept = format!("Sec-WebSocket-Accept: {ACCEPT}\r\n");
    let lower = RESPONSE
        .replace("Upgrade: websocket", "upgrade: WEBSOCKET")
        .replace("Connection: Upgrade", "connection: UPGRADE")
        .replace("Sec-WebSocket-Accept", "sec-websocket-accept");
    let another = crate::oracle::accept_of("another");
    let changed = [
        (Fault::WrongAccept, replaced(ACCEPT, &another)),
        (Fault::AcceptMissing, replaced(&accept, "")),
        (Fault::UpgradeMissing, replaced("Upgrade: websocket\r\n", "")),
        (Fault::ConnectionMissing, replaced("Connection: Upgrade\r\n", "")),
        (Fault::Status200, replaced("101 Switching Protocols", "200 OK")),
        (Fault::Http10, replaced("HTTP/1.1", "HTTP/1.0")),
        (Fault::UnaskedSubprotocol, with("Sec-WebSocket-Protocol: unasked")),
        (Fault::UnaskedExtension, answer("permessage-deflate")),
        (Fault::BareLf, RESPONSE.replace("\r\n", "\n")),
        (Fault::LowerCaseFields, lower),
    ];
    let changed = changed.map(|(fault, wrong)| (fault, plain.clone(), RESPONSE.to_owned(), wrong));
    let bits = "permessage-deflate; server_max_window_bits=9";
    let changed_request = |from: &str, to: &str| REQUEST.replacen(from, to, 1);
    let status = |status: u16| format!("HTTP/1.1 {status} ");
    let refusal = "HTTP/1.1 426 No\r\nConnection: close\r\nContent-Length: 0\r\nAllow: GET\r\n";
    let long = format!("\r\nX-Long: {}\r\n\r\n", "a".repeat(2500));
    let accepted = [
        (Fault::AnyMethod, changed_request("GET", "POST"), 405),
        (Fault::AnyHttpVersion, changed_request("HTTP/1.1", "HTTP/1.0"), 505),
        (Fault::AnyHost, changed_request("Host: localhost\r\n", ""), 400),
        (Fault::AnyUpgrade, changed_request("Upgrade: websocket\r\n", ""), 400),
        (Fault::AnyConnection, changed_request("Connection: Upgrade\r\n", ""), 400),
        (Fault::AnySyntax, changed_request("\r\n\r\n", "\r\nX-A : b\r\n\r\n"), 400),
    ];
    let accepted =
        accepted.map(|(fault, request, code)| (fault, request, status(code), RESPONSE.to_owned()));
    let refused = [
        (Fault::NamesByCase, changed_request("Upgrade: websocket", "upgrade: websocket"), 400),
        (Fault::TokensByCase, changed_request("Upgrade: websocket", "Upgrade: WebSocket"), 400),
        (Fault::ConnectionNoList, changed_request("Connection: ", "Connection: keep-alive, "), 400),
        (Fault::AbsoluteTargetRefused, changed_request("GET /", "GET http://localhost/"), 400),
        (
            Fault::SpacesRefused,
            changed_request("Upgrade: websocket", "Upgrade: \t websocket "),
            400,
        ),
        (Fault::UnknownExtensionRefused, asking("x-unknown; a=1"), 400),
        (Fault::LongHeadRefused, changed_request("\r\n\r\n", &long), 431),
    ];
    let refused =
        refused.map(|(fault, request, code)| (fault, request, RESPONSE.to_owned(), status(code)));
    let others = [
        (
            Fault::VersionUnnamed,
            changed_request("Version: 13", "Version: 12"),
            format!("{refusal}Sec-WebSocket-Version: 13\r\n\r\n"),
            format!("{refusal}\r\n"),
        ),
        (
            Fault::DeflateFirstOffer,
            asking("x-unknown, permessage-deflate"),
            answer("permessage-deflate"),
            RESPONSE.to_owned(),
        ),
        (
            Fault::AnyVersion,
            REQUEST.replace("Version: 13", "Version: 12"),
            "HTTP/1.1 426 ".to_owned(),
            RESPONSE.to_owned(),
        ),
        (
            Fault::AnyKey,
            REQUEST.replace(NONCE, "AAAA"),
            "HTTP/1.1 400 ".to_owned(),
            replaced(ACCEPT, &crate::oracle::accept_of("AAAA")),
        ),
        (Fault::DeflateWindowUnanswered, asking(bits), answer(bits), answer("permessage-deflate")),
        (
            Fault::DeflateAnyOffer,
            asking("permessage-deflate; server_max_window_bits=7; level"),
            RESPONSE.to_owned(),
            answer("permessage-deflate"),
        ),
        (
            Fault::NoDeflate,
            asking("permessage-deflate"),
            answer("permessage-deflate"),
            RESPONSE.to_owned(),
        ),
    ];
    changed.into_iter().chain(others).chain(accepted).chain(refused).collect()
}

fn request_with(offer: &str) -> String {
    let field = format!("\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n");
    if offer.is_empty() { REQUEST.to_owned() } else { REQUEST.replace("\r\n\r\n", &field) }
}

fn server(faults: &[Fault]) -> Mutant {
    Mutant::start(Behavior { message_bytes_max: LIMIT, ..Behavior::with(faults) })
}

/// All that a server answers to `request`, and to `sent` after it, until it ends the connection.
fn answers(mutant: &Mutant, request: &str, sent: &[u8]) -> (String, Vec<u8>) {
    let mut client = Client::open(mutant.address());
    let head = client.handshake_by(request);
    client.write(sent);
    // A server that waits for more learns that nothing comes.
    client.stream().shutdown(Shutdown::Write).expect("a connection");
    (head, client.read_to_end().expect("FIN and not RST"))
}

fn trials() -> Vec<Trial> {
    [tolerated(), answered(), texts(), closings(), compressions()].into_iter().flatten().collect()
}

#[test]
fn every_fault_of_frames_shows_and_nothing_else_does() {
    let right = server(&[]);
    for Trial { fault, offer, sent, right: expected, wrong } in trials() {
        let request = request_with(offer);
        assert_ne!(expected, wrong, "{fault}");
        let (_, answer) = answers(&right, &request, &sent);
        assert!(answer == expected, "without {fault}: {}", shown(&answer));
        let (_, answer) = answers(&server(&[fault]), &request, &sent);
        assert!(answer == wrong, "with {fault}: {}", shown(&answer));
    }
}

fn shown(bytes: &[u8]) -> String {
    format!("{} bytes, {:x?}", bytes.len(), &bytes[..bytes.len().min(64)])
}

#[test]
fn every_fault_of_the_opening_handshake_shows() {
    let response = |mutant: &Mutant, request: &str| {
        let mut client = Client::open(mutant.address());
        client.write(request.as_bytes());
        client.stream().shutdown(Shutdown::Write).expect("a connection");
        let response = client.read_to_end().expect("FIN and not RST");
        String::from_utf8(response).expect("ASCII")
    };
    let right = server(&[]);
    for (fault, request, expected, wrong) in handshakes() {
        assert!(!expected.starts_with(&wrong) && !wrong.starts_with(&expected), "{fault}");
        let answer = response(&right, &request);
        assert!(answer.starts_with(&expected), "without {fault}: {answer}");
        let answer = response(&server(&[fault]), &request);
        assert!(answer.starts_with(&wrong), "with {fault}: {answer}");
    }
    for (request, status) in [
        (REQUEST.replace("GET /", "GET a"), "400"),
        (REQUEST.replace("Host: localhost\r\n", "Host: a/b\r\n"), "400"),
        (REQUEST.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\n"), "400"),
        (REQUEST.replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: a b\r\n\r\n"), "400"),
        (request_with("a; b=\"c d\""), "400"),
        (format!("\r\n{REQUEST}"), "101"),
    ] {
        let answer = response(&right, &request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}{answer}");
    }
}

#[test]
fn every_fault_of_segments_of_the_opening_handshake_shows() {
    let response = |faults: &[Fault], sent: &[u8]| {
        let mut client = Client::open(server(faults).address());
        client.write(sent);
        client.stream().shutdown(Shutdown::Write).expect("a connection");
        let response = client.read_to_end().expect("FIN and not RST");
        String::from_utf8_lossy(&response).into_owned()
    };
    let post = REQUEST.replace("GET", "POST");
    assert!(response(&[], post.as_bytes()).starts_with("HTTP/1.1 405 "));
    assert_eq!(response(&[Fault::RefusesSilently], post.as_bytes()), "");
    let early = [REQUEST.as_bytes(), &frame(TEXT, b"a")].concat();
    let echo = String::from_utf8_lossy(&reply(TEXT, b"a")).into_owned();
    assert_eq!(response(&[], &early), format!("{RESPONSE}{echo}"));
    assert_eq!(response(&[Fault::EarlyFramesLost], &early), RESPONSE);
}

#[test]
fn a_reset_spoils_the_next_connection_with_the_fault_only() {
    for (faults, is_spoilt) in [(&[][..], false), (&[Fault::ResetSpoilsNext], true)] {
        let mutant = server(faults);
        let first = Client::connect(mutant.address());
        let linger = Some(Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(first.stream(), linger).expect("an option");
        drop(first);
        for expected in [is_spoilt, false] {
            let next = Client::open(mutant.address());
            // The request may be reset itself, if the connection has ended already.
            let _ = io::Write::write_all(&mut next.stream(), REQUEST.as_bytes());
            let first = next.stream().read(&mut [0]);
            assert_eq!(!matches!(first, Ok(1)), expected, "{faults:?}");
        }
    }
}

#[test]
fn every_fault_of_the_end_shows() {
    let half_closed = |faults: &[Fault]| {
        let client = Client::connect(server(faults).address());
        client.stream().shutdown(Shutdown::Write).expect("a connection");
        client.stream().set_read_timeout(Some(Duration::from_millis(200))).expect("an option");
        client.stream().read(&mut [0]).map_err(|error| error.kind())
    };
    assert_eq!(half_closed(&[]), Ok(0));
    assert_eq!(half_closed(&[Fault::EndUnnoticed]), Err(io::ErrorKind::WouldBlock));

    let end = |faults: &[Fault]| {
        let mut client = Client::connect(server(faults).address());
        client.write(&close(1000));
        client.expect(CLOSE, &1000u16.to_be_bytes());
        client.stream().set_read_timeout(Some(Duration::from_millis(200))).expect("an option");
        client.stream().read(&mut [0]).map_err(|error| error.kind())
    };
    assert_eq!(end(&[]), Ok(0));
    assert_eq!(end(&[Fault::ResetAtEnd]), Err(io::ErrorKind::ConnectionReset));
    assert_eq!(end(&[Fault::TcpNotDropped]), Err(io::ErrorKind::WouldBlock));
}

/// A conformance server with one case: it sends a text message and a ping, and closes. Returns the request
/// for the case, and what the client sent in it, with the verdicts that the client was told.
fn run_client(faults: &[Fault]) -> (String, Vec<u8>, io::Result<usize>) {
    let noted = Arc::new(Mutex::new((String::new(), Vec::new())));
    let notes = Arc::clone(&noted);
    let suite = Fake::start(move |peer, _| {
        let request = peer.request()?;
        let say = |peer: &mut Peer, text: &str| {
            peer.send(response_to(&request, "").as_bytes())?;
            peer.send(&[reply(TEXT, text.as_bytes()), closed(1000)].concat())?;
            peer.frame()
        };
        let target = request.split(' ').nth(1).unwrap_or_default();
        if target == "/getCaseCount" {
            say(peer, "1")?;
        } else if target == "/getCaseStatus?case=1&agent=test" {
            wait_until("the case is over", || !notes.lock().expect("no panic").0.is_empty());
            say(peer, "{\"behavior\": \"OK\"}")?;
        } else if target == "/updateReports?agent=test" {
            peer.send(response_to(&request, "").as_bytes())?;
            peer.send(&closed(1000))?;
            peer.frame()?;
        } else if target == "/runCase?case=1&agent=test" {
            peer.send(response_to(&request, "").as_bytes())?;
            peer.send(&[reply(TEXT, b"a"), reply(PING, b"p"), closed(1000)].concat())?;
            peer.finish()?;
            let mut received = Vec::new();
            peer.stream.read_to_end(&mut received)?;
            *notes.lock().expect("no panic") = (request.clone(), received);
        }
        Ok(())
    });
    let statuses = run_cases(&suite.url(), "test", &Behavior::with(faults));
    let statuses = statuses.map(|statuses| {
        assert!(statuses.iter().all(|status| status.message.contains("\"OK\"")), "{statuses:?}");
        statuses.len()
    });
    let (request, received) = noted.lock().expect("no panic").clone();
    (request, received, statuses)
}

#[test]
fn a_client_runs_the_cases_of_a_server() {
    let mut keys = Random::new(1);
    let mut masked = |first: u8, payload: &[u8]| masked(first, payload, keys.key());
    let right = [masked(TEXT, b"a"), masked(PONG, b"p"), masked(CLOSE, b"\x03\xe8")].concat();
    let wrong = [reply(TEXT, b"a"), reply(PONG, b"p"), reply(CLOSE, b"\x03\xe8")].concat();
    let (request, received, statuses) = run_client(&[]);
    assert!(request.contains("Sec-WebSocket-Extensions: permessage-deflate;"), "{request}");
    assert!(request.contains("Sec-WebSocket-Version: 13\r\n"), "{request}");
    assert!(request.contains("Connection: Upgrade\r\n"), "{request}");
    assert!(request.contains("Sec-WebSocket-Key: bm90IHJhbmRvbSBhdCBhbA==\r\n"), "{request}");
    assert_eq!((received, statuses.expect("a verdict")), (right, 1));
    let (_, received, statuses) = run_client(&[Fault::WrongMasking]);
    assert_eq!((received, statuses.expect("a verdict")), (wrong, 1));
    for (fault, expected) in [
        (Fault::RequestByPost, "POST /runCase"),
        (Fault::RequestVersion12, "Sec-WebSocket-Version: 12\r\n"),
        (Fault::RequestShortKey, "Sec-WebSocket-Key: bm90IHJhbmRvbSBhdCBh\r\n"),
        (Fault::RequestWithoutConnection, "Upgrade: websocket\r\nSec-"),
    ] {
        let (request, _, statuses) = run_client(&[fault]);
        assert!(request.contains(expected), "{fault}: {request}");
        assert_eq!(statuses.expect("a verdict"), 1, "{fault}");
    }
    let (request, _, _) = run_client(&[Fault::NoDeflate]);
    assert!(!request.contains("Sec-WebSocket-Extensions"), "{request}");
}

#[test]
fn every_fault_is_tried() {
    let ends = [
        Fault::ResetAtEnd,
        Fault::TcpNotDropped,
        Fault::EndUnnoticed,
        Fault::ResetSpoilsNext,
        Fault::RefusesSilently,
        Fault::EarlyFramesLost,
    ];
    let mut tried: BTreeSet<Fault> = trials().iter().map(|trial| trial.fault).collect();
    tried.extend(handshakes().iter().map(|(fault, ..)| *fault));
    tried.extend(ends);
    let servers = Fault::ALL.iter().filter(|fault| fault.fits(Role::Server)).copied();
    assert_eq!(tried, servers.collect());
}

#[test]
fn the_table_is_sound() {
    let names: BTreeSet<&str> = Fault::ALL.iter().map(|fault| fault.name()).collect();
    assert_eq!(names.len(), Fault::ALL.len());
    for &fault in Fault::ALL {
        assert_eq!(fault.name().parse(), Ok(fault));
        assert!(fault.description().ends_with('.'), "{fault}");
        assert!(!fault.description().contains("  "), "{fault}");
        let is_clause = fault.rule().is_none_or(|rule| rule.starts_with("RFC "));
        assert!(is_clause && fault.is_legal() == fault.rule().is_none(), "{fault}");
        assert!(!fault.is_legal() || fault.cases().is_empty(), "{fault}");
        assert!(fault.fits(Role::Server) || fault.fits(Role::Client), "{fault}");
        for case in fault.cases() {
            let mut parts = case.split('.');
            let section: u32 = parts.next().and_then(|part| part.parse().ok()).expect("a section");
            assert!(matches!(section, 1..=7 | 9 | 10 | 12 | 13 | 20..=25), "{fault} {case}");
            let is_number = |part: &str| part == "*" || part.parse::<u32>().is_ok();
            assert!(parts.all(is_number), "{fault} {case}");
        }
    }
    assert!("no-such-fault".parse::<Fault>().is_err());
    assert!(Fault::Rsv3Ignored.is_noticed_by("3.1") && !Fault::Rsv3Ignored.is_noticed_by("3.10"));
    assert!(Fault::EmptySwallowed.is_noticed_by("9.7.1"));
    assert!(Fault::UnaskedExtension.is_noticed_by("1.2.8"));
    assert!(!Fault::UnaskedExtension.is_noticed_by("12.1.1"));
    assert!(Fault::WrongAccept.is_noticed_by("7.13.2"));
}
