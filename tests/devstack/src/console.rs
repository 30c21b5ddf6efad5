//! The one place that prints for people.

use tokio::time::Instant;

use crate::ambient;

/// Told about the long steps of a start.
pub trait Progress: Send {
    /// A step begins; the one before it is done.
    fn step(&mut self, what: &str);
    /// A line about the step in hand.
    fn detail(&mut self, line: &str);
    /// Whether a tool that draws progress of its own may write to the terminal.
    fn shows_output(&self) -> bool {
        false
    }
}

/// Says nothing: for tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn step(&mut self, _: &str) {}
    fn detail(&mut self, _: &str) {}
}

/// Prints to the terminal: results to standard output, steps and errors to standard error.
#[derive(Debug, Default)]
pub struct Console {
    step: Option<Instant>,
}

impl Console {
    /// A line of the result.
    #[expect(clippy::print_stdout, reason = "the program's output")]
    pub fn line(&mut self, line: &str) {
        self.step = None;
        println!("{line}");
    }

    /// An error, in one line.
    #[expect(clippy::print_stderr, reason = "the program's errors")]
    pub fn error(&mut self, line: &str) {
        self.step = None;
        eprintln!("error: {line}");
    }
}

impl Progress for Console {
    #[expect(clippy::print_stderr, reason = "progress is no result")]
    fn step(&mut self, what: &str) {
        if let Some(began) = self.step.replace(ambient::instant())
            && began.elapsed().as_secs() >= 2
        {
            eprintln!("    {} s", began.elapsed().as_secs());
        }
        eprintln!("- {what}");
    }

    #[expect(clippy::print_stderr, reason = "progress is no result")]
    fn detail(&mut self, line: &str) {
        eprintln!("    {line}");
    }

    fn shows_output(&self) -> bool {
        true
    }
}
