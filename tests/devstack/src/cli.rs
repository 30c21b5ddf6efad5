//! The command line of `cargo dev`.

use std::path::PathBuf;

/// Where our HTTP API listens unless `--port` says otherwise; Microsoft's three hosts follow it.
const FIRST_PORT: u16 = 8400;

pub(crate) const HELP: &str = "\
Runs the whole system on this machine: the functions as they are deployed, AWS, and Microsoft simulated.

Usage: cargo dev [OPTIONS]

Without options it stays up: it says what runs where, offers a consent link to click through in a browser, and prints
each incident as it is delivered. r and Enter replaces the app's client secret, as Secrets Manager does once a month.
Ctrl-C ends it.

Options:
  --once             do the whole job unattended, from the invitation to the delivered incidents; exit 0 or 1
  --port N           listen on N (our HTTP API) and N+1 to N+3 (login, Graph, Defender); 8400 without it
  --logs             print what the functions log
  --live             keep AWS local and speak to the real Microsoft; needs --credential
  --credential FILE  the app credential as JSON: {\"client_id\": \"...\", \"client_secret\": \"...\"}
  --help             print this
";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Run(Options),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) once: bool,
    pub(crate) logs: bool,
    pub(crate) port: u16,
    /// The file with the app credential, where Microsoft is the real one.
    pub(crate) live: Option<PathBuf>,
}

/// Understands the arguments, or says in one line what is wrong with them.
pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut options = Options { once: false, logs: false, port: FIRST_PORT, live: None };
    let (mut live, mut credential) = (false, None);
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--once" => options.once = true,
            "--logs" => options.logs = true,
            "--live" => live = true,
            "--credential" => credential = Some(PathBuf::from(value()?)),
            "--port" => options.port = port(&value()?)?,
            _ => return Err(format!("{argument} is not an option; see `cargo dev --help`")),
        }
    }
    options.live = match (live, credential) {
        (true, Some(file)) => Some(file),
        (false, None) => None,
        (true, None) => return Err("--live needs --credential FILE".to_owned()),
        (false, Some(_)) => return Err("--credential is for --live; the simulator has an app of its own".to_owned()),
    };
    if options.once && options.live.is_some() {
        return Err("--once signs in by itself, which only the simulator allows; leave out --live".to_owned());
    }
    Ok(Command::Run(options))
}

fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| (1..=u16::MAX - 3).contains(port));
    port.ok_or_else(|| format!("--port {text}: a number from 1 to {} is wanted", u16::MAX - 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_understood() {
        let options = Options { once: false, logs: false, port: 8400, live: None };
        assert_eq!(parsed(""), Ok(Command::Run(options.clone())));
        assert_eq!(
            parsed("--once --port 9000"),
            Ok(Command::Run(Options { once: true, port: 9000, ..options.clone() }))
        );
        let live = Options { logs: true, live: Some("app.json".into()), ..options };
        assert_eq!(parsed("--live --logs --credential app.json"), Ok(Command::Run(live)));
        assert_eq!(parsed("--port 1 -h"), Ok(Command::Help));
    }

    #[test]
    fn mistakes_are_told() {
        for line in ["--port", "--port x", "--port 0", "--port 65533", "--live", "--credential f", "extra", "--once=1"]
        {
            assert!(parsed(line).is_err(), "{line}");
        }
        assert!(parsed("--once --live --credential f").is_err());
    }
}
