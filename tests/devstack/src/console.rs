//! Output to the terminal, in one place.

use tokio::time::Instant;

/// Receives the progress of the long steps of a start.
pub trait Progress: Send {
    /// A step starts, and the one before it is complete.
    fn step(&mut self, name: &str);
    /// A line about the current step.
    fn detail(&mut self, line: &str);
    /// Returns `true` if a tool with its own progress display, such as cargo, may write to the terminal.
    fn shows_output(&self) -> bool {
        false
    }
}

/// Discards all progress, for tests.
#[derive(Clone, Copy, Debug, Default)]
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
    /// Prints a line of the result to standard output.
    #[expect(clippy::print_stdout, reason = "the program's output")]
    pub fn line(&mut self, line: &str) {
        self.step = None;
        println!("{line}");
    }

    /// Prints an error as one line to standard error.
    #[expect(clippy::print_stderr, reason = "the program's errors")]
    pub fn error(&mut self, line: &str) {
        self.step = None;
        eprintln!("error: {line}");
    }
}

impl Progress for Console {
    #[expect(clippy::print_stderr, reason = "progress is not part of the result")]
    fn step(&mut self, name: &str) {
        if let Some(started) = self.step.replace(crate::ambient::instant())
            && started.elapsed().as_secs() >= 2
        {
            eprintln!("    {} s", started.elapsed().as_secs());
        }
        eprintln!("- {name}");
    }

    #[expect(clippy::print_stderr, reason = "progress is not part of the result")]
    fn detail(&mut self, line: &str) {
        eprintln!("    {line}");
    }

    fn shows_output(&self) -> bool {
        true
    }
}
