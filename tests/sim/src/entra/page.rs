//! The pages of the login host: plain HTML without scripts.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::{Aadsts, flow::SignedInUser};
use crate::{clock::guid, http::Response, world::World};

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

/// The page that shows an error itself, for a redirect URI that Entra does not trust.
pub(super) fn error(status: u16, aadsts: &Aadsts, now: Timestamp) -> Response {
    let description = escape(&aadsts.description(&guid(), &guid(), now));
    page(
        status,
        "Sorry, but we’re having trouble signing you in.",
        &format!(r#"<p id="error" data-code="{}">{description}</p>"#, aadsts.code),
    )
}

/// The account picker: one button for each person of any tenant.
pub(super) fn account_picker(world: &World, flow: &str, app: &str) -> Response {
    let mut body = format!(
        r#"<p>to continue to <strong>{}</strong></p>
<form method="post" action="/login">
<input type="hidden" name="flow" value="{}">
"#,
        escape(app),
        escape(flow),
    );
    for tenant in world.tenants.values() {
        for user in &tenant.seed.users {
            let _ = writeln!(
                body,
                r#"<button class="user" name="user" value="{}/{}" data-user="{}" data-tenant="{}">{}<br><span class="note">{}</span></button>"#,
                escape(&tenant.seed.tenant_id),
                escape(&user.oid),
                escape(&user.name),
                escape(&tenant.seed.tenant_id),
                escape(&user.name),
                escape(if tenant.seed.display_name.is_empty() {
                    &tenant.seed.domain
                } else {
                    &tenant.seed.display_name
                }),
            );
        }
    }
    body.push_str(
        r#"<button id="cancel" name="user" value="">Cancel</button>
</form>"#,
    );
    page(200, "Pick an account", &body)
}

/// The permissions prompt of a person's first sign-in.
pub(super) fn permissions_prompt(flow: &str, signed_in: &SignedInUser, app: &str) -> Response {
    let (flow, app) = (escape(flow), escape(app));
    let user = escape(&format!("{}/{}", signed_in.tenant_id, signed_in.oid));
    let body = format!(
        r#"<p><strong>{app}</strong> would like to:</p>
<ul><li>View your basic profile</li><li>Maintain access to data you have given it access to</li></ul>
<form method="post" action="/login">
<input type="hidden" name="flow" value="{flow}">
<input type="hidden" name="accept" value="yes">
<button id="accept" class="primary" name="user" value="{user}">Accept</button>
<button id="cancel" name="user" value="">Cancel</button>
</form>"#
    );
    page(200, "Permissions requested", &body)
}
