//! The engines against each other: scripted conversations, of which every byte that comes back is
//! the same whatever the bytes went through.
//!
//! What is right is compared with an oracle elsewhere; here one engine is the measure of the others.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

use testkit::{
    BINARY, CLOSE, FIN, PING, PONG, REQUEST, RESPONSE, RSV1, Random, Server, TEXT, TIMEOUT,
    can_offload, cases, frame, pattern, reply, say, temporary_file,
};

/// The engines, the measure first, each with ways to wait that it does not share with others.
const ENGINES: &[&[&str]] = &[
    &["--engine", "uring", "--wait", "block"],
    &["--engine", "uring", "--wait", "sqpoll"],
    &["--engine", "epoll", "--wait", "block"],
    &["--engine", "epoll", "--wait", "spin"],
    #[cfg(feature = "tokio-uring")]
    &["--engine", "tokio-uring"],
];

/// Not among them: for what it cannot be asked for, and where it may not be had.
const OFFLOAD: &[&str] = &["--engine", "uring", "--wait", "block", "--offload", "on"];

/// "Hello", compressed (RFC 7692 section 7.2.3.1).
const HELLO: &[u8] = b"\xf2\x48\xcd\xc9\xc9\x07\x00";

enum Step {
    /// Write these bytes at once.
    Write(Vec<u8>),
    /// Read until this many bytes have come since the beginning.
    Await(usize),
    /// Say that no more will be written.
    End,
}
use Step::{Await, End, Write as Say};

/// What a client does on one connection. At its end it reads to the server's end.
struct Conversation {
    name: &'static str,
    /// Arguments of the server.
    arguments: &'static [&'static str],
    steps: Vec<Step>,
}

/// A conversation after the opening handshake.
fn open(name: &'static str, steps: Vec<Step>) -> Conversation {
    opened(name, &[], steps)
}

fn opened(
    name: &'static str,
    arguments: &'static [&'static str],
    steps: Vec<Step>,
) -> Conversation {
    let mut all = vec![Say(REQUEST.into()), Await(RESPONSE.len())];
    all.extend(steps);
    Conversation { name, arguments, steps: all }
}

/// The same with an offer to compress, whose answer is `answer`.
fn offering(
    name: &'static str,
    arguments: &'static [&'static str],
    offer: &str,
    answer: &str,
    steps: Vec<Step>,
) -> Conversation {
    let header = format!("\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n");
    let request = REQUEST.replace("\r\n\r\n", &header);
    let answered = RESPONSE.len() + format!("Sec-WebSocket-Extensions: {answer}\r\n").len();
    let mut all = vec![Say(request.into()), Await(answered)];
    all.extend(steps);
    Conversation { name, arguments, steps: all }
}

fn close(code: u16) -> Vec<u8> {
    frame(CLOSE, &code.to_be_bytes())
}

fn conversations() -> Vec<Conversation> {
    let hello = frame(TEXT, b"0123456789abcdef");
    let echoed = |count: usize| Await(RESPONSE.len() + count * 18);
    let frames = |count: usize| -> Vec<u8> {
        let mixed = |number: usize| match number % 4 {
            0 => frame(TEXT, "größer als ß".as_bytes()),
            1 => frame(BINARY, &pattern(number * 7)),
            2 => frame(PING, b"ping"),
            _ => [frame(TEXT & !FIN, b"frag"), frame(PONG, b""), frame(FIN, b"ment")].concat(),
        };
        (0..count).flat_map(mixed).collect()
    };
    let pipeline = frames(300);
    let large = |first| frame(first, &pattern(1_000_000));
    let mut each = vec![];
    let mut ping_pong = vec![];
    for number in 1..=100 {
        ping_pong.extend([Say(hello.clone()), echoed(number)]);
    }
    ping_pong.push(Say(close(1000)));
    for byte in [frames(30), close(1001)].concat() {
        each.push(Say(vec![byte]));
    }
    vec![
        open("ping-pong", ping_pong),
        open("a pipeline", vec![Say(pipeline.clone()), Say(close(1000))]),
        open("byte by byte", each),
        open("half-closed after a pipeline", vec![Say(pipeline.clone()), End]),
        open("half-closed at once", vec![End]),
        open("half-closed within a frame", vec![Say(hello[..7].to_vec()), End]),
        open("half-closed after a large text", vec![Say(large(TEXT)), End]),
        open("a large text", vec![Say(large(TEXT)), Say(close(1000))]),
        open("a large binary message", vec![Say(large(BINARY)), Say(close(1000))]),
        open(
            "ten large messages, read late",
            vec![Say((0..10).flat_map(|_| large(BINARY)).collect()), Say(close(3000))],
        ),
        open("a close without a code", vec![Say(frame(CLOSE, b""))]),
        open("a close with a reason", vec![Say(frame(CLOSE, b"\x03\xe8bye"))]),
        open("a close that may not be sent", vec![Say(close(1005))]),
        open("a close of one byte", vec![Say(frame(CLOSE, b"\x03"))]),
        open("frames after a close", vec![Say([close(1000), pipeline.clone()].concat())]),
        open("no mask", vec![Say([hello.clone(), reply(TEXT, b"hello")].concat())]),
        open("a reserved bit", vec![Say(frame(TEXT | 0x20, b"hello"))]),
        open("compressed without agreement", vec![Say(frame(TEXT | RSV1, HELLO))]),
        open("a reserved opcode", vec![Say([hello.clone(), frame(0x83, b"")].concat())]),
        open("a continuation of nothing", vec![Say(frame(FIN, b"hello"))]),
        open(
            "a message within a message",
            vec![
                Say(frame(TEXT & !FIN, b"one")),
                Await(RESPONSE.len() + 5),
                Say(frame(TEXT, b"two")),
            ],
        ),
        open("a large ping", vec![Say(frame(PING, &[0; 126]))]),
        open("wrong text", vec![Say([hello.clone(), frame(TEXT, b"ab\xffcd")].concat())]),
        opened(
            "too large",
            &["--message-max", "20000"],
            vec![
                Say(frame(BINARY, &pattern(20_000))),
                Say(frame(BINARY & !FIN, &pattern(12_000))),
                Say(frame(FIN, &pattern(8001))),
            ],
        ),
        Conversation {
            name: "frames in the segment of the request",
            arguments: &[],
            steps: vec![Say([REQUEST.as_bytes(), &hello, &close(1000)].concat())],
        },
        Conversation {
            name: "a request in pieces",
            arguments: &[],
            steps: REQUEST
                .as_bytes()
                .chunks(7)
                .map(|piece| Say(piece.to_vec()))
                .chain([Await(RESPONSE.len()), Say(close(1000))])
                .collect(),
        },
        Conversation { name: "nothing", arguments: &[], steps: vec![End] },
        Conversation {
            name: "no upgrade",
            arguments: &[],
            steps: vec![Say(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec())],
        },
        Conversation { name: "garbage", arguments: &[], steps: vec![Say(vec![0xff; 100])] },
        Conversation {
            name: "a head without end",
            arguments: &[],
            steps: vec![Say([b"GET / HTTP/1.1\r\nA: ", &[b'a'; 9000][..]].concat())],
        },
        offering(
            "mirrored",
            &[],
            "permessage-deflate",
            "permessage-deflate",
            vec![
                Say([frame(TEXT | RSV1, HELLO), hello.clone()].concat()),
                Say([frame(TEXT & !FIN | RSV1, &HELLO[..3]), frame(FIN, &HELLO[3..])].concat()),
                Say([frame(TEXT | RSV1, b"\xf2\x00\x11\x00\x00"), close(1000)].concat()),
            ],
        ),
        offering(
            "compressed again",
            &["--compression", "deflate"],
            "permessage-deflate",
            "permessage-deflate",
            vec![
                Say(frame(TEXT | RSV1, HELLO)),
                Say([hello.clone(), frame(TEXT | RSV1, b"\xf2\x00\x11\x00\x00")].concat()),
                Say(close(1000)),
            ],
        ),
        offering(
            "cannot be inflated",
            &[],
            "permessage-deflate",
            "permessage-deflate",
            vec![Say([frame(TEXT | RSV1, HELLO), frame(TEXT | RSV1, b"\xff\xff")].concat())],
        ),
        Conversation {
            name: "plain bytes",
            arguments: &["--protocol", "tcp"],
            steps: vec![Say(b"hello".to_vec()), Await(5), Say(pattern(1_000_000)), End],
        },
        Conversation { name: "no bytes", arguments: &["--protocol", "tcp"], steps: vec![End] },
    ]
}

/// All that comes back.
fn hold(conversation: &Conversation, socket: impl Into<OwnedFd>) -> Vec<u8> {
    // Whatever the socket is, reading, writing and shutting down are the same.
    let stream = TcpStream::from(socket.into());
    stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
    let [mut reader, mut writer] = [(), ()].map(|()| stream.try_clone().expect("a descriptor"));
    let end = || stream.shutdown(Shutdown::Write).expect("connected");
    let mut heard = vec![];
    let is_await = |step: &Step| matches!(step, Await(_));
    let last_await = conversation.steps.iter().rposition(is_await);
    let (before, last) = conversation.steps.split_at(last_await.map_or(0, |at| at + 1));
    for step in before {
        match step {
            Say(bytes) => writer.write_all(bytes).expect("the server reads"),
            Await(count) => {
                let missing = (count - heard.len()) as u64;
                let come = (&reader).take(missing).read_to_end(&mut heard);
                let come = come.unwrap_or_else(|error| {
                    let name = conversation.name;
                    panic!("{name}: {} of {count} bytes came: {error}", heard.len())
                });
                assert_eq!(come as u64, missing, "{}", conversation.name);
            }
            End => end(),
        }
    }
    // What is left is written while all that comes is read: a server may not take more until then.
    thread::scope(|scope| {
        let rest = scope.spawn(|| {
            let end = reader.read_to_end(&mut heard);
            end.unwrap_or_else(|error| panic!("{}: no end: {error}", conversation.name));
            heard
        });
        for step in last {
            match step {
                // The server may have failed the connection before it has read all.
                Say(bytes) => match writer.write_all(bytes) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                    Err(error) => panic!("{error}"),
                },
                Await(_) => unreachable!("it comes after the last"),
                End => end(),
            }
        }
        rest.join().expect("a thread")
    })
}

/// What the engine says in each conversation, over TCP and over a Unix socket.
fn hear(engine: &[&str], conversations: &[Conversation]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let path = temporary_file("ringecho.sock");
    let unix = format!("unix:{}", path.display());
    let mut servers: Vec<(&[&str], Server)> = vec![];
    let heard = conversations.iter().map(|conversation| {
        let known = servers.iter().position(|(arguments, _)| *arguments == conversation.arguments);
        let at = known.unwrap_or_else(|| {
            let number = servers.len().to_string();
            let unix = unix.clone() + &number;
            let listen = ["--workers", "1", "--listen", "127.0.0.1:0", "--listen", &unix];
            // A pipeline has many control frames, of which plain TCP knows nothing.
            let is_tcp = conversation.arguments.contains(&"tcp");
            let limit: &[&str] = if is_tcp { &[] } else { &["--control-frames-max", "0"] };
            let arguments = [engine, &listen, limit, conversation.arguments].concat();
            servers.push((conversation.arguments, Server::start(&arguments)));
            servers.len() - 1
        });
        let tcp = TcpStream::connect(servers[at].1.address()).expect("a listener");
        tcp.set_nodelay(true).expect("an option");
        let unix = UnixStream::connect(format!("{}{at}", path.display())).expect("a listener");
        (hold(conversation, tcp), hold(conversation, unix))
    });
    let heard = heard.collect();
    for (arguments, server) in servers {
        let ended = server.terminate();
        assert_eq!(ended.status.code(), Some(0), "{engine:?} {arguments:?} {ended:?}");
        assert_eq!(ended.count("connections_open"), 0, "{engine:?} {arguments:?}");
    }
    heard
}

/// Panics with the first byte that differs, because the whole would be megabytes.
fn is_the_same(
    engine: &[&str],
    conversation: &Conversation,
    heard: &(Vec<u8>, Vec<u8>),
    expected: &(Vec<u8>, Vec<u8>),
) {
    let ways = [("TCP", &heard.0, &expected.0), ("Unix", &heard.1, &expected.1)];
    for (way, heard, expected) in ways {
        let same = heard.iter().zip(expected).take_while(|(heard, expected)| heard == expected);
        let same = same.count();
        assert!(
            heard == expected,
            "{engine:?}: {} over {way}: the same up to byte {same} of {}, then {:x?} of {}, not {:x?}",
            conversation.name,
            expected.len(),
            &heard[same..heard.len().min(same + 16)],
            heard.len(),
            &expected[same..expected.len().min(same + 16)],
        );
    }
}

#[test]
fn every_engine_answers_with_the_same_bytes() {
    let conversations = conversations();
    let [measure, others @ ..] = ENGINES else { unreachable!("there are engines") };
    let expected = hear(measure, &conversations);
    for (conversation, (tcp, unix)) in conversations.iter().zip(&expected) {
        assert_eq!(tcp, unix, "{}: TCP and Unix", conversation.name);
    }
    for engine in others {
        let heard = hear(engine, &conversations);
        for ((conversation, heard), expected) in conversations.iter().zip(&heard).zip(&expected) {
            is_the_same(engine, conversation, heard, expected);
        }
    }
    if can_offload("every_engine_answers_with_the_same_bytes") {
        let is_framed =
            |(conversation, _): &(Conversation, _)| conversation.arguments != ["--protocol", "tcp"];
        let framed = conversations.into_iter().zip(expected.clone()).filter(is_framed);
        let (framed, expected): (Vec<_>, Vec<_>) = framed.unzip();
        let heard = hear(OFFLOAD, &framed);
        for ((conversation, heard), expected) in framed.iter().zip(&heard).zip(&expected) {
            is_the_same(OFFLOAD, conversation, heard, expected);
        }
    }
    let conversations = self::conversations();
    // What the measure says is something.
    let named = |name| {
        let at = conversations.iter().position(|conversation| conversation.name == name);
        &expected[at.expect("a conversation")].0
    };
    assert_eq!(named("ping-pong").len(), RESPONSE.len() + 100 * 18 + 4);
    assert_eq!(named("plain bytes").len(), 1_000_005);
    assert_eq!(named("ten large messages, read late").len(), RESPONSE.len() + 10 * 1_000_010 + 4);
    assert!(named("wrong text").ends_with(b"text is not UTF-8"));
    assert!(named("garbage").starts_with(b"HTTP/1.1 400 "));
}

/// A message or a control frame as a client may send it, and how many bytes of echo it brings.
fn said(random: &mut Random, is_small: bool) -> (Vec<u8>, usize) {
    let kind = if is_small { 4 + random.below(8) } else { random.below(12) };
    let whole = |first, payload: &[u8]| (frame(first, payload), reply(first, payload).len());
    match kind {
        0 => {
            let length = random.below(126);
            whole(PING, &pattern(length))
        }
        1 => (frame(PONG, b"unasked"), 0),
        2 => {
            let first = random.pick(&[TEXT, BINARY]) & !FIN;
            let mut frames = vec![frame(first, b"frag")];
            if random.one_in(2) {
                frames.push(frame(PING, b"between"));
            }
            frames.push(frame(FIN, &pattern(random.below(300))));
            // What comes back has no masks.
            (frames.concat(), frames.concat().len() - 4 * frames.len())
        }
        3 if random.one_in(4) => {
            let length = 4000 + random.below(200_000);
            whole(random.pick(&[TEXT, BINARY]), &pattern(length))
        }
        3 | 4 if !is_small => {
            whole(TEXT, "gr\u{f6}\u{df}er \u{1f600} ".repeat(1 + random.below(40)).as_bytes())
        }
        3..=5 => {
            let length = random.below(4200);
            whole(random.pick(&[TEXT, BINARY]), &pattern(length))
        }
        6 => {
            let length = random.below(200);
            whole(BINARY, &random.bytes(length))
        }
        _ => {
            let length = random.below(126);
            whole(TEXT, &pattern(length))
        }
    }
}

/// A conversation by chance: now one small message at a time, now whatever there is, in one packet, in
/// several, or cut anywhere.
fn chat(random: &mut Random) -> Conversation {
    let mut steps = vec![Say(REQUEST.into()), Await(RESPONSE.len())];
    let mut heard = RESPONSE.len();
    for _ in 0..1 + random.below(6) {
        let is_small = random.one_in(2);
        for _ in 0..if is_small { 40 + random.below(160) } else { 1 + random.below(12) } {
            let count = if is_small && !random.one_in(20) { 1 } else { 1 + random.below(6) };
            let frames: Vec<(Vec<u8>, usize)> =
                (0..count).map(|_| said(random, is_small)).collect();
            heard += frames.iter().map(|(_, echo)| echo).sum::<usize>();
            let chunking = if is_small && !random.one_in(20) { 0 } else { random.below(3) };
            let bytes = || frames.iter().flat_map(|(bytes, _)| bytes.clone()).collect::<Vec<u8>>();
            match chunking {
                0 => steps.extend(frames.into_iter().map(|(bytes, _)| Say(bytes))),
                1 => steps.push(Say(bytes())),
                _ => {
                    let bytes = bytes();
                    let mut rest = &bytes[..];
                    while !rest.is_empty() {
                        let most = random.pick(&[2, 30, 3000, 100_000]).max(bytes.len() / 50);
                        let (piece, others) = rest.split_at(rest.len().min(1 + random.below(most)));
                        steps.push(Say(piece.to_vec()));
                        rest = others;
                    }
                }
            }
            if is_small || !random.one_in(4) {
                steps.push(Await(heard));
            }
        }
    }
    match random.below(4) {
        0 => steps.push(End),
        1 => steps.extend([Say([frame(TEXT, b"last"), close(1000)].concat())]),
        2 => steps.extend([Say(frame(BINARY, b"cut")[..5].to_vec()), End]),
        _ => steps.push(Say(close(1000))),
    }
    Conversation { name: "by chance", arguments: &[], steps }
}

#[test]
fn conversations_by_chance_are_the_same_with_offload() {
    const TEST: &str = "conversations_by_chance_are_the_same_with_offload";
    const TOGETHER: usize = 32;
    if !can_offload(TEST) {
        return;
    }
    let (mut messages, mut offloaded) = (0, 0);
    for mut case in cases(TEST, 12) {
        let chats: Vec<Conversation> = (0..TOGETHER).map(|_| chat(&mut case.random)).collect();
        let mut hear = |policy| {
            let options = ["--engine", "uring", "--workers", "1", "--control-frames-max", "0"];
            let server = Server::start(&[&options[..], &["--offload", policy]].concat());
            let address = server.address();
            let heard: Vec<Vec<u8>> = thread::scope(|scope| {
                let hold = |chat| {
                    let tcp = TcpStream::connect(address).expect("a listener");
                    tcp.set_nodelay(true).expect("an option");
                    hold(chat, tcp)
                };
                let threads: Vec<_> =
                    chats.iter().map(|chat| scope.spawn(move || hold(chat))).collect();
                threads.into_iter().map(|thread| thread.join().expect("a chat")).collect()
            });
            let ended = server.terminate();
            assert_eq!(ended.status.code(), Some(0), "{ended:?}");
            let count = |name| ended.count(name);
            offloaded += count("messages_offloaded");
            messages += count("messages");
            (heard, ["messages", "frames_in", "frames_out", "bytes_in", "bytes_out"].map(count))
        };
        let ((heard, counts), (expected, expected_counts)) = (hear("on"), hear("off"));
        for (number, (heard, expected)) in heard.iter().zip(&expected).enumerate() {
            let differs = heard.iter().zip(expected).position(|(left, right)| left != right);
            assert!(
                heard == expected,
                "chat {number} of seed {}: {} and {} bytes, different at {differs:?}",
                case.seed,
                heard.len(),
                expected.len()
            );
        }
        assert_eq!(counts, expected_counts, "seed {}", case.seed);
    }
    messages /= 2;
    say(&format!("{offloaded} of {messages} messages offloaded"));
    assert!(offloaded > messages / 3, "{offloaded} {messages}");
}
