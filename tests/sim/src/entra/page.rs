//! The pages of the login host: plain HTML, no scripts.

use jiff::Timestamp;

use super::Aadsts;
use crate::{clock::guid, http::Response};

pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

pub(super) fn page(status: u16, title: &str, body: &str) -> Response {
    let title = escape(title);
    Response::html(
        status,
        format!(
            r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; background: #f2f2f2; color: #1b1b1b; margin: 0 }}
main {{ max-width: 28rem; margin: 3rem auto; padding: 2rem; background: #fff; box-shadow: 0 2px 6px #0003 }}
h1 {{ font-size: 1.4rem; margin-top: 0 }}
.note {{ color: #616161; font-size: .875rem }}
button {{ font: inherit; padding: .5rem 1.5rem; margin: .25rem .25rem .25rem 0; border: 1px solid #8a8886; background: #fff }}
button.user {{ display: block; width: 100%; text-align: left }}
button.primary {{ background: #0067b8; border-color: #0067b8; color: #fff }}
</style>
</head>
<body>
<main>
<p class="note">Simulated Microsoft sign-in</p>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"#
        ),
    )
}

/// Where Entra does not trust the redirect URI, it shows the error itself.
pub(super) fn error(status: u16, aadsts: &Aadsts, now: Timestamp) -> Response {
    let description = escape(&aadsts.description(&guid(), &guid(), now));
    page(
        status,
        "Sorry, but we’re having trouble signing you in.",
        &format!(r#"<p id="error" data-code="{}">{description}</p>"#, aadsts.code),
    )
}
