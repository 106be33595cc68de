//! Header fields of a request or a response: finding them, and the lists and tokens in them (RFC 9110
//! section 5).

use httparse::Header;

/// The values of all fields called `name`, in their order. Names are case-insensitive (RFC 9110 section
/// 5.1).
pub(in crate::protocol) fn values<'h, 'b>(
    fields: &'h [Header<'b>],
    name: &'static str,
) -> impl Iterator<Item = &'b [u8]> + use<'h, 'b> {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .map(|field| field.value)
}

/// The value of the field called `name`, which must be there, and once.
pub(in crate::protocol) fn sole<'b, E>(
    fields: &[Header<'b>],
    name: &'static str,
    missing: E,
    repeated: E,
) -> Result<&'b [u8], E> {
    let mut values = values(fields, name);
    let value = values.next().ok_or(missing)?;
    if values.next().is_some() { Err(repeated) } else { Ok(value) }
}

/// The elements of the comma-separated list that all fields called `name` make up together (RFC 9110
/// section 5.3), without the empty ones that a recipient has to ignore (section 5.6.1.2).
pub(in crate::protocol) fn elements<'h, 'b>(
    fields: &'h [Header<'b>],
    name: &'static str,
) -> impl Iterator<Item = &'b [u8]> + use<'h, 'b> {
    values(fields, name)
        .flat_map(|value| value.split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// Whether the list called `name` has `token` as an element. The tokens of Upgrade and Connection are
/// case-insensitive (RFC 9110 sections 7.6.1 and 7.8).
pub(in crate::protocol) fn has_token(
    fields: &[Header<'_>],
    name: &'static str,
    token: &str,
) -> bool {
    elements(fields, name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
}

/// Whether `text` is a token (RFC 9110 section 5.6.2).
pub(in crate::protocol) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|&byte| is_of_token(byte))
}

/// Whether a token may have this byte.
pub(in crate::protocol) fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
