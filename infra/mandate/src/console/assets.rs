//! The files of the page, in the binary.

use std::sync::Arc;

use axum::{Router, http::header, routing::get};

use super::Console;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path, content type and content of each file.
pub(super) const FILES: [(&str, &str, &str); 16] = [
    ("/", HTML, include_str!("assets/index.html")),
    ("/console.css", CSS, include_str!("assets/console.css")),
    ("/icon.svg", SVG, include_str!("assets/icon.svg")),
    ("/api.js", SCRIPT, include_str!("assets/api.js")),
    ("/app.js", SCRIPT, include_str!("assets/app.js")),
    ("/csv.js", SCRIPT, include_str!("assets/csv.js")),
    ("/dom.js", SCRIPT, include_str!("assets/dom.js")),
    ("/hunting.js", SCRIPT, include_str!("assets/hunting.js")),
    ("/incident.js", SCRIPT, include_str!("assets/incident.js")),
    ("/incidents.js", SCRIPT, include_str!("assets/incidents.js")),
    ("/invitations.js", SCRIPT, include_str!("assets/invitations.js")),
    ("/parts.js", SCRIPT, include_str!("assets/parts.js")),
    ("/record.js", SCRIPT, include_str!("assets/record.js")),
    ("/tenant.js", SCRIPT, include_str!("assets/tenant.js")),
    ("/tenants.js", SCRIPT, include_str!("assets/tenants.js")),
    ("/words.js", SCRIPT, include_str!("assets/words.js")),
];

pub(super) fn files() -> Router<Arc<Console>> {
    FILES.into_iter().fold(Router::new(), |router, (path, content_type, content)| {
        router.route(path, get(move || async move { ([(header::CONTENT_TYPE, content_type)], content) }))
    })
}
