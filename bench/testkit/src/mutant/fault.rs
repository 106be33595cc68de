//! The faults: what each one is called, what it does, which rule it breaks, who can have it, and which cases
//! of the conformance suite must notice it.

use std::fmt;
use std::str::FromStr;

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It accepts connections.
    Server,
    /// It opens them.
    Client,
}

/// Every case of sections 1 to 7, 9, 10, 12 and 13.
const ALL: &[&str] =
    &["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*", "12.*", "13.*"];
/// Those that judge what happens after the opening handshake: all but 7.1.6, 7.13.1 and 7.13.2.
const JUDGED: &[&str] = &[
    "1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.1.1", "7.1.2", "7.1.3", "7.1.4", "7.1.5", "7.3.*",
    "7.5.*", "7.7.*", "7.9.*", "9.*", "10.*", "12.*", "13.*",
];
/// Those in which no extension is offered.
const PLAIN: &[&str] = &["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"];
/// Those that end with a close frame of the suite, which must be answered with a close frame.
const CLOSED: &[&str] = &[
    "1.*", "2.1", "2.2", "2.3", "2.4", "2.6", "2.7", "2.8", "2.9", "2.10", "2.11", "5.3", "5.4",
    "5.5", "5.6", "5.7", "5.8", "5.19", "5.20", "6.1.*", "6.2.*", "6.5.*", "6.7.*", "6.9.*",
    "6.22.*", "6.23.*", "7.1.1", "7.1.2", "7.1.3", "7.1.4", "7.1.5", "7.3.1", "7.3.3", "7.3.4",
    "7.3.5", "7.7.*", "9.*", "10.*", "12.*", "13.*",
];
/// The same without 7.7.2, whose close frame has the code 1001.
const CLOSED_NORMALLY: &[&str] = &[
    "1.*", "2.1", "2.2", "2.3", "2.4", "2.6", "2.7", "2.8", "2.9", "2.10", "2.11", "5.3", "5.4",
    "5.5", "5.6", "5.7", "5.8", "5.19", "5.20", "6.1.*", "6.2.*", "6.5.*", "6.7.*", "6.9.*",
    "6.22.*", "6.23.*", "7.1.1", "7.1.2", "7.1.3", "7.1.4", "7.1.5", "7.3.1", "7.3.3", "7.3.4",
    "7.3.5", "7.7.1", "7.7.3", "7.7.4", "7.7.5", "7.7.6", "7.7.7", "7.7.8", "7.7.9", "7.7.10",
    "7.7.11", "7.7.12", "7.7.13", "9.*", "10.*", "12.*", "13.*",
];
/// Those that demand the close code 1002.
const PROTOCOL_ERRORS: &[&str] = &[
    "2.5", "3.*", "4.*", "5.1", "5.2", "5.9", "5.10", "5.11", "5.12", "5.13", "5.14", "5.15",
    "5.16", "5.17", "5.18", "7.3.2", "7.3.6", "7.9.*",
];
/// Those whose text is not UTF-8.
const INVALID_TEXT: &[&str] = &[
    "6.3.*", "6.4.*", "6.6.1", "6.6.3", "6.6.4", "6.6.6", "6.6.8", "6.6.10", "6.8.*", "6.10.*",
    "6.11.5", "6.12.*", "6.13.*", "6.14.*", "6.15.*", "6.16.*", "6.17.*", "6.18.*", "6.19.*",
    "6.20.*", "6.21.*",
];
/// Those with a message in fragments that differ from each other.
const FRAGMENTS: &[&str] =
    &["5.3", "5.4", "5.5", "5.6", "5.7", "5.8", "5.19", "5.20", "6.2.3", "6.2.4"];
/// Those with a ping between fragments.
const INTERLEAVED: &[&str] = &["5.6", "5.7", "5.8", "5.19", "5.20"];
/// Those with a ping that has a payload.
const PINGS: &[&str] =
    &["2.2", "2.3", "2.4", "2.6", "2.9", "2.10", "2.11", "5.6", "5.7", "5.8", "5.19", "5.20"];
/// Those with a ping.
const ANY_PINGS: &[&str] = &[
    "2.1", "2.2", "2.3", "2.4", "2.6", "2.9", "2.10", "2.11", "5.6", "5.7", "5.8", "5.19", "5.20",
];
/// None of them: the suite never tries it.
const NONE: &[&str] = &[];
/// Those whose messages are compressed.
const COMPRESSED: &[&str] = &["12.*", "13.*"];
const BOTH: &[Role] = &[Role::Server, Role::Client];
const SERVER: &[Role] = &[Role::Server];
const CLIENT: &[Role] = &[Role::Client];

/// Writes the enum and its table, so that a fault cannot lack a line.
macro_rules! faults {
    ($($fault:ident $name:literal $does:literal $rule:literal $roles:ident $cases:expr;)*) => {
        /// Something that a [`Mutant`](super::Mutant) does otherwise than it should, or, where
        /// [`Fault::is_legal`] says so, otherwise than most do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fault {
            $(#[doc = $does] $fault,)*
        }

        impl Fault {
            /// All of them.
            pub const ALL: &[Fault] = &[$(Fault::$fault),*];

            fn row(self) -> Row {
                match self {
                    $(Fault::$fault => Row {
                        name: $name,
                        description: $does,
                        rule: $rule,
                        roles: $roles,
                        cases: $cases,
                    },)*
                }
            }
        }
    };
}

struct Row {
    name: &'static str,
    description: &'static str,
    rule: &'static str,
    roles: &'static [Role],
    cases: &'static [&'static str],
}

faults! {
    // The opening handshake of a server.
    WrongAccept "wrong-accept" "Answers another key than the client sent."
        "RFC 6455 4.2.2" SERVER ALL;
    AcceptMissing "accept-missing" "Answers without Sec-WebSocket-Accept."
        "RFC 6455 4.2.2" SERVER ALL;
    UpgradeMissing "upgrade-missing" "Answers without Upgrade."
        "RFC 6455 4.2.2" SERVER ALL;
    ConnectionMissing "connection-missing" "Answers without Connection."
        "RFC 6455 4.2.2" SERVER ALL;
    Status200 "status-200" "Accepts the handshake with status 200."
        "RFC 6455 4.2.2" SERVER ALL;
    Http10 "http-1.0" "Answers in HTTP/1.0, which has no Upgrade."
        "RFC 6455 4.2.2" SERVER ALL;
    UnaskedSubprotocol "unasked-subprotocol" "Chooses a subprotocol that was not offered."
        "RFC 6455 4.2.2" SERVER ALL;
    UnaskedExtension "unasked-extension" "Agrees to permessage-deflate that was not offered."
        "RFC 6455 9.1" SERVER PLAIN;
    BareLf "bare-lf" "Ends the lines of the response with LF alone."
        "RFC 9112 2.2" SERVER &["20.1.*", "20.2.1", "20.2.2"];
    AnyMethod "any-method" "Accepts every method."
        "RFC 6455 4.2.1" SERVER
        &["20.3.7", "20.3.8", "20.3.9", "20.3.10", "20.3.11", "20.3.12"];
    AnyHttpVersion "any-http-version" "Accepts every version of HTTP."
        "RFC 6455 4.2.1" SERVER &["20.3.1", "20.3.3", "20.3.4", "20.3.6"];
    AnyHost "any-host" "Accepts requests without Host, or with an invalid one, or with several."
        "RFC 9112 3.2" SERVER &["20.6.1", "20.6.2", "20.6.3", "20.6.4"];
    AnyUpgrade "any-upgrade" "Accepts requests without `Upgrade: websocket`."
        "RFC 6455 4.2.1" SERVER &["20.4.1", "20.4.2", "20.4.3"];
    AnyConnection "any-connection" "Accepts requests without `Connection: Upgrade`."
        "RFC 6455 4.2.1" SERVER &["20.4.5", "20.4.6", "20.4.7"];
    AnyVersion "any-version" "Accepts every Sec-WebSocket-Version."
        "RFC 6455 4.2.1" SERVER
        &["20.5.1", "20.5.3", "20.5.4", "20.5.5", "20.5.6", "20.5.7", "20.5.8", "20.5.9"];
    VersionUnnamed "version-unnamed" "Refuses another version without saying which one it speaks."
        "RFC 6455 4.4" SERVER
        &["20.5.1", "20.5.3", "20.5.4", "20.5.5", "20.5.6", "20.5.7", "20.5.8", "20.5.9"];
    AnyKey "any-key" "Accepts every Sec-WebSocket-Key, and a request without one."
        "RFC 6455 4.2.1" SERVER &["20.4.8", "20.4.11", "20.4.12", "20.4.13", "20.4.14", "20.4.15"];
    AnySyntax "any-syntax" "Accepts fields that break the syntax, such as one with a space before the colon."
        "RFC 9112 5.1" SERVER &["20.6.5", "20.6.6", "20.6.10", "20.6.11", "20.6.12", "20.6.13"];
    RefusesSilently "refuses-silently" "Ends the connection instead of refusing a request."
        "RFC 6455 4.2.1" SERVER &["20.3.7", "20.4.1", "20.4.5", "20.4.8", "20.5.3", "20.6.1"];
    NamesByCase "names-by-case" "Knows the names of fields only as they are usually written."
        "RFC 9112 5" SERVER &["20.1.2", "20.1.3"];
    TokensByCase "tokens-by-case" "Knows the tokens of Upgrade and Connection only as they are usually written."
        "RFC 6455 4.2.1" SERVER &["20.1.5", "20.1.6", "20.1.7"];
    ConnectionNoList "connection-no-list" "Takes Connection for one token."
        "RFC 6455 4.2.1" SERVER &["20.1.8", "20.1.9", "20.1.10"];
    AbsoluteTargetRefused "absolute-target-refused" "Refuses a target in absolute form."
        "RFC 9112 3.2.2" SERVER &["20.1.21"];
    SpacesRefused "spaces-refused" "Refuses values with white space around them."
        "RFC 9112 5" SERVER &["20.1.12"];
    UnknownExtensionRefused "unknown-extension-refused" "Refuses a request that offers an unknown extension."
        "RFC 6455 9.1" SERVER &["20.1.17", "24.2.14", "24.2.15"];
    EarlyFramesLost "early-frames-lost" "Loses what comes in one segment with the request."
        "RFC 6455 4.2.2" SERVER &["20.2.3", "20.2.4", "20.2.5"];
    LongHeadRefused "long-head-refused" "Refuses a request of more than 2,000 bytes."
        "RFC 9112 3" SERVER &["20.7.1"];
    // The opening handshake of a client.
    RequestVersion12 "request-version-12" "Asks for version 12."
        "RFC 6455 4.1" CLIENT ALL;
    RequestShortKey "request-short-key" "Sends a key of 15 bytes."
        "RFC 6455 4.1" CLIENT ALL;
    RequestWithoutConnection "request-without-connection" "Asks without Connection."
        "RFC 6455 4.1" CLIENT ALL;
    RequestByPost "request-by-post" "Asks with the method POST."
        "RFC 6455 4.1" CLIENT ALL;
    // The response as a client reads it.
    StatusUnchecked "status-unchecked" "Takes a response of any status for one that opens the connection."
        "RFC 6455 4.1" CLIENT &["21.2.1", "21.2.2", "21.2.3"];
    UpgradeUnchecked "upgrade-unchecked" "Accepts a response whatever Upgrade it has."
        "RFC 6455 4.1" CLIENT &["21.2.7", "21.2.10"];
    ConnectionUnchecked "connection-unchecked" "Accepts a response whatever Connection it has."
        "RFC 6455 4.1" CLIENT &["21.2.8", "21.2.11"];
    AcceptUnchecked "accept-unchecked" "Accepts a response whatever Sec-WebSocket-Accept it has."
        "RFC 6455 4.1" CLIENT &["21.2.9", "21.2.12", "21.2.13", "21.2.14", "21.2.15"];
    SubprotocolUnchecked "subprotocol-unchecked" "Accepts a subprotocol that was not offered."
        "RFC 6455 4.1" CLIENT &["21.2.16"];
    ExtensionsUnchecked "extensions-unchecked" "Accepts whatever extensions it does not know, and uses none."
        "RFC 6455 4.1" CLIENT
        &["21.2.17", "21.2.18", "21.2.19", "21.2.20", "21.2.21", "21.2.22", "21.2.23", "21.2.24",
          "21.2.25", "21.2.26"];
    // Frames.
    SegmentRestLost "segment-rest-lost" "Loses what comes behind a frame in one segment."
        "RFC 6455 5.4" BOTH &["2.10", "5.3", "5.6", "7.1.5", "22.2.*", "25.2.*"];
    WrongMasking "wrong-masking" "Masks as a server, does not mask as a client."
        "RFC 6455 5.1" BOTH JUDGED;
    AnyMasking "any-masking" "Accepts frames that are not masked as they should be."
        "RFC 6455 5.1" BOTH &["23.4.8", "25.1.1", "25.1.2", "25.1.3", "25.1.4"];
    LongLengths "long-lengths" "Sends lengths below 126 in 16 bits."
        "RFC 6455 5.2" BOTH JUDGED;
    AnyLengths "any-lengths" "Accepts lengths that are not in their shortest form."
        "RFC 6455 5.2" BOTH &["25.1.5", "25.1.6", "25.1.7"];
    HighBit "high-bit" "Ignores the highest bit of a length of 64 bits."
        "RFC 6455 5.2" BOTH &["25.1.10"];
    Rsv1Ignored "rsv1-ignored" "Ignores RSV1 without an extension."
        "RFC 6455 5.2" BOTH &["3.4"];
    Rsv2Ignored "rsv2-ignored" "Ignores RSV2."
        "RFC 6455 5.2" BOTH &["3.2", "23.4.4", "24.5.7", "24.5.9"];
    Rsv3Ignored "rsv3-ignored" "Ignores RSV3."
        "RFC 6455 5.2" BOTH &["3.1", "24.5.8"];
    DataOpcodesIgnored "data-opcodes-ignored" "Skips frames with the opcodes 3 to 7."
        "RFC 6455 5.2" BOTH &["4.1.*", "20.2.6", "23.4.3"];
    ControlOpcodesIgnored "control-opcodes-ignored" "Skips frames with the opcodes 11 to 15."
        "RFC 6455 5.2" BOTH &["4.2.*"];
    PhaseCarried "phase-carried" "Begins the masking key of a fragment where the one before ended."
        "RFC 6455 5.3" SERVER FRAGMENTS;
    PhaseLostAt64K "phase-lost-at-64k" "Loses the phase of the masking key after 65,536 bytes of a frame."
        "RFC 6455 5.3" SERVER
        &["9.1.2", "9.1.3", "9.1.4", "9.1.5", "9.1.6", "9.2.2", "9.2.6", "9.5.*", "9.6.*"];
    PhaseLostByChunks "phase-lost-by-chunks" "Begins the masking key again every 4,093 bytes of a frame."
        "RFC 6455 5.3" SERVER
        &["1.1.6", "1.1.7", "1.1.8", "1.2.6", "1.2.7", "1.2.8", "9.1.*", "9.2.*", "9.5.*", "9.6.*",
          "9.7.6", "9.8.6"];
    // Control frames.
    FragmentedControl "fragmented-control" "Accepts control frames in fragments, and skips the second one."
        "RFC 6455 5.5" BOTH &["5.1", "5.2", "23.4.6"];
    LongControl "long-control" "Accepts control frames of more than 125 bytes."
        "RFC 6455 5.5" BOTH &["2.5", "7.3.6", "23.4.7", "25.1.11"];
    PingsUnanswered "pings-unanswered" "Does not answer pings."
        "RFC 6455 5.5.2" BOTH ANY_PINGS;
    PongEmpty "pong-empty" "Answers a ping without its payload."
        "RFC 6455 5.5.3" BOTH PINGS;
    PongCutAt124 "pong-cut-at-124" "Answers at most 124 bytes of a ping."
        "RFC 6455 5.5.3" BOTH &["2.4", "2.6"];
    PongAnswered "pong-answered" "Answers a pong with a pong."
        "RFC 6455 5.5.3" BOTH &["2.7", "2.8", "2.9"];
    InterleavedSwallowed "interleaved-swallowed" "Skips pings between fragments."
        "RFC 6455 5.4" BOTH INTERLEAVED;
    InterleavedDelayed "interleaved-delayed" "Answers a ping between fragments after the message."
        "RFC 6455 5.4" BOTH INTERLEAVED;
    // Messages.
    OrphansIgnored "orphans-ignored" "Skips continuation frames with nothing to continue."
        "RFC 6455 5.4" BOTH
        &["5.9", "5.10", "5.11", "5.12", "5.13", "5.14", "5.15", "5.16", "5.17"];
    MessageWithinMessage "message-within-message" "Takes a second first fragment for a continuation."
        "RFC 6455 5.4" BOTH &["5.18"];
    FragmentsSwapped "fragments-swapped" "Swaps the first two fragments of a message."
        "RFC 6455 5.4" BOTH FRAGMENTS;
    EmptyFragmentsRefused "empty-fragments-refused" "Fails a connection for a fragment without a payload."
        "RFC 6455 5.4" BOTH &["6.1.2", "6.1.3", "24.3.10", "25.2.4"];
    ManyFragmentsLost "many-fragments-lost" "Loses the fragments of a message beyond the 5,000th."
        "RFC 6455 5.4" BOTH &["9.3.1", "9.3.2", "9.4.1", "9.4.2", "25.2.5", "25.2.6"];
    LastFragmentOnly "last-fragment-only" "Answers the last fragment of a message only."
        "RFC 6455 5.4" BOTH FRAGMENTS;
    TextAsBinary "text-as-binary" "Answers text as binary."
        "RFC 6455 5.6" BOTH
        &["1.1.*", "5.3", "5.4", "5.5", "6.1.*", "6.2.*", "6.5.*", "7.1.1", "9.1.*", "9.7.*"];
    EmptySwallowed "empty-swallowed" "Does not answer empty messages."
        "RFC 6455 5.6" BOTH &["1.1.1", "1.2.1", "6.1.1", "6.1.2", "9.7.1", "9.8.1"];
    LastByteLostAt125 "last-byte-lost-at-125" "Loses the last byte of messages of 125 bytes."
        "RFC 6455 5.2" BOTH &["1.1.2", "1.2.2"];
    LastByteLostAt126 "last-byte-lost-at-126" "Loses the last byte of messages of 126 bytes."
        "RFC 6455 5.2" BOTH &["1.1.3", "1.2.3"];
    LastByteLostAt65535 "last-byte-lost-at-65535" "Loses the last byte of messages of 65,535 bytes."
        "RFC 6455 5.2" BOTH &["1.1.6", "1.2.6"];
    LastByteLostAt65536 "last-byte-lost-at-65536" "Loses the last byte of messages of 65,536 bytes."
        "RFC 6455 5.2" BOTH &["1.1.7", "1.1.8", "1.2.7", "1.2.8", "9.1.1", "9.2.1", "10.1.1"];
    CutAt1M "cut-at-1m" "Answers at most 1,048,576 bytes of a message."
        "RFC 6455 5.6" BOTH &["9.1.4", "9.1.5", "9.1.6", "9.2.4", "9.2.5", "9.2.6", "9.3.*", "9.4.*"];
    EveryTenthLost "every-tenth-lost" "Does not answer every tenth message of a connection."
        "RFC 6455 5.6" BOTH &["9.7.*", "9.8.*", "12.*", "13.*"];
    EveryTenthDoubled "every-tenth-doubled" "Answers every tenth message of a connection twice."
        "RFC 6455 5.6" BOTH &["9.7.*", "9.8.*", "12.*", "13.*"];
    PipelinedSwapped "pipelined-swapped" "Answers a message after the next one, if that has come."
        "RFC 6455 5.6" BOTH &["22.2.1", "22.2.2"];
    // UTF-8.
    Utf8Unchecked "utf8-unchecked" "Answers text that is not UTF-8."
        "RFC 6455 8.1" BOTH INVALID_TEXT;
    Utf8Late "utf8-late" "Fails a connection for text that is not UTF-8 when the message is whole."
        "RFC 6455 8.1" BOTH &["6.4.*"];
    Utf8ByFrame "utf8-by-frame" "Fails a connection for text that is not UTF-8 when the frame is whole."
        "RFC 6455 8.1" BOTH &["6.4.3", "6.4.4"];
    Utf8Surrogates "utf8-surrogates" "Accepts surrogates in text."
        "RFC 3629 3" BOTH &["6.3.*", "6.20.*", "6.21.*"];
    Utf8Overlong "utf8-overlong" "Accepts characters in more bytes than they need."
        "RFC 3629 3" BOTH &["6.17.1", "6.17.2", "6.17.3", "6.18.1", "6.18.2", "6.18.3", "6.19.1"];
    Utf8Beyond "utf8-beyond" "Accepts characters beyond U+10FFFF."
        "RFC 3629 3" BOTH &["6.4.*", "6.11.5"];
    Utf8Unfinished "utf8-unfinished" "Accepts text that ends within a character."
        "RFC 3629 3" BOTH
        &["6.6.1", "6.6.3", "6.6.4", "6.6.6", "6.6.8", "6.6.10", "6.14.6", "6.14.7"];
    Utf8NoncharactersRefused "utf8-noncharacters-refused" "Refuses noncharacters, which are valid."
        "RFC 3629 3" BOTH &["6.22.*"];
    Utf8SplitRefused "utf8-split-refused" "Refuses a character that is split between fragments."
        "RFC 6455 5.6" BOTH &["6.2.3", "6.2.4"];
    // Closing.
    ErrorCode1003 "error-code-1003" "Fails a connection with code 1003 instead of 1002."
        "RFC 6455 7.4.1" BOTH PROTOCOL_ERRORS;
    TextCode1002 "text-code-1002" "Fails a connection for invalid text with code 1002 instead of 1007."
        "RFC 6455 7.4.1" BOTH INVALID_TEXT;
    SizeCode1002 "size-code-1002" "Fails a connection for a message that is too long with code 1002 \
        instead of 1009."
        "RFC 6455 7.4.1" BOTH NONE;
    FailsSilently "fails-silently" "Fails a connection without a close frame, as it should not."
        "RFC 6455 7.1.7" BOTH
        &["23.4.3", "23.4.4", "23.4.5", "23.4.6", "23.4.7", "23.4.8", "23.4.9"];
    ClosesWith1001 "closes-with-1001" "Answers a close frame with code 1001."
        "RFC 6455 5.5.1" BOTH CLOSED_NORMALLY;
    CloseSends1005 "close-sends-1005" "Answers a close frame without a code with code 1005."
        "RFC 6455 7.4.1" BOTH &["7.3.1"];
    CloseReasonBroken "close-reason-broken" "Answers a close frame with a reason that is not UTF-8."
        "RFC 6455 5.5.1" BOTH CLOSED;
    CloseUnanswered "close-unanswered" "Goes on after a close frame as if there was none."
        "RFC 6455 5.5.1" BOTH CLOSED;
    CloseTwice "close-twice" "Answers a close frame with two close frames."
        "RFC 6455 5.5.1" BOTH &["23.4.1", "23.4.2"];
    CloseDropped "close-dropped" "Ends the TCP connection instead of answering a close frame."
        "RFC 6455 5.5.1" BOTH CLOSED;
    CloseAfterMessage "close-after-message" "Answers a close frame between fragments after the message."
        "RFC 6455 5.5.1" BOTH &["7.1.5"];
    AnswersAfterClose "answers-after-close" "Answers messages and pings after its close frame."
        "RFC 6455 5.5.1" SERVER &["7.1.3", "7.1.4"];
    CloseCodesUnchecked "close-codes-unchecked" "Accepts every close code."
        "RFC 6455 7.4" BOTH &["7.9.*"];
    CloseCodesPrivateRefused "close-codes-private-refused" "Refuses the close codes from 3000 on."
        "RFC 6455 7.4.2" BOTH &["7.7.10", "7.7.11", "7.7.12", "7.7.13"];
    CloseReasonUnchecked "close-reason-unchecked" "Accepts a reason that is not UTF-8."
        "RFC 6455 5.5.1" BOTH &["7.5.1"];
    CloseHalfCode "close-half-code" "Answers a close frame of one byte with code 1000."
        "RFC 6455 5.5.1" BOTH &["7.3.2"];
    TcpNotDropped "tcp-not-dropped" "Leaves the end of the TCP connection to the client."
        "RFC 6455 7.1.1" SERVER JUDGED;
    ResetAtEnd "reset-at-end" "Ends the TCP connection with a reset."
        "RFC 6455 7.1.1" SERVER &["23.4.1", "23.4.2"];
    EndUnnoticed "end-unnoticed" "Leaves the connection open when the client has ended what it sends."
        "RFC 6455 7.1.5" SERVER &["23.2.*"];
    ResetSpoilsNext "reset-spoils-next" "Serves one connection after the other, and ends one that comes \
        after a reset."
        "RFC 6455 7.1.7" SERVER &["23.3.*"];
    // Compression.
    DeflateUnmarked "deflate-unmarked" "Sends compressed messages without RSV1."
        "RFC 7692 6" BOTH COMPRESSED;
    DeflateMarkedContinuation "deflate-marked-continuation" "Sends compressed messages in two fragments, \
        both with RSV1."
        "RFC 7692 6.1" BOTH COMPRESSED;
    DeflateTailKept "deflate-tail-kept" "Leaves 00 00 ff ff at the end of compressed messages."
        "RFC 7692 7.2.1" BOTH COMPRESSED;
    DeflateTailCut "deflate-tail-cut" "Cuts off a fifth byte at the end of compressed messages."
        "RFC 7692 7.2.1" BOTH &["12.*", "13.*", "24.3.1", "24.3.7"];
    DeflateEmptyMissing "deflate-empty-missing" "Compresses an empty message to nothing."
        "RFC 7692 7.2.3.6" BOTH &["24.3.7", "24.7.3"];
    DeflateWindowExceeded "deflate-window-exceeded" "Refers back up to 32 KiB, as far as it can, whatever \
        window was agreed to."
        "RFC 7692 7.1.2.1" SERVER
        &["13.3.4", "13.3.5", "13.3.6", "13.3.11", "13.5.4", "13.5.5", "13.5.6", "13.5.11", "13.7.4",
          "13.7.5", "13.7.6", "13.7.11", "24.7.5"];
    DeflateContextKept "deflate-context-kept" "Refers to earlier messages after agreeing not to."
        "RFC 7692 7.1.1.1" SERVER &["13.2.*", "13.5.*", "13.6.*", "13.7.*", "24.7.4"];
    DeflateContextLost "deflate-context-lost" "Forgets earlier messages, to which the peer may refer."
        "RFC 7692 7.2.2" BOTH &["12.1.*", "13.1.*", "24.7.1", "24.7.2", "24.7.3"];
    DeflateShortWindow "deflate-short-window" "Cannot inflate references beyond 256 bytes."
        "RFC 7692 7.1.2.2" BOTH &["12.1.6", "13.1.6"];
    DeflateWindowUnanswered "deflate-window-unanswered" "Accepts server_max_window_bits without answering it."
        "RFC 7692 7.1.2.1" SERVER &["13.3.*", "13.5.*", "24.2.7", "24.2.8", "24.2.10"];
    DeflateAnyOffer "deflate-any-offer" "Accepts offers with unknown, repeated and malformed parameters."
        "RFC 7692 7.1" SERVER &["24.1.1", "24.1.2", "24.1.4", "24.1.6", "24.1.7", "24.1.14", "24.1.19"];
    DeflateFirstOffer "deflate-first-offer" "Considers the first offer only."
        "RFC 6455 9.1" SERVER &["24.2.13", "24.2.14", "24.2.15"];
    DeflateControl "deflate-control" "Ignores RSV1 on control frames."
        "RFC 7692 6.1" BOTH &["24.5.1", "24.5.2", "24.5.3", "24.5.6"];
    DeflateContinuation "deflate-continuation" "Ignores RSV1 on continuation frames."
        "RFC 7692 6.1" BOTH &["24.5.4", "24.5.5"];
    DeflateStoredRefused "deflate-stored-refused" "Fails a connection for a message that begins with a \
        stored block."
        "RFC 7692 7.2.3.3" BOTH &["24.3.3", "24.3.6"];
    DeflateFinalRefused "deflate-final-refused" "Fails a connection for a message that begins with a block \
        with BFINAL."
        "RFC 7692 7.2.3.4" BOTH &["24.3.5"];
    DeflateEmptyRefused "deflate-empty-refused" "Fails a connection for an empty message that is compressed."
        "RFC 7692 7.2.3.6" BOTH &["24.3.7", "24.7.3"];
    DeflatePlainRefused "deflate-plain-refused" "Fails a connection for a message that is not compressed, \
        once compression is agreed on."
        "RFC 7692 6" BOTH &["24.2.1", "24.3.12", "24.3.13", "24.7.2"];
    DeflateErrorsIgnored "deflate-errors-ignored" "Answers what could be inflated of a broken message."
        "RFC 7692 7.2.2" BOTH
        &["24.4.1", "24.4.2", "24.4.3", "24.4.4", "24.4.5", "24.4.6", "24.4.7", "24.4.8", "24.4.10"];
    DeflateTextUnchecked "deflate-text-unchecked" "Answers compressed text that is not UTF-8."
        "RFC 6455 8.1" BOTH &["24.4.9"];
    DeflateUnlimited "deflate-unlimited" "Limits the length of a message only before it is inflated."
        "RFC 6455 10.4" BOTH NONE;
    // What is rare and right.
    LowerCaseFields "lower-case-fields" "Writes the names of fields in lower case and their tokens in \
        upper case."
        "" SERVER NONE;
    ByFragment "by-fragment" "Answers each fragment of an uncompressed message when it has come."
        "" BOTH NONE;
    PingsFirst "pings-first" "Sends a ping before each answer to a message."
        "" BOTH NONE;
    // Sections 12 and 13 call it UNIMPLEMENTED.
    NoDeflate "no-deflate" "Declines permessage-deflate."
        "" BOTH NONE;
}

impl Fault {
    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// What it does, in a sentence.
    pub fn description(self) -> &'static str {
        self.row().description
    }

    /// The rule that it breaks, such as `RFC 6455 5.5.1`; nothing if it breaks none.
    pub fn rule(self) -> Option<&'static str> {
        Some(self.row().rule).filter(|rule| !rule.is_empty())
    }

    /// Whether it breaks no rule. Then no case may fail for it.
    pub fn is_legal(self) -> bool {
        self.rule().is_none()
    }

    /// Whether this end of a connection can have it.
    pub fn fits(self, role: Role) -> bool {
        self.row().roles.contains(&role)
    }

    /// The cases that must notice it, by their numbers, those of the Autobahn suite and own ones; `9.*` are
    /// all whose numbers begin so. A case notices a fault if one of its two verdicts differs from that on
    /// the right server, where only OK is good: NON-STRICT and FAILED BY CLIENT count, too. Other cases
    /// may notice it as well. Of a fault that both ends may have, an own case is one for servers.
    pub fn cases(self) -> &'static [&'static str] {
        self.row().cases
    }

    /// Whether this case must notice it.
    pub fn is_noticed_by(self, case: &str) -> bool {
        self.cases().iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => case.starts_with(beginning),
            None => case == *pattern,
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Fault, String> {
        let named = Fault::ALL.iter().copied().find(|fault| fault.name() == name);
        named.ok_or_else(|| format!("there is no fault {name:?}; --list names all"))
    }
}
