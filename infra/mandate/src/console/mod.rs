//! A page on loopback that shows tenants, incidents and hunts in the browser.
//!
//! Any page that the operator visits can send requests to loopback, and any program of the machine can connect to it. So
//! `gate` lets in one browser only, from its own page only, and `routes` has a fixed list of what that browser may
//! reach. The credentials stay in this process.

mod assets;
mod entry;
mod gate;
mod pass;
mod routes;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use axum::{Router, middleware};
use serde_json::json;
use shared::{random::random_bytes, text::hex};
use tokio::net::TcpListener;

use crate::{api::Api, args::ConsoleArgs, output::Output, problem::Problem};

use self::{entry::EntryPage, pass::Pass};

/// The browser's right to change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    ReadOnly,
    Write,
}

/// One console: the API that it speaks to, the browser that it has let in, and what that browser may do.
struct Console {
    api: Api,
    mode: Mode,
    /// The port on loopback.
    port: u16,
    pass: Pass,
    /// The path of the page, which is new with each start. A browser has nothing in its cache for it that a program sent
    /// which had this port before.
    page: String,
    /// The folder of the page that leads the browser here. It goes once the token was exchanged.
    entry_folder: Option<PathBuf>,
    /// The hunts that this console started. Without `--write` the browser may cancel no others.
    hunts: Mutex<HashSet<String>>,
}

impl Console {
    fn new(api: Api, mode: Mode, port: u16, random: &dyn SecureRandom) -> Result<Self, Problem> {
        let pass = Pass::generate(random, port)?;
        let name = random_bytes::<16>(random).map_err(|error| Problem::new("internal", error.to_string()))?;
        let page = format!("/{}/", hex(name.as_slice()));
        Ok(Self { api, mode, port, pass, page, entry_folder: None, hunts: Mutex::default() })
    }

    /// The address that lets one browser in, once.
    fn address(&self) -> String {
        format!("http://{}:{}/?token={}", Ipv4Addr::LOCALHOST, self.port, self.pass.token())
    }

    fn remember_hunt(&self, hunt_id: &str) {
        self.hunts.lock().unwrap_or_else(PoisonError::into_inner).insert(hunt_id.to_owned());
    }

    fn started_hunt(&self, hunt_id: &str) -> bool {
        self.hunts.lock().unwrap_or_else(PoisonError::into_inner).contains(hunt_id)
    }
}

/// Serves the page until Ctrl-C ends the program.
///
/// # Errors
/// `port_in_use`, or `internal` if the page cannot be served.
pub(crate) async fn serve(api: Api, out: &Output, args: &ConsoleArgs) -> Result<(), Problem> {
    let (listener, port) = listen(args.port).await?;
    let mode = if args.write { Mode::Write } else { Mode::ReadOnly };
    let random = SystemRandom::new();
    let mut console = Console::new(api, mode, port, &random)?;
    let address = console.address();
    if out.is_json() {
        out.object(&json!({ "address": address, "write": args.write }))?;
    } else {
        out.say(&address)?;
    }
    let may = if args.write { "and change" } else { "but not change" };
    out.note(format_args!(
        "The address works once. The page can read {may} what {} has. Ctrl-C ends it.",
        console.api.address()
    ));
    // The page is removed at the latest when Ctrl-C ends this function.
    let mut entry = None;
    if !args.no_open {
        let page = EntryPage::create(&address, &random);
        entry = page.ok().filter(|page| open::that_detached(page.path()).is_ok());
        if entry.is_none() {
            out.note("No browser could be started: open the address yourself.");
        }
    }
    console.entry_folder = entry.as_ref().map(|page| page.folder().to_owned());
    axum::serve(listener, router(console))
        .await
        .map_err(|error| Problem::new("internal", format!("The page cannot be served: {error}.")))
}

/// Listens on loopback, and never on another interface.
async fn listen(port: u16) -> Result<(TcpListener, u16), Problem> {
    let refused = |error: std::io::Error| {
        Problem::new("port_in_use", format!("The port {port} of this machine cannot be used: {error}."))
            .advise("Another console may have it: end that one, or leave out --port for a free port.")
    };
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.map_err(refused)?;
    let port = listener.local_addr().map_err(refused)?.port();
    Ok((listener, port))
}

/// Everything that the console serves. [`gate::admit`] comes before every route, and before what is no route.
fn router(console: Console) -> Router {
    let console = Arc::new(console);
    routes::api()
        .merge(assets::files(&console.page))
        .fallback(routes::no_such_route)
        .method_not_allowed_fallback(routes::no_such_route)
        .layer(middleware::from_fn_with_state(Arc::clone(&console), gate::admit))
        .layer(middleware::map_response(gate::with_security_headers))
        .with_state(console)
}
