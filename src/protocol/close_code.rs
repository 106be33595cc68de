//! The codes of close frames, and which of them may be sent (RFC 6455 section 7.4).

/// The status code of a close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseCode(u16);

impl CloseCode {
    /// The purpose of the connection is fulfilled.
    pub const NORMAL: CloseCode = CloseCode(1000);
    /// The endpoint is going away: the server is stopping.
    pub const GOING_AWAY: CloseCode = CloseCode(1001);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: CloseCode = CloseCode(1002);
    /// Data did not fit the type of its message: text that is not UTF-8.
    pub const INVALID_DATA: CloseCode = CloseCode(1007);
    /// The peer does something that this endpoint does not tolerate.
    pub const POLICY_VIOLATION: CloseCode = CloseCode(1008);
    /// The message is too big for this endpoint.
    pub const MESSAGE_TOO_BIG: CloseCode = CloseCode(1009);
    /// The server is overloaded for now (registered by IANA).
    pub const TRY_AGAIN_LATER: CloseCode = CloseCode(1013);

    /// The code as a number.
    pub fn value(self) -> u16 {
        self.0
    }

    /// The code `value`, if an endpoint may send it: the codes registered for use in a frame
    /// (1000 to 1003 and 1007 to 1014; 1004 is reserved, 1005, 1006 and 1015 never travel), and
    /// the ranges for libraries and applications, 3000 to 4999 (section 7.4.2).
    pub fn sendable(value: u16) -> Option<CloseCode> {
        matches!(value, 1000..=1003 | 1007..=1014 | 3000..=4999).then_some(CloseCode(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_may_be_sent() {
        let sendable: Vec<u16> =
            (0..=u16::MAX).filter(|&value| CloseCode::sendable(value).is_some()).collect();
        let expected: Vec<u16> =
            [1000, 1001, 1002, 1003].into_iter().chain(1007..=1014).chain(3000..=4999).collect();
        assert_eq!(sendable, expected);
    }
}
