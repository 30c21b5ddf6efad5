//! The command line of `scale`.

use std::path::PathBuf;

pub(crate) const HELP: &str = "\
Measures the functions with many tenants. Exits with 1 if a check fails.

    cargo run --release --package bench --bin scale -- [PART] [OPTIONS]

PART is one of these; the default is the first three
    polls           the calls of one poll: without a change, with a change, with a version that is already delivered
    dispatch        one dispatch of many due tenants, and two at the same time
    lag             the delay of changes at many tenants, some of which are throttled or failing
    limit           how many tenants this machine carries: `lag` with twice as many each time, until it is too long

OPTIONS
    --tenants N     for lag, limit: number of tenants (1000); one in a hundred is throttled, one in a hundred fails
    --interval S    for lag, limit: the poll interval in seconds (60, as deployed)
    --minutes M     for lag, limit: the time in which incidents change (3)
    --rate R        for lag, limit: changes per second (2)
    --due N         for dispatch: number of due tenants (2000)
    --sample N      for polls: number of tenants (100)
    --write FILE    write the measured counts to FILE, for `cost`; needs all parts
    --help          print this help
";

/// One of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Polls,
    Dispatch,
    Lag,
    Limit,
}

/// The parsed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) part: Option<Part>,
    pub(crate) tenants: usize,
    pub(crate) interval: u32,
    pub(crate) minutes: u32,
    pub(crate) rate: u32,
    pub(crate) due: usize,
    pub(crate) sample: usize,
    pub(crate) write: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { part: None, tenants: 1000, interval: 60, minutes: 3, rate: 2, due: 2000, sample: 100, write: None }
    }
}

impl Options {
    /// Returns `true` if this part is to be measured.
    pub(crate) fn includes(&self, part: Part) -> bool {
        self.part.is_none_or(|chosen| chosen == part)
    }
}

/// Parses the arguments. Returns `None` for `--help`.
pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options::default();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "polls" => options.part = Some(Part::Polls),
            "dispatch" => options.part = Some(Part::Dispatch),
            "lag" => options.part = Some(Part::Lag),
            "limit" => options.part = Some(Part::Limit),
            "--tenants" => options.tenants = number(&argument, arguments.next())?,
            "--interval" => options.interval = number(&argument, arguments.next())?,
            "--minutes" => options.minutes = number(&argument, arguments.next())?,
            "--rate" => options.rate = number(&argument, arguments.next())?,
            "--due" => options.due = number(&argument, arguments.next())?,
            "--sample" => options.sample = number(&argument, arguments.next())?,
            "--write" => {
                options.write = Some(arguments.next().ok_or("--write needs a file")?.into());
            }
            "--help" => return Ok(None),
            _ => return Err(format!("{argument} is not an option of scale; run it with --help to list the options")),
        }
    }
    if options.write.is_some() && options.part.is_some() {
        return Err("--write needs all parts; leave out the part".to_owned());
    }
    Ok(Some(options))
}

fn number<N: std::str::FromStr + PartialOrd + From<u8>>(option: &str, value: Option<String>) -> Result<N, String> {
    let number = value.and_then(|value| value.parse().ok()).filter(|number| *number >= N::from(1));
    number.ok_or_else(|| format!("{option} needs a whole number, at least 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Option<Options>, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_have_defaults_and_are_whole_numbers() {
        assert_eq!(parsed(""), Ok(Some(Options::default())));
        let options = parsed("lag --tenants 50 --interval 120").unwrap().unwrap();
        assert_eq!((options.tenants, options.interval), (50, 120));
        assert!(options.includes(Part::Lag) && !options.includes(Part::Polls));
        assert_eq!(parsed("--help"), Ok(None));
        for wrong in ["--tenants", "--tenants 0", "--rate x", "more", "lag --write f"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
