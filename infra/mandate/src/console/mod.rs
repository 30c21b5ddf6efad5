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
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use axum::{Router, middleware};
use futures_util::future::try_join_all;
use serde_json::json;
use shared::{random::random_bytes, text::hex};
use tokio::net::TcpListener;

use crate::{api::Api, args::ConsoleArgs, output::Output, problem::Problem};

use self::{entry::EntryPage, pass::Pass};

/// The most free ports that are tried, where another program has the same one at `::1`.
const MAX_PORTS: usize = 10;

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
    /// A name of this machine that is new with each start, and so is an origin in which no program has left anything.
    name: String,
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
        let unheard_of = || match random_bytes::<16>(random) {
            Ok(bytes) => Ok(hex(bytes.as_slice())),
            Err(error) => Err(Problem::new("internal", error.to_string())),
        };
        let (name, page) = (format!("mandate-{}.localhost", unheard_of()?), format!("/{}/", unheard_of()?));
        Ok(Self { api, mode, port, name, pass, page, entry_folder: None, hunts: Mutex::default() })
    }

    /// The address that lets one browser in, once. Every program can look its host up.
    fn address(&self) -> String {
        format!("http://{}:{}/?token={}", Ipv4Addr::LOCALHOST, self.port, self.pass.token())
    }

    /// The same address for the browser that this program starts. It has the name that is new with this start, so that no
    /// service worker sees the token. Safari cannot look that name up.
    fn address_to_open(&self) -> String {
        if cfg!(target_os = "macos") {
            return self.address();
        }
        format!("http://{}:{}/?token={}", self.name, self.port, self.pass.token())
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
    let (listeners, port) = listen(args.port).await?;
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
        let page = EntryPage::create(&console.address_to_open(), &random);
        entry = page.ok().filter(|page| open::that_detached(page.path()).is_ok());
        if entry.is_none() {
            out.note("No browser could be started: open the address yourself.");
        }
    }
    console.entry_folder = entry.as_ref().map(|page| page.folder().to_owned());
    let router = router(console);
    let served = listeners.into_iter().map(|listener| axum::serve(listener, router.clone()).into_future());
    let ended = try_join_all(served).await;
    ended.map(drop).map_err(|error| Problem::new("internal", format!("The page cannot be served: {error}.")))
}

/// Listens on loopback, and never on another interface. A browser tries a name of this machine at `::1` first, where
/// another program must not get the token. So the port is taken there, too, unless the machine has no such address.
async fn listen(port: u16) -> Result<(Vec<TcpListener>, u16), Problem> {
    let bind = async |address: IpAddr, port| TcpListener::bind((address, port)).await;
    let refused = |error: std::io::Error| {
        Problem::new("port_in_use", format!("The port {port} of this machine cannot be used: {error}."))
            .advise("Another console may have it: end that one, or leave out --port for a free port.")
    };
    let mut attempts = 0;
    loop {
        let listener = bind(Ipv4Addr::LOCALHOST.into(), port).await.map_err(refused)?;
        let taken = listener.local_addr().map_err(refused)?.port();
        match bind(Ipv6Addr::LOCALHOST.into(), taken).await {
            Ok(second) => return Ok((vec![listener, second], taken)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                attempts += 1;
                if port != 0 || attempts == MAX_PORTS {
                    return Err(refused(error));
                }
            }
            Err(_) => return Ok((vec![listener], taken)),
        }
    }
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
