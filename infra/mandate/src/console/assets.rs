//! The files of the page, in the binary.

use std::sync::Arc;

use axum::{
    Router,
    http::{StatusCode, header},
    routing::get,
};

use super::Console;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Name, content type and content of each file. The page itself has no name.
pub(super) const FILES: [(&str, &str, &str); 16] = [
    ("", HTML, include_str!("assets/index.html")),
    ("console.css", CSS, include_str!("assets/console.css")),
    ("icon.svg", SVG, include_str!("assets/icon.svg")),
    ("api.js", SCRIPT, include_str!("assets/api.js")),
    ("app.js", SCRIPT, include_str!("assets/app.js")),
    ("csv.js", SCRIPT, include_str!("assets/csv.js")),
    ("dom.js", SCRIPT, include_str!("assets/dom.js")),
    ("hunting.js", SCRIPT, include_str!("assets/hunting.js")),
    ("incident.js", SCRIPT, include_str!("assets/incident.js")),
    ("incidents.js", SCRIPT, include_str!("assets/incidents.js")),
    ("invitations.js", SCRIPT, include_str!("assets/invitations.js")),
    ("parts.js", SCRIPT, include_str!("assets/parts.js")),
    ("record.js", SCRIPT, include_str!("assets/record.js")),
    ("tenant.js", SCRIPT, include_str!("assets/tenant.js")),
    ("tenants.js", SCRIPT, include_str!("assets/tenants.js")),
    ("words.js", SCRIPT, include_str!("assets/words.js")),
];

/// The files below the path of the page, and a redirect to it from the root.
pub(super) fn files(page: &str) -> Router<Arc<Console>> {
    let to_page = [(header::LOCATION, page.to_owned())];
    let root = Router::new().route("/", get(move || async move { (StatusCode::SEE_OTHER, to_page) }));
    FILES.into_iter().fold(root, |router, (name, content_type, content)| {
        router.route(
            &format!("{page}{name}"),
            get(move || async move { ([(header::CONTENT_TYPE, content_type)], content) }),
        )
    })
}
