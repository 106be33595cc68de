//! The rules of RFC 6455 and RFC 7692 that a peer can break, and the close code that each one costs.

use super::close_code::CloseCode;

/// A rule that a peer broke. The connection fails with [`Violation::close_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A reserved bit is set and no extension gives it a meaning (section 5.2).
    ReservedBit,
    /// The bit that marks a compressed message is set on a frame other than its first (RFC 7692
    /// section 6).
    CompressedBitMisplaced,
    /// The opcode is one of 3 to 7 or 11 to 15 (section 5.2).
    ReservedOpcode,
    /// A client's frame is not masked (section 5.1).
    Unmasked,
    /// A server's frame is masked (section 5.1).
    Masked,
    /// The payload length is not in its shortest form, or has its highest bit set (section 5.2).
    LengthEncoding,
    /// A control frame without FIN (section 5.5).
    ControlFragmented,
    /// A control frame of more than 125 bytes (section 5.5).
    ControlTooLong,
    /// A continuation frame with no message to continue (section 5.4).
    ContinuationUnexpected,
    /// A text or binary frame while a message is unfinished (section 5.4).
    ContinuationExpected,
    /// Text that is not UTF-8 (section 8.1).
    TextNotUtf8,
    /// A compressed message that cannot be inflated, or does not end between two blocks (RFC 7692
    /// section 7.2). An empty payload is one.
    CompressionInvalid,
    /// A close frame with a payload of one byte (section 5.5.1).
    CloseTruncated,
    /// A close code that may not be sent (sections 7.4.1 and 7.4.2).
    CloseCodeInvalid,
    /// A close reason that is not UTF-8 (sections 5.5.1 and 8.1).
    CloseReasonNotUtf8,
    /// A message larger than the server accepts (section 7.4.1, code 1009).
    MessageTooBig,
    /// A message in more frames than the server accepts (section 7.4.1, code 1008).
    MessageFramesTooMany,
    /// More control frames in one second than the server accepts (section 7.4.1, code 1008).
    ControlFramesTooMany,
}

impl Violation {
    /// The code of the close frame that fails the connection (section 7.4.1).
    pub fn close_code(self) -> CloseCode {
        match self {
            Violation::ReservedBit
            | Violation::CompressedBitMisplaced
            | Violation::ReservedOpcode
            | Violation::Unmasked
            | Violation::Masked
            | Violation::LengthEncoding
            | Violation::ControlFragmented
            | Violation::ControlTooLong
            | Violation::ContinuationUnexpected
            | Violation::ContinuationExpected
            | Violation::CloseTruncated
            | Violation::CloseCodeInvalid => CloseCode::PROTOCOL_ERROR,
            Violation::TextNotUtf8
            | Violation::CompressionInvalid
            | Violation::CloseReasonNotUtf8 => CloseCode::INVALID_DATA,
            Violation::MessageTooBig => CloseCode::MESSAGE_TOO_BIG,
            Violation::MessageFramesTooMany | Violation::ControlFramesTooMany => {
                CloseCode::POLICY_VIOLATION
            }
        }
    }

    /// The reason in the close frame: ASCII, at most 123 bytes.
    pub fn reason(self) -> &'static str {
        match self {
            Violation::ReservedBit => "reserved bit set without an extension",
            Violation::CompressedBitMisplaced => {
                "RSV1 set on a frame that is not the first of a message"
            }
            Violation::ReservedOpcode => "reserved opcode",
            Violation::Unmasked => "a client must mask its frames",
            Violation::Masked => "a server must not mask its frames",
            Violation::LengthEncoding => "payload length not in its shortest form",
            Violation::ControlFragmented => "control frame without FIN",
            Violation::ControlTooLong => "control frame longer than 125 bytes",
            Violation::ContinuationUnexpected => "continuation frame without a message to continue",
            Violation::ContinuationExpected => "new message before the last one was finished",
            Violation::TextNotUtf8 => "text is not UTF-8",
            Violation::CompressionInvalid => "compressed message cannot be inflated",
            Violation::CloseTruncated => "close frame with a payload of one byte",
            Violation::CloseCodeInvalid => "close code that must not be sent",
            Violation::CloseReasonNotUtf8 => "close reason is not UTF-8",
            Violation::MessageTooBig => "message exceeds this server's limit",
            Violation::MessageFramesTooMany => "message in more frames than this server accepts",
            Violation::ControlFramesTooMany => {
                "more control frames in a second than this server accepts"
            }
        }
    }
}
