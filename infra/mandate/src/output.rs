//! Output: tables for people on a terminal, one JSON object a line for programs.

use std::{fmt::Display, io};

use comfy_table::{Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Table, presets};
use console::Term;
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::{
    problem::Problem,
    text::{safe_json, shown},
};

/// The width of a terminal that does not say it.
const DEFAULT_WIDTH: u16 = 100;

/// The streams of a command, and the form of what goes there.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    stdout: Term,
    stderr: Term,
    /// One JSON object a line instead of tables and sentences.
    json: bool,
    /// The person asked for JSON, so problems are JSON, too.
    json_problems: bool,
    colour: bool,
    width: u16,
    /// The zone of times in tables.
    pub(crate) zone: TimeZone,
}

impl Output {
    /// The output of this process. Tables are for terminals only.
    pub(crate) fn of_process(json: bool) -> Self {
        let (stdout, stderr) = (Term::stdout(), Term::stderr());
        let people = stdout.is_term() && !json;
        Self {
            json: !people,
            json_problems: json,
            colour: people && has_colour(),
            width: stdout.size_checked().map_or(DEFAULT_WIDTH, |(_, columns)| columns.max(40)),
            zone: TimeZone::system(),
            stdout,
            stderr,
        }
    }

    /// Returns true if a program reads the output.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Returns true if the person asked for JSON, and not only the place where the output goes.
    pub(crate) fn wants_json_problems(&self) -> bool {
        self.json_problems
    }

    /// Returns true if standard error is a terminal on which progress may move.
    pub(crate) fn shows_progress(&self) -> bool {
        self.stderr.is_term() && !self.json_problems
    }

    /// Writes one JSON object on a line of its own.
    pub(crate) fn object(&self, value: &Value) -> Result<(), Problem> {
        self.say(safe_json(value))
    }

    /// Writes one sentence for people. Parts of it that come from outside are made safe by the caller, with [`shown`].
    pub(crate) fn say(&self, text: impl Display) -> Result<(), Problem> {
        self.stdout.write_line(&text.to_string()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Problem::new(OUTPUT_CLOSED, "The output was closed."),
            _ => Problem::new("internal", format!("The output cannot be written: {error}.")),
        })
    }

    /// Writes a note to standard error, which is for people in every case.
    pub(crate) fn note(&self, text: impl Display) {
        let _ = self.stderr.write_line(&text.to_string());
    }

    /// Says on a terminal what the program is doing.
    pub(crate) fn progress(&self, text: impl Display) {
        if self.shows_progress() {
            self.note(format_args!("{text} …"));
        }
    }

    /// Writes a table, or nothing for one without rows.
    pub(crate) fn table(&self, rows: Rows) -> Result<(), Problem> {
        if rows.rows.is_empty() {
            return Ok(());
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(self.width);
        table.force_no_tty();
        if self.colour {
            table.enforce_styling();
        }
        table.set_header(rows.header.iter().map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
        for row in rows.rows {
            table.add_row(row.into_iter().map(|field| field.cell(self.colour)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 1));
        }
        for column in rows.unbroken {
            if let Some(column) = table.column_mut(column) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        for line in table.lines() {
            self.say(line.trim_end())?;
        }
        Ok(())
    }

    /// Writes names and values, one pair a line.
    pub(crate) fn pairs(&self, pairs: Vec<(&str, Field)>) -> Result<(), Problem> {
        let widest = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, field) in pairs {
            self.say(format_args!("{name:widest$}  {}", self.styled(&field)))?;
        }
        Ok(())
    }

    /// The field as text, in its colour where there is one.
    pub(crate) fn styled(&self, field: &Field) -> String {
        let style = match field.mood {
            Mood::Plain => return field.text.clone(),
            Mood::Good => console::Style::new().green(),
            Mood::Doubtful => console::Style::new().yellow(),
            Mood::Bad => console::Style::new().red(),
            Mood::Quiet => console::Style::new().dim(),
        };
        style.force_styling(self.colour).apply_to(&field.text).to_string()
    }

    /// Writes a problem to standard error: its code, its detail and what to do next.
    pub(crate) fn problem(&self, problem: &Problem) {
        if self.json_problems {
            let value = serde_json::to_value(problem).unwrap_or_default();
            self.note(safe_json(&value));
            return;
        }
        self.note(format_args!("mandate: {}: {}", shown(&problem.code), shown(&problem.detail)));
        if let Some(reason) = &problem.reason {
            self.note(format_args!("  reason: {}", shown(reason)));
        }
        if let Some(seconds) = problem.retry_after_seconds {
            self.note(format_args!("  Try again in {}.", crate::time::seconds(seconds.try_into().unwrap_or(i64::MAX))));
        }
        if let Some(advice) = &problem.advice {
            self.note(format_args!("  {}", shown(advice)));
        }
        if let Some(instance) = problem.instance.as_ref().filter(|_| problem.status.is_some_and(|status| status >= 500))
        {
            self.note(format_args!("  request id: {}", shown(instance)));
        }
    }
}

/// The judgement of a value. It decides the colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Plain,
    Good,
    Doubtful,
    Bad,
    Quiet,
}

/// One value of a table. Its text is safe to print.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    text: String,
    mood: Mood,
}

impl Field {
    /// The same value after another one.
    pub(crate) fn after(self, first: &str) -> Self {
        Self { text: format!("{first}  {}", self.text), ..self }
    }

    /// A value in a colour. Control characters in it are shown.
    pub(crate) fn new(text: &str, mood: Mood) -> Self {
        Self { text: shown(text), mood }
    }

    fn cell(self, colour: bool) -> Cell {
        let cell = Cell::new(self.text);
        if !colour {
            return cell;
        }
        match self.mood {
            Mood::Plain => cell,
            Mood::Good => cell.fg(Color::Green),
            Mood::Doubtful => cell.fg(Color::Yellow),
            Mood::Bad => cell.fg(Color::Red),
            Mood::Quiet => cell.add_attribute(Attribute::Dim),
        }
    }
}

impl<T: AsRef<str>> From<T> for Field {
    fn from(text: T) -> Self {
        Self::new(text.as_ref(), Mood::Plain)
    }
}

/// The rows of a table under a header.
#[expect(clippy::struct_field_names, reason = "a table is its rows")]
pub(crate) struct Rows {
    header: Vec<String>,
    rows: Vec<Vec<Field>>,
    /// The columns that a person copies, which no line break may split.
    unbroken: Vec<usize>,
}

impl Rows {
    pub(crate) fn new<T: AsRef<str>>(header: impl IntoIterator<Item = T>) -> Self {
        Self {
            header: header.into_iter().map(|name| shown(name.as_ref())).collect(),
            rows: Vec::new(),
            unbroken: Vec::new(),
        }
    }

    /// Keeps the values of a column on one line, however narrow the terminal is.
    #[must_use]
    pub(crate) fn unbroken(mut self, column: usize) -> Self {
        self.unbroken.push(column);
        self
    }

    pub(crate) fn push(&mut self, row: Vec<Field>) {
        self.rows.push(row);
    }
}

/// The problem of a reader that has closed our output, as `head` does. It ends the program without a word.
pub(crate) const OUTPUT_CLOSED: &str = "output_closed";

/// Returns true if the terminal has colours and the person wants them (`NO_COLOR`, `TERM=dumb`).
#[expect(clippy::disallowed_methods, reason = "the one place that reads how the terminal is set")]
fn has_colour() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    !unwanted && !dumb
}
