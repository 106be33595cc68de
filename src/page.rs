//! The page that measures round trips from a browser: one document of HTML that needs nothing else.
//!
//! Its style and script stand in it, and the policy in its header names both by their hashes (CSP level 3), so
//! that a browser runs nothing else. The files under `src/page` are its parts.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA256, digest};

use crate::protocol::{Page, RequestPath};

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");
const WORKER: &str = include_str!("page/worker.js");

/// The page of a server that serves this path, or any.
pub(crate) fn page(path: Option<&RequestPath>) -> Page {
    let path = path.map_or("/", RequestPath::as_str);
    let quoted = path.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    let content = PAGE
        .replace("{version}", env!("CARGO_PKG_VERSION"))
        .replace("{style}", STYLE)
        .replace("{worker}", WORKER)
        .replace("{script}", SCRIPT)
        // Last, because it may hold braces.
        .replace("{path}", &quoted);
    let (style, script) = (hash(STYLE), hash(SCRIPT));
    // The page starts its worker from a text of its own, as a blob.
    let policy = format!(
        "default-src 'none'; script-src '{script}'; style-src '{style}'; worker-src blob:; img-src data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let digest = digest(&SHA256, content.as_bytes());
    let name: String = digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Page::new(content, &name, &policy)
}

/// The source expression that allows this text.
fn hash(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_holds_what_ends_it_or_stands_for_another() {
        for part in [STYLE, SCRIPT, WORKER] {
            assert!(!part.contains("</") && !part.contains("<!--"));
            assert!(
                !["{path}", "{version}", "{style}", "{worker}", "{script}"]
                    .iter()
                    .any(|it| part.contains(it))
            );
        }
    }

    #[test]
    fn the_page_changes_its_name_with_its_content() {
        let path: RequestPath = "/a&b".parse().expect("a path");
        assert_eq!(page(None), page(None));
        assert_ne!(page(None), page(Some(&path)));
    }
}
