//! The simulator as a program.

use std::{io::Write as _, process::ExitCode};

use sim::{Sim, SimOptions};
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
Microsoft Entra, Microsoft Graph and the Defender XDR API, simulated on 127.0.0.1.

Usage: sim [OPTIONS]

Options:
      --entra-port <PORT>     Port of the login host [default: any free one]
      --graph-port <PORT>     Port of Microsoft Graph [default: any free one]
      --defender-port <PORT>  Port of the Defender XDR API [default: any free one]
      --seed <FILE>           JSON with apps, tenants, grants and incidents to start with
      --verbose               One line on standard error for each request
  -h, --help                  This text

Control it over HTTP at /_sim on the login host; tests/sim/README.md has the list.
";

#[derive(Default)]
struct Arguments {
    options: SimOptions,
    seed: Option<String>,
    verbose: bool,
    help: bool,
}

fn parse_arguments(mut args: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(arg) = args.next() {
        let (name, mut value) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (arg, None),
        };
        let mut value = || value.take().or_else(|| args.next()).ok_or_else(|| format!("{name} needs a value"));
        let port = |value: String| value.parse::<u16>().map_err(|_| format!("'{value}' is not a port"));
        match name.as_str() {
            "--entra-port" => arguments.options.entra_port = port(value()?)?,
            "--graph-port" => arguments.options.graph_port = port(value()?)?,
            "--defender-port" => arguments.options.defender_port = port(value()?)?,
            "--seed" => arguments.seed = Some(value()?),
            "--verbose" => arguments.verbose = true,
            "-h" | "--help" => arguments.help = true,
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(arguments)
}

#[tokio::main]
async fn main() -> ExitCode {
    match parse_arguments(std::env::args().skip(1)) {
        Ok(Arguments { help: true, .. }) => print(HELP),
        Ok(arguments) => match run(arguments).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.to_string()),
        },
        Err(message) => fail(&format!("{message}; see --help")),
    }
}

async fn run(arguments: Arguments) -> std::io::Result<()> {
    let sim = Sim::start(arguments.options).await?;
    sim.set_verbose(arguments.verbose);
    if let Some(file) = arguments.seed {
        sim.seed(&std::fs::read_to_string(file)?).map_err(std::io::Error::other)?;
    }
    // Before the addresses, which tell the caller that it may end the program.
    let mut interrupt = signal(SignalKind::interrupt())?;
    print(&format!("entra    {}\ngraph    {}\ndefender {}\n", sim.entra_url(), sim.graph_url(), sim.defender_url()));
    interrupt.recv().await;
    Ok(())
}

fn print(text: &str) -> ExitCode {
    // A closed standard output is no reason to fail.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn fail(message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "sim: {message}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Arguments, String> {
        parse_arguments(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn option_values_follow_a_space_or_an_equals_sign() {
        let parsed = parse(&["--entra-port", "1", "--graph-port=2", "--verbose"]).unwrap();
        assert_eq!((parsed.options.entra_port, parsed.options.graph_port, parsed.verbose), (1, 2, true));
        assert!(parse(&["--entra-port"]).is_err());
        assert!(parse(&["--entra-port", "x"]).is_err());
        assert!(parse(&["--nonsense"]).is_err());
    }
}
