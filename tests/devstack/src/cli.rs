//! The command line of `cargo dev`.

use crate::credential::CredentialSource;

/// The port of our HTTP API without `--port`. Microsoft's three hosts use the following ports.
const DEFAULT_PORT: u16 = 8400;

pub(crate) const HELP: &str = "\
Runs the whole system on this machine: the functions as they are deployed, AWS, and a simulated Microsoft.

Usage: cargo dev [OPTIONS]

Without options it keeps running: it prints the addresses of all parts and a consent link to open in a browser, then
every incident as it is delivered. Type r and Enter to replace the app's client secret, as Secrets Manager does once a
month. Ctrl-C ends it.

Options:
  --once             run the whole job unattended, from the invitation to delivered incidents; exit with 0 or 1
  --port N           listen on N (our HTTP API) and on N+1 to N+3 (login, Graph, Defender) [default: 8400]
  --chaos            inject faults at Microsoft and in AWS, kill functions, and end with a table of what was delivered
  --logs             print the log lines of the functions as well
  --live             keep AWS local and use the real Microsoft; needs --credential
  --credential FILE  app credential for --live, as JSON: {\"client_id\": \"...\", \"client_secret\": \"...\"}. Only its
                     owner may read the file; - reads standard input
  -h, --help         print this help

Examples:
  cargo dev                                    start the system, then open the consent link that it prints
  cargo dev --once                             check that everything works; less than a minute after the build
  cargo dev --once --chaos                     check that nothing is lost while everything fails; some minutes
  cargo dev --port 9000 --logs                 use ports 9000 to 9003 and show the functions' logs
  cargo dev --live --credential app.json       onboard a real tenant, with an app registration of your own
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
    pub(crate) chaos: bool,
    pub(crate) port: u16,
    /// The place of the app credential, for the real Microsoft.
    pub(crate) live: Option<CredentialSource>,
}

/// Parses the arguments. An error is one sentence that says what to do.
pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut options = Options { once: false, logs: false, chaos: false, port: DEFAULT_PORT, live: None };
    let (mut live, mut credential) = (false, None);
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value; see `cargo dev --help`"));
        match argument.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--once" => options.once = true,
            "--logs" => options.logs = true,
            "--chaos" => options.chaos = true,
            "--live" => live = true,
            "--credential" => credential = Some(CredentialSource::parse(&value()?)),
            "--port" => options.port = port(&value()?)?,
            _ => {
                return Err(format!(
                    "{argument} is not an option of `cargo dev`; run `cargo dev --help` to list the options"
                ));
            }
        }
    }
    options.live = match (live, credential) {
        (true, Some(source)) => Some(source),
        (false, None) => None,
        (true, None) => {
            return Err("--live needs an app credential; add --credential FILE, or --credential - for standard input"
                .to_owned());
        }
        (false, Some(_)) => {
            return Err("--credential is only used with --live; add --live, or leave out --credential".to_owned());
        }
    };
    if options.once && options.live.is_some() {
        return Err("--once signs in unattended, which only the simulator allows; leave out --live".to_owned());
    }
    if options.chaos && options.live.is_some() {
        return Err("--chaos makes the simulator fail; leave out --live".to_owned());
    }
    Ok(Command::Run(options))
}

fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| (1..=u16::MAX - 3).contains(port));
    port.ok_or_else(|| format!("--port {text} is not usable; give a number from 1 to {}", u16::MAX - 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_parsed() {
        let options = Options { once: false, logs: false, chaos: false, port: 8400, live: None };
        assert_eq!(parsed(""), Ok(Command::Run(options.clone())));
        assert_eq!(
            parsed("--once --port 9000"),
            Ok(Command::Run(Options { once: true, port: 9000, ..options.clone() }))
        );
        assert_eq!(parsed("--once --chaos"), Ok(Command::Run(Options { once: true, chaos: true, ..options.clone() })));
        let live = Options { logs: true, live: Some(CredentialSource::File("app.json".into())), ..options.clone() };
        assert_eq!(parsed("--live --logs --credential app.json"), Ok(Command::Run(live)));
        let piped = Options { live: Some(CredentialSource::StandardInput), ..options };
        assert_eq!(parsed("--live --credential -"), Ok(Command::Run(piped)));
        assert_eq!(parsed("--port 1 -h"), Ok(Command::Help));
    }

    #[test]
    fn help_lists_every_option_with_examples() {
        for option in ["--once", "--port N", "--chaos", "--logs", "--live", "--credential FILE", "-h, --help"] {
            assert!(HELP.contains(&format!("\n  {option} ")), "{option}");
        }
        assert!(HELP.contains("Examples:\n  cargo dev"));
        assert_eq!(parsed("-h"), Ok(Command::Help));
    }

    #[test]
    fn unknown_option_points_to_the_help() {
        let message = parsed("--onec").unwrap_err();
        assert_eq!(message, "--onec is not an option of `cargo dev`; run `cargo dev --help` to list the options");
    }

    #[test]
    fn invalid_arguments_are_refused() {
        for line in ["--port", "--port x", "--port 0", "--port 65533", "--live", "--credential f", "extra", "--once=1"]
        {
            assert!(parsed(line).is_err(), "{line}");
        }
        assert!(parsed("--once --live --credential f").is_err());
        assert!(parsed("--chaos --live --credential f").is_err());
    }
}
