//! What the options of TLS mean for a command.

use super::Failure;
use crate::cli::TlsOptions;
use crate::tls::Trust;

/// The warning about `--insecure`.
const UNCHECKED: &str = "Nobody checked whose certificate the server has shown (--insecure).";

/// Whom to trust, if TLS is `spoken` at all.
///
/// # Errors
///
/// When the options have no effect, or a file cannot be used.
pub(super) fn trust(options: &TlsOptions, spoken: bool) -> Result<Option<Trust>, Failure> {
    match spoken {
        true => Ok(Some(options.trust()?)),
        false if options.is_given() => Err(Failure::Usage(
            "--ca, --insecure and --tls-resume have no effect without a target that begins with wss://"
                .to_owned(),
        )),
        false => Ok(None),
    }
}

/// What the results say of a certificate that was not checked.
pub(super) fn warning(options: &TlsOptions) -> Option<String> {
    options.insecure.then(|| UNCHECKED.to_owned())
}
